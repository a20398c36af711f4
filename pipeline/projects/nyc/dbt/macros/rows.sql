{# Key of a raw row: file and row number stay the same until the file itself changes. #}
{% macro trip_id(service) -%}
    md5(concat_ws('|', '{{ service }}', _file, _row))
{%- endmacro %}

{# True for each row after the first that is equal in every column the provider sent, within its file's month.
   Partitioned by month so that a filter on the month reaches the raw table. #}
{% macro is_duplicate(started) -%}
    row_number() over (
        partition by _month, {{ started }}, hash(*columns(* exclude (_file, _row, _month, _loaded_at)))
        order by _file, _row
    ) > 1
{%- endmacro %}

{% macro nan_to_null(column) -%}
    case when not isnan({{ column }}) then {{ column }} end
{%- endmacro %}
