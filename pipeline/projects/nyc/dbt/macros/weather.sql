{# Precipitation outranks clouds. Limits in mm of water an hour; frozen is what did not fall as rain. #}
{% macro weather_condition() -%}
    case
        when temperature_c is null or precipitation_mm is null then 'unknown'
        when coalesce(snowfall_cm, 0) > 0 or precipitation_mm - coalesce(rain_mm, precipitation_mm) >= 0.1 then 'snow'
        when precipitation_mm >= 7.6 then 'heavy_rain'
        when precipitation_mm >= 0.5 then 'rain'
        when precipitation_mm >= 0.1 then 'drizzle'
        when cloud_cover_percent >= 85 then 'overcast'
        when cloud_cover_percent >= 25 then 'partly_cloudy'
        when cloud_cover_percent >= 0 then 'clear'
        else 'unknown'
    end
{%- endmacro %}

{% macro temperature_band() -%}
    case
        when temperature_c is null then 'unknown'
        when temperature_c < 0 then 'freezing'
        when temperature_c < 10 then 'cold'
        when temperature_c < 20 then 'mild'
        when temperature_c < 28 then 'warm'
        else 'hot'
    end
{%- endmacro %}
