select
    {{ trip_id('fhv_taxi') }} as trip_id,
    pickup_datetime as started_at_local,
    dropoff_datetime as ended_at_local,
    pulocationid::bigint as start_zone_id,
    dolocationid::bigint as end_zone_id,
    upper(dispatching_base_num) as dispatching_base,
    coalesce(sr_flag = 1, false) as is_shared,
    {{ is_duplicate('pickup_datetime') }} as is_duplicate,
    _file,
    _row,
    _month,
    _loaded_at
from {{ source('tlc', 'fhv_taxi') }}
