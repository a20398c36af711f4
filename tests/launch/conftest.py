"""A launcher of an instance with a real database, that talks to a stand-in of the API server."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRunStatus, job, op
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.storage.dagster_run import DagsterRun

from pipeline.launch.launcher import RunLauncher
from pipeline.operate.instance import ensure_instance, open_instance
from pipeline.settings import Settings
from tests.launch.api_server import NAMESPACE, ApiServer, serving

Start = Callable[..., DagsterRun]


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
