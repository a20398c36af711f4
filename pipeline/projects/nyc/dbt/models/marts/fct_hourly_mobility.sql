with hours as (
    select
        service,
        started_hour_utc as hour_utc,
        count(*) as trips,
        avg(duration_seconds) as mean_duration_seconds,
        sum(distance_miles) as distance_miles,
        sum(total_usd) as total_usd
    from {{ ref('fct_trips') }}
    group by all
)

select
    hours.service || ' ' || strftime(hours.hour_utc, '%Y-%m-%dT%H') as hourly_mobility_id,
    hours.service,
    hours.hour_utc,
    {{ new_york('hours.hour_utc') }} as hour_local,
    hour_local::date as date_day,
    hour(hour_local) as hour_of_day,
    hours.trips,
    hours.mean_duration_seconds,
    hours.distance_miles,
    hours.total_usd,
    coalesce(weather.weather_id, 'unknown/unknown') as weather_id,
    weather.temperature_c,
    weather.precipitation_mm
from hours
left join {{ ref('stg_weather__hourly') }} as weather on weather.hour_utc = hours.hour_utc
