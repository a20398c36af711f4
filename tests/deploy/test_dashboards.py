"""The dashboards that ship: made anew to the letter, lint, and every query has an answer in a real Prometheus."""

import datetime as dt
import json
import math
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import httpx2
import pytest
import yaml
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.events import DagsterEvent, DagsterEventType, EngineEventData, JobFailureData, RunFailureReason
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.types import DaemonHeartbeat
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.__main__ import FOLDER, PAGES
from deploy.grafana.pages import RUNBOOKS, printed
from pipeline.exporter.database import Database
from pipeline.exporter.exporter import Exporter
from pipeline.exporter.metrics import Histogram, Registry
from pipeline.exporter.service import Service
from pipeline.exporter.topics import build_topics
from pipeline.lake.connection import Lake
from pipeline.operate.database import connect
from pipeline.operate.instance import ensure_instance, open_instance
from pipeline.settings import Settings
from tests.deploy.definitions_on_dashboards import defs
from tests.exporter.conftest import Watched
from tests.exporter.test_workspace import PROGRAM
from tests.tools import tool

DEPLOY = FOLDER.parent
FILES = sorted(FOLDER.glob("*.json"))
RULES = [path for path in sorted((DEPLOY / "rules").glob("*.yaml")) if not path.name.endswith(".test.yaml")]
UIDS = {f"millrace-{name}" for name in PAGES}

# dashboard, panel, legend or column → why there is nothing to see in a minute of an empty platform.
WITHOUT_DATA = {
    ("services", "Full metrics", "{{metric}}"): "takes 20,000 series of one metric",
    **{("services", "Certificates", column): "takes a TLS server" for column in ("Holds for", "Valid", "Answers")},
}


def load(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


PANELS = [
    pytest.param(file.stem, panel, id=f"{file.stem}: {panel['title']}")
    for file in FILES
    for panel in panels(load(file))
]


def queries(file: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Panel, legend or column, and target of every query; those of the marks of deployments too."""
    for panel in panels(load(file)):
        renamed = [each["options"].get("renameByName", {}) for each in panel.get("transformations", ())]
        for target in panel["targets"]:
            column = renamed[-1][f"Value #{target['refId']}"] if renamed else target.get("legendFormat", "")
            yield panel["title"], column, target
    for mark in load(file)["annotations"]["list"]:
        yield mark["name"], "", {"expr": mark["expr"], "range": True}


def choices() -> set[str]:
    """The queries of all variables."""
    variables = [each for file in FILES for each in load(file)["templating"]["list"] if each["type"] == "query"]
    return {each["query"]["query"] for each in variables}


def metrics_of(promql: str) -> set[str]:
    """Those that *promql* selects: each has braces, for the variables of the dashboard."""
    return set(re.findall(r"([a-zA-Z_:][\w:]*)\{", promql))


def known_metrics(folder: Path) -> set[str]:
    settings, registry = Settings(state_dir=folder), Registry()
    Exporter(registry, Database(settings), build_topics(registry, settings, lambda _: {}))
    names = {"ALERTS", "ALERTS_FOR_STATE"}
    for metric in registry:
        parts = ("_bucket", "_sum", "_count") if isinstance(metric, Histogram) else ("",)
        names |= {f"{metric.name}{part}" for part in parts}
    for file in RULES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            names |= {rule["record"] for rule in group["rules"] if "record" in rule}
    return names


@pytest.mark.parametrize("name", PAGES)
def test_a_dashboard_is_what_its_code_makes(name: str):
    """If this fails: `python -m deploy.grafana`."""
    assert (FOLDER / f"{name}.json").read_text() == printed(PAGES[name]())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_grafanas_types_have_a_place_for_all_of_it(file: Path):
    dashboard = load(file)

    read = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    for shown in (*read["links"], *read["annotations"]["list"]):
        del shown["placement"]  # which is left out on purpose
    assert read == dashboard


def test_there_is_no_dashboard_that_no_code_makes():
    assert {file.stem for file in FILES} == set(PAGES)
    assert {load(file)["uid"] for file in FILES} == UIDS


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_dashboard_takes_any_data_source_and_is_not_edited_in_place(file: Path):
    dashboard = load(file)
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}

    assert dashboard["title"].startswith("Millrace / ")
    assert dashboard["description"]
    assert dashboard["tags"] == ["millrace"]
    assert dashboard["editable"] is False
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for name in ("namespace", "release"):  # of several at once, what lives in the one hides what is dead in the other
        assert variables[name]["type"] == "query"
        assert not variables[name].get("includeAll")
        assert not variables[name].get("multi")
    sources = re.findall(r'"datasource": (\{.*?"\s*\})', file.read_text(), re.DOTALL)
    assert len(sources) > len(panels(dashboard))
    assert all(json.loads(each) == {"type": "prometheus", "uid": "${datasource}"} for each in sources)
    assert file.stat().st_size < 200_000  # a ConfigMap holds a MiB


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_panels_have_numbers_of_their_own_and_fill_their_lines(file: Path):
    there = load(file)["panels"]
    assert sorted(panel["id"] for panel in there) == list(range(1, len(there) + 1))
    assert len({panel["title"] for panel in there}) >= len(there) - 1  # the burn rate is a number and a graph

    lines: dict[int, int] = {}
    for panel in there:
        lines[panel["gridPos"]["y"]] = lines.get(panel["gridPos"]["y"], 0) + panel["gridPos"]["w"]
    assert set(lines.values()) == {24}


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_a_panel_says_what_it_shows_and_in_what_unit(name: str, panel: dict[str, Any]):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["targets"]
    used = {panel["fieldConfig"]["defaults"]["unit"]}
    for override in panel["fieldConfig"]["overrides"]:
        used |= {each["value"] for each in override["properties"] if each["id"] == "unit"}
    assert used <= {value for value in vars(units).values() if isinstance(value, str)}


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_a_query_is_of_metrics_that_there_are_and_of_the_place_chosen(name: str, panel: dict[str, Any], tmp_path: Path):
    known = known_metrics(tmp_path)
    for target in panel["targets"]:
        promql = target["expr"]
        assert metrics_of(promql), promql
        assert metrics_of(promql) <= known
        without_braces = re.findall(r"\b(?:dagster|millrace|slo)_?:?\w+\b(?![\w:]*\{)", re.sub(r'"[^"]*"', "", promql))
        assert [each for each in without_braces if each in known] == []
        chosen = ('namespace="$namespace", release="$release"', 'namespace=~"$namespace|", release=~"$release|"')
        assert all(each.startswith(chosen) for each in re.findall(r"[\w:]\{([^}]*)", promql))
        assert not re.search(r"\bvector\s*\(|\bor\b|\babsent\b", promql), "a constant hides that there is nothing"
        assert "$__interval]" not in promql, "a step may be shorter than a scrape: $__rate_interval"
        counters = {each for each in metrics_of(promql) if each.endswith(("_total", "_bucket", "_sum"))}
        assert not counters or re.search(r"(rate|increase)\(|count by", promql)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_links_lead_to_runbooks_and_dashboards_that_there_are(file: Path):
    text = file.read_text()
    runbooks = {page.stem for page in (DEPLOY / "runbooks").glob("*.md")}

    assert set(re.findall(r"\$\{runbooks\}/(\w+)\.md", text)) <= runbooks
    assert set(re.findall(r'"/d/([\w-]+)\?', text)) <= UIDS
    (constant,) = (each for each in load(file)["templating"]["list"] if each["name"] == "runbooks")
    assert constant["query"] == RUNBOOKS
    assert load(file)["links"][0]["tags"] == ["millrace"]


def test_every_alert_is_linked_from_where_its_figures_are():
    linked = {alert for file in FILES for alert in re.findall(r"\$\{runbooks\}/(\w+)\.md", file.read_text())}
    rules = [rule for file in RULES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]

    assert {rule["alert"] for rule in rules if "alert" in rule} - linked == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_variable_is_used_and_every_one_used_is_there(file: Path):
    dashboard = load(file)
    there = {each["name"] for each in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps([dashboard["panels"], dashboard["templating"]])))

    assert used - {"__value", "__url_time_range"} | {"runbooks"} == there


# From here on: a Prometheus, an exporter, and runs for it to count.


@pytest.fixture
def program() -> str:
    return tool("prometheus")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Prometheus:
    """Scrapes *exporter_port* every second."""

    def __init__(self, program: str, folder: Path, exporter_port: int) -> None:
        self._port = free_port()
        target = {"targets": [f"127.0.0.1:{exporter_port}"], "labels": {"namespace": "data", "release": "etl"}}
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in RULES],
            "scrape_configs": [{"job_name": "millrace-exporter", "static_configs": [target]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
        self._client = httpx2.Client(base_url=f"http://127.0.0.1:{self._port}/api/v1/", timeout=10)
        self._log = (folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [program, f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address=127.0.0.1:{self._port}"],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def ask(self, path: str, **parameters: Any) -> Any:
        answer = self._client.get(path, params=parameters)
        if answer.status_code == 503:  # it is starting, and says so in plain text
            answer.raise_for_status()
        document = answer.json()
        assert document["status"] == "success", (document.get("error"), parameters)
        return document["data"]

    def values(self, target: dict[str, Any]) -> list[float]:
        """The numbers that Grafana would be given, those that are not finite left out."""
        promql, now = filled_in(target["expr"]), time.time()
        if target.get("instant"):
            data = self.ask("query", query=promql, time=now)
            assert data["resultType"] == "vector", promql
            found = [series["value"] for series in data["result"]]
        else:
            data = self.ask("query_range", query=promql, start=now - 60, end=now, step=2)
            found = [value for series in data["result"] for value in series["values"]]
        return [number for _, text in found if math.isfinite(number := float(text))]

    def choice(self, query: str) -> list[str]:
        """What a variable offers: ``label_values(series, label)``."""
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", filled_in(query))
        assert found, query
        values: list[str] = self.ask(f"label/{found[2]}/values", **{"match[]": found[1]})
        return values

    def end(self) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


def filled_in(promql: str) -> str:
    """With every variable at its default; spans as short as the test, a minute's samples being one in two seconds."""
    for name, value in (("$__rate_interval", "10s"), ("$__range:1m", "2m:2s"), ("$__range", "2m"), ("$namespace", "data"),
                        ("$release", "etl"), ("$layer", ".*"), ("$asset_key", ".*"), ("$code_location", ".*"),
                        ("$job_name", ".*"), ("$source", ".*")):  # fmt: skip
        promql = promql.replace(name, value)
    assert "$" not in re.sub(r'"\$1"', "", promql), promql
    return promql


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """What Dagster's own GraphQL says of the definitions, for which a process is asked meanwhile."""
    answer = tmp_path / "answer.json"
    code = Path(__file__).with_name("definitions_on_dashboards.py")
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(code), str(answer)])

    def told() -> dict[str, Any]:
        assert process.wait(120) == 0
        found: dict[str, Any] = json.loads(answer.read_text())
        limits = "- {key: team, limit: 1}"
        found["instance"]["runQueueConfig"] = {  # that of a test has no queue
            "maxConcurrentRuns": 10,
            "tagConcurrencyLimitsYaml": limits,
        }
        return found

    yield told
    process.kill()
    process.wait()


class Platform:
    """Runs of a real Dagster, and what its launcher, daemon and run processes report."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.tags = {".dagster/repository": "__repository__@here"}
        self._repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__")
        self._schedule = InstigatorState(
            RemoteInstigatorOrigin(self._repository, "every_minute"),
            InstigatorType.SCHEDULE,
            InstigatorStatus.RUNNING,
            ScheduleInstigatorData("* * * * *"),
        )
        instance.add_instigator_state(self._schedule)
        instance.event_log_storage.set_concurrency_slots("api", 1)
        for step in ("first", "second"):
            instance.event_log_storage.claim_concurrency_slot("api", "run", step)
        self._at_work = self._launched("daily")
        self._queued = self._created("daily")
        self._cpu = 0.0

    def run(self, job: str, **tags: str) -> str:
        """Run *job* here; the run's id."""
        definition = defs.resolve_job_def(job)
        ran = definition.execute_in_process(instance=self.instance, tags={**self.tags, **tags}, raise_on_error=False)
        return str(ran.run_id)

    def go_on(self) -> None:
        """A few seconds in the life of a platform."""
        due = dt.datetime.now(dt.UTC).isoformat()
        self.run("daily", **{"dagster/schedule_name": "every_minute", ".dagster/scheduled_execution_time": due})
        self.run("failing", **{"dagster/retry_number": "1"})
        self._cpu += 1.0
        self._sample(self._at_work, 850)
        done = self._launched("daily")
        self._sample(done, 400)
        self._report(done, DagsterEventType.PIPELINE_SUCCESS)
        killed = self._launched("failing")
        self.instance.report_run_failed(killed, "Its container ran out of memory.")
        lost = JobFailureData(None, RunFailureReason.START_TIMEOUT)
        self.instance.report_run_failed(self._launched("failing"), "It did not start.", lost)
        for status in (TickStatus.SUCCESS, TickStatus.SKIPPED):
            self._tick(status)
        self._find(FreshnessState.PASS)
        for kind in ("SENSOR", "SCHEDULER"):
            self.instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), kind, "id", []))

    def _created(self, job: str) -> dg.DagsterRun:
        origin = RemoteJobOrigin(self._repository, job)
        run = self.instance.create_run_for_job(defs.resolve_job_def(job), tags=self.tags, remote_job_origin=origin)
        self._report(run, DagsterEventType.PIPELINE_ENQUEUED)
        return run

    def _launched(self, job: str) -> dg.DagsterRun:
        run = self._created(job)
        self._report(run, DagsterEventType.PIPELINE_STARTING)
        self._report(run, DagsterEventType.PIPELINE_START)
        return run

    def _report(self, run: dg.DagsterRun, kind: DagsterEventType) -> None:
        self.instance.report_dagster_event(DagsterEvent(kind.value, run.job_name), run.run_id)

    def _sample(self, run: dg.DagsterRun, working_set: float) -> None:
        told = {
            "working_set": working_set, "limit": 1000, "peak": working_set, "cpu_seconds": self._cpu,
            "throttled_seconds": self._cpu / 10, "read_bytes": self._cpu * 1e6, "written_bytes": self._cpu * 1e6,
            "oom_kills": self._cpu, "volumes": {"lake": [1e9 - self._cpu, 2e9]},
        }  # fmt: skip
        data = EngineEventData(metadata={"millrace/resources": dg.MetadataValue.json(told)})
        self.instance.report_engine_event("Resources in use.", run, data)

    def _find(self, state: FreshnessState) -> None:
        key = dg.AssetKey(["raw", "bikes", "trips"])
        self.instance._report_runless_asset_event(
            FreshnessStateChange(
                key=key,
                new_state=state,
                previous_state=FreshnessState.UNKNOWN,
                state_change_timestamp=time.time(),
            )
        )

    def _tick(self, status: TickStatus) -> None:
        tick = self.instance.create_tick(
            TickData(
                self._schedule.instigator_origin_id,
                "every_minute",
                InstigatorType.SCHEDULE,
                TickStatus.STARTED,
                time.time() - 1,
                selector_id=self._schedule.selector_id,
            )
        )
        self.instance.update_tick(tick.with_status(status))


@pytest.fixture
def sql(settings: Settings) -> Iterator[Callable[..., None]]:
    """Runs a statement as the owner of Dagster's tables."""
    with closing(connect(settings)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        yield cursor.execute


@pytest.fixture
def platform(settings: Settings, lake: Lake, sql: Callable[..., None]) -> Iterator[Platform]:
    """With a past: a lake, a backup, and as many runs as a baseline takes."""
    lake.query("CREATE SCHEMA raw")
    lake.query("CREATE TABLE raw.t AS SELECT range AS n FROM range(1000)")
    sql(
        "INSERT INTO millrace.backups (name, target, started_at, finished_at, bytes) VALUES ('b', 't', now(), now(), 10)"
    )
    sql("INSERT INTO millrace.service_memory VALUES ('daemon', 'pod', 300, 400, now() + interval '1 hour')")
    ensure_instance(settings)
    with open_instance(settings) as instance:
        yield Platform(instance)


# The rows of a run once more, as those of others that did the same: a baseline takes 30 of them.
ANOTHER = "replace({}, %(ran)s, md5(%(ran)s || n)::uuid::text)"
OF_THE_RUN = "generate_series(1, %(times)s) AS n WHERE run_id = %(ran)s"
RUNS_AGAIN = f"""INSERT INTO runs (run_id, snapshot_id, pipeline_name, status, run_body, start_time, end_time)
  SELECT {ANOTHER.format("run_id")}, snapshot_id, pipeline_name, status, {ANOTHER.format("run_body")}, start_time, end_time
  FROM runs, {OF_THE_RUN}"""
TAGS_AGAIN = f"""INSERT INTO run_tags (run_id, key, value)
  SELECT {ANOTHER.format("run_id")}, key, value FROM run_tags, {OF_THE_RUN}"""
EVENTS_AGAIN = f"""INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
  SELECT {ANOTHER.format("run_id")}, {ANOTHER.format("event")}, dagster_event_type, timestamp, step_key, asset_key, partition
  FROM event_logs, {OF_THE_RUN} ORDER BY n, id"""


@pytest.fixture
def exporter_port(
    settings: Settings, platform: Platform, workspace: Callable[[], dict[str, Any]], sql: Callable[..., None]
) -> Iterator[int]:
    """Of an exporter that has counted the runs of the past."""
    watched = Watched(settings)
    watched.start()
    ran = platform.run("hourly")
    for statement in (RUNS_AGAIN, TAGS_AGAIN, EVENTS_AGAIN):
        sql(statement, {"ran": ran, "times": 31})
    watched.workspace = workspace()
    (roster,) = (topic for topic in watched.exporter.topics if topic.name == "workspace")
    for now in (1e12, 2e12):  # the schedule's next tick is past by then
        roster.poll(watched.database, now)
    port = free_port()
    service = Service(watched.exporter, watched.monitor, host="127.0.0.1", port=port, interval_seconds=0.5)
    thread = threading.Thread(target=service.run)
    thread.start()
    yield port
    service.stop.set()
    thread.join()
    watched.database.close()


@pytest.fixture
def prometheus(program: str, tmp_path: Path, exporter_port: int) -> Iterator[Prometheus]:
    started = Prometheus(program, tmp_path, exporter_port)
    yield started
    started.end()


@pytest.mark.tools
@pytest.mark.timeout(600)
def test_every_query_has_an_answer_in_a_prometheus_that_watches_real_runs(
    prometheus: Prometheus, platform: Platform, sql: Callable[..., None]
):
    until(lambda: prometheus_answers(prometheus), seconds=30)
    wanted = {(file.stem, panel, part): target for file in FILES for panel, part, target in queries(file)}
    assert len(wanted) > 150
    backfill = (
        "INSERT INTO bulk_actions (key, status, timestamp, action_type) VALUES (%s, %s, now(), 'PARTITION_BACKFILL')"
    )
    sql(backfill, ["under way", "REQUESTED"])

    silent, deadline = dict(wanted), time.monotonic() + 180
    while silent.keys() - WITHOUT_DATA and time.monotonic() < deadline:
        platform.go_on()
        sql(backfill, [f"ended {time.time()}", "COMPLETED_SUCCESS"])
        time.sleep(1)
        silent = {key: target for key, target in silent.items() if not prometheus.values(target)}

    assert {key: filled_in(silent[key]["expr"]) for key in silent.keys() - WITHOUT_DATA.keys()} == {}
    assert silent.keys() == WITHOUT_DATA.keys(), "what has an answer is to go from the list"
    assert [query for query in choices() if not prometheus.choice(query)] == []


def prometheus_answers(prometheus: Prometheus) -> bool:
    try:
        return bool(prometheus.ask("query", query="dagster_exporter_build_info")["result"])
    except httpx2.HTTPError:
        return False


def until(wanted: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)
