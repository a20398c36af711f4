"""A launcher of an instance with a real database, that talks to a stand-in of the API server."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRunStatus, job, op
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._grpc.client import DagsterGrpcClient

from pipeline.launch.launcher import RunLauncher
from pipeline.operate.instance import ensure_instance, open_instance
from pipeline.settings import Settings
from tests.launch.api_server import NAMESPACE, ApiServer, serving

Start = Callable[..., DagsterRun]
DEFINITIONS = """
import dagster as dg
@dg.asset(tags={"millrace/memory": "4Gi"})
def first(): ...
defs = dg.Definitions(assets=[first], jobs=[dg.define_asset_job("daily", [first])])
"""


@op
def nothing() -> None: ...


@job
def daily() -> None:
    nothing()


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with serving() as server:
        yield server


@pytest.fixture
def instance(settings: Settings) -> Iterator[DagsterInstance]:
    ensure_instance(settings)
    with open_instance(settings) as opened:
        yield opened


@pytest.fixture
def make_launcher(api: ApiServer, instance: DagsterInstance, tmp_path: Path) -> Callable[..., Any]:
    """Makes launchers of a class; more of their configuration as keywords."""

    def make(kind: type = RunLauncher, **more: Any) -> Any:
        launcher = kind(
            service_account_name="run", instance_config_map="instance", dagster_home="/opt/millrace/dagster", job_image="millrace:7",
            job_namespace=NAMESPACE, load_incluster_config=False, kubeconfig_file=str(api.kubeconfig(tmp_path)), **more,
        )  # fmt: skip
        launcher.register_instance(instance)
        return launcher

    return make


@pytest.fixture
def launcher(make_launcher: Callable[..., RunLauncher]) -> RunLauncher:
    return make_launcher(out_of_memory={"factor": 1.5, "limit": "1Gi"})


@pytest.fixture
def start(instance: DagsterInstance) -> Start:
    """Puts runs into the database, in any status; ``millrace__memory="4Gi"`` is a tag."""
    code = RepositoryPythonOrigin(sys.executable, ModuleCodePointer("trials", "defs"))

    def make(status: DagsterRunStatus = DagsterRunStatus.STARTED, **tags: str) -> DagsterRun:
        return instance.create_run_for_job(
            daily,
            status=status,
            tags={name.replace("__", "/"): value for name, value in tags.items()},
            job_code_origin=JobPythonOrigin("daily", code),
        )

    return make


@pytest.fixture
def launchable(start: Start) -> LaunchRunContext:
    """What the daemon gives to a launcher."""
    return LaunchRunContext(start(DagsterRunStatus.STARTING), None)


class CodeLocation:
    """A code server that the test starts and ends, at one address."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "daily.py").write_text(DEFINITIONS)
        self.workspace = folder / "workspace.yaml"
        self.workspace.write_text(
            f"load_from: [{{grpc_server: {{host: 127.0.0.1, port: {self.port}, location_name: daily}}}}]"
        )
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "dagster",
            "api",
            "grpc",
            "-f",
            "daily.py",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        self._process = subprocess.Popen(command, cwd=self._folder, stderr=subprocess.DEVNULL)
        client, deadline = DagsterGrpcClient(host="127.0.0.1", port=self.port), time.monotonic() + 60
        while client.health_check_query() != "SERVING":
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def location(tmp_path: Path) -> Iterator[CodeLocation]:
    found = CodeLocation(tmp_path)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def context(location: CodeLocation, instance: DagsterInstance) -> Iterator[WorkspaceProcessContext]:
    with WorkspaceProcessContext(instance, WorkspaceFileTarget([str(location.workspace)])) as made:
        yield made
