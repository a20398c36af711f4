{% macro payment_type(code) -%}
    case {{ code }}
        when 0 then 'flex_fare' when 1 then 'credit_card' when 2 then 'cash' when 3 then 'no_charge'
        when 4 then 'dispute' when 5 then 'unknown' when 6 then 'voided'
    end
{%- endmacro %}
