-- Every whole year has one day of 23 and one of 25 hours; in 2021 they were 14 March and 7 November.
select year::varchar as problem
from {{ ref('dim_date') }}
group by year
having count(*) filter (where hours_in_day = 23) <> 1
    or count(*) filter (where hours_in_day = 25) <> 1
    or count(*) filter (where hours_in_day not in (23, 24, 25)) > 0
union all
select date_day::varchar
from {{ ref('dim_date') }}
where (date_day = date '2021-03-14' and hours_in_day <> 23) or (date_day = date '2021-11-07' and hours_in_day <> 25)
