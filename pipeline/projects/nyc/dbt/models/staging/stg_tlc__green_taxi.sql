select
    {{ trip_id('green_taxi') }} as trip_id,
    lpep_pickup_datetime as started_at_local,
    lpep_dropoff_datetime as ended_at_local,
    pulocationid as start_zone_id,
    dolocationid as end_zone_id,
    passenger_count::integer as passenger_count,
    trip_distance as distance_miles,
    fare_amount as fare_usd,
    tip_amount as tip_usd,
    tolls_amount as tolls_usd,
    total_amount as total_usd,
    {{ payment_type('payment_type') }} as payment_type,
    {{ is_duplicate('lpep_pickup_datetime') }} as is_duplicate,
    _file,
    _row,
    _month,
    _loaded_at
from {{ source('tlc', 'green_taxi') }}
