with rows_in as (
    {% for service, raw in services().items() %}
        select '{{ service }}' as service, _month as month, count(*) as rows_in from {{ raw }} group by all
        {% if not loop.last %} union all {% endif %}
    {% endfor %}
),

facts as (
    select service, _month as month, count(*) as facts from {{ ref('fct_trips') }} group by all
),

quarantined as (
    select
        service,
        _month as month,
        count(*) as quarantined,
        {% for reason in refusals() %}
            count(*) filter (where refused_reason = '{{ reason }}') as {{ reason }}{{ ',' if not loop.last }}
        {% endfor %}
    from {{ ref('quarantined_trips') }}
    group by all
)

select
    service,
    month,
    coalesce(rows_in, 0) as rows_in,
    coalesce(facts, 0) as facts,
    coalesce(quarantined, 0) as quarantined,
    {% for reason in refusals() %}
        coalesce({{ reason }}, 0) as {{ reason }}{{ ',' if not loop.last }}
    {% endfor %}
from rows_in
full join facts using (service, month)
full join quarantined using (service, month)
