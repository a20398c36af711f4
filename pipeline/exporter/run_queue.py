"""The queue of runs: how many may be under way, and how many wait for a limit of their tags or pools."""

from collections import Counter
from typing import Any

from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.pools import ACTIVE, Pools, beyond
from pipeline.exporter.topic import Topic


class RunQueue(Topic):
    """One series for each limit. The webserver tells what limits there are, and the tables who waits."""

    name = "run_queue"

    def __init__(self, registry: Registry, pools: Pools) -> None:
        self.limit = registry.gauge("dagster_run_queue_limit_runs", "Runs that may be under way at once.")
        self.blocked = registry.gauge(
            "dagster_run_queue_blocked_runs",
            "Queued runs that a limit of a tag (`key` or `key=value`) or a pool keeps from starting.",
            ("concurrency_key",),
        )
        self._pools, self._limits = pools, list[dict[str, Any]]()

    def configure(self, instance: dict[str, Any]) -> None:
        """Take the limits from what GraphQL says of the instance."""
        if queue := instance.get("runQueueConfig"):
            self.limit.set(queue["maxConcurrentRuns"])
            self._limits = _parsed(queue.get("tagConcurrencyLimitsYaml"))
        self._pools.by_run = (instance.get("poolConfig") or {}).get("poolGranularity") == "run"

    def poll(self, database: Database, now: float) -> None:
        keys = sorted({each["key"] for each in self._limits})
        counts = f"""SELECT key, value, count(*) FILTER (WHERE status = 'QUEUED'), count(*) FILTER (WHERE status <> 'QUEUED')
            FROM runs JOIN run_tags USING (run_id) WHERE status IN ('QUEUED', {ACTIVE}) AND key = ANY(%s) GROUP BY 1, 2"""
        rows = database.rows(counts, [keys]) if keys else []
        blocked = {(pool,): float(waiting) for pool, waiting in self._pools.waiting.items()}
        for each in self._limits:
            key, wanted, limit = each["key"], each.get("value"), each["limit"]
            of_the_limit = [row for row in rows if row[0] == key and (wanted == row[1] or not isinstance(wanted, str))]
            queued, active = Counter[str](), Counter[str]()
            for _, value, count, under_way in of_the_limit:
                group = value if isinstance(wanted, dict) and wanted.get("applyLimitPerUniqueValue") else ""
                queued[group] += count
                active[group] += under_way
            waiting = sum(beyond(limit, queued[group], active[group]) for group in queued)
            blocked[(f"{key}={wanted}" if isinstance(wanted, str) else key,)] = float(waiting)
        self.blocked.replace(blocked)


def _parsed(limits: str | None) -> list[dict[str, Any]]:
    """Each has key, limit, and maybe a value: that of the tag, or that the limit is one for each value."""
    if not limits:
        return []
    import yaml  # for those alone who have such limits

    found: list[dict[str, Any]] = yaml.safe_load(limits)
    return found
