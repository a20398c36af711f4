"""Backfills: how many are under way, how many ended and how."""

from typing import Any

from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.topic import Topic

IN_FLIGHT = ("requested", "canceling", "failing")
ENDS = ("completed", "completed_success", "completed_failed", "failed", "canceled")
MAX_OPEN = 1_000


class Backfills(Topic):
    """A backfill's row changes: those under way are kept by id, and counted once when they end."""

    name = "backfills"

    def __init__(self, registry: Registry) -> None:
        self.in_progress = registry.gauge(
            "dagster_backfills_in_progress", "Backfills under way, by status.", ["status"]
        )
        self.completed = registry.counter(
            "dagster_backfills_completed_total", "Backfills that ended, by how.", ["status"]
        )
        for status in ENDS:
            self.completed.start(status)
        self._cursor: int | None = None
        self._open: set[int] = set()

    def adopt(self, database: Database) -> None:
        ((newest,),) = database.rows("SELECT coalesce(max(id), 0) FROM bulk_actions")
        under_way = database.rows(
            "SELECT id FROM bulk_actions WHERE status = ANY(%s)", [each.upper() for each in IN_FLIGHT]
        )
        self._cursor, self._open = int(newest), {number for (number,) in under_way}

    def poll(self, database: Database, now: float) -> None:
        ((last,),) = database.rows("SELECT last_value FROM bulk_actions_id_seq")
        if self._cursor is None or last < self._cursor:  # the table was emptied, or restored to an earlier time
            self.adopt(database)
        new = database.rows(
            "SELECT id, lower(status) FROM bulk_actions WHERE id > %s ORDER BY id LIMIT %s", self._cursor, MAX_OPEN
        )
        known = database.rows("SELECT id, lower(status) FROM bulk_actions WHERE id = ANY(%s)", list(self._open))
        self._open, counts = set(), dict.fromkeys(((status,) for status in IN_FLIGHT), 0.0)
        for number, status in (*known, *new):
            if status in IN_FLIGHT:
                self._open.add(number)
                counts[(status,)] += 1
            else:
                self.completed.add(status)
        if new:
            self._cursor = new[-1][0]
        self.in_progress.replace(counts)

    def dump(self) -> Any:
        return {"cursor": self._cursor, "open": sorted(self._open)}

    def load(self, dumped: Any) -> None:
        self._cursor, self._open = dumped["cursor"], set(dumped["open"])
