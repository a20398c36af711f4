{# New York local time without a zone -> UTC.

   DuckDB reads a time of the repeated hour (first Sunday of November, 01:00-01:59) as its second pass, and one of
   the skipped hour (second Sunday of March, 02:00-02:59) as if the clock had not been changed: 02:30 is 03:30 EDT.
   The second is what we want. For the first, `is_repeated` tells that another reading exists, one hour earlier. #}
{% macro utc(local) -%}
    timezone('UTC', timezone('America/New_York', {{ local }}))
{%- endmacro %}

{% macro new_york(utc) -%}
    timezone('America/New_York', timezone('UTC', {{ utc }}))
{%- endmacro %}

{# The month and hour are asked first because they are cheap and nearly always answer. #}
{% macro is_repeated(local, utc) -%}
    coalesce(month({{ local }}) = 11 and hour({{ local }}) = 1 and {{ new_york(utc ~ ' - interval 1 hour') }} = {{ local }}, false)
{%- endmacro %}

{% macro is_skipped(local, utc) -%}
    coalesce(month({{ local }}) = 3 and hour({{ local }}) = 2 and {{ new_york(utc) }} <> {{ local }}, false)
{%- endmacro %}
