"""The run launcher of the cluster: a pod for each run, which is dead only when Kubernetes says so.

Dagster's own launcher takes any failed call to the API server for a dead run, gives a launch up at once, and does not
say why a pod died.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
from dagster import DagsterRun, Field
from dagster._core.launcher import LaunchRunContext
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster_k8s import K8sRunLauncher
from dagster_k8s.client import DagsterK8sAPIRetryLimitExceeded, DagsterK8sUnrecoverableAPIError
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import UserDefinedDagsterK8sConfig, get_job_name_from_run_id
from kubernetes.client import ApiClient
from kubernetes.client.rest import ApiException
from kubernetes.utils.quantity import parse_quantity
from urllib3.exceptions import HTTPError

from pipeline.launch.pods import CANNOT_START, KILLED_AT_TAG, Verdict, verdict
from pipeline.settings import CPU_TAG, MEMORY_TAG

log = logging.getLogger(__name__)

AMOUNT_TAGS = {MEMORY_TAG: "memory", CPU_TAG: "cpu"}
OF_ASSETS_TAG = "millrace/amounts_of_assets"  # those that a run has from its assets: name=amount,name=amount
CALL_SECONDS = 10.0  # an API server that hangs must not hang the daemon
RETRY_SECONDS = 5.0
LAUNCH_SECONDS = 180.0  # as long as a launch waits for an API server that does not answer
LOG_LINES = 30
PAGE = 500
NOT_KNOWN = (ApiException, DagsterK8sAPIRetryLimitExceeded, DagsterK8sUnrecoverableAPIError, HTTPError, OSError)
MIB = 1 << 20


class _BoundedApiClient(ApiClient):  # type: ignore[misc]
    """Bounds every call in time. The stock client's default is none, whatever its pool of connections is told."""

    def request(self, *args: Any, _request_timeout: float | None = None, **more: Any) -> Any:
        return super().request(*args, _request_timeout=_request_timeout or CALL_SECONDS, **more)


class RunLauncher(K8sRunLauncher):
    """`K8sRunLauncher` that tells "not known" from "dead", and says what a pod died of.

    Its one further setting is ``out_of_memory``: a retry of a run that was killed for its memory gets ``factor`` times
    its limit, ``limit`` at most. Without it the retry gets the same again.
    """

    def __init__(self, *, out_of_memory: Mapping[str, Any] | None = None, **stock: Any) -> None:
        self._out_of_memory = out_of_memory
        super().__init__(**stock)
        for api in (self._api_client.batch_api, self._api_client.core_api):
            api.api_client = _BoundedApiClient(api.api_client.configuration)

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """The stock launcher's settings and ours."""
        more = Field(
            {"factor": Field(float, default_value=1.5), "limit": Field(str)},
            is_required=False,
            description="Memory of a run that is tried again after it ran out of it.",
        )
        return {**super().config_type(), "out_of_memory": more}

    def get_container_context_for_run(self, dagster_run: DagsterRun) -> K8sContainerContext:
        """As for any run, with the CPU and memory of its tags; with more memory if it repeats one that ran out of it."""
        context = super().get_container_context_for_run(dagster_run)
        amounts = {name: dagster_run.tags[tag] for tag, name in AMOUNT_TAGS.items() if tag in dagster_run.tags}
        killed_at = dagster_run.tags.get(KILLED_AT_TAG)
        if killed_at and self._out_of_memory:
            killed = float(parse_quantity(killed_at))
            more = min(killed * self._out_of_memory["factor"], float(parse_quantity(self._out_of_memory["limit"])))
            # Never less than it had, or than somebody asks for by now.
            wanted = max(killed, more, float(parse_quantity(amounts.get("memory", "0"))))
            amounts["memory"] = f"{int(wanted) // MIB}Mi"
        if not amounts:
            return context
        # No CPU limit where none is configured: the imports at the start of a run would be throttled.
        limited = (self.resources or {}).get("limits", {})
        limits = {name: amount for name, amount in amounts.items() if name != "cpu" or name in limited}
        resources = {"requests": amounts, "limits": limits}
        config = UserDefinedDagsterK8sConfig.from_dict({"container_config": {"resources": resources}})
        return context.merge(K8sContainerContext(run_k8s_config=config))

    def launch_run(self, context: LaunchRunContext) -> None:
        """Make the run's Job; an API server that does not answer is asked again for three minutes.

        A Job is named for its run, so that one made by a call that seemed to fail is found and not made twice.
        """
        run = context.dagster_run
        if amounts := _amounts_of_assets(context):
            self._instance.add_run_tags(run.run_id, amounts)
            run = run.with_tags({**run.tags, **amounts})
        deadline = time.monotonic() + LAUNCH_SECONDS
        while True:
            try:
                super().launch_run(LaunchRunContext(run, context.workspace))
            except NOT_KNOWN as error:
                cause = _api_error(error)
                if isinstance(cause, ApiException) and cause.status == 409:
                    return
                if not _may_pass(cause) or time.monotonic() > deadline:
                    raise
                log.warning("Launching run %s: %s; trying again", run.run_id, _shown(cause))
                time.sleep(RETRY_SECONDS)
            else:
                return

    def _launch_k8s_job_with_args(self, job_name: str, args: Sequence[str] | None, run: DagsterRun) -> None:
        """With our worker in the place of ``dagster api execute_run``, whose last argument is the same."""
        assert args
        super()._launch_k8s_job_with_args(job_name, ["python", "-m", "pipeline.launch.worker", args[-1]], run)

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the run's pod works. What cannot be asked is not known, and no reason to fail a run."""
        job_name, namespace = self._job_of(run)
        try:
            status = self._api_client.get_job_status(job_name, namespace, wait_time_between_attempts=0)
            if status is not None and (status.active or not (status.failed or status.succeeded)):
                return CheckRunHealthResult(WorkerStatus.RUNNING)
            found = self._verdict(job_name, namespace) if status is not None else None
        except NOT_KNOWN as error:  # refused, 403, 429, time-out: the next poll asks again
            log.warning("Asking for the pod of run %s: %s; it counts as running", run.run_id, _shown(_api_error(error)))
            return CheckRunHealthResult(WorkerStatus.RUNNING, "not known: the Kubernetes API did not answer")
        if status is None:
            gone = f"its Job {job_name} is gone from namespace {namespace}: somebody deleted it. Launch the run again."
            return CheckRunHealthResult(WorkerStatus.FAILED, gone)
        if found and found.is_out_of_memory and found.memory_limit:
            self._instance.add_run_tags(run.run_id, {KILLED_AT_TAG: found.memory_limit})
        # Dagster puts what `get_run_worker_debug_info` says under this.
        return CheckRunHealthResult(WorkerStatus.FAILED, found.reason if found else "the pod ended before the run did")

    def get_run_worker_debug_info(self, run: DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """What is wrong with the run's pod and what to change, and the end of its log if asked for."""
        job_name, namespace = self._job_of(run)
        found = self._verdict(job_name, namespace)
        lines = [f"Its pod: {found.text}" if found else f"Nothing is known to be wrong with the pod of Job {job_name}."]
        for pod in self._api_client.get_pods_in_job(job_name, namespace) if include_container_logs else ():
            started = [each for each in pod.status.container_statuses or () if not each.state.waiting]
            if started:
                text = self._api_client.core_api.read_namespaced_pod_log(
                    pod.metadata.name, namespace, container=started[0].name, tail_lines=LOG_LINES
                )
                lines.append(f"The log of pod {pod.metadata.name} ends:\n{text}")
        return "\n".join(lines)

    # For the reaper

    def run_jobs(self) -> Iterator[dict[str, Any]]:
        """The Jobs of this instance's runs as the API server's JSON, page by page; model objects would cost seconds."""
        labels = {"app.kubernetes.io/component": "run_worker", **self._labels}
        selector, token = ",".join(f"{name}={value}" for name, value in labels.items()), None
        while True:
            answer = self._api_client.batch_api.list_namespaced_job(
                self.job_namespace, label_selector=selector, limit=PAGE, _continue=token, _preload_content=False
            )
            page = orjson.loads(answer.data)
            yield from page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return

    def delete_job(self, name: str) -> bool:
        """Delete a Job and its pods; False if it is gone already."""
        try:
            self._api_client.batch_api.delete_namespaced_job(
                name, self.job_namespace, propagation_policy="Background", _preload_content=False
            )
        except ApiException as error:
            if error.status == 404:
                return False
            raise
        return True

    def why_it_cannot_start(self, run: DagsterRun) -> str:
        """What keeps the pod of *run* from ever starting; empty while it may come right, as when it waits for a node."""
        found = self._verdict(*self._job_of(run))
        if not found or not (found.is_final or found.reason in CANNOT_START):
            return ""
        if found.is_out_of_memory and found.memory_limit:
            self._instance.add_run_tags(run.run_id, {KILLED_AT_TAG: found.memory_limit})
        return found.text

    def _job_of(self, run: DagsterRun) -> tuple[str, str]:
        """Name and namespace."""
        namespace = self.get_container_context_for_run(run).namespace or self.job_namespace
        return get_job_name_from_run_id(run.run_id), namespace

    def _verdict(self, job_name: str, namespace: str) -> Verdict | None:
        api = self._api_client.core_api
        pods = self._api_client.get_pods_in_job(job_name, namespace)
        name = pods[-1].metadata.name if pods else job_name
        events = api.list_namespaced_event(namespace, field_selector=f"involvedObject.name={name}").items
        return verdict(pods[-1] if pods else None, events)


def _amounts_of_assets(context: LaunchRunContext) -> dict[str, str]:
    """Tags with the largest CPU and memory that one of the run's assets asks for, where its own tags do not say it."""
    run, origin = context.dagster_run, context.dagster_run.remote_job_origin
    # A run that repeats another inherits its tags: an asset may have been given more meanwhile, and so may the run.
    of_assets = run.tags.get(OF_ASSETS_TAG, "").split(",")
    missing = [tag for tag in AMOUNT_TAGS if tag not in run.tags or f"{tag}={run.tags[tag]}" in of_assets]
    if not missing or not origin or not context.workspace:
        return {}
    location = context.workspace.get_code_location(origin.repository_origin.code_location_origin.location_name)
    graph = location.get_repository(origin.repository_origin.repository_name).asset_graph
    keys = run.asset_selection or graph.asset_keys_for_job(run.job_name)
    asked = {}
    for tag in missing:
        amounts = [graph.get(key).tags[tag] for key in keys if graph.has(key) and tag in graph.get(key).tags]
        if amounts:
            asked[tag] = max(amounts, key=parse_quantity)
    return asked | {OF_ASSETS_TAG: ",".join(f"{tag}={amount}" for tag, amount in asked.items())} if asked else {}


def _api_error(error: BaseException) -> BaseException:
    """The API client's own error behind what dagster-k8s made of it."""
    if isinstance(error, DagsterK8sAPIRetryLimitExceeded | DagsterK8sUnrecoverableAPIError) and error.__cause__:
        return error.__cause__
    return error


def _may_pass(error: BaseException) -> bool:
    """True if a later call may succeed: no answer, too many requests, a server's error, an expired token, a quota."""
    if isinstance(error, ApiException):
        return error.status in (0, 401, 403, 408, 429) or error.status >= 500
    return isinstance(error, HTTPError | OSError)


def _shown(error: BaseException) -> str:
    if isinstance(error, ApiException):
        return f"the Kubernetes API answered {error.status} {error.reason}: {str(error.body or '')[:300]}"
    return f"the Kubernetes API did not answer: {str(error)[:300]}"
