{# Why a trip is refused, and the flag that says so. Of several reasons the first is the primary one. #}
{% macro refusals() %}
    {{ return({
        'duplicate': 'is_duplicate',
        'missing_time': 'is_missing_time',
        'outside_month': 'is_outside_month',
        'ends_before_start': 'ends_before_start',
        'over_a_day': 'is_over_a_day',
        'negative_fare': 'has_negative_fare',
        'zero_distance': 'has_zero_distance',
        'implausible_distance': 'has_implausible_distance',
    }) }}
{% endmacro %}
