"""The guarded launcher against the stock one: what is not known, what is dead, what is launched."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from dagster import DagsterInstance
from dagster._core.launcher import LaunchRunContext
from dagster._core.launcher.base import WorkerStatus
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster_k8s import K8sRunLauncher
from kubernetes.client.rest import ApiException

from pipeline.launch import launcher as module
from pipeline.launch.launcher import OF_ASSETS_TAG, RunLauncher, _amounts_of_assets
from pipeline.launch.pods import KILLED_AT_TAG
from tests.launch.api_server import ApiServer, job, pod
from tests.launch.conftest import Start

SILENT = 30.0
KILLED = {"terminated": {"reason": "OOMKilled", "exitCode": 137, "message": "memory peaked at 511 MiB of 512 MiB"}}


@pytest.mark.parametrize("fault", [403, 429, 500, 503, SILENT, "refused"])
def test_an_api_server_that_does_not_answer_is_no_dead_run(
    launcher: RunLauncher, api: ApiServer, start: Start, fault: Any, monkeypatch: pytest.MonkeyPatch
):
    run = start()
    api.jobs[f"dagster-run-{run.run_id}"] = job(run.run_id, active=1)
    monkeypatch.setattr("pipeline.launch.launcher.CALL_SECONDS", 0.5)
    if fault == "refused":
        launcher._api_client.batch_api.api_client.configuration.host = "http://127.0.0.1:1"
    else:
        api.faults[:] = [fault] * 10

    started = time.monotonic()
    assert launcher.check_run_worker_health(run).status == WorkerStatus.RUNNING
    assert time.monotonic() - started < SILENT / 2  # of the server that is silent, too


@pytest.mark.parametrize("status", [403, 429])
def test_the_stock_launcher_takes_one_such_answer_for_a_dead_run(
    make_launcher: Callable[..., Any], api: ApiServer, start: Start, status: int
):
    run = start()
    api.jobs[f"dagster-run-{run.run_id}"] = job(run.run_id, active=1)
    api.faults[:] = [status]

    assert (
        make_launcher(K8sRunLauncher).check_run_worker_health(run).status == WorkerStatus.UNKNOWN
    )  # and is failed for it


def test_a_job_that_is_gone_is_a_dead_run(launcher: RunLauncher, start: Start):
    result = launcher.check_run_worker_health(start())

    assert result.status == WorkerStatus.FAILED
    assert "is gone from namespace data" in str(result.msg)


def test_a_pod_out_of_memory_is_named_with_peak_and_limit_and_its_retry_gets_more(
    launcher: RunLauncher, api: ApiServer, start: Start, instance: DagsterInstance
):
    run = start()
    api.jobs[f"dagster-run-{run.run_id}"] = job(run.run_id, failed=1)
    api.pods[:] = [pod(phase="Failed", state=KILLED)]

    assert launcher.check_run_worker_health(run).status == WorkerStatus.FAILED
    text = str(launcher.get_run_worker_debug_info(run, include_container_logs=False))
    assert "ran out of memory" in text
    assert "limit of 512Mi" in text
    assert "memory peaked at 511 MiB" in text
    failed = instance.get_run_by_id(run.run_id)
    assert failed
    assert failed.tags[KILLED_AT_TAG] == "512Mi"
    assert _resources(launcher, failed) == {"requests": {"memory": "768Mi"}, "limits": {"memory": "768Mi"}}
    again = failed.with_tags({KILLED_AT_TAG: "768Mi"})
    assert _resources(launcher, again)["limits"] == {"memory": "1024Mi"}  # the cap
    large = failed.with_tags({KILLED_AT_TAG: "16Gi"})
    assert _resources(launcher, large)["limits"] == {"memory": "16384Mi"}  # never less than it had
    asked = failed.with_tags({KILLED_AT_TAG: "512Mi", "millrace/memory": "6Gi"})
    assert _resources(launcher, asked)["limits"] == {"memory": "6144Mi"}  # nor than somebody asks for by now


def test_tags_set_cpu_and_memory_beside_what_the_launcher_gives(
    make_launcher: Callable[..., RunLauncher], start: Start
):
    launcher = make_launcher(resources={"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}})

    assert _resources(launcher, start(millrace__memory="4Gi")) == {
        "requests": {"cpu": "250m", "memory": "4Gi"},
        "limits": {"memory": "4Gi"},
    }
    assert _resources(launcher, start(millrace__cpu="2"))["requests"]["cpu"] == "2"
    limited = make_launcher(resources={"requests": {"cpu": "250m"}, "limits": {"cpu": "1"}})
    assert _resources(limited, start(millrace__cpu="2")) == {"requests": {"cpu": "2"}, "limits": {"cpu": "2"}}


@pytest.mark.parametrize(
    ("tags", "asked"),
    [
        ({}, "4Gi"),
        ({"millrace/memory": "6Gi"}, None),  # its own tag
        (
            {"millrace/memory": "2Gi", OF_ASSETS_TAG: "millrace/memory=2Gi"},
            "4Gi",
        ),  # repeats a run from when the asset had less
        (
            {"millrace/memory": "6Gi", OF_ASSETS_TAG: "millrace/memory=2Gi"},
            None,
        ),  # repeats it, with a tag somebody changed
    ],
)
def test_an_asset_asks_for_memory_unless_somebody_does_for_the_run(
    context: WorkspaceProcessContext, start: Start, tags: dict[str, str], asked: str | None
):
    workspace = context.create_request_context()
    (repository,) = workspace.code_locations[0].get_repositories().values()
    run = start()._replace(
        job_name="daily", remote_job_origin=repository.get_full_job("daily").get_remote_origin(), tags=tags
    )

    found = _amounts_of_assets(LaunchRunContext(run, workspace))

    assert found == ({"millrace/memory": asked, OF_ASSETS_TAG: f"millrace/memory={asked}"} if asked else {})


def test_a_tag_outside_the_allow_list_is_refused(make_launcher: Callable[..., RunLauncher], start: Start):
    launcher = make_launcher(only_allow_user_defined_k8s_config_fields={"container_config": {"resources": True}})
    run = start(**{"dagster-k8s__config": '{"pod_spec_config": {"host_network": true}}'})

    with pytest.raises(Exception, match="violated the allowed list"):
        launcher.get_container_context_for_run(run)


@pytest.mark.parametrize("faults", [[503], [429, 403], [500, 500]])
def test_a_launch_waits_for_an_api_server_and_makes_one_job(
    launcher: RunLauncher, api: ApiServer, launchable: Any, faults: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr("dagster_k8s.client.time.sleep", lambda _: None)
    api.faults[:] = faults

    launcher.launch_run(launchable)

    assert list(api.jobs) == [f"dagster-run-{launchable.dagster_run.run_id}"]
    (made,) = api.jobs.values()
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["args"][:3] == ["python", "-m", "pipeline.launch.worker"]


def test_a_job_that_was_made_although_the_call_failed_is_not_an_error(
    launcher: RunLauncher, api: ApiServer, launchable: Any
):
    api.jobs[f"dagster-run-{launchable.dagster_run.run_id}"] = job(launchable.dagster_run.run_id)

    launcher.launch_run(launchable)


def test_a_job_that_kubernetes_refuses_is_not_tried_again(launcher: RunLauncher, api: ApiServer, launchable: Any):
    api.faults[:] = [422]
    started = time.monotonic()

    with pytest.raises(Exception) as refused:  # noqa: PT011  (dagster-k8s' own class, ApiException its cause)
        launcher.launch_run(launchable)

    assert isinstance(refused.value.__cause__, ApiException)
    assert time.monotonic() - started < 5


def _resources(launcher: RunLauncher, run: Any) -> Any:
    config = launcher.get_container_context_for_run(run).run_k8s_config
    return config.container_config["resources"]
