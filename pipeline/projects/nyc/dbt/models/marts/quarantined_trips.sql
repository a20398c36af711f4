{{ config(
    materialized='incremental',
    incremental_strategy='replace_months',
    on_schema_change='fail',
    pre_hook="{{ remember_changed_months() }}"
) }}

select
    trip_id,
    service,
    refused_reason,
    {% for flag in refusals().values() %}
        {{ flag }},
    {% endfor %}
    started_at_local,
    ended_at_local,
    duration_seconds,
    start_location_id,
    end_location_id,
    distance_miles,
    fare_usd,
    total_usd,
    _file,
    _row,
    _month,
    _loaded_at
from {{ ref('int_trips') }}
where refused_reason is not null and {{ is_changed_month() }}
