"""A fault beside a run that works: in the end its work is done, once, and everything runs again."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import trials_release
from tests.cluster.release import Release, kubectl, until
from tests.faults.conftest import OUTAGE_SECONDS, Fault, evict, kill, node, without, without_postgres

CONVERGED_SECONDS = 180.0
SAID_SECONDS = 120.0
SERVICES = ("code", "daemon", "webserver", "postgresql")
TRIALS = "millrace-code-trials"
ABSENT = "registry.example.test/absent:1"
# One large file leaves the file system's own reserve; small ones take that too, until not one byte is left.
FILL = """cd /var/lib/millrace-lake; mkdir ballast; cat /dev/zero > ballast/large; sync
number=0; while echo x > ballast/$number; do number=$((number + 1)); done; sync; ! echo x > ballast/last"""

FAULTS = [
    pytest.param(kill("run_worker"), 15, id="run-pod-killed"),
    pytest.param(evict, 15, id="run-pod-evicted"),
    pytest.param(kill("daemon"), 15, id="daemon-killed"),
    pytest.param(kill("webserver"), 15, id="webserver-killed"),
    pytest.param(kill("code"), 15, id="code-location-killed"),
    pytest.param(kill("postgresql"), 15, id="postgres-killed"),
    pytest.param(without_postgres, OUTAGE_SECONDS + 15, id="postgres-60-s"),
    pytest.param(without("apiserver"), OUTAGE_SECONDS + 15, id="api-server-60-s", marks=pytest.mark.node),
    pytest.param(without("kubelet"), OUTAGE_SECONDS + 15, id="kubelet-60-s", marks=pytest.mark.node),
]


@pytest.mark.parametrize(("fault", "works_seconds"), FAULTS)
def test_the_work_of_a_run_is_done_once_and_everything_runs_again(release: Release, fault: Fault, works_seconds: float):
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
    until(lambda: not _under_way(release), seconds=CONVERGED_SECONDS, what="no run under way")
    assert time.monotonic() - ended < works_seconds + CONVERGED_SECONDS


def test_a_run_that_fills_its_nodes_disk_is_evicted_named_and_tried_again(release: Release):
    limits = {"container_config": {"resources": {"limits": {"ephemeral-storage": "64Mi", "memory": "1Gi"}}}}
    run_id = release.launch(assets=["fills"], location="trials", tags={"dagster-k8s/config": json.dumps(limits)})
    release.wait(run_id, "FAILURE", seconds=SAID_SECONDS)

    text = "\n".join(release.messages(run_id))
    assert "its pod was evicted" in text, text
    assert "ephemeral" in text
    release.wait(release.retry_of(run_id)["runId"], "SUCCESS")
    assert release.lake(f"SELECT count(*) AS n FROM trials.fills WHERE key = '{run_id}'") == [{"n": 1}]


def test_an_image_that_does_not_exist_is_named_within_two_minutes(release: Release, image_of_trials: None):
    started = time.monotonic()
    run_id = release.launch(assets=["first"], location="trials")
    release.wait(run_id, "FAILURE", seconds=SAID_SECONDS)

    text = "\n".join(release.messages(run_id))
    assert f"Correct the image {ABSENT}" in text, text
    assert time.monotonic() - started < SAID_SECONDS
    until(lambda: not release.get("pods", "-l", f"dagster/run-id={run_id}"), seconds=120, what="no pod of the run")


@pytest.fixture
def image_of_trials(release: Release) -> Iterator[None]:
    """Runs of location trials get an image that no registry has: it was deleted since the location started."""
    deployment = f"deployment/{TRIALS}"
    query = """{ workspaceOrError { ... on Workspace { locationEntries { name displayMetadata { key value } } } } }"""

    def image() -> str:
        entries = release.graphql(query)["workspaceOrError"]["locationEntries"]
        (found,) = [entry["displayMetadata"] for entry in entries if entry["name"] == "trials"]
        return str(next(each["value"] for each in found if each["key"] == "image"))

    before = image()
    kubectl("-n", release.namespace, "set", "env", deployment, f"DAGSTER_CURRENT_IMAGE={ABSENT}")
    try:
        kubectl("-n", release.namespace, "rollout", "status", deployment, "--timeout=110s")
        until(lambda: image() == ABSENT, seconds=90, what="the other image in the UI")
        yield
    finally:
        kubectl("-n", release.namespace, "rollout", "undo", deployment)
        kubectl("-n", release.namespace, "rollout", "status", deployment, "--timeout=110s")
        until(lambda: image() == before, seconds=90, what="the image of before in the UI")


def test_queued_runs_wait_for_a_code_location_that_crashes_again_and_again(release: Release):
    at_work = [
        release.launch(assets=["sleeps"], location="trials", tags={"trials/seconds": "60"})
        for _ in range(4)  # of tests/cluster/trials.yaml: no more at once
    ]
    for run_id in at_work:
        release.wait(run_id, "STARTED", seconds=120)
    queued = release.launch(assets=["first"], location="trials")
    deployment = ["-n", release.namespace, "patch", "deployment", TRIALS, "--type=merge", "-p"]
    spec = json.loads(kubectl("-n", release.namespace, "get", "deployment", TRIALS, "-o", "json"))["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    crashing = {**container, "command": ["false"]}
    try:
        recreate = {"type": "Recreate", "rollingUpdate": None}  # else the old pod stays until the new one is ready
        kubectl(*deployment, json.dumps({"spec": {"strategy": recreate, "template": _with(crashing)}}))
        until(lambda: _restarts(release) >= 2, seconds=150, what="a crash loop")
        kill("daemon")(release)  # the one from before knows all that a launch needs
        for run_id in at_work:  # their pods have their own copy of the code
            release.wait(run_id, "SUCCESS")
        time.sleep(20)
        assert release.run(queued)["status"] == "QUEUED"
    finally:
        kubectl(*deployment, json.dumps({"spec": {"strategy": spec["strategy"], "template": _with(container)}}))

    release.wait(queued, "SUCCESS", seconds=CONVERGED_SECONDS)


def _with(container: dict[str, Any]) -> dict[str, Any]:
    return {"spec": {"containers": [container]}}


def _restarts(release: Release) -> int:
    pods = release.get("pods", "-l", "app.kubernetes.io/component=code,dagster/code-location=trials")
    return max(each["restartCount"] for pod in pods for each in pod["status"]["containerStatuses"])


@pytest.mark.node
def test_a_full_volume_is_named_harms_nothing_and_is_forgotten_once_there_is_room(on_a_small_disk: Release):
    release = on_a_small_disk
    release.wait(release.launch(assets=["writer_0"], location="trials"), "SUCCESS")
    release.execute("code", "sh", "-c", FILL)

    refused = release.launch(assets=["writer_1"], location="trials")
    release.wait(refused, "FAILURE")
    text = "\n".join(release.messages(refused))
    assert "No space left on device" in text, text
    assert "/var/lib/millrace-lake" in text
    whole = [{"n": 5000, "batches": 5}]
    assert release.lake("SELECT count(*) AS n, count(DISTINCT key) AS batches FROM trials.writer_0") == whole

    release.execute("code", "rm", "-r", "/var/lib/millrace-lake/ballast")
    release.wait(release.launch(assets=["writer_1"], location="trials"), "SUCCESS")
    assert release.lake("SELECT count(*) AS n, count(DISTINCT key) AS batches FROM trials.writer_1") == whole


@pytest.fixture
def on_a_small_disk(needs_a_cluster: None) -> Iterator[Release]:
    """A release of this test's own whose lake has 64 MiB."""
    name = "millrace-small-disk"
    size = {"storage": "64Mi"}
    volume = {
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"capacity": size, "accessModes": ["ReadWriteOnce"], "storageClassName": "", "hostPath": {"path": node("start", "disk")},
                 "claimRef": {"name": "small", "namespace": name}},
    }  # fmt: skip
    claim = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "small"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": size}, "volumeName": name},
    }  # fmt: skip
    release = None
    try:
        kubectl("apply", "-f", "-", stdin=json.dumps(volume))
        release = trials_release(name, "--set", "lake.volume.existingClaim=small", objects=json.dumps(claim))
        yield release
    finally:
        kubectl("delete", "namespace", name, "--timeout=110s", check=False)
        Release(name).remove()
        kubectl("delete", "persistentvolume", name, "--wait=false", check=False)
        node("stop", "disk")


def _is_done(release: Release, run_id: str) -> bool:
    """True if the run, or the retry that stands in for it, has succeeded and nothing of it is under way."""
    family = [run for run in release.runs() if run_id in (run["runId"], run["tags"].get("dagster/root_run_id"))]
    statuses = [run["status"] for run in family]
    return "SUCCESS" in statuses and set(statuses) <= {"SUCCESS", "FAILURE"}


def _under_way(release: Release) -> list[str]:
    return [
        run["runId"] for run in release.runs(statuses=["QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"])
    ]
