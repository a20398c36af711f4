"""Pools: slots, who has them, who waits, since when. The tables are read, as Dagster's own functions may write."""

from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.topic import Topic


class Pools(Topic):
    """One series for each pool that has a limit."""

    name = "pools"

    def __init__(self, registry: Registry) -> None:
        pool = ("pool",)
        self.limit = registry.gauge("dagster_pool_slots_limit", "Slots of the pool.", pool)
        self.claimed = registry.gauge("dagster_pool_slots_claimed", "Slots that are taken.", pool)
        self.pending = registry.gauge("dagster_pool_steps_pending", "Steps that wait for a slot.", pool)
        self.oldest = registry.gauge(
            "dagster_pool_oldest_pending_timestamp_seconds", "Since when the first of them waits.", pool
        )

    def poll(self, database: Database, now: float) -> None:
        rows = database.rows(
            """SELECT l.concurrency_key, l.limit, coalesce(s.claimed, 0), coalesce(p.pending, 0), p.oldest
               FROM concurrency_limits l
               LEFT JOIN (SELECT concurrency_key, count(*) AS claimed FROM concurrency_slots
                          WHERE run_id IS NOT NULL AND NOT deleted GROUP BY 1) s USING (concurrency_key)
               LEFT JOIN (SELECT concurrency_key, count(*) AS pending, extract(epoch FROM min(create_timestamp))::float8 AS oldest
                          FROM pending_steps WHERE assigned_timestamp IS NULL GROUP BY 1) p USING (concurrency_key)"""
        )
        self.limit.replace({(pool,): limit for pool, limit, *_ in rows})
        self.claimed.replace({(pool,): claimed for pool, _, claimed, *_ in rows})
        self.pending.replace({(pool,): pending for pool, _, _, pending, _ in rows})
        self.oldest.replace({(pool,): oldest for pool, *_, oldest in rows if oldest is not None})
