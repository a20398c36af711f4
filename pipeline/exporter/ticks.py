"""Ticks of schedules, sensors and automation: how many, how they ended, how long they took, when last.

A tick's row is written when it starts and changed when it ends, so those that were seen unfinished are read again by id.
"""

import json
from typing import Any

from pipeline.exporter.database import Database, Row
from pipeline.exporter.metrics import Registry
from pipeline.exporter.run_facts import UNKNOWN
from pipeline.exporter.topic import Topic

INSTIGATOR = ("type", "name", "code_location")
STATUSES = ("success", "failure", "skipped")
TICK_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
PAGE = 5_000
GIVE_UP_SECONDS = 86_400.0  # a tick that the daemon died in stays STARTED for ever
MAX_GAPS = 10_000


class Ticks(Topic):
    """One series for each instigator."""

    name = "ticks"

    def __init__(self, registry: Registry) -> None:
        self.total = registry.counter("dagster_ticks_total", "Ticks that ended, by how.", (*INSTIGATOR, "status"))
        self.duration = registry.histogram(
            "dagster_tick_duration_seconds", "How long ticks took.", INSTIGATOR, buckets=TICK_SECONDS
        )
        self.last = registry.last_value("dagster_tick_last_timestamp_seconds", "When the last tick began.", INSTIGATOR)
        self.failures = registry.last_value(
            "dagster_tick_consecutive_failures", "Ticks that failed since the last that did not.", INSTIGATOR
        )
        self._cursor: int | None = None
        self._locations: dict[str, str] = {}  # by the instigator's selector
        self._open: dict[int, float] = {}  # id, of an unfinished tick or of none yet → when it was seen first
        # Selector → id of its newest tick, if that failed. Of a schedule whose code server did not answer the same row is
        # tried again, and may yet succeed.
        self._failed: dict[str, int] = {}

    def start_instigator(self, kind: str, name: str, location: str) -> None:
        """Have the series before the first tick."""
        for status in STATUSES:
            self.total.start(kind, name, location, status)
        self.failures.start(kind, name, location)
        self.duration.start(kind, name, location)

    def instigators(self) -> set[tuple[str, str, str]]:
        """Those that have series."""
        return {(kind, name, location) for kind, name, location, _ in self.total.series}

    def forget_instigators(self, gone: set[tuple[str, str, str]]) -> None:
        """Remove the series of those that are gone."""
        for metric in (self.total, self.duration, self.last, self.failures):
            metric.forget_all(INSTIGATOR, gone)

    def adopt(self, database: Database) -> None:
        ((newest,),) = database.rows("SELECT coalesce(max(id), 0) FROM job_ticks")
        self._cursor = int(newest)

    def poll(self, database: Database, now: float) -> None:
        ((last,),) = database.rows("SELECT last_value FROM job_ticks_id_seq")
        if self._cursor is None or last < self._cursor:  # the table was emptied, or restored to an earlier time
            self._open.clear()
            self._failed.clear()
            self.adopt(database)
        columns = "id, type, status, extract(epoch FROM timestamp)::float8, selector_id, tick_body"
        if self._open or self._failed:
            numbers = [*self._open, *self._failed.values()]
            rows = database.rows(f"SELECT {columns} FROM job_ticks WHERE id = ANY(%s) ORDER BY id", numbers)
            self._learn_locations(database, rows)
            self._read(rows, now)
        while True:
            rows = database.rows(
                f"SELECT {columns} FROM job_ticks WHERE id > %s ORDER BY id LIMIT %s", self._cursor, PAGE
            )
            if rows:
                self._learn_locations(database, rows)
                there, last = {row[0] for row in rows}, int(rows[-1][0])
                assert self._cursor is not None
                if last - self._cursor - len(rows) <= MAX_GAPS:
                    self._open.update((number, now) for number in range(self._cursor + 1, last) if number not in there)
                self._cursor = last
                self._read(rows, now)
            if len(rows) < PAGE:
                break
        for number in [number for number, seen in self._open.items() if now - seen > GIVE_UP_SECONDS]:
            del self._open[number]

    def _read(self, rows: list[Row], now: float) -> None:
        for number, kind, status, at, selector, body in rows:
            failed = self._failed.get(selector, 0)
            if number > failed:  # the one before is not tried again
                self._failed.pop(selector, None)
            if status == "STARTED":
                self._open.setdefault(number, now)
                continue
            self._open.pop(number, None)
            if status == "FAILURE":
                if number == failed:
                    continue  # counted already
                if selector is not None and number > failed and len(self._failed) < PAGE:
                    self._failed[selector] = number
            elif number == failed:
                del self._failed[selector]
            self._count(kind.lower(), status.lower(), at, self._locations.get(selector, UNKNOWN), json.loads(body))

    def _learn_locations(self, database: Database, rows: list[Row]) -> None:
        unknown = {row[4] for row in rows} - self._locations.keys() - {None}
        if unknown:
            found = database.rows(
                "SELECT selector_id, instigator_body FROM instigators WHERE selector_id = ANY(%s)", list(unknown)
            )
            self._locations.update((selector, _location(json.loads(body))) for selector, body in found)

    def _count(self, kind: str, status: str, at: float, location: str, body: dict[str, Any]) -> None:
        labels = (kind, str(body.get("job_name") or UNKNOWN), location)
        self.start_instigator(*labels)
        self.total.add(*labels, status if status in STATUSES else UNKNOWN)
        self.last.set(max(at, self.last.series.get(labels, 0.0)), *labels)
        ended = body.get("end_timestamp")
        if ended is not None:
            self.duration.observe(max(float(ended) - at, 0.0), *labels)
        so_far = self.failures.series.get(labels, 0.0)
        self.failures.set(so_far + 1 if status == "failure" else 0, *labels)

    def dump(self) -> Any:
        return {"cursor": self._cursor, "open": list(self._open.items()), "failed": self._failed}

    def load(self, dumped: Any) -> None:
        self._cursor = dumped["cursor"]
        self._open = {int(number): seen for number, seen in dumped["open"]}
        self._failed = dumped.get("failed", {})  # an older version saved none


def _location(body: dict[str, Any]) -> str:
    """The code location in the stored state of an instigator, at whatever depth this version of Dagster has it."""
    for value in body.values():
        if isinstance(value, dict):
            if isinstance(name := value.get("location_name"), str):
                return name
            if (found := _location(value)) != UNKNOWN:
                return found
    return UNKNOWN
