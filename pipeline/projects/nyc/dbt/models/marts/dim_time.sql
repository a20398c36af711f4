select
    hour as hour_of_day,
    format('{:02d}:00', hour) as label,
    case
        when hour < 6 then 'night'
        when hour < 10 then 'morning'
        when hour < 16 then 'midday'
        when hour < 20 then 'evening'
        else 'late_evening'
    end as day_part,
    hour between 7 and 9 or hour between 16 and 18 as is_rush_hour,
    hour >= 6 and hour < 18 as is_daytime
from range(24) as hours(hour)
