"""Pools: slots, who has them, who waits, since when. The tables are read, as Dagster's own functions may write."""

from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.topic import Topic

ACTIVE = "'STARTING', 'STARTED', 'CANCELING'"  # the statuses in which a run has its slots


class Pools(Topic):
    """One series for each pool that has a limit.

    A pool limits steps, or runs where the instance's pools have the granularity ``run``; Dagster claims no slot then.
    """

    name = "pools"

    def __init__(self, registry: Registry) -> None:
        pool = ("pool",)
        self.limit = registry.gauge("dagster_pool_slots_limit", "Slots of the pool.", pool)
        self.claimed = registry.gauge("dagster_pool_slots_claimed", "Slots that steps or runs have taken.", pool)
        self.pending = registry.gauge(
            "dagster_pool_steps_pending", "Steps that wait for a slot, or queued runs where runs take slots.", pool
        )
        self.oldest = registry.gauge(
            "dagster_pool_oldest_pending_timestamp_seconds", "Since when the first of them waits.", pool
        )
        self.by_run = False
        self.waiting: dict[str, int] = {}  # pool → queued runs that it keeps waiting

    def poll(self, database: Database, now: float) -> None:
        rows = database.rows(
            """SELECT l.concurrency_key, l.limit, coalesce(s.claimed, 0), coalesce(p.pending, 0), p.oldest
               FROM concurrency_limits l
               LEFT JOIN (SELECT concurrency_key, count(*) AS claimed FROM concurrency_slots
                          WHERE run_id IS NOT NULL AND NOT deleted GROUP BY 1) s USING (concurrency_key)
               LEFT JOIN (SELECT concurrency_key, count(*) AS pending, extract(epoch FROM min(create_timestamp))::float8 AS oldest
                          FROM pending_steps WHERE assigned_timestamp IS NULL GROUP BY 1) p USING (concurrency_key)"""
        )
        self.waiting = {}
        if self.by_run and rows:
            rows = self._of_runs(database, {pool: limit for pool, limit, *_ in rows})
        self.limit.replace({(pool,): limit for pool, limit, *_ in rows})
        self.claimed.replace({(pool,): claimed for pool, _, claimed, *_ in rows})
        self.pending.replace({(pool,): pending for pool, _, _, pending, _ in rows})
        self.oldest.replace({(pool,): oldest for pool, *_, oldest in rows if oldest is not None})

    def _of_runs(self, database: Database, limits: dict[str, int]) -> list[tuple[str, int, int, int, float | None]]:
        """The same of the runs that are queued or under way."""
        found = {
            pool: (queued, active, oldest)
            for pool, queued, active, oldest in database.rows(
                f"""SELECT pool, count(*) FILTER (WHERE status = 'QUEUED'), count(*) FILTER (WHERE status <> 'QUEUED'),
                           extract(epoch FROM min(create_timestamp) FILTER (WHERE status = 'QUEUED'))::float8
                    FROM runs, json_array_elements_text(run_body::json #> '{{run_op_concurrency,all_pools,__set__}}') AS pool
                    WHERE status IN ('QUEUED', {ACTIVE}) GROUP BY 1"""
            )
        }
        rows = []
        for pool, limit in limits.items():
            queued, active, oldest = found.get(pool, (0, 0, None))
            self.waiting[pool] = beyond(limit, queued, active)
            rows.append((pool, limit, active, self.waiting[pool], oldest if self.waiting[pool] else None))
        return rows


def beyond(limit: int, queued: int, active: int) -> int:
    """How many of *queued* would exceed *limit*, *active* being under way."""
    return max(queued - max(limit - active, 0), 0)
