{# Incremental strategy for tables of trips: the months of a service whose files changed are replaced as a whole.

   `remember_changed_months` is the model's pre-hook, the model selects `is_changed_month()`, and the strategy
   deletes by the same remembered list: all in one transaction, so that a load that commits meanwhile is either
   seen by all three or by none. A month counts as changed if its files or their loading times differ between raw
   and the table, in either direction: rows of a file that was replaced or is gone leave the table too. #}

{% macro services() %}
    {{ return({
        'citibike': source('citibike', 'trips'),
        'yellow_taxi': source('tlc', 'yellow_taxi'),
        'green_taxi': source('tlc', 'green_taxi'),
        'fhv_taxi': source('tlc', 'fhv_taxi'),
    }) }}
{% endmacro %}

{% macro remember_changed_months(also='') %}
    {% if is_incremental() %}
        set variable changed_months = (
            with in_raw as (
                {% for service, raw in services().items() %}
                    select distinct '{{ service }}' as service, _month, _file, _loaded_at from {{ raw }}
                    {% if not loop.last %} union all {% endif %}
                {% endfor %}
            ),
            in_table as (select distinct service, _month, _file, _loaded_at from {{ this }}),
            changed as (
                (from in_raw except from in_table) union (from in_table except from in_raw)
            )
            select coalesce(list(distinct service || ' ' || _month), [])
            from (
                select service, _month from changed
                {{ also }}
            )
        )
    {% endif %}
{% endmacro %}

{% macro is_changed_month() -%}
    {% if is_incremental() %} list_contains(getvariable('changed_months'), service || ' ' || _month) {% else %} true {% endif %}
{%- endmacro %}

{% macro get_incremental_replace_months_sql(arguments) %}
    {% set columns = get_quoted_csv(arguments['dest_columns'] | map(attribute='name')) %}
    delete from {{ arguments['target_relation'] }}
    where list_contains(getvariable('changed_months'), service || ' ' || _month);
    insert into {{ arguments['target_relation'] }} ({{ columns }})
    select {{ columns }} from {{ arguments['temp_relation'] }}
{% endmacro %}

{# Months of facts whose weather was measured or corrected after they were built. #}
{% macro months_with_other_weather() %}
    union
    select fact.service, fact._month
    from {{ this }} as fact
    left join {{ ref('stg_weather__hourly') }} as weather on weather.hour_utc = fact.started_hour_utc
    where fact.weather_id <> coalesce(weather.weather_id, 'unknown/unknown')
        or fact.temperature_c is distinct from weather.temperature_c
        or fact.precipitation_mm is distinct from weather.precipitation_mm
{% endmacro %}
