"""The services for real: code server, daemon, webserver and exporter on free ports, over an embedded database of their own.

The tests share one platform and run in the order of this file, as an operator's day does.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.errors import ServiceError
from pipeline.operate import services
from pipeline.operate.supervisor import ServiceStatus, Supervisor, log_file
from pipeline.settings import GIB, Settings

MODULE = "definitions_under_test"
T = Any


@pytest.fixture(scope="module", autouse=True)
def _definitions_can_be_imported() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[2]}")
        yield


@pytest.fixture(scope="module")
def platform() -> Iterator[Settings]:
    """A platform that is up."""
    with tempfile.TemporaryDirectory(prefix="millrace tests ") as folder:
        settings = make_settings(Path(folder))
        services.up(settings, module=MODULE)
        yield settings
        services.down(settings)


def make_settings(state_dir: Path, **changes: Any) -> Settings:
    names = ("ui_port", "code_server_port", "metrics_port")
    with ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in names]
        for each in free:
            each.bind(("127.0.0.1", 0))
        ports = {name: each.getsockname()[1] for name, each in zip(names, free, strict=True)}
    return Settings(state_dir=state_dir, metrics_interval_seconds=1, **(ports | changes))


def graphql(settings: Settings, query: str, **variables: str) -> Any:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{settings.ui_port}/graphql", data=body, headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310  (the scheme is http)
        return json.load(response)["data"]


def launch(settings: Settings, job: str) -> str:
    launched = graphql(
        settings,
        """mutation($job: String!) { launchRun(executionParams: {mode: "default", selector: {
            repositoryLocationName: "millrace", repositoryName: "__repository__", jobName: $job}}) {
            __typename ... on LaunchRunSuccess { run { runId } } } }""",
        job=job,
    )["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess"
    return str(launched["run"]["runId"])


def run_status(settings: Settings, run_id: str) -> str:
    query = "query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
    return str(graphql(settings, query, run=run_id)["runOrError"]["status"])


def wait_for(what: Callable[[], T], wanted: Callable[[T], bool], seconds: float = 90) -> T:
    deadline = time.monotonic() + seconds
    while not wanted(found := what()):
        assert time.monotonic() < deadline, f"still {found!r} after {seconds} s"
        time.sleep(0.1)
    return found


def by_name(settings: Settings) -> dict[str, ServiceStatus]:
    return {service.name: service for service in services.status(settings)}


def processes_of(settings: Settings) -> list[int]:
    """Living processes that belong to this state folder, services and database alike."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            mine = process.environ().get("MILLRACE_STATE_DIR") == str(settings.state_dir)
            mine = mine or str(settings.state_dir) in " ".join(process.cmdline())
        except psutil.Error:
            continue
        if mine and process.pid != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def test_all_services_are_healthy_once_up_returns(platform: Settings) -> None:
    found = services.status(platform)

    assert [(service.name, service.state) for service in found] == [
        ("database", "healthy"),
        ("code-server", "healthy"),
        ("daemon", "healthy"),
        ("webserver", "healthy"),
        ("exporter", "healthy"),
    ]
    assert all(service.memory_bytes > 50_000_000 for service in found[1:4])
    assert found[4].memory_bytes > 20_000_000  # it imports no dagster


def test_a_run_launched_in_the_ui_goes_through_the_queue_and_succeeds(platform: Settings) -> None:
    run_id = launch(platform, "quick_job")

    wait_for(lambda: run_status(platform, run_id), lambda status: status in ("SUCCESS", "FAILURE"))

    assert run_status(platform, run_id) == "SUCCESS"
    assert list((platform.log_path / "compute").rglob(f"{run_id}/**/*.err"))


def test_the_exporter_counts_that_run_and_knows_what_else_there_is(platform: Settings) -> None:
    def figures() -> dict[str, float]:
        address = f"http://127.0.0.1:{platform.metrics_port}/metrics"
        with urllib.request.urlopen(address, timeout=20) as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    job = 'code_location="millrace",job_name="quick_job"'
    found = wait_for(
        figures,
        lambda found: (
            found.get(f'dagster_runs_completed_total{{{job},status="success"}}') == 1
            and 'millrace_service_memory_limit_bytes{service="exporter"}' in found
        ),
        seconds=60,
    )
    assert found[f'dagster_runs_completed_total{{{job},status="failure"}}'] == 0
    assert found['dagster_code_location_loaded{code_location="millrace"}'] == 1
    assert found[f"dagster_run_queue_wait_seconds_count{{{job}}}"] == 1
    assert found[f"dagster_run_startup_seconds_count{{{job}}}"] == 1
    assert found['dagster_daemon_last_heartbeat_timestamp_seconds{daemon_type="SCHEDULER",required="true"}'] > 0
    assert found[f"dagster_run_last_peak_memory_bytes{{{job}}}"] > 50_000_000
    assert found[f"dagster_run_cpu_seconds_total{{{job}}}"] > 0.1
    for name in services.SERVICES:
        assert found[f'millrace_service_memory_working_set_bytes{{service="{name}"}}'] > 20_000_000
        assert found[f'millrace_service_memory_limit_bytes{{service="{name}"}}'] == platform.service_memory_gib * GIB
    # There is no Prometheus here: it evaluates the alerts, and nobody has to be told of any.
    assert found['dagster_exporter_last_success_timestamp_seconds{collector="alerts"}'] > 0
    with urllib.request.urlopen(f"http://127.0.0.1:{platform.metrics_port}/alerts", timeout=20) as response:
        assert [item for item in json.load(response) if item["state"] == "firing"] == []


def test_a_second_up_changes_nothing_and_says_so(platform: Settings) -> None:
    before, said = by_name(platform), list[str]()

    after = services.up(platform, module=MODULE, echo=said.append)

    assert said == ["Already running.", f"The UI is at http://localhost:{platform.ui_port}; `millrace down` ends it."]
    assert [service.pid for service in after] == [service.pid for service in before.values()]


def test_a_taken_port_is_named_with_its_holder_and_the_variable_to_set(platform: Settings, settings: Settings) -> None:
    rival = make_settings(settings.state_dir, database_url=settings.database_url, ui_port=platform.ui_port)
    try:
        with pytest.raises(
            ServiceError, match=f"Port {platform.ui_port}, which the UI needs.*MILLRACE_UI_PORT"
        ) as error:
            services.up(rival, module=MODULE)
    finally:
        services.down(rival)

    assert f"process {by_name(platform)['webserver'].pid} (" in str(error.value)
    assert not processes_of(rival)


def test_no_secret_and_no_address_of_the_database_stands_in_the_arguments(platform: Settings) -> None:
    for pid in processes_of(platform):
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile: services start short-lived children
            assert "postgresql://" not in " ".join(psutil.Process(pid).cmdline())


def test_a_killed_daemon_is_started_again(platform: Settings) -> None:
    before = by_name(platform)["daemon"]
    assert before.pid

    os.kill(before.pid, signal.SIGKILL)

    wait_for(lambda: by_name(platform)["daemon"], lambda daemon: daemon.state == "waiting")
    after = wait_for(lambda: by_name(platform)["daemon"], lambda daemon: daemon.state == "healthy")
    assert after.pid != before.pid
    assert after.restarts == 1
    assert "daemon is waiting: signal 9" in log_file(platform, "supervisor").read_text()


def test_a_killed_database_is_started_again(platform: Settings) -> None:
    pid = int((platform.state_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0])

    os.kill(pid, signal.SIGKILL)

    again = lambda database: database.restarts == 1 and database.state == "healthy"  # noqa: E731
    wait_for(lambda: by_name(platform)["database"], again)
    assert launch(platform, "quick_job")  # no answer of the webserver is lost to a session of before


def test_runs_that_die_with_the_code_server_are_failed_and_started_anew(platform: Settings) -> None:
    run_id = launch(platform, "slow_job")
    wait_for(lambda: run_status(platform, run_id), lambda status: status == "STARTED")
    code_server = psutil.Process(by_name(platform)["code-server"].pid)

    for process in [code_server, *code_server.children(recursive=True)]:
        process.kill()

    wait_for(lambda: run_status(platform, run_id), lambda status: status == "FAILURE")
    query = "{ runsOrError(limit: 1) { ... on Runs { results { parentRunId } } } }"
    (newest,) = wait_for(
        lambda: graphql(platform, query)["runsOrError"]["results"], lambda runs: runs[0]["parentRunId"] == run_id
    )
    assert newest["parentRunId"] == run_id


def test_services_end_with_a_killed_supervisor_and_up_starts_afresh(platform: Settings) -> None:
    record = json.loads((platform.state_dir / "services.json").read_text())
    pids = [service["pid"] for service in record["services"] if service["pid"]]

    os.kill(record["supervisor"], signal.SIGKILL)

    wait_for(lambda: {service.state for service in services.status(platform)[1:]}, lambda states: states == {"stopped"})
    wait_for(lambda: set(processes_of(platform)) & set(pids), lambda left: not left)
    services.up(platform, module=MODULE)
    assert {service.state for service in services.status(platform)} == {"healthy"}
    assert not {service.pid for service in services.status(platform)} & set(pids)


def test_down_ends_runs_services_and_database_and_may_be_repeated(platform: Settings) -> None:
    said = list[str]()

    services.down(platform, echo=said.append)
    left = processes_of(platform)
    services.down(platform, echo=said.append)

    assert left == []
    assert said == ["Stopped.", "Nothing was running."]
    assert {service.state for service in services.status(platform)} == {"stopped"}


def test_a_service_over_its_memory_cap_is_started_again_and_the_log_says_why(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    small = make_settings(settings.state_dir, database_url=settings.database_url, service_memory_gib=0.02)
    small.log_path.mkdir(parents=True)
    services.ensure_instance(small)
    caplog.set_level("INFO")
    supervisor = Supervisor(small, MODULE)
    thread = threading.Thread(target=supervisor.run)

    thread.start()
    try:
        status = wait_for(
            lambda: supervisor.children["code-server"].status, lambda status: status.state == "waiting", seconds=20
        )
    finally:
        supervisor.stop.set()
        thread.join(40)

    assert "over its 0.02 GiB (MILLRACE_SERVICE_MEMORY_GIB)" in status.detail
    assert status.detail in caplog.text
    assert not processes_of(small)


def test_definitions_that_do_not_load_are_reported_by_up(settings: Settings) -> None:
    mine = make_settings(settings.state_dir, database_url=settings.database_url)
    try:
        with pytest.raises(ServiceError, match=r"definitions do not load: .*No module named 'absent'"):
            services.up(mine, module="absent")
    finally:
        services.down(mine)


def test_in_the_foreground_sigterm_ends_everything(settings: Settings) -> None:
    mine = make_settings(settings.state_dir, database_url=settings.database_url)
    program = (
        "import sys; from pathlib import Path; from pipeline.settings import GIB, Settings; from pipeline.operate import services;"
        "ports = dict(zip(('ui_port', 'code_server_port', 'metrics_port'), sys.argv[2:]));"
        "services.up(Settings(state_dir=Path(sys.argv[1]), **ports),"
        f" foreground=True, echo=print, module='{MODULE}')"
    )
    arguments = list(map(str, (mine.state_dir, mine.ui_port, mine.code_server_port, mine.metrics_port)))
    assert mine.database_url
    environment = os.environ | {"MILLRACE_DATABASE_URL": mine.database_url.get_secret_value()}
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    ) as foreground:
        wait_for(lambda: by_name(mine)["code-server"], lambda service: service.state == "healthy")
        foreground.terminate()
        printed, _ = foreground.communicate(timeout=40)

    assert foreground.returncode == 0
    assert printed == f"The UI will be at http://localhost:{mine.ui_port}; Ctrl-C ends it.\n"
    assert not processes_of(mine)
