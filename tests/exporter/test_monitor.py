"""What the monitor tells of a window, against the runs that were made in it; its table; what it says without a database."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import dagster as dg
import httpx2
import psycopg2
import pytest
from dagster._daemon.types import DaemonHeartbeat

from pipeline.cgroup import Usage
from pipeline.errors import ServiceError
from pipeline.exporter import samples
from pipeline.exporter.monitor import DELETE, DELETED_AT_ONCE, NEAREST, document, quantile
from pipeline.exporter.samples import STORED_BYTES, Sample, Tally
from pipeline.exporter.service import Service
from pipeline.operate.database import connect
from pipeline.operate.service_memory import tell
from pipeline.settings import Settings
from tests.conftest import administrators_url
from tests.exporter.conftest import NOTHING, Watched
from tests.exporter.test_runs import _job, bad, good, holds, sample

LOADED: dict[str, Any] = {
    "workspaceOrError": {
        "locationEntries": [
            {
                "name": "here",
                "updatedTimestamp": 0.0,
                "locationOrLoadError": {"__typename": "RepositoryLocation", "repositories": []},
            }
        ]
    },
    "instance": {"daemonHealth": {"allDaemonStatuses": [{"daemonType": "SCHEDULER", "required": True}]}},
}


@pytest.fixture
def at_each_poll(settings: Settings) -> Settings:
    """Settings with which every poll takes a sample."""
    return settings.model_copy(update={"monitor_interval_seconds": 1e-6, "alert_unavailable_seconds": 60.0})


@pytest.fixture
def watched(at_each_poll: Settings) -> Watched:
    """Started on an empty log, with a first sample."""
    return Watched(at_each_poll).start()


def told(watched: Watched, query: str = "hours=24") -> dict[str, Any]:
    """As a client reads it."""
    answer = json.loads(json.dumps(watched.monitor.answer(query), allow_nan=False))
    assert isinstance(answer, dict)
    return answer


def stored(settings: Settings, statement: str = "SELECT count(*) FROM millrace.monitor_samples") -> Any:
    with closing(connect(settings)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()[0][0] if cursor.description else None


def test_rates_are_those_of_the_runs_in_the_window(watched: Watched, instance: dg.DagsterInstance):
    for _ in range(3):
        dg.materialize([good, holds], instance=instance)
    dg.materialize([good, bad], instance=instance, raise_on_error=False)
    instance.report_run_canceled(instance.create_run_for_job(_job()))
    watched.poll()

    answer = told(watched)
    runs = answer["runs"]
    assert (runs["completed"], runs["success"], runs["failure"], runs["canceled"]) == (5, 3, 1, 1)
    assert (runs["success_rate"], runs["failure_rate"]) == (0.75, 0.25)
    by_name = {job["job_name"]: job for job in runs["jobs"]}
    assert by_name["__ephemeral_asset_job__"]["completed"] == 4
    assert by_name["__ephemeral_asset_job__"]["failure"] == 1
    assert 0 < by_name["__ephemeral_asset_job__"]["p50_seconds"] <= by_name["__ephemeral_asset_job__"]["p95_seconds"]
    assert by_name["nothing"]["canceled"] == 1
    assert by_name["nothing"]["success_rate"] is None
    assert answer["assets"]["materializations"] == 4
    assert answer["assets"]["failures"] == 1
    assets = {asset["asset_key"]: asset for asset in answer["assets"]["assets"]}
    assert assets["good"]["last_success_age_seconds"] < 60
    assert assets["bad"] == {"asset_key": "bad", "materializations": 0, "failures": 1, "last_success_at": None,
                             "last_success_age_seconds": None}  # fmt: skip
    assert (answer["checks"]["passed"], answer["checks"]["failed"]) == (0, 3)
    assert answer["checks"]["failing"][0]["check"] == "holds"
    assert answer["alerts"] is None


def test_what_was_before_the_window_is_not_in_it(
    watched: Watched, instance: dg.DagsterInstance, at_each_poll: Settings
):
    dg.materialize([good, bad], instance=instance, raise_on_error=False)
    watched.poll()
    stored(at_each_poll, "UPDATE millrace.monitor_samples SET at = at - interval '70 minutes'")
    dg.materialize([good], instance=instance)
    watched.poll()

    assert told(watched, "hours=1")["runs"]["completed"] == 1
    assert told(watched, "hours=1")["runs"]["failure_rate"] == 0
    assert told(watched, "hours=0.0001")["runs"]["completed"] == 0


@pytest.mark.parametrize("saved", ["before", "after"])
def test_a_restart_of_the_exporter_neither_loses_nor_doubles_a_run(
    watched: Watched, instance: dg.DagsterInstance, saved: str
):
    watched.exporter.save()
    dg.materialize([good, bad], instance=instance, raise_on_error=False)
    watched.poll()
    if saved == "after":
        watched.exporter.save()
    dg.materialize([good], instance=instance)

    second = watched.again().start()
    dg.materialize([good], instance=instance)
    second.poll()
    runs = told(second)["runs"]
    assert (runs["success"], runs["failure"]) == (2, 1)


def test_sums_that_began_anew_are_counted_from_there(watched: Watched, instance: dg.DagsterInstance):
    for _ in range(3):
        dg.materialize([good], instance=instance)
    watched.poll()
    second = watched.again().start()  # nothing was saved: it begins at the log's end
    dg.materialize([good], instance=instance)
    second.poll()

    assert second.value("dagster_runs_completed_total", status="success") == 1
    stored(
        second.settings,
        "DELETE FROM millrace.monitor_samples WHERE at < (SELECT max(at) FROM millrace.monitor_samples)",
    )
    assert told(second)["runs"]["success"] == 0
    earlier = Sample(
        0, 0, jobs=Tally({("here", "a"): {"success": 3, "failure": 1}}), present=second.monitor.current.present
    )
    later = Sample(9, 9, jobs=Tally({("here", "a"): {"success": 4}}), present=second.monitor.current.present)
    assert document(later, earlier, now=9, asked_hours=1)["runs"]["success"] == 4


def test_the_first_sample_says_that_nothing_is_known_yet(watched: Watched, at_each_poll: Settings):
    stored(at_each_poll, "DELETE FROM millrace.monitor_samples")

    answer = told(watched)
    assert answer["window"]["problem"] == "there is no earlier sample yet"
    assert answer["runs"]["completed"] is None
    assert answer["runs"]["success_rate"] is None
    assert answer["checks"]["passed"] is None


def test_a_sample_is_taken_each_interval_and_not_each_poll(settings: Settings):
    now = [1_000_000.0]
    watched = Watched(settings, clock=lambda: now[0]).start()
    for _ in range(8):
        now[0] += 15
        watched.poll()

    assert stored(settings) == 5  # at 0, 30, 60, 90 and 120 s


def test_retention_removes_what_is_old_in_batches_and_nothing_else(watched: Watched, at_each_poll: Settings):
    stored(
        at_each_poll,
        f"""INSERT INTO millrace.monitor_samples SELECT now() - interval '7 days' - n * interval '1 s', '{{}}'
            FROM generate_series(1, {2 * DELETED_AT_ONCE + 100}) n""",
    )
    stored(
        at_each_poll,
        "INSERT INTO millrace.monitor_samples SELECT now() - interval '7 days' + n * interval '1 h', 'kept' FROM generate_series(1, 20) n",
    )
    old = "SELECT count(*) FROM millrace.monitor_samples WHERE at < now() - interval '7 days'"
    left = []
    for _ in range(4):
        watched.poll()
        left.append(stored(at_each_poll, old))

    assert left == [DELETED_AT_ONCE + 100, 100, 0, 0]
    assert stored(at_each_poll, "SELECT count(*) FROM millrace.monitor_samples WHERE sample = 'kept'") == 20


def test_neither_reading_nor_removing_scans_the_table(at_each_poll: Settings):
    stored(
        at_each_poll,
        "INSERT INTO millrace.monitor_samples SELECT now() - n * interval '30 s', repeat('x', 100) FROM generate_series(1, 20160) n",
    )
    stored(at_each_poll, "ANALYZE millrace.monitor_samples")
    with closing(connect(at_each_poll)) as connection, connection.cursor() as cursor:
        for statement, value in ((NEAREST, 86_400), (DELETE.partition("off;")[2], 3)):
            cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + statement, [value])
            plan = json.dumps(cursor.fetchall()[0][0])
            connection.rollback()
            assert "Index" in plan
            assert '"Relation Name": "monitor_samples"' in plan
            assert "Seq Scan" not in plan, plan


def many(watched: Watched, *, jobs: int, assets: int) -> None:
    """Have figures of *jobs* and *assets*, with names as long as the exporter keeps them for every tenth."""
    registry = watched.registry
    for number in range(jobs):
        name = f"job_{number}" + "é" * 190 * (number % 10 == 0)
        for status, runs in (("success", 10_000 - number), ("failure", 10), ("canceled", 1)):
            registry["dagster_runs_completed_total"].add("here", name, status, by=runs)  # type: ignore[attr-defined]
        for seconds in (0.5, 20, 70, 4000):
            registry["dagster_run_duration_seconds"].observe(seconds, "here", name)  # type: ignore[attr-defined]
        registry["dagster_run_peak_memory_ratio"].observe(0.75, "here", name)  # type: ignore[attr-defined]
        registry["dagster_run_cpu_seconds_total"].add("here", name, by=12.345678)  # type: ignore[attr-defined]
    for number in range(assets):
        name = f"raw/source/{number}" + "é" * 180 * (number % 10 == 0)
        registry["dagster_asset_materializations_total"].add(name, "here", by=9_000 - number)  # type: ignore[attr-defined]
        registry["dagster_asset_failures_total"].add(name, "here")  # type: ignore[attr-defined]
        registry["dagster_asset_last_materialization_timestamp_seconds"].set(1e9, name)  # type: ignore[attr-defined]
        registry["dagster_asset_max_age_seconds"].set(60, name)  # type: ignore[attr-defined]
        registry["dagster_asset_check_last_passed"].set(0, name, "holds", "error")  # type: ignore[attr-defined]
    registry["dagster_code_location_loaded"].replace({(f"location_{n}" * 15,): 0.0 for n in range(200)})  # type: ignore[attr-defined]


def test_a_row_stays_small_with_two_thousand_jobs_and_its_sums_are_whole(watched: Watched, at_each_poll: Settings):
    many(watched, jobs=2_000, assets=5_000)
    watched.poll()

    size = stored(at_each_poll, "SELECT octet_length(sample) FROM millrace.monitor_samples ORDER BY at DESC LIMIT 1")
    assert STORED_BYTES / 2 < size < STORED_BYTES
    text = stored(at_each_poll, "SELECT sample FROM millrace.monitor_samples ORDER BY at DESC LIMIT 1")
    read, whole = samples.load(text), watched.monitor.current
    assert read
    assert whole
    assert len(whole.jobs.named) == 2_001  # with __other__, of the durations past the cap of their metric
    assert 20 < len(read.jobs.named) < 2_000
    assert len(read.jobs.named) + read.jobs.others_count == 2_001
    assert len(read.assets.named) + read.assets.others_count == 5_000
    assert read.jobs.whole == pytest.approx(whole.jobs.whole)
    assert read.jobs.whole["success"] == 2_000 * 10_000 - sum(range(2_000))
    assert read.assets.whole == whole.assets.whole
    assert read.made_at == dict.fromkeys(read.assets.named, 1e9)
    services = whole.present["services"]
    assert services[0]["state"] != "up"
    assert len(services) < whole.present["services_count"]
    assert 0 < len(whole.present["late"]) < whole.present["late_count"] == 5_000
    assert 0 < len(whole.present["failing_checks"]) < whole.present["failing_checks_count"] == 5_000


def test_with_two_thousand_jobs_the_window_has_every_run_whether_its_job_was_named_in_the_sample_or_not(
    watched: Watched,
):
    many(watched, jobs=2_000, assets=0)
    watched.poll()
    stored(
        watched.settings,
        "DELETE FROM millrace.monitor_samples WHERE at < (SELECT max(at) FROM millrace.monitor_samples)",
    )
    completed = watched.registry["dagster_runs_completed_total"]
    for job, status, runs in (("job_1", "success", 30), ("job_1999", "failure", 7), ("job_1998", "success", 3)):
        completed.add("here", job, status, by=runs)  # type: ignore[attr-defined]
    stored(watched.settings, "UPDATE millrace.monitor_samples SET at = at - interval '1 hour'")
    watched.poll()

    runs = told(watched, "hours=1")["runs"]
    assert (runs["completed"], runs["success"], runs["failure"]) == (40, 33, 7)
    assert [(job["job_name"], job["completed"]) for job in runs["jobs"]] == [("job_1", 30)]
    assert (runs["other_jobs"]["completed"], runs["other_jobs"]["failure"]) == (10, 7)
    started = time.monotonic()
    told(watched, "hours=1")
    assert time.monotonic() - started < 0.5  # 20 ms where nothing else runs


def test_quantiles_are_those_of_the_buckets():
    took = {"took<=1": 50, "took<=60": 40, "took<=inf": 10}

    assert quantile(took, 0.5) == 1
    assert quantile(took, 0.25) == 0.5
    assert quantile(took, 0.7) == 45  # half way from 30 to 60
    assert quantile(took, 0.99) == 43_200
    assert quantile({}, 0.5) is None


def test_resources_of_runs_are_told_by_job(watched: Watched, instance: dg.DagsterInstance):
    run = instance.create_run_for_job(_job())
    sample(instance, run, working_set=850, limit=1000, peak=870, cpu_seconds=2.5)
    watched.poll()
    assert told(watched)["resources"]["runs_now"][0]["working_set_bytes"] == 850

    instance.report_run_canceled(run)
    watched.poll()
    resources = told(watched)["resources"]
    assert resources["cpu_seconds"] == 2.5
    assert resources["jobs"][0] == {
        "code_location": "unknown",
        "job_name": "nothing",
        "cpu_seconds": 2.5,
        "peak_memory_ratio": 0.9,
    }


def test_memory_of_services_and_room_on_volumes_are_told(
    watched: Watched, settings: Settings, instance: dg.DagsterInstance
):
    with closing(connect(settings)) as connection:
        tell(connection, "daemon", "pod-a", Usage(working_set=300, limit=500))
    sample(instance, instance.create_run_for_job(_job()), working_set=1, volumes={"lake": [7, 10]})
    watched.poll()

    resources = told(watched)["resources"]
    daemon = {"service": "daemon", "memory_working_set_bytes": 300, "memory_limit_bytes": 500}
    assert daemon in resources["services"]
    assert resources["volumes"] == [{"volume": "lake", "free_bytes": 7, "size_bytes": 10}]


def test_an_asset_is_late_by_its_own_limit(watched: Watched, instance: dg.DagsterInstance):
    dg.materialize([good], instance=instance)
    time.sleep(0.01)
    watched.poll()
    watched.registry["dagster_asset_max_age_seconds"].set(0.001, "good")  # type: ignore[attr-defined]
    watched.poll()

    assets = told(watched)["assets"]
    assert assets["late_count"] == 1
    assert assets["late"][0]["asset_key"] == "good"
    assert assets["late"][0]["last_success_age_seconds"] < 60


def service(watched: Watched, name: str) -> tuple[str, str]:
    (found,) = [each for each in told(watched)["services"] if each["service"] == name]
    return found["state"], found["reason"]


def test_services_are_up_when_all_answers(watched: Watched, instance: dg.DagsterInstance):
    watched = Watched(watched.settings)
    watched.workspace = LOADED
    instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SCHEDULER", "d"))
    watched.start()
    watched.poll()

    assert {each["service"]: (each["name"], each["state"]) for each in told(watched)["services"]} == {
        "database": ("", "up"),
        "lake": ("", "up"),
        "webserver": ("", "up"),
        "code_location": ("here", "up"),
        "daemon": ("SCHEDULER", "up"),
        "exporter": ("", "up"),
    }


def test_each_service_that_is_not_up_says_why_and_since_when(
    watched: Watched, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    assert service(watched, "code_location") == ("down", "its definitions do not load")
    assert service(watched, "daemon") == ("down", "it has never reported")

    instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 200, "SCHEDULER", "d"))
    required = [{"daemonType": "SCHEDULER", "required": True}]
    watched.workspace = {**NOTHING, "instance": {"daemonHealth": {"allDaemonStatuses": required}}}
    workspace = next(topic for topic in watched.exporter.topics if topic.name == "workspace")
    monkeypatch.setattr(workspace, "_asked_at", 0.0)
    watched.poll()
    watched.poll()
    assert service(watched, "daemon")[0] == "down"
    assert service(watched, "daemon")[1].startswith("silent for 20")

    def refuse(_: Any) -> Any:
        raise ServiceError("Asking the webserver: refused")

    monkeypatch.setattr(workspace, "_ask", refuse)
    monkeypatch.setattr(workspace, "_asked_at", 0.0)
    assert not watched.exporter.poll()
    assert service(watched, "webserver") == ("degraded", "Asking the webserver: refused")
    assert service(watched, "code_location")[0] == "degraded"
    since = [each["since"] for each in told(watched)["services"]]
    assert all(since)
    assert service(watched, "exporter") == ("up", "")


@contextmanager
def away(settings: Settings, end_session: Callable[[], None]) -> Iterator[None]:
    """The database refuses everyone."""
    with closing(psycopg2.connect(administrators_url(settings), dbname="postgres")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("ALTER DATABASE dagster ALLOW_CONNECTIONS false")
            try:
                end_session()
                yield
            finally:
                cursor.execute("ALTER DATABASE dagster ALLOW_CONNECTIONS true")


def test_without_a_database_it_answers_and_tells_how_old_its_figures_are(
    settings: Settings, instance: dg.DagsterInstance, end_session: Callable[[], None]
):
    now = [time.time()]
    watched = Watched(settings, clock=lambda: now[0]).start()
    dg.materialize([good], instance=instance)
    now[0] += 30
    watched.poll()
    assert told(watched, "hours=2")["runs"]["completed"] == 1

    with away(settings, end_session):
        assert not watched.exporter.poll()  # which only finds that its session is gone
        now[0] += 60
        assert not watched.exporter.poll()
        answer = told(watched, "hours=2")
        assert answer["runs"]["completed"] == 1  # of the sample that it read before
        assert watched.monitor.current
        assert watched.monitor.current.at - watched.monitor.current.counted_at == 60
        assert answer["collected"]["counted_age_seconds"] < answer["collected"]["age_seconds"] + 61
        assert service(watched, "database")[0] == "degraded"
        assert "not currently accepting connections" in service(watched, "database")[1]
        assert told(watched, "hours=3")["runs"]["completed"] is None
        assert "not currently accepting connections" in told(watched, "hours=3")["window"]["problem"]

        now[0] += 120
        assert not watched.exporter.poll()
        assert service(watched, "database")[0] == "down"
        assert service(watched, "daemon")[0] in ("degraded", "down")
        assert watched.value("dagster_exporter_poll_errors_total", collector="monitor") == 2
        assert stored_by_administrator(settings) == 2

    now[0] += 30
    watched.poll()
    assert service(watched, "database") == ("up", "")
    assert stored_by_administrator(settings) == 3


def stored_by_administrator(settings: Settings) -> int:
    """Rows, as a database that accepts nobody tells them only once it does again."""
    address = administrators_url(settings)
    with closing(psycopg2.connect(address, dbname="postgres")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT datallowconn FROM pg_database WHERE datname = 'dagster'")
            ((allowed,),) = cursor.fetchall()
            cursor.execute("ALTER DATABASE dagster ALLOW_CONNECTIONS true")
            try:
                return int(stored(settings))
            finally:
                cursor.execute(f"ALTER DATABASE dagster ALLOW_CONNECTIONS {allowed}")


def test_a_table_that_is_locked_costs_a_sample_and_no_poll(watched: Watched, at_each_poll: Settings):
    with closing(connect(at_each_poll)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE millrace.monitor_samples")
        started = time.monotonic()
        assert not watched.exporter.poll()
        assert time.monotonic() - started < 3

    assert watched.value("dagster_exporter_poll_errors_total", collector="monitor") == 1
    assert watched.value("dagster_exporter_poll_errors_total") == 1
    watched.poll()
    assert stored(at_each_poll) == 2


@pytest.fixture
def address(watched: Watched) -> Iterator[str]:
    """Of a service with the watched exporter, which does not poll by itself."""
    served = Service(watched.exporter, watched.monitor, host="127.0.0.1", port=0, interval_seconds=60)
    thread = threading.Thread(target=served._server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served._server.server_address[1]}"
    served._server.shutdown()
    served._server.server_close()


@pytest.mark.parametrize("query", ["", "?", "?hours=1", "?hours=0.5", "?hours=168"])
def test_over_http_a_window_is_asked_for_in_hours(address: str, query: str):
    answer = httpx2.get(f"{address}/monitor{query}")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["window"]["asked_hours"] == float(query.partition("=")[2] or 24)
    assert answer.json()["collected"]["retention_days"] == 7


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("hours=0", "hours is '0'; it is one number above 0, and 168 at most."),
        ("hours=-1", "above 0"),
        ("hours=169", "168 at most"),
        ("hours=nan", "one number"),
        ("hours=inf", "168 at most"),
        ("hours=many", "hours is 'many'"),
        ("hours=", "hours is ''"),
        ("hours=1&hours=2", "hours is '1, 2'"),
        ("days=1", "There is no parameter 'days'; there is hours."),
        ("&&", "cannot be read"),
        ("&".join(f"a{n}=1" for n in range(50)), "cannot be read"),
    ],
)
def test_a_query_that_asks_for_what_there_is_not_is_refused_with_the_reason(address: str, query: str, says: str):
    answer = httpx2.get(f"{address}/monitor?{query}")

    assert answer.status_code == 400
    assert says in answer.text


def test_before_the_first_sample_it_says_so(settings: Settings):
    watched = Watched(settings)
    served = Service(watched.exporter, watched.monitor, host="127.0.0.1", port=0, interval_seconds=60)
    try:
        assert served.answer("/monitor", "", "")[0] == 503
    finally:
        served._server.server_close()
