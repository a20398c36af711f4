with days as (
    select unnest(range(date '2009-01-01', date '2036-01-01', interval 1 day))::date as date_day
),

-- Nth weekday of a month: day 1-7 is the first, 8-14 the second, and so on.
holidays as (
    select
        date_day,
        case
            when month(date_day) = 1 and day(date_day) = 1 then 'New Year''s Day'
            when month(date_day) = 1 and isodow(date_day) = 1 and day(date_day) between 15 and 21 then 'Martin Luther King Jr. Day'
            when month(date_day) = 2 and isodow(date_day) = 1 and day(date_day) between 15 and 21 then 'Washington''s Birthday'
            when month(date_day) = 5 and isodow(date_day) = 1 and day(date_day) between 25 and 31 then 'Memorial Day'
            when month(date_day) = 6 and day(date_day) = 19 and year(date_day) >= 2021 then 'Juneteenth'
            when month(date_day) = 7 and day(date_day) = 4 then 'Independence Day'
            when month(date_day) = 9 and isodow(date_day) = 1 and day(date_day) between 1 and 7 then 'Labor Day'
            when month(date_day) = 10 and isodow(date_day) = 1 and day(date_day) between 8 and 14 then 'Columbus Day'
            when month(date_day) = 11 and day(date_day) = 11 then 'Veterans Day'
            when month(date_day) = 11 and isodow(date_day) = 4 and day(date_day) between 22 and 28 then 'Thanksgiving Day'
            when month(date_day) = 12 and day(date_day) = 25 then 'Christmas Day'
        end as holiday_name
    from days
),

-- A holiday on Saturday is observed the day before, one on Sunday the day after.
observed as (
    select
        date_day + case isodow(date_day) when 6 then -1 when 7 then 1 else 0 end as date_day,
        holiday_name as observed_holiday_name
    from holidays
    where holiday_name is not null
)

select
    date_day,
    year(date_day) as year,
    quarter(date_day) as quarter,
    month(date_day) as month,
    strftime(date_day, '%Y-%m') as year_month,
    monthname(date_day) as month_name,
    day(date_day) as day_of_month,
    dayofyear(date_day) as day_of_year,
    isoyear(date_day) as iso_year,
    weekofyear(date_day) as iso_week,
    isodow(date_day) as day_of_week,
    dayname(date_day) as day_name,
    isodow(date_day) >= 6 as is_weekend,
    holiday_name,
    holiday_name is not null as is_holiday,
    observed_holiday_name,
    observed_holiday_name is not null as is_observed_holiday,
    isodow(date_day) < 6 and observed_holiday_name is null as is_business_day,
    date_day = last_day(date_day) as is_month_end,
    datediff(
        'hour',
        timezone('UTC', timezone('America/New_York', date_day::timestamp)),
        timezone('UTC', timezone('America/New_York', (date_day + 1)::timestamp))
    ) as hours_in_day
from holidays
left join observed using (date_day)
