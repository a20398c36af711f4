{# The snapshot of each model names the run that built it, as every other commit to the lake does. #}
{% macro record_run() -%}
    {%- set run_id = env_var('MILLRACE_RUN_ID', '') if execute else '' -%}
    {%- set asset = this.schema ~ '/' ~ this.name -%}
    call {{ this.database }}.set_commit_message(
        'dbt', '{{ asset }} by {{ run_id or "hand" }}',
        extra_info => '{"asset": "{{ asset }}", "run_id": "{{ run_id }}"}')
{%- endmacro %}
