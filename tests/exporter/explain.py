"""What the exporter's statements cost the database: each explained as it is sent, so that none is forgotten."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.exporter.database import Database
from pipeline.exporter.exporter import Exporter
from pipeline.exporter.metrics import Registry
from pipeline.exporter.topics import build_topics
from pipeline.settings import Settings
from tests.exporter import history
from tests.exporter.conftest import NOTHING


@dataclass(frozen=True)
class Cost:
    """A statement that was sent. *plan*: its nodes with their table and index; *buffers*: pages that it touched."""

    statement: str
    plan: tuple[str, ...]
    buffers: int

    @property
    def scanned(self) -> set[str]:
        """The tables that it reads from one end to the other."""
        return {node.split()[-1] for node in self.plan if node.startswith("Seq Scan ")}


@contextmanager
def explained() -> Iterator[list[Cost]]:
    """The costs of every statement that any `Database` sends within the block, in their order."""
    costs: list[Cost] = []
    rows = Database.rows

    def explain(self: Database, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        if statement.lstrip().startswith("SELECT"):
            ((found,),) = rows(self, f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {statement}", *values)
            plan = found[0]["Plan"]
            costs.append(Cost(" ".join(statement.split()), tuple(_nodes(plan)), _buffers(plan)))
        return rows(self, statement, *values)

    Database.rows = explain  # type: ignore[method-assign]
    try:
        yield costs
    finally:
        Database.rows = rows  # type: ignore[method-assign]


def _nodes(plan: dict[str, Any]) -> Iterator[str]:
    yield " ".join(str(plan[name]) for name in ("Node Type", "Relation Name", "Index Name") if name in plan)
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


def _buffers(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def costs_of_a_poll(settings: Settings, *, new_runs: int = 25) -> list[Cost]:
    """Those of a poll with all there is to ask: *new_runs*, missing ids, open ticks, and what is read once a minute."""
    now = [time.time()]
    registry = Registry()
    database = Database(settings)
    exporter = Exporter(
        registry, database, build_topics(registry, settings, lambda _: NOTHING), version="", clock=lambda: now[0]
    )
    exporter.start()
    history.grow(settings, 1)
    history.leave_open(settings, 3)
    history.grow(settings, 1)
    assert exporter.poll()
    history.grow(settings, new_runs)
    now[0] += 61
    with explained() as costs:
        assert exporter.poll()
    database.close()
    return costs
