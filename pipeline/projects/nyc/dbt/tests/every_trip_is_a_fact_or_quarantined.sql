-- Rows in = facts + quarantined, and every quarantined row has exactly one reason, per service and month.
select *
from {{ ref('trip_reconciliation') }}
where rows_in <> facts + quarantined
    or quarantined <> {{ refusals().keys() | join(' + ') }}
