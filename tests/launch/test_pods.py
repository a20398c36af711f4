"""What is said of a pod, as a person on call reads it."""

from typing import Any

import kubernetes
import pytest

from pipeline.launch.pods import verdict
from tests.launch.api_server import pod


def _read(document: dict[str, Any], kind: str) -> Any:
    return kubernetes.client.ApiClient()._ApiClient__deserialize(document, kind)


def _waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available.",
}


@pytest.mark.parametrize(
    ("found", "reason", "says", "is_final"),
    [
        (pod(phase="Failed", state={"terminated": {"reason": "OOMKilled", "exitCode": 137}}), "OOMKilled", "limit of 512Mi. Give the run more", True),
        (pod(phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage."), "Evicted", "ephemeral-storage. Give the run more", True),
        (pod(phase="Failed", reason="DeadlineExceeded", message="too long"), "DeadlineExceeded", "active_deadline_seconds", True),
        (pod(phase="Failed", state={"terminated": {"reason": "Error", "exitCode": 1}}), "Error", "exit code 1", True),
        (pod(phase="Failed", state={"terminated": {"reason": "Error", "exitCode": 137, "signal": 9}}), "Error", "signal 9", True),
        (pod(phase="Pending", state=_waiting("ImagePullBackOff", "not found")), "ImagePullBackOff", "Correct the image millrace:7", False),
        (pod(phase="Pending", state=_waiting("CreateContainerConfigError", 'secret "x" not found')), "CreateContainerConfigError", 'secret "x" not found', False),
        (pod(phase="Pending", conditions=[UNSCHEDULABLE]), "Unschedulable", "It asks for 250m cpu", False),
    ],
)  # fmt: skip
def test_what_happened_and_what_to_change(found: dict[str, Any], reason: str, says: str, is_final: bool):
    said = verdict(_read(found, "V1Pod"))

    assert said
    assert (said.reason, said.is_final) == (reason, is_final)
    assert says in said.text


def test_a_pod_that_works_or_only_waits_for_its_image_is_no_failure():
    assert verdict(_read(pod(state={"running": {}}), "V1Pod")) is None
    assert verdict(_read(pod(phase="Pending", state=_waiting("ContainerCreating")), "V1Pod")) is None


def test_without_a_pod_the_warning_of_the_job_tells():
    quota = {
        "type": "Warning",
        "reason": "FailedCreate",
        "message": "exceeded quota: runs",
        "metadata": {},
        "involvedObject": {},
    }

    said = verdict(None, [_read(quota, "CoreV1Event")])

    assert said
    assert not said.is_final
    assert "exceeded quota: runs" in said.text
