"""An exporter on a real database of Dagster's, and real runs for it to count."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import dagster as dg
import psycopg2
import pytest

from pipeline.exporter.alerts import Alerts
from pipeline.exporter.database import Database
from pipeline.exporter.exporter import Exporter
from pipeline.exporter.metrics import Registry
from pipeline.exporter.monitor import Monitor
from pipeline.exporter.outbox import Outbox
from pipeline.exporter.topics import build_topics
from pipeline.operate.database import connect
from pipeline.operate.instance import ensure_instance, open_instance
from pipeline.settings import Settings
from tests.conftest import administrators_url

BROKEN = {"name": "here", "updatedTimestamp": 0.0, "locationOrLoadError": {"__typename": "PythonError"}}
NOTHING: dict[str, Any] = {
    "workspaceOrError": {"locationEntries": [BROKEN]},
    "instance": {"daemonHealth": {"allDaemonStatuses": []}},
}
Figures = Callable[..., float | None]


class Watched:
    """An exporter, and the figures that a scrape would read."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] | None = None,
        steady: Callable[[], float] | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        """With *outbox* it evaluates alerts too, and that is how people are told."""
        self.settings = settings
        self.workspace: dict[str, Any] = NOTHING
        self.database = Database(settings)
        self.registry = Registry()
        self.monitor = Monitor(self.registry, settings)
        topics = [*build_topics(self.registry, settings, lambda query: self.ask(query)), self.monitor]
        if outbox:
            self.alerts = Alerts(self.registry, outbox)
            topics = [*topics, self.alerts]
        options = {"clock": clock, "steady": steady or clock} if clock else {}
        self.exporter = Exporter(self.registry, self.database, topics, version="test", **options)

    def ask(self, query: str) -> dict[str, Any]:
        """What the webserver answers."""
        return self.workspace

    def start(self, **options: Any) -> "Watched":
        self.exporter.start(**options)
        return self

    def poll(self) -> None:
        assert self.exporter.poll()

    def value(self, metric: str, /, **labels: str) -> float | None:
        """The sum of the page's samples with these labels; None if there is none."""
        from prometheus_client.parser import text_string_to_metric_families

        found = [
            sample.value
            for family in text_string_to_metric_families(b"".join(self.exporter.pages.text).decode())
            for sample in family.samples
            if sample.name == metric and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None

    def again(self) -> "Watched":
        """Another exporter on the same database, as after a restart."""
        self.database.close()
        return Watched(self.settings)


@pytest.fixture
def watched(settings: Settings) -> Watched:
    """Started on an empty log."""
    return Watched(settings).start()


@pytest.fixture
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    ensure_instance(settings)
    with open_instance(settings) as opened:
        yield opened


@pytest.fixture
def sql(settings: Settings) -> Iterator[Callable[..., None]]:
    """Runs a statement as the owner of Dagster's tables."""
    with closing(connect(settings)) as connection:
        connection.autocommit = True

        def run(statement: str, *values: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)

        yield run


@pytest.fixture
def end_session(settings: Settings) -> Callable[[], None]:
    """Ends the exporter's session, as a server that restarts does."""

    def end() -> None:
        statement = (
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'millrace-exporter'"
        )
        address = administrators_url(settings)
        with closing(psycopg2.connect(address, dbname="postgres")) as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    return end


@pytest.fixture
def event(sql: Callable[..., None]) -> Callable[..., None]:
    """Puts an event into the log as it would be stored."""

    def put(
        kind: str,
        run_id: str = "r1",
        *,
        at: float = 1_700_000_000.0,
        body: str = "{}",
        step: str | None = None,
        asset: str | None = None,
    ) -> None:
        sql(
            "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key) "
            "VALUES (%s, %s, %s, to_timestamp(%s) AT TIME ZONE 'UTC', %s, %s)",
            run_id,
            body,
            kind,
            at,
            step,
            asset,
        )

    return put
