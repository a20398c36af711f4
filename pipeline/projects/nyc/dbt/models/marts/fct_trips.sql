{{ config(
    materialized='incremental',
    incremental_strategy='replace_months',
    on_schema_change='fail',
    pre_hook="{{ remember_changed_months(also=months_with_other_weather()) }}"
) }}

with trips as (
    select *, date_trunc('hour', started_at_utc) as started_hour_utc
    from {{ ref('int_trips') }}
    where refused_reason is null and {{ is_changed_month() }}
)

select
    trips.trip_id,
    trips.service,
    trips.started_at_local,
    trips.ended_at_local,
    trips.started_at_utc,
    trips.ended_at_utc,
    trips.started_hour_utc,
    trips.started_at_local::date as date_day,
    hour(trips.started_at_local) as hour_of_day,
    trips.duration_seconds,
    start_location.location_id as start_location_id,
    end_location.location_id as end_location_id,
    coalesce(weather.weather_id, 'unknown/unknown') as weather_id,
    weather.temperature_c,
    weather.precipitation_mm,
    trips.rider_type,
    trips.passenger_count,
    trips.distance_miles,
    trips.fare_usd,
    trips.tip_usd,
    trips.tolls_usd,
    trips.total_usd,
    trips.payment_type,
    trips.is_time_ambiguous,
    trips.has_no_passengers,
    coalesce(start_location.is_unknown, true) or coalesce(end_location.is_unknown, true) as has_unknown_location,
    trips._file,
    trips._row,
    trips._month,
    trips._loaded_at
from trips
left join {{ ref('dim_location') }} as start_location on start_location.location_id = trips.start_location_id
left join {{ ref('dim_location') }} as end_location on end_location.location_id = trips.end_location_id
left join {{ ref('stg_weather__hourly') }} as weather on weather.hour_utc = trips.started_hour_utc
