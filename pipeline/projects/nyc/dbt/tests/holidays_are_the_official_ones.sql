-- Days published by the U.S. Office of Personnel Management, with Saturdays, Sundays and a year's turn among them.
with official (date_day, is_holiday, is_observed_holiday) as (
    values
        (date '2020-11-11', true, true),
        (date '2020-11-26', true, true),
        (date '2021-01-01', true, true),
        (date '2021-01-18', true, true),
        (date '2021-02-15', true, true),
        (date '2021-05-31', true, true),
        (date '2021-06-18', false, true),
        (date '2021-06-19', true, false),
        (date '2021-07-04', true, false),
        (date '2021-07-05', false, true),
        (date '2021-09-06', true, true),
        (date '2021-10-11', true, true),
        (date '2021-12-24', false, true),
        (date '2021-12-25', true, false),
        (date '2021-12-31', false, true),
        (date '2022-01-01', true, false),
        (date '2020-06-19', false, false),
        (date '2021-03-17', false, false)
)

select official.*
from official
left join {{ ref('dim_date') }} as dim using (date_day)
where dim.is_holiday is distinct from official.is_holiday
    or dim.is_observed_holiday is distinct from official.is_observed_holiday
    or dim.is_business_day is distinct from (isodow(date_day) < 6 and not official.is_observed_holiday)
