with stops as (
    select start_station_id as id, start_station_name as name, start_latitude as latitude, start_longitude as longitude,
        started_at_local as seen_at, trip_id
    from {{ ref('stg_citibike__trips') }}
    union all
    select end_station_id, end_station_name, end_latitude, end_longitude, ended_at_local, trip_id
    from {{ ref('stg_citibike__trips') }}
)

select
    'tlc:' || locationid as location_id,
    'taxi_zone' as kind,
    zone as name,
    borough,
    service_zone,
    null::double as latitude,
    null::double as longitude,
    locationid in (264, 265) as is_unknown
from {{ source('tlc', 'zones') }}
union all by name
-- A station as its latest trip has it: names and places are corrected now and then.
select
    'citibike:' || id as location_id,
    'bike_station' as kind,
    arg_max(name, row(seen_at, trip_id)) as name,
    arg_max(latitude, row(seen_at, trip_id)) as latitude,
    arg_max(longitude, row(seen_at, trip_id)) as longitude,
    false as is_unknown
from stops
where nullif(id, '') is not null
group by id
