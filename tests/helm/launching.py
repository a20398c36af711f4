"""A run's Job as Dagster's launcher would make it, without an API server."""

import tempfile
from pathlib import Path
from typing import Any

import kubernetes
from dagster import DagsterRun
from dagster._config import process_config, resolve_to_config_type
from dagster_k8s.job import construct_dagster_k8s_job

from pipeline.launch.launcher import RunLauncher

NO_CLUSTER = """{apiVersion: v1, kind: Config, current-context: none, users: [], clusters: [{name: none, cluster: {server: "http://127.0.0.1:1"}}],
  contexts: [{name: none, context: {cluster: none, user: none}}]}"""
RUN_ID = "0a1b2c3d-0000-4000-8000-000000000000"


def launcher_config(config: dict[str, Any]) -> Any:
    """*config* through Dagster's schema of the launcher; the errors are in the result."""
    return process_config(resolve_to_config_type(RunLauncher.config_type()), config)


def run_job(config: dict[str, Any], tags: dict[str, str]) -> dict[str, Any]:
    """Raises what Dagster raises if *tags* ask for what the allow-list does not name."""
    processed = launcher_config(config)
    assert processed.success, processed.errors
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = Path(folder) / "config"
        kubeconfig.write_text(NO_CLUSTER)
        settings = {**processed.value, "load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
        launcher = RunLauncher.from_config_value(None, settings)  # type: ignore[arg-type]
    context = launcher.get_container_context_for_run(DagsterRun(job_name="daily", run_id=RUN_ID, tags=tags))
    job = construct_dagster_k8s_job(
        job_config=context.get_k8s_job_config(None, launcher),
        args=["dagster", "api", "execute_run", "{}"],
        job_name=f"dagster-run-{RUN_ID}",
        component="run_worker",
        user_defined_k8s_config=context.run_k8s_config,
        labels={"dagster/job": "daily", "dagster/run-id": RUN_ID},
    )
    manifest: dict[str, Any] = kubernetes.client.ApiClient().sanitize_for_serialization(job)
    manifest["metadata"]["namespace"] = context.namespace
    return manifest
