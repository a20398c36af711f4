-- The connector is optional: without its table this is empty. Hours not measured yet come as nulls and are left out;
-- the newest month is loaded again each time.
{% set raw = source('open_meteo', 'hourly') %}
{% set measures = {
    'temperature_2m': 'temperature_c',
    'precipitation': 'precipitation_mm',
    'rain': 'rain_mm',
    'snowfall': 'snowfall_cm',
    'cloud_cover': 'cloud_cover_percent',
    'wind_speed_10m': 'wind_speed_kmh',
    'wind_direction_10m': 'wind_direction_degrees',
} %}
{% if execute and adapter.get_relation(raw.database, raw.schema, raw.identifier) %}
from (
    select
        unnest(from_json(hourly -> '$.time', '["TIMESTAMP"]')) as hour_utc,
        {% for name, column in measures.items() %}
            unnest(from_json(hourly -> '$.{{ name }}', '["DOUBLE"]')) as {{ column }},
        {% endfor %}
        _loaded_at
    from {{ raw }}
)
where coalesce(temperature_c, precipitation_mm) is not null
{% else %}
select
    null::timestamp as hour_utc,
    {% for column in measures.values() %}
        null::double as {{ column }},
    {% endfor %}
    null::timestamptz as _loaded_at
where false
{% endif %}
