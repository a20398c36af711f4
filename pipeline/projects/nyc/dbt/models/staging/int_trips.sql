{% set refusals = refusals() %}
with trips as (
    select
        'citibike' as service, trip_id, started_at_local, ended_at_local,
        'citibike:' || nullif(start_station_id, '') as start_location_id, 'citibike:' || nullif(end_station_id, '') as end_location_id,
        rider_type, is_duplicate, _file, _row, _month, _loaded_at
    from {{ ref('stg_citibike__trips') }}
    {% for taxi in ('yellow_taxi', 'green_taxi') %}
    union all by name
    select
        '{{ taxi }}' as service, trip_id, started_at_local, ended_at_local,
        'tlc:' || start_zone_id as start_location_id, 'tlc:' || end_zone_id as end_location_id,
        passenger_count, distance_miles, fare_usd, tip_usd, tolls_usd, total_usd, payment_type,
        is_duplicate, _file, _row, _month, _loaded_at
    from {{ ref('stg_tlc__' ~ taxi) }}
    {% endfor %}
    union all by name
    select
        'fhv_taxi' as service, trip_id, started_at_local, ended_at_local,
        'tlc:' || start_zone_id as start_location_id, 'tlc:' || end_zone_id as end_location_id,
        is_duplicate, _file, _row, _month, _loaded_at
    from {{ ref('stg_tlc__fhv_taxi') }}
),

-- Late: a time of the repeated hour read as its second pass.
late as (
    select *, {{ utc('started_at_local') }} as start_late, {{ utc('ended_at_local') }} as end_late
    from trips
),

readings as (
    select
        *,
        {{ is_repeated('started_at_local', 'start_late') }} as is_start_repeated,
        {{ is_repeated('ended_at_local', 'end_late') }} as is_end_repeated,
        {{ is_skipped('started_at_local', 'start_late') }} or {{ is_skipped('ended_at_local', 'end_late') }} as is_skipped
    from late
),

-- Of the readings of a repeated hour the shortest trip that does not end before it starts; of equals the first pass.
started as (
    select
        *,
        case
            when is_start_repeated and (is_end_repeated or end_late is null or end_late < start_late)
                then start_late - interval 1 hour
            else start_late
        end as started_at_utc
    from readings
),

ended as (
    select
        *,
        case
            when is_end_repeated and end_late - interval 1 hour >= started_at_utc then end_late - interval 1 hour
            else end_late
        end as ended_at_utc
    from started
),

flagged as (
    select
        *,
        datesub('second', started_at_utc, ended_at_utc) as duration_seconds,
        is_start_repeated or is_end_repeated or is_skipped as is_time_ambiguous,
        coalesce(passenger_count = 0, false) as has_no_passengers,
        started_at_local is null or ended_at_local is null as is_missing_time,
        coalesce(strftime(started_at_local, '%Y-%m') <> _month, false) as is_outside_month,
        coalesce(ended_at_utc <= started_at_utc, false) as ends_before_start,
        coalesce(duration_seconds > 86400, false) as is_over_a_day,
        coalesce(fare_usd < 0 or total_usd < 0, false) as has_negative_fare,
        coalesce(distance_miles <= 0, false) as has_zero_distance,
        coalesce(distance_miles > {{ var('max_trip_miles') }}, false) as has_implausible_distance
    from ended
)

select
    trip_id,
    service,
    started_at_local,
    ended_at_local,
    started_at_utc,
    ended_at_utc,
    duration_seconds,
    start_location_id,
    end_location_id,
    rider_type,
    passenger_count,
    distance_miles,
    fare_usd,
    tip_usd,
    tolls_usd,
    total_usd,
    payment_type,
    is_time_ambiguous,
    has_no_passengers,
    {% for flag in refusals.values() %}
        {{ flag }},
    {% endfor %}
    case
        {% for reason, flag in refusals.items() %}
            when {{ flag }} then '{{ reason }}'
        {% endfor %}
    end as refused_reason,
    _file,
    _row,
    _month,
    _loaded_at
from flagged
