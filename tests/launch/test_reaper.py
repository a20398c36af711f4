"""Passes of the reaper over Jobs and runs."""

import time
from collections.abc import Callable

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from kubernetes.client.rest import ApiException

from pipeline.launch.launcher import LAUNCH_SECONDS, RunLauncher
from pipeline.launch.reaper import OVER_SECONDS, START_SECONDS, Reaper
from tests.launch.api_server import ApiServer, job, pod
from tests.launch.conftest import Start

COMPLETE = {"conditions": [{"type": "Complete", "status": "True"}], "succeeded": 1}


@pytest.fixture
def reaper(instance: DagsterInstance, launcher: RunLauncher) -> Reaper:
    return Reaper(instance, launcher)


def _soon(seconds: float) -> float:
    return time.time() + seconds


@pytest.mark.parametrize("status", [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED])
def test_a_job_that_works_on_although_its_run_is_over_goes_after_a_minute(
    reaper: Reaper, api: ApiServer, start: Start, status: DagsterRunStatus
):
    run = start(status)
    name = f"dagster-run-{run.run_id}"
    api.jobs[name] = job(run.run_id, active=1)

    assert reaper.run_pass(_soon(OVER_SECONDS - 30)).deleted == []
    assert reaper.run_pass(_soon(OVER_SECONDS + 30)).deleted == [name]
    assert api.jobs == {}


def test_jobs_under_way_and_finished_jobs_stay(reaper: Reaper, api: ApiServer, start: Start):
    working, over = start(), start(DagsterRunStatus.SUCCESS)
    api.jobs["a"], api.jobs["b"] = (
        job(working.run_id, active=1),
        job(over.run_id, **COMPLETE),
    )  # b: its TTL is the cluster's

    assert reaper.run_pass(_soon(3600)).deleted == []
    assert set(api.jobs) == {"a", "b"}


def test_a_job_whose_run_is_in_no_database_goes(reaper: Reaper, api: ApiServer):
    api.jobs["dagster-run-00000000-0000-4000-8000-000000000000"] = job("00000000-0000-4000-8000-000000000000", active=1)

    reaper.run_pass(time.time())

    assert api.jobs == {}


@pytest.mark.parametrize(
    ("reason", "says"),
    [("ImagePullBackOff", "image cannot be pulled"), ("CreateContainerConfigError", "cannot be started")],
)
def test_a_pod_that_will_never_start_fails_its_run_in_time(
    reaper: Reaper, api: ApiServer, start: Start, instance: DagsterInstance, reason: str, says: str
):
    run = start(DagsterRunStatus.STARTING)
    api.jobs[f"dagster-run-{run.run_id}"] = job(run.run_id, active=1)
    api.pods[:] = [pod(phase="Pending", state={"waiting": {"reason": reason, "message": "why"}})]

    assert reaper.run_pass(_soon(START_SECONDS - 30)).failed == []
    assert reaper.run_pass(_soon(START_SECONDS + 1)).failed == [run.run_id]
    failed = instance.get_run_by_id(run.run_id)
    assert failed
    assert failed.status == DagsterRunStatus.FAILURE
    assert any(says in entry.message for entry in instance.all_logs(run.run_id))


FAILED = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "it has ended"}], "failed": 1}  # fmt: skip
KILLED = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}


@pytest.mark.parametrize(
    ("pods", "says"),
    [([], "preempted, evicted or deleted (BackoffLimitExceeded: it has ended)"), ([pod(phase="Failed", state=KILLED)], "it ran out of memory")],
)  # fmt: skip
def test_a_pod_that_ended_before_it_began_to_work_fails_its_run_at_once(
    reaper: Reaper, api: ApiServer, start: Start, instance: DagsterInstance, pods: list[dict[str, object]], says: str
):
    starting, at_work = start(DagsterRunStatus.STARTING), start()  # of the other the daemon's monitoring has to say it
    for run in (starting, at_work):
        api.jobs[f"dagster-run-{run.run_id}"] = job(run.run_id, **FAILED)
    api.pods[:] = pods

    assert reaper.run_pass(_soon(1)).failed == [starting.run_id]
    assert any(says in entry.message for entry in instance.all_logs(starting.run_id))


def test_a_pod_without_a_node_waits(reaper: Reaper, api: ApiServer, start: Start):
    run = start(DagsterRunStatus.STARTING)
    api.jobs[f"dagster-run-{run.run_id}"] = job(run.run_id, active=1)
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    api.pods[:] = [pod(phase="Pending", conditions=[condition])]

    assert reaper.run_pass(_soon(START_SECONDS + 1)).failed == []


def test_a_starting_run_whose_job_vanished_is_failed_at_the_second_look(
    reaper: Reaper, start: Start, instance: DagsterInstance
):
    run = start(DagsterRunStatus.STARTING)
    instance.report_engine_event("Kubernetes run worker job created", run, cls=RunLauncher)

    assert reaper.run_pass(_soon(START_SECONDS + 1)).failed == []
    assert reaper.run_pass(_soon(START_SECONDS + 20)).failed == [run.run_id]
    assert any("somebody deleted it" in entry.message for entry in instance.all_logs(run.run_id))


def test_a_run_that_the_launcher_may_still_be_launching_is_left_alone(reaper: Reaper, start: Start):
    run = start(DagsterRunStatus.STARTING)

    for seconds in (1, 20, LAUNCH_SECONDS - 1):
        assert reaper.run_pass(_soon(START_SECONDS + seconds)).failed == []
    assert reaper.run_pass(_soon(START_SECONDS + LAUNCH_SECONDS + 1)).failed == [run.run_id]


def test_a_run_whose_launch_was_cut_off_is_cancelled_unless_the_daemon_goes_on_with_it(
    reaper: Reaper, start: Start, instance: DagsterInstance
):
    by_hand, by_schedule, at_work = (
        start(DagsterRunStatus.NOT_STARTED),
        start(DagsterRunStatus.NOT_STARTED),
        start(),
    )
    instance.add_run_tags(by_schedule.run_id, {"dagster/schedule_name": "daily"})

    assert reaper.run_pass(_soon(START_SECONDS - 30)).cancelled == []
    assert reaper.run_pass(_soon(START_SECONDS + 1)).cancelled == [by_hand.run_id]
    statuses = [
        run and run.status for run in map(instance.get_run_by_id, (by_hand.run_id, by_schedule.run_id, at_work.run_id))
    ]
    assert statuses == [DagsterRunStatus.CANCELED, DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTED]


def test_a_silent_api_server_costs_a_pass_and_nothing_else(
    reaper: Reaper, api: ApiServer, start: Start, instance: DagsterInstance
):
    run = start(DagsterRunStatus.STARTING)
    api.faults[:] = [503]

    with pytest.raises(ApiException):
        reaper.run_pass(_soon(START_SECONDS + 1))
    assert reaper.run_pass(_soon(START_SECONDS + 1)).failed == []
    same = instance.get_run_by_id(run.run_id)
    assert same
    assert same.status == DagsterRunStatus.STARTING


def test_only_jobs_of_its_own_release_are_looked_at(make_launcher: Callable[..., RunLauncher], api: ApiServer):
    launcher = make_launcher(labels={"app.kubernetes.io/instance": "mine"})

    list(launcher.run_jobs())

    assert "app.kubernetes.io%2Finstance%3Dmine" in api.queries[-1]
