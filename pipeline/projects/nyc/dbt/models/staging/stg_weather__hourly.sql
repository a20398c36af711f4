{{ config(materialized='table', persist_docs={'relation': true, 'columns': true}) }}

with hours as (
    select
        date_trunc('hour', time) as hour_utc,
        {{ nan_to_null('temp') }} as temperature_c,
        {{ nan_to_null('precipitation_mm') }} as precipitation_mm,
        {{ nan_to_null('rain_mm') }} as rain_mm,
        null::double as snowfall_cm,
        {{ nan_to_null('cloudcover') }} as cloud_cover_percent,
        {{ nan_to_null('windspeed_10m_km_h') }} as wind_speed_kmh,
        {{ nan_to_null('winddirection_10m') }} as wind_direction_degrees,
        'file' as origin,
        _loaded_at
    from {{ source('weather', 'hourly') }}
    union all by name
    select *, 'api' as origin from {{ ref('stg_open_meteo__hourly') }}
),

-- An hour may come by file and by API: the one that has values, then the API's, then the latest.
ranked as (
    select
        *,
        row_number() over (
            partition by hour_utc order by temperature_c is null, origin, _loaded_at desc, temperature_c
        ) as place
    from hours
    where hour_utc is not null
)

select
    * exclude (place, _loaded_at),
    {{ weather_condition() }} as condition,
    {{ temperature_band() }} as temperature_band,
    condition || '/' || temperature_band as weather_id,
    _loaded_at
from ranked
where place = 1
