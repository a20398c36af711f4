"""A fault beside a run that works: in the end its work is done, once, and everything runs again."""

import time

import pytest

from tests.cluster.release import Release, until
from tests.faults.conftest import OUTAGE_SECONDS, Fault, kill, without, without_postgres

CONVERGED_SECONDS = 180.0
SERVICES = ("code", "daemon", "webserver", "postgresql")

FAULTS = [
    pytest.param(kill("run_worker"), id="run-pod-killed", marks=pytest.mark.always),
    pytest.param(kill("daemon"), id="daemon-killed", marks=pytest.mark.always),
    pytest.param(without_postgres, id="postgres-60-s", marks=pytest.mark.always),
    pytest.param(without("apiserver"), id="api-server-60-s", marks=[pytest.mark.always, pytest.mark.node]),
    pytest.param(kill("webserver"), id="webserver-killed"),
    pytest.param(kill("code"), id="code-location-killed"),
    pytest.param(kill("postgresql"), id="postgres-killed"),
    pytest.param(without("kubelet"), id="kubelet-60-s", marks=pytest.mark.node),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_work_of_a_run_is_done_once_and_everything_runs_again(release: Release, fault: Fault):
    works_seconds = OUTAGE_SECONDS + 20
    run_id = release.launch(assets=["sleeps"], location="trials", tags={"trials/seconds": f"{works_seconds:.0f}"})
    release.wait(run_id, "STARTED", seconds=120)

    fault(release)
    ended = time.monotonic()
    queued = until(
        lambda: release.launch(assets=["first"], location="trials"), seconds=CONVERGED_SECONDS, what="a launch"
    )

    until(lambda: _is_done(release, run_id), seconds=works_seconds + CONVERGED_SECONDS, what="the work done", every=2)
    release.wait(queued, "SUCCESS", seconds=CONVERGED_SECONDS)
    for component in SERVICES:
        release.pod(component)
    assert release.lake(f"SELECT count(*) AS n FROM trials.sleeps WHERE key = '{run_id}'") == [{"n": 1}]
    assert _under_way(release) == []
    assert time.monotonic() - ended < works_seconds + CONVERGED_SECONDS


def _is_done(release: Release, run_id: str) -> bool:
    """True if the run, or the retry that stands in for it, has succeeded and nothing of it is under way."""
    family = [run for run in release.runs() if run_id in (run["runId"], run["tags"].get("dagster/root_run_id"))]
    statuses = [run["status"] for run in family]
    return "SUCCESS" in statuses and set(statuses) <= {"SUCCESS", "FAILURE"}


def _under_way(release: Release) -> list[str]:
    return [
        run["runId"] for run in release.runs(statuses=["QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"])
    ]
