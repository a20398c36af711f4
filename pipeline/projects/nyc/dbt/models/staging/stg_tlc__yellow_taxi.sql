select
    {{ trip_id('yellow_taxi') }} as trip_id,
    tpep_pickup_datetime as started_at_local,
    tpep_dropoff_datetime as ended_at_local,
    pulocationid as start_zone_id,
    dolocationid as end_zone_id,
    passenger_count::integer as passenger_count,
    trip_distance as distance_miles,
    fare_amount as fare_usd,
    tip_amount as tip_usd,
    tolls_amount as tolls_usd,
    total_amount as total_usd,
    {{ payment_type('payment_type') }} as payment_type,
    {{ is_duplicate('tpep_pickup_datetime') }} as is_duplicate,
    _file,
    _row,
    _month,
    _loaded_at
from {{ source('tlc', 'yellow_taxi') }}
