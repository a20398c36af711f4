"""What became of a run's pod, in one sentence: what happened, with its figures, and what to change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Event, V1ContainerStatus, V1Pod

OUT_OF_MEMORY = "OOMKilled"
KILLED_AT_TAG = "millrace/out_of_memory_at"  # the limit that ended a run; its retry has its tags, and gets more
MORE_MEMORY = (
    "Give the run more by the tag millrace/memory, or the asset by `limits` in millrace.yaml, or load less in one run."
)
CANNOT_START = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError",
                "CreateContainerError", "RunContainerError", "StartError")  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Why a pod does not work, or no longer. *reason* is Kubernetes' own word."""

    reason: str
    text: str
    is_final: bool = True  # else it may still come right: an image may yet be pulled, a node may yet have room
    memory_limit: str | None = None  # of the container that was killed for its memory

    @property
    def is_out_of_memory(self) -> bool:
        """True if the kernel killed the pod's main process for its memory."""
        return self.reason == OUT_OF_MEMORY


def verdict(pod: "V1Pod | None", events: Sequence["CoreV1Event"] = ()) -> Verdict | None:
    """Why *pod* failed or does not start; None if nothing is wrong with it.

    *events* are the pod's; those of its Job if it could not even be made, as when a quota is used up.
    """
    if pod is None:
        return _warned(events)
    found = _taken_away(pod) or _terminated(pod) or _cannot_start(pod) or _unschedulable(pod)
    return found or (_warned(events) if pod.status.phase == "Pending" else None)


def _taken_away(pod: "V1Pod") -> Verdict | None:
    status = pod.status
    disrupted = next((each for each in status.conditions or () if each.type == "DisruptionTarget" and each.status == "True"), None)  # fmt: skip
    if status.phase == "Failed" and status.reason:  # Evicted, NodeLost, Preempting, DeadlineExceeded …
        change = {
            "Evicted": "Give the run more of what it used up (ephemeral-storage or memory), or free the node.",
            "DeadlineExceeded": "The run took longer than its Job may; raise active_deadline_seconds or split the run.",
        }.get(status.reason, "The node took the pod away; the run is retried if retries are on.")
        return Verdict(status.reason, f"its pod was {_words(status.reason)}: {_sentence(status.message)} {change}")
    if disrupted and status.phase in ("Failed", "Succeeded", "Running") and pod.metadata.deletion_timestamp:
        return Verdict(
            disrupted.reason,
            f"its pod was taken away ({_words(disrupted.reason)}): {_sentence(disrupted.message)} "
            "The run is retried if retries are on; a drained node or a pod of higher priority needs no change.",
        )
    return None


def _terminated(pod: "V1Pod") -> Verdict | None:
    for container in _containers(pod):
        ended = container.state.terminated or (container.last_state and container.last_state.terminated)
        if ended is None or (ended.exit_code == 0 and not ended.signal):
            continue
        if ended.reason == OUT_OF_MEMORY:
            limit = _memory_limit(pod, container.name)
            seen = f" ({ended.message.strip()} shortly before)" if ended.message else ""
            return Verdict(
                OUT_OF_MEMORY,
                f"it ran out of memory: the kernel killed container {container.name} at its limit of "
                f"{limit or 'what the node has'}{seen}. {MORE_MEMORY}",
                memory_limit=limit,
            )
        how = f"signal {ended.signal}" if ended.signal else f"exit code {ended.exit_code}"
        why = f" ({ended.message.strip()[-500:]})" if ended.message else ""
        return Verdict(ended.reason or "Error", f"container {container.name} ended with {how}{why}. Its log says more.")
    return None


def _cannot_start(pod: "V1Pod") -> Verdict | None:
    for container in _containers(pod):
        waiting = container.state.waiting
        if waiting is None or waiting.reason not in CANNOT_START:
            continue
        what = "its image cannot be pulled" if "Image" in waiting.reason else "its container cannot be started"
        change = (
            f"Correct the image {container.image}, or the imagePullSecrets."
            if "Image" in waiting.reason
            else "Correct what the message names: a Secret, a ConfigMap or the command."
        )
        return Verdict(
            waiting.reason, f"{what} ({waiting.reason}): {_sentence(waiting.message)} {change}", is_final=False
        )
    return None


def _unschedulable(pod: "V1Pod") -> Verdict | None:
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return Verdict(
                condition.reason or "Unschedulable",
                f"no node takes its pod: {_sentence(condition.message)} It asks for {_requests(pod)}. Ask for less, "
                "add a node, or correct node selector and tolerations.",
                is_final=False,
            )
    return None


def _warned(events: Sequence["CoreV1Event"]) -> Verdict | None:
    """What waits without a state of its own, such as a volume that cannot be mounted: its last warning tells."""
    for event in reversed(events):
        if event.type == "Warning":
            return Verdict(event.reason, f"its pod does not start ({event.reason}): {event.message}", is_final=False)
    return None


def _containers(pod: "V1Pod") -> "list[V1ContainerStatus]":
    return [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]


def _memory_limit(pod: "V1Pod", name: str) -> str | None:
    for container in (*(pod.spec.init_containers or ()), *pod.spec.containers):
        if container.name == name and container.resources and container.resources.limits:
            return str(container.resources.limits.get("memory") or "") or None
    return None


def _requests(pod: "V1Pod") -> str:
    asked = (pod.spec.containers[0].resources and pod.spec.containers[0].resources.requests) or {}
    return ", ".join(f"{amount} {resource}" for resource, amount in sorted(asked.items())) or "nothing in particular"


def _sentence(message: str | None) -> str:
    return f"{(message or 'no message').strip().rstrip('.')}."


def _words(reason: str) -> str:
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in reason).strip()
