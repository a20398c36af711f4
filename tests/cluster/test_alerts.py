"""From a run that goes wrong to whoever is told of it: exporter, Prometheus, Alertmanager and a receiver, all in the cluster."""

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.cluster.conftest import HERE, PROMETHEUS_RULES
from tests.cluster.release import Release, kubectl, until
from tests.faults.conftest import node
from tests.tools import lacks

KILLS = 20


@pytest.fixture(scope="module", autouse=True)
def receiver(release: Release) -> Iterator[None]:
    """The receiver of the release's alerts; Prometheus has seen the exporter."""
    if PROMETHEUS_RULES not in kubectl("get", "crd", "-o", "name"):
        lacks("needs the Prometheus Operator in the cluster")
    objects = (HERE / "receiver.yaml").read_text().replace("IMAGE", os.environ["MILLRACE_TEST_IMAGE"])
    kubectl("-n", release.namespace, "apply", "-f", "-", stdin=objects)
    kubectl("-n", release.namespace, "wait", "--for=condition=Ready", "pod/receiver", "--timeout=60s")
    yield
    kubectl("-n", release.namespace, "delete", "-f", "-", "--grace-period=1", stdin=objects, check=False)


def told(release: Release, alert: str, **labels: str) -> list[dict[str, Any]]:
    """What the receiver was told of the group of *alert* with these labels, in order."""
    lines = kubectl("-n", release.namespace, "logs", "pod/receiver").splitlines()
    wanted = {"alertname": alert, **labels}.items()
    return [group for group in map(json.loads, filter(None, lines)) if wanted <= group["commonLabels"].items()]


def firing(release: Release, alert: str, *, seconds: float, **labels: str) -> dict[str, Any]:
    """The first thing that was told of it."""

    def look() -> list[dict[str, Any]]:
        return told(release, alert, **labels)

    (first, *_) = until(look, seconds=seconds, what=f"{alert} {labels} told")
    assert first["status"] == "firing"
    return first


def require_told_once(release: Release, alert: str, *, seconds: float, **labels: str) -> None:
    """It fires once, then resolves once, and that is all."""
    until(lambda: len(told(release, alert, **labels)) >= 2, seconds=seconds, what=f"{alert} {labels} resolved")
    assert [group["status"] for group in told(release, alert, **labels)] == ["firing", "resolved"]
    assert all(len(group["alerts"]) == 1 for group in told(release, alert, **labels))


def test_runs_that_fail_hang_or_need_much_memory_are_each_told_once_and_again_when_it_is_over(release: Release):
    hanging = release.launch("hanging", location="trials", tags={"trials/seconds": "60"})
    hoarding = release.launch("hoarding", location="trials", tags={"trials/seconds": "60", "millrace/memory": "800Mi"})
    failing = [release.launch("flaky", location="trials", tags={"trials/fail": "yes"}) for _ in range(2)]
    passing = [release.launch("flaky", location="trials") for _ in range(3)]

    found = firing(release, "MillraceRunSlow", seconds=120, job_name="hanging")
    assert release.run(hanging)["status"] == "STARTED"  # it is told while the run is at work
    (alert,) = found["alerts"]
    assert alert["labels"]["severity"] == "warning"
    assert alert["labels"]["namespace"] == release.namespace
    assert alert["annotations"]["runbook_url"].endswith("/MillraceRunSlow.md")
    assert "hanging" in alert["annotations"]["description"]
    found = firing(release, "MillraceRunMemoryHigh", seconds=120, job_name="hoarding")
    assert "9" in found["alerts"][0]["annotations"]["description"]  # per cent
    for run_id in failing:
        release.wait(run_id, "FAILURE")
    for run_id in (hanging, hoarding, *passing):
        release.wait(run_id, "SUCCESS")
    found = firing(release, "MillraceFailureRateHigh", seconds=60, job_name="flaky")
    assert "40" in found["alerts"][0]["annotations"]["description"]

    require_told_once(release, "MillraceRunSlow", seconds=60, job_name="hanging")
    require_told_once(release, "MillraceRunMemoryHigh", seconds=60, job_name="hoarding")


def test_the_exporter_killed_twenty_times_while_runs_are_made_counts_them_all(release: Release):
    runs = [release.launch("flaky", location="trials") for _ in range(18)]
    for _ in range(KILLS):
        kill_exporter(release)
    for run_id in runs:
        release.wait(run_id, "SUCCESS", seconds=300)

    truth = {
        (job, status.lower()): float(count)
        for job, status, count in release.database(
            "SELECT pipeline_name, status, count(*) FROM runs WHERE status IN ('SUCCESS', 'FAILURE', 'CANCELED') GROUP BY 1, 2"
        )
    }

    def counted() -> bool:
        return {key: count for key, count in figures(release).items() if count} == truth

    until(counted, seconds=60, what="the exporter counts what the database has")
    # Two failures of 23 are fewer than one of ten. While the exporter was away nothing was known of them.
    until(
        lambda: told(release, "MillraceFailureRateHigh", job_name="flaky")[-1]["status"] == "resolved",
        seconds=90,
        what="MillraceFailureRateHigh resolved",
    )


def test_a_daemon_that_stops_is_told_once_and_again_when_it_is_back(release: Release):
    daemon = f"deployment/{release.name}-daemon"
    kubectl("-n", release.namespace, "scale", daemon, "--replicas=0")
    try:
        found = firing(release, "MillraceDaemonStale", seconds=300)
        assert found["commonLabels"]["severity"] == "critical"
    finally:
        kubectl("-n", release.namespace, "scale", daemon, "--replicas=1")
    release.pod("daemon")

    def over() -> bool:
        return told(release, "MillraceDaemonStale")[-1]["status"] == "resolved"

    until(over, seconds=120, what="MillraceDaemonStale resolved")
    groups = told(release, "MillraceDaemonStale")
    assert len({group["groupKey"] for group in groups}) == 1  # of all that the daemon does
    assert [group["status"] for group in groups].count("resolved") == 1
    assert all(alert["labels"]["daemon_type"] for group in groups for alert in group["alerts"])


def test_the_exporter_has_the_room_on_the_volume_of_the_bundled_database_which_it_does_not_mount(release: Release):
    def told() -> dict[str, float]:
        return {each.name: each.value for each in samples(release) if each.labels.get("volume") == "postgresql"}

    room = until(told, seconds=120, what="the volume of PostgreSQL in the exporter's figures")
    of_the_server = release.execute(
        "postgresql", "df", "-B1", "--output=size", "/var/lib/postgresql/data", container="postgresql"
    )
    assert room["millrace_volume_size_bytes"] == float(of_the_server.split()[-1])
    assert 0 < room["millrace_volume_free_bytes"] < room["millrace_volume_size_bytes"]


def figures(release: Release) -> dict[tuple[str, str], float]:
    """Completed runs by job and status, as the exporter serves them."""
    counts: dict[tuple[str, str], float] = {}
    for sample in samples(release):
        if sample.name == "dagster_runs_completed_total":
            key = (sample.labels["job_name"], sample.labels["status"])
            counts[key] = counts.get(key, 0.0) + sample.value
    return counts


def samples(release: Release) -> Iterator[Sample]:
    """All that the exporter serves."""
    ask = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9464/metrics', timeout=20).read().decode())"
    for family in text_string_to_metric_families(release.execute("exporter", "python", "-c", ask)):
        yield from family.samples


def kill_exporter(release: Release) -> None:
    """By SIGKILL, and its pod with it: the kubelet would wait ever longer to start a container again."""
    name = release.pod("exporter")
    (pod,) = (pod for pod in release.pods("exporter") if pod["metadata"]["name"] == name)
    if os.environ.get("MILLRACE_NODE_CONTROL"):
        node("kill", pod["metadata"]["uid"])
    release.kill(name)
    time.sleep(1)
