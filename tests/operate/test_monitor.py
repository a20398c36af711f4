"""The assets ``health/<service>`` and `millrace monitor`, on samples that a real exporter stored."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat
from rich.console import Console

from pipeline.cgroup import Usage
from pipeline.exporter.service import Service
from pipeline.operate.assets import HEALTH_KEYS, build_assets
from pipeline.operate.console import show_monitor
from pipeline.operate.database import connect
from pipeline.operate.instance import ensure_instance, open_instance
from pipeline.operate.monitor import SERVICES, read_health
from pipeline.operate.service_memory import tell
from pipeline.settings import Settings
from tests.exporter.conftest import Watched
from tests.exporter.test_monitor import LOADED

MILLRACE = str(Path(sys.executable).with_name("millrace"))
Look = Callable[..., dict[str, Any]]


@pytest.fixture
def exporter(settings: Settings) -> Watched:
    """One that sees every service up."""
    ensure_instance(settings)
    with open_instance(settings) as instance:
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SCHEDULER", "d"))
    watched = Watched(settings)
    watched.workspace = LOADED
    return watched.start()


def run(settings: Settings, statement: str) -> None:
    with closing(connect(settings)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.fixture
def look(settings: Settings) -> Look:
    """Makes the assets and gives their checks by service, after asserting that each was made."""

    def materialize(*selected: str) -> dict[str, Any]:
        services = selected or SERVICES
        with open_instance(settings) as instance:
            result = dg.materialize(
                build_assets(settings), instance=instance, selection=[HEALTH_KEYS[name] for name in services]
            )
        made = {event.asset_key for event in result.get_asset_materialization_events()}
        assert made == {HEALTH_KEYS[name] for name in services}
        return {check.asset_key.path[1]: check for check in result.get_asset_check_evaluations()}

    return materialize


def test_each_service_that_is_up_passes_and_tells_since_when(exporter: Watched, look: Look):
    checks = look()

    assert set(checks) == set(SERVICES)
    for check in checks.values():
        assert check.passed
        assert check.metadata["state"].value == "up"
        assert check.metadata["since"].value == pytest.approx(time.time(), abs=60)
        assert check.metadata["sample_age_seconds"].value < 60


def test_a_subset_is_one_service(exporter: Watched, look: Look):
    assert set(look("daemon")) == {"daemon"}


def test_a_service_that_is_down_fails_its_check_with_the_reason_and_its_memory(
    exporter: Watched, settings: Settings, look: Look
):
    run(settings, "UPDATE daemon_heartbeats SET timestamp = now() AT TIME ZONE 'UTC' - interval '10 minutes'")
    with closing(connect(settings)) as connection:
        tell(connection, "daemon", "pod-a", Usage(working_set=300_000_000, limit=None))
    exporter.monitor._settings = settings.model_copy(update={"monitor_interval_seconds": 1e-6})
    exporter.poll()
    checks = look()

    assert not checks["daemon"].passed
    assert checks["daemon"].severity == dg.AssetCheckSeverity.ERROR
    assert "daemon is down: silent for 6" in checks["daemon"].description
    assert checks["daemon"].metadata["memory_bytes"].value == 3e8
    assert "SCHEDULER is down" in checks["daemon"].metadata["parts_that_are_not_up"].value[0]
    assert all(checks[name].passed for name in SERVICES if name != "daemon")


@pytest.mark.parametrize(("seconds", "is_fresh"), [(80, True), (100, False)])
def test_samples_older_than_three_intervals_fail_every_check_and_only_the_exporters_as_an_error(
    exporter: Watched, settings: Settings, look: Look, seconds: int, is_fresh: bool
):
    run(settings, f"UPDATE millrace.monitor_samples SET at = at - interval '{seconds} s'")
    checks = look()

    assert {check.passed for check in checks.values()} == {is_fresh}
    if not is_fresh:
        assert {name for name in SERVICES if checks[name].severity == dg.AssetCheckSeverity.ERROR} == {"exporter"}
        assert checks["exporter"].metadata["state"].value == "down"
        assert checks["lake"].metadata["state"].value == "unknown"
        assert "newest sample of the exporter is 0:01:4" in checks["lake"].description


def test_an_exporter_that_reads_seldom_is_not_down_in_between(settings: Settings):
    Watched(settings.model_copy(update={"metrics_interval_seconds": 120.0})).start()
    for seconds, state in ((300, "up"), (100, "down")):  # since the one before
        run(settings, f"UPDATE millrace.monitor_samples SET at = at - interval '{seconds} s'")
        assert read_health(settings)["exporter"].state == state


def test_every_service_is_known_however_many_code_locations_there_are(settings: Settings):
    ensure_instance(settings)
    with open_instance(settings) as instance:
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), "SCHEDULER", "d"))
    watched = Watched(settings)
    (entry,) = LOADED["workspaceOrError"]["locationEntries"]
    entries = [{**entry, "name": f"location_{number}"} for number in range(100)]
    watched.workspace = {**LOADED, "workspaceOrError": {"locationEntries": entries}}
    watched.start()

    assert {service: health.state for service, health in read_health(settings).items()} == dict.fromkeys(SERVICES, "up")


def test_without_a_sample_it_is_said(settings: Settings):
    ensure_instance(settings)

    health = read_health(settings)
    assert health["exporter"].state == "down"
    assert health["webserver"].reason == "the exporter has not stored a sample yet"
    run(settings, """INSERT INTO millrace.monitor_samples VALUES (now(), '{"format": 0}')""")
    assert read_health(settings)["lake"].state == "unknown"


@pytest.fixture
def port(exporter: Watched) -> Iterator[str]:
    """Where the exporter is served."""
    served = Service(exporter.exporter, exporter.monitor, host="127.0.0.1", port=0, interval_seconds=60)
    threading.Thread(target=served._server.serve_forever, daemon=True).start()
    yield str(served._server.server_address[1])
    served._server.shutdown()
    served._server.server_close()


def millrace(settings: Settings, port: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MILLRACE_STATE_DIR": str(settings.state_dir), "MILLRACE_METRICS_PORT": port}
    return subprocess.run(
        [MILLRACE, "monitor", *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


def test_the_command_shows_services_jobs_and_what_wants_attention(exporter: Watched, settings: Settings, port: str):
    @dg.asset
    def sales() -> None: ...

    @dg.asset
    def broken() -> None:
        raise ValueError("on purpose")

    with open_instance(settings) as instance:
        dg.materialize([sales, broken], instance=instance, raise_on_error=False)
        dg.materialize([sales], instance=instance)
    exporter.registry["dagster_asset_max_age_seconds"].set(0.001, "sales")  # type: ignore[attr-defined]
    exporter.monitor._settings = settings.model_copy(update={"monitor_interval_seconds": 1e-6})
    exporter.poll()
    exporter.registry["dagster_asset_max_age_seconds"].set(0.001, "sales")  # type: ignore[attr-defined]
    exporter.poll()

    done = millrace(settings, port, "--hours", "1")
    assert done.returncode == 0, done.stderr
    for text in ("daemon SCHEDULER", "code_location here", "2 runs ended, 1 of them failed (50%)", "__ephemeral_asset_job__",
                 "late: sales", "failed: broken, 1 time", "made 2 times, failed 1 time, 1 late"):  # fmt: skip
        assert text in done.stdout, done.stdout
    assert '"failure_rate": 0.5' in millrace(settings, port, "--json").stdout


def test_the_command_exits_with_1_where_a_service_is_down(exporter: Watched, settings: Settings, port: str):
    exporter.monitor._settings = settings.model_copy(update={"monitor_interval_seconds": 1e-6})
    for change, told in (
        ("UPDATE daemon_heartbeats SET timestamp = timestamp - interval '10 minutes'", "silent for 60"),
        ("DELETE FROM daemon_heartbeats", "it has never reported"),
    ):
        run(settings, change)
        exporter.poll()

        done = millrace(settings, port)
        assert done.returncode == 1
        assert told in done.stdout


def test_where_no_exporter_runs_the_command_says_how_to_start_it(settings: Settings):
    done = millrace(settings, "9")

    assert done.returncode == 1
    assert "Error: Asking the exporter at http://127.0.0.1:9/monitor: " in done.stderr
    assert "`millrace up` starts it" in done.stderr
    assert "Traceback" not in done.stderr


def test_hours_that_are_not_kept_are_refused(exporter: Watched, settings: Settings, port: str):
    done = millrace(settings, port, "--hours", "1000")

    assert done.returncode == 1
    assert "/monitor: hours is '1000'; it is one number above 0, and 168 at most." in done.stderr


@pytest.mark.parametrize(
    ("states", "told"), [(["firing", "resolved", "pending", "silenced"], "1 alert:"), (["resolved"], "")]
)
def test_of_alerts_those_that_fire_are_told(exporter: Watched, states: list[str], told: str):
    document = exporter.monitor.answer("hours=1", [{"state": state} for state in states])
    assert document
    with (console := Console(width=160)).capture() as printed:
        show_monitor(console, document)
    assert told in printed.get()
    assert ("alerts list" in printed.get()) == bool(told)
