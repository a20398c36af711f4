"""Retries of crashed runs beside a code location that comes and goes, with a real one."""

from collections.abc import Callable

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.remote_representation.external import RemoteJob
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._daemon import controller
from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon

from pipeline.launch import retries
from pipeline.launch.retries import POSTPONED_TAG, RetryDaemon
from tests.launch.conftest import CodeLocation

pytestmark = [  # Dagster's own
    pytest.mark.filterwarnings("ignore:The 'warn' method"),
    pytest.mark.filterwarnings("ignore:Error loading repository location"),
]


@pytest.fixture
def crash(context: WorkspaceProcessContext, instance: DagsterInstance) -> Callable[[], DagsterRun]:
    """Makes runs whose process died. The daemon asks only for failures after its first look."""
    list(EventLogConsumerDaemon().run_iteration(context))
    location = context.create_request_context().code_locations[0]
    repository = next(iter(location.get_repositories().values()))
    job: RemoteJob = repository.get_full_job("daily")
    plan = location.get_execution_plan(
        job, run_config={}, step_keys_to_execute=None, known_state=None, instance=instance
    )

    def make() -> DagsterRun:
        run = instance.create_run(
            job_name="daily", run_id=None, run_config={}, resolved_op_selection=None, step_keys_to_execute=None,
            status=DagsterRunStatus.STARTED, tags={}, root_run_id=None, parent_run_id=None, op_selection=None,
            job_snapshot=job.job_snapshot, execution_plan_snapshot=plan.execution_plan_snapshot, parent_job_snapshot=None,
            remote_job_origin=job.get_remote_origin(), job_code_origin=job.get_python_origin(),
            asset_selection=None, asset_check_selection=None, asset_graph=repository.asset_graph,
        )  # fmt: skip
        instance.report_run_failed(run, "its process died")
        return run

    return make


def look(kind: type[EventLogConsumerDaemon], context: WorkspaceProcessContext) -> None:
    list(kind().run_iteration(context))


def retries_of(instance: DagsterInstance, run: DagsterRun) -> list[DagsterRun]:
    return [each for each in instance.get_runs(RunsFilter()) if each.parent_run_id == run.run_id]


def test_a_retry_waits_for_a_code_location_that_is_away_and_is_made_once(
    location: CodeLocation, context: WorkspaceProcessContext, instance: DagsterInstance, crash: Callable[[], DagsterRun]
):
    run = crash()
    location.stop()
    look(RetryDaemon, context)
    assert retries_of(instance, run) == []
    assert any("as soon as that does" in entry.message for entry in instance.all_logs(run.run_id))

    context.refresh_workspace()  # as the daemon does every minute; it finds an error now
    look(RetryDaemon, context)
    location.start()
    context.refresh_workspace()
    look(RetryDaemon, context)
    look(RetryDaemon, context)
    (retry,) = retries_of(instance, run)
    assert retry.status == DagsterRunStatus.QUEUED
    assert POSTPONED_TAG not in retry.tags


def test_after_an_hour_it_is_given_up_and_said(
    location: CodeLocation, context: WorkspaceProcessContext, instance: DagsterInstance, crash: Callable[[], DagsterRun],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    run = crash()
    location.stop()
    look(RetryDaemon, context)
    monkeypatch.setattr(retries, "WAIT_SECONDS", -1.0)
    look(RetryDaemon, context)
    location.start()
    context.refresh_workspace()
    look(RetryDaemon, context)

    assert retries_of(instance, run) == []
    assert any("It is not tried again" in entry.message for entry in instance.all_logs(run.run_id))


def test_a_code_location_that_answers_is_asked_once(
    context: WorkspaceProcessContext, instance: DagsterInstance, crash: Callable[[], DagsterRun]
):
    run = crash()
    look(RetryDaemon, context)

    (retry,) = retries_of(instance, run)
    assert retry.status == DagsterRunStatus.QUEUED


def test_stock_gives_such_a_retry_up(
    location: CodeLocation, context: WorkspaceProcessContext, instance: DagsterInstance, crash: Callable[[], DagsterRun]
):
    run = crash()
    location.stop()
    look(EventLogConsumerDaemon, context)
    location.start()
    context.refresh_workspace()
    look(EventLogConsumerDaemon, context)

    assert retries_of(instance, run) == []


def test_the_daemon_is_made_with_ours(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(controller, "EventLogConsumerDaemon", EventLogConsumerDaemon)  # put back afterwards
    retries.install()

    assert isinstance(controller.create_daemon_of_type("EVENT_LOG_CONSUMER", instance), RetryDaemon)
