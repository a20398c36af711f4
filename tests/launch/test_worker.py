"""The process of a run pod, told to end as Kubernetes does it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.code_pointer import FileCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.storage.dagster_run import DagsterRun
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import serialize_value

from tests.launch.conftest import daily

CODE = """
import time
import dagster as dg

@dg.op
def nothing():
    time.sleep(60)

@dg.job(executor_def=dg.in_process_executor)
def daily():
    nothing()

defs = dg.Definitions(jobs=[daily])
"""


@pytest.fixture
def run(instance: DagsterInstance, tmp_path: Path) -> DagsterRun:
    """A run of a job that works for a minute."""
    (tmp_path / "code.py").write_text(CODE)
    code = RepositoryPythonOrigin(sys.executable, FileCodePointer(str(tmp_path / "code.py"), "defs"))
    return instance.create_run_for_job(daily, job_code_origin=JobPythonOrigin("daily", code))


def start(instance: DagsterInstance, run: DagsterRun) -> "subprocess.Popen[str]":
    """The worker, once the step is at work."""
    assert run.job_code_origin
    args = ExecuteRunArgs(run.job_code_origin, run.run_id, instance.get_ref(), set_exit_code_on_failure=True)
    process = subprocess.Popen([sys.executable, "-m", "pipeline.launch.worker", serialize_value(args)], text=True)
    deadline = time.monotonic() + 60
    while not any(
        entry.is_dagster_event and "STEP_START" in str(entry.dagster_event_type)
        for entry in instance.all_logs(run.run_id)
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return process


def test_a_worker_that_is_told_to_end_leaves_the_verdict_to_who_can_see_the_pod(
    instance: DagsterInstance, run: DagsterRun
):
    worker = start(instance, run)
    worker.send_signal(signal.SIGTERM)

    assert worker.wait(timeout=20) == 128 + signal.SIGTERM
    after = instance.get_run_by_id(run.run_id)
    assert after
    assert after.status == DagsterRunStatus.STARTED
    assert any("nobody cancelled the run" in entry.message for entry in instance.all_logs(run.run_id))


def test_a_run_that_somebody_cancels_is_cancelled(instance: DagsterInstance, run: DagsterRun):
    worker = start(instance, run)
    instance.report_run_canceling(run)
    worker.send_signal(signal.SIGTERM)

    worker.wait(timeout=20)
    after = instance.get_run_by_id(run.run_id)
    assert after
    assert after.status == DagsterRunStatus.CANCELED
