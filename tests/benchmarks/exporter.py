"""The exporter on a long history: scrapes, polls, its start, its memory, and beside one that polls GraphQL.

The history is of real runs, copied (tests/exporter/history.py): 500 jobs with an asset and a check each, 50 schedules. The
exporter is the real process, its webserver the real one with the 500 jobs. ``python -m tests.benchmarks.exporter 300000``
is the same on a shorter history.
"""

import http.client
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import psycopg2
import yaml

from pipeline.exporter.database import Database
from pipeline.exporter.exporter import SAVE_SECONDS, Exporter
from pipeline.exporter.metrics import MAX_SERIES, Registry
from pipeline.exporter.tail import PAGE
from pipeline.exporter.topics import build_topics
from pipeline.exporter.workspace import ask_webserver
from pipeline.operate.database import connect, stop_embedded, with_database
from pipeline.operate.instance import open_instance
from pipeline.settings import Settings
from tests.benchmarks.rows import Row, row
from tests.conftest import administrators_url
from tests.exporter import history
from tests.exporter.explain import Cost, costs_of_a_poll

EVENTS, SHORT = 3_150_000, 10_000  # 150,000 runs
CAUGHT_UP = 500_000  # events, of the newest
INTERVAL = 15.0  # seconds between two polls, as shipped
SCRAPES = 50
SCRAPE_MS, MEMORY_MB, EVENTS_PER_SECOND, PAGES, DATABASE_TIME = 50, 100, 20_000, 1.2, 50
LATENCY_SECONDS = 60.0  # for which a writer writes
WRITES_PER_SECOND = 20
LABEL_VALUES, GROWTH_MB = 100_000, 300
POLLS = 4  # of each exporter: a minute of them, with all that is done once a minute
NEW_RUNS = 2  # between two polls: 11,520 a day
FLUSH_SECONDS = 11.0  # an idle session tells its times after ten seconds at the latest
START_SECONDS = 900.0


def run(events: int = EVENTS) -> Iterator[Row]:
    """The exporter's rows of the table, each when it is measured."""
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        free = shutil.disk_usage(folder).free
        if free < events * 3_000:
            raise RuntimeError(
                f"{folder} has {free / 1e9:.0f} GB; a history of {events:,} events takes {events * 3e-6:.0f}"
            )
        home = Settings(state_dir=Path(folder))
        settings = with_database(home)
        try:
            _set_up(settings)
            history.record(settings)
            history.grow(settings, SHORT // history.EVENTS_OF_A_RUN)
            short, seconds = costs_of_a_poll(settings), time.perf_counter()
            history.grow(settings, (events - SHORT) // history.EVENTS_OF_A_RUN)
            seconds = time.perf_counter() - seconds
            yield row(f"history, {events:,} events", seconds, "s")
            yield from _pages(short, costs_of_a_poll(settings))
            with _webserver(settings) as address:
                yield from _process(settings, address, min(events, CAUGHT_UP))
                yield from _rival(settings, address)
            yield _label_values(settings)
        finally:
            stop_embedded(home)


def _set_up(settings: Settings) -> None:
    """The server writes no faster than it must for a history of nothing, and nothing works beside what is measured."""
    with closing(psycopg2.connect(administrators_url(settings), dbname="postgres")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for setting in ("fsync = off", "autovacuum = off", "max_wal_size = '8GB'", "track_activities = on"):
                cursor.execute(f"ALTER SYSTEM SET {setting}")
            cursor.execute("SELECT pg_reload_conf()")


# polls


def _pages(short: list[Cost], long: list[Cost]) -> list[Row]:
    """A poll of the same on a long history, beside one on a short."""
    same = [(cost.statement, cost.plan) for cost in short] == [(cost.statement, cost.plan) for cost in long]
    before, after = (sum(cost.buffers for cost in costs) for costs in (short, long))
    return [
        row("poll, statements whose plan changed", float(sum(a.plan != b.plan for a, b in zip(short, long, strict=True))),
            "statements", target="0", passed=same),
        row("poll, pages read, to those at 10,000 events", float(after), "pages", peer=float(before), limit=PAGES),
    ]  # fmt: skip


# the process


class Process:
    """``millrace serve metrics``."""

    def __init__(self, settings: Settings, address: str, *, hours: float = 0.0, interval: float = INTERVAL) -> None:
        self.port = _free_port()
        assert settings.database_url
        environment = {
            **os.environ,
            "MILLRACE_DATABASE_URL": settings.database_url.get_secret_value(),
            "MILLRACE_STATE_DIR": str(settings.state_dir),
            "MILLRACE_METRICS_PORT": str(self.port),
            "MILLRACE_METRICS_INTERVAL_SECONDS": str(interval),
            "MILLRACE_WEBSERVER_URL": address,
        }
        command = [
            sys.executable,
            "-m",
            "pipeline",
            "serve",
            "metrics",
            "--host",
            "127.0.0.1",
            "--backfill",
            str(hours),
        ]
        started = time.perf_counter()
        self._process = subprocess.Popen(command, env=environment)
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        while not self._answers():
            if self._process.poll() is not None or time.perf_counter() > started + START_SECONDS:
                self.end()
                raise RuntimeError(f"{command} ended, or had not counted the past after {START_SECONDS:.0f} s")
            time.sleep(0.02)
        self.start_seconds = time.perf_counter() - started

    def _answers(self) -> bool:
        try:
            return bool(self.scrape())
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return False

    def scrape(self, accept: str = "text/plain") -> bytes:
        """The page; empty while there is none."""
        self._connection.request("GET", "/metrics", headers={"Accept": accept})
        answer = self._connection.getresponse()
        body = answer.read()
        return body if answer.status == 200 else b""

    def value(self, metric: str) -> float:
        """What a metric without labels shows."""
        return _value(self.scrape(), metric)

    def megabytes(self) -> tuple[float, float]:
        """Resident memory now, and at most so far."""
        fields = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        peak = next(int(field.split()[1]) for field in fields if field.startswith("VmHWM"))
        return psutil.Process(self._process.pid).memory_info().rss / 1e6, peak * 1024 / 1e6

    def end(self) -> None:
        """Stop it as Kubernetes does."""
        self._connection.close()
        self._process.terminate()
        self._process.wait(60)


def _value(page: bytes, metric: str) -> float:
    start = page.index(b"\n%s " % metric.encode()) + len(metric) + 2
    return float(page[start : page.index(b"\n", start)])


def _process(settings: Settings, address: str, events: int) -> Iterator[Row]:
    """Catch-up, scrapes, latency and memory of one process."""
    hours = events / history.EVENTS_OF_A_RUN * history.SECONDS_OF_A_RUN / 3600
    floor = _floor(settings, events)
    _forget(settings)
    process = Process(settings, address, hours=hours)
    try:
        counted = process.value("dagster_exporter_events_total")
        rate = counted / process.start_seconds
        yield row(
            f"catch-up, {counted:,.0f} events, its start included", rate, "events/s", peer=floor,
            target=f">= {EVENTS_PER_SECOND:,}", passed=rate >= EVENTS_PER_SECOND,
        )  # fmt: skip
        yield from _scrapes(process)
        yield _latency(settings, process)
        time.sleep(INTERVAL)  # since the start it has saved once at least
        _, peak = process.megabytes()
        yield row(f"memory at most, {history.SHOPS} jobs", peak, "MB", target=f"< {MEMORY_MB}", passed=peak < MEMORY_MB)
    finally:
        process.end()


def _floor(settings: Settings, events: int) -> float:
    """Events a second that a bare loop reads by the same pages, without looking at them."""
    with closing(connect(settings)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT max(id) FROM event_logs")
        (newest,) = cursor.fetchone() or (0,)
        last, count, started = newest - events, 0, time.perf_counter()
        while True:
            cursor.execute("SELECT id, run_id, dagster_event_type, timestamp, step_key, asset_key, event FROM event_logs "
                           "WHERE id > %s ORDER BY id LIMIT %s", [last, PAGE])  # fmt: skip
            page = cursor.fetchall()
            if not page:
                return count / (time.perf_counter() - started)
            last, count = page[-1][0], count + len(page)


def _scrapes(process: Process) -> Iterator[Row]:
    """95th percentile of scrapes spread over more than a poll, in both formats."""
    for name, accept in (("text", "text/plain"), ("OpenMetrics", "application/openmetrics-text; version=1.0.0")):
        taken = []
        for _ in range(SCRAPES):
            started = time.perf_counter()
            page = process.scrape(accept)
            taken.append((time.perf_counter() - started) * 1000)
            time.sleep(1.2 * INTERVAL / SCRAPES)
        series = sum(not line.startswith(b"#") for line in page.splitlines())
        p95 = _percentile(taken)
        title = f"scrape, {name}, {series:,} series, {len(page) / 1e6:.1f} MB, p95 of {SCRAPES}"
        yield row(title, p95, "ms", target=f"< {SCRAPE_MS}", passed=p95 < SCRAPE_MS)


def _latency(settings: Settings, process: Process) -> Row:
    """From when Dagster has stored an event to when a scrape, four a second, shows it counted."""
    stored: list[float] = []
    stop = threading.Event()
    before = process.value("dagster_exporter_events_total")

    def write() -> None:
        with open_instance(settings) as instance:
            (run,) = instance.get_runs(limit=1)
            while not stop.wait(1 / WRITES_PER_SECOND):
                instance.report_engine_event("Something happened.", run)
                stored.append(time.perf_counter())

    writer = threading.Thread(target=write)
    writer.start()
    shown: list[tuple[float, float]] = []
    ends = time.perf_counter() + LATENCY_SECONDS
    while time.perf_counter() < ends + 3 * INTERVAL:
        counted = process.value("dagster_exporter_events_total") - before
        shown.append((time.perf_counter(), counted))
        if time.perf_counter() > ends:
            stop.set()
            writer.join()
            if counted >= len(stored):
                break
        time.sleep(0.25)
    waits = [
        next((at for at, counted in shown if counted > number), float("inf")) - since
        for number, since in enumerate(stored)
    ]
    p95, limit = _percentile(waits), INTERVAL + 1
    name = f"event to metric, {len(stored) / LATENCY_SECONDS:.0f} events/s, poll {INTERVAL:g} s, p95"
    return row(name, p95, "s", target=f"< {limit:g}", passed=p95 < limit)


def _label_values(settings: Settings) -> Row:
    """What as many jobs and assets as nobody has do to memory. No webserver tells which of them exist, so all stay."""
    process = Process(settings, "http://127.0.0.1:9")
    try:
        before, _ = process.megabytes()
    finally:
        process.end()
    kinds = ("PIPELINE_START", "STEP_SUCCESS", "ASSET_MATERIALIZATION", "ASSET_CHECK_EVALUATION", "PIPELINE_SUCCESS")
    history.grow(settings, LABEL_VALUES, shops=LABEL_VALUES, kinds=kinds)
    process = Process(settings, "http://127.0.0.1:9")
    try:
        page = process.scrape()
        assert _value(page, 'dagster_exporter_series_dropped_total{metric="dagster_run_retries_total"}') > 0
        time.sleep(SAVE_SECONDS + INTERVAL)
        _, peak = process.megabytes()
    finally:
        process.end()
    name = f"memory at most, {LABEL_VALUES:,} jobs and assets, {MAX_SERIES:,} series a metric"
    return row(name, peak - before, "MB more", target=f"< {GROWTH_MB}", passed=peak - before < GROWTH_MB)


def _forget(settings: Settings) -> None:
    with closing(connect(settings)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM millrace.exporter_state")


# a rival

RUNS = """query($statuses: [RunStatus!], $after: Float, $cursor: String) {
  runsOrError(filter: {statuses: $statuses, updatedAfter: $after}, cursor: $cursor, limit: 500) { ... on Runs { results {
    runId jobName status creationTime updateTime endTime tags { key value }
    repositoryOrigin { repositoryName repositoryLocationName } } } } }"""
ROSTER = """{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } jobs { name }
    schedules { name scheduleState { status ticks(limit: 1, afterTimestamp: 1) { status timestamp } } }
    sensors { name sensorState { status ticks(limit: 1, afterTimestamp: 1) { status timestamp } } } } } } }"""
LOCATIONS = (
    """{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } } }"""
)
DAEMONS = """{ instance { daemonHealth { allDaemonStatuses {
    daemonType required healthy lastHeartbeatTime lastHeartbeatErrors { message } } } } }"""
POOLS = """{ instance { concurrencyLimits {
    concurrencyKey slotCount activeSlotCount pendingStepCount assignedStepCount } } }"""
ASSETS = """{ assetNodes { assetKey { path } staleStatus } }"""
LATEST = """query($keys: [AssetKeyInput!]!) { assetsLatestInfo(assetKeys: $keys) {
    assetKey { path } latestMaterialization { timestamp } latestRun { id status } } }"""
OVERLAP = 300.0  # seconds, by which it reads again what it has


class Rival:
    """What an exporter that polls GraphQL asks, in the design of HirofumiTsuda/dagster-prometheus-exporter 0.5."""

    def __init__(self, address: str, *, assets: bool) -> None:
        self._address, self._assets, self._newest = f"{address}/graphql", assets, time.time()

    def poll(self) -> None:
        finished = self._runs(["SUCCESS", "FAILURE"], self._newest - OVERLAP)
        self._newest = max([self._newest, *(found["updateTime"] for found in finished)])
        self._runs(["QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"], None)
        for query in (ROSTER, LOCATIONS, DAEMONS, POOLS):
            self._ask(query)
        if self._assets:
            keys = [{"path": node["assetKey"]["path"]} for node in self._ask(ASSETS)["assetNodes"]]
            self._ask(LATEST, keys=keys)

    def _runs(self, statuses: list[str], after: float | None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            cursor = found[-1]["runId"] if found else None
            page = self._ask(RUNS, statuses=statuses, after=after, cursor=cursor)["runsOrError"]["results"]
            found += page
            if len(page) < 500:
                return found

    def _ask(self, query: str, **variables: object) -> Any:
        asked = httpx2.post(self._address, json={"query": query, "variables": variables}, timeout=300)
        answer = asked.raise_for_status().json()
        if answer.get("errors"):
            raise RuntimeError(f"{query}: {answer['errors']}")
        return answer["data"]


def _rival(settings: Settings, address: str) -> Iterator[Row]:
    """Time of the database for a minute of polls, ours and a rival's, with the same that is new before each."""
    _forget(settings)
    now, registry, database = itertools.count(time.time(), INTERVAL), Registry(), Database(settings)
    moment, polls = [next(now)], itertools.count(1)
    topics = build_topics(registry, settings, ask_webserver(address))
    exporter = Exporter(registry, database, topics, clock=lambda: moment[0])
    exporter.start()

    def poll() -> None:
        moment[0] = next(now)
        if not exporter.poll():
            raise RuntimeError("a poll failed: see its warning above")
        if next(polls) % (SAVE_SECONDS / INTERVAL) == 0:
            exporter.save()
        database.rows("SELECT pg_stat_force_next_flush()")

    ours = _database_seconds(settings, poll)
    database.close()
    for title, assets in (("with assets", True), ("without assets, as its version 0.3", False)):
        theirs = _database_seconds(settings, Rival(address, assets=assets).poll)
        name = f"database time of {POLLS} polls, a GraphQL exporter's to ours, {title}"
        held = {"limit": float(DATABASE_TIME), "target": ">="} if assets else {}
        yield row(name, theirs * 1000, "ms", peer=ours * 1000, **held)  # type: ignore[arg-type]


def _database_seconds(settings: Settings, poll: Callable[[], None]) -> float:
    """Time for which sessions of the database were at work for polls, the first of which warms up."""
    seconds = 0.0
    for count in range(POLLS + 1):
        history.grow(settings, NEW_RUNS)
        time.sleep(1)  # its session has ended and told its time
        before = _active_seconds(settings)
        poll()
        time.sleep(FLUSH_SECONDS)
        if count:
            seconds += _active_seconds(settings) - before
    return seconds


def _active_seconds(settings: Settings) -> float:
    """Since ever, of database ``dagster``; asked from another, whose time it is then."""
    with closing(connect(settings, "lake")) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT active_time FROM pg_stat_database WHERE datname = 'dagster'")
        (milliseconds,) = cursor.fetchone() or (0.0,)
        return float(milliseconds) / 1000


@contextmanager
def _webserver(settings: Settings) -> Iterator[str]:
    """The address of a real webserver on this database, with the location of the history's jobs loaded."""
    workspace = settings.dagster_home / "shops.yaml"
    module = {"module_name": "tests.benchmarks.shops", "location_name": history.LOCATION}
    workspace.write_text(yaml.safe_dump({"load_from": [{"python_module": module}]}))
    port = _free_port()
    command = [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port), "-w", str(workspace)]
    environment = {**os.environ, **settings.child_environment(), "PYTHONPATH": str(Path(__file__).parents[2])}
    with (settings.state_dir / "webserver.log").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _serves(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command}: {(settings.state_dir / 'webserver.log').read_text()[-3000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _serves(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/server_info", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _percentile(values: list[float]) -> float:
    """The 95th."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(list(run(int(sys.argv[1]) if sys.argv[1:] else EVENTS)), indent=2) + "\n")
