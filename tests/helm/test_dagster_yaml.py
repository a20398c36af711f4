"""The instance that the chart configures: Dagster accepts it, it holds no secret, it is the embedded one but for a list."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import dagster_instance_config
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.workspace.load import location_origins_from_yaml_paths

from pipeline.operate.instance import _instance
from pipeline.settings import Settings
from tests.helm.chart import SCENARIOS, Rendered, render
from tests.helm.launching import RUN_ID, launcher_config

pytestmark = pytest.mark.tools


@pytest.fixture(params=SCENARIOS)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return render(request.param)


def test_dagster_accepts_every_section(rendered: Rendered, tmp_path: Path):
    document = rendered.file("dagster.yaml")
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(document))

    dagster_instance_config(str(tmp_path))  # raises on a key that is unknown or of the wrong type

    coordinator = process_config(
        resolve_to_config_type(QueuedRunCoordinator.config_type()), document["run_coordinator"]["config"]
    )
    assert (coordinator.errors, launcher_config(document["run_launcher"]["config"]).errors) == (None, None)


def test_dagster_refuses_a_key_it_does_not_know(tmp_path: Path):
    document = render("default").file("dagster.yaml")
    document["run_monitoring"]["poll_seconds"] = 1
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(document))

    with pytest.raises(Exception, match="poll_seconds"):
        dagster_instance_config(str(tmp_path))


@pytest.mark.parametrize(
    ("scenario", "name"),
    [("default", "LocalComputeLogManager"), ("object-store", "S3ComputeLogManager"), ("bare", "NoOpComputeLogManager")],
)
def test_compute_logs_go_where_the_values_say(scenario: str, name: str):
    section = render(scenario).file("dagster.yaml")["compute_logs"]

    assert section["class"] == name
    if name == "LocalComputeLogManager":
        assert process_config(resolve_to_config_type(LocalComputeLogManager.config_type()), section["config"]).success
    if name == "S3ComputeLogManager":
        from dagster_aws.s3.compute_log_manager import S3ComputeLogManager

        assert process_config(resolve_to_config_type(S3ComputeLogManager.config_type()), section["config"]).success
        assert (section["config"]["bucket"], section["config"]["prefix"]) == ("logs", "compute-logs")


def test_a_bucket_and_its_prefix_are_told_apart():
    config = render("production").file("dagster.yaml")["compute_logs"]["config"]

    assert (config["bucket"], config["prefix"]) == ("warehouse", "logs/compute")


def test_secrets_are_names_of_variables(rendered: Rendered):
    """The whole file travels in the arguments of every run pod."""
    assert _literals(rendered.file("dagster.yaml")) == []


def test_a_literal_password_is_found():
    document = render("default").file("dagster.yaml")
    document["storage"]["postgres"]["postgres_db"]["password"] = "hunter2"

    assert _literals(document) == ["storage.postgres.postgres_db.password"]


def test_it_is_the_embedded_instance_but_for_this_list(tmp_path: Path):
    """Each line is a difference that is meant. What appears or disappears on one side alone fails here."""
    chart = _flat(render("default").file("dagster.yaml"))
    embedded = _flat(_instance(Settings(state_dir=tmp_path)))
    meant = {
        # Pods, not processes.
        "run_launcher.module", "run_launcher.class",
        "compute_logs.config.base_dir", "local_artifact_storage.config.base_dir",
        # A value; the laptop counts its cores.
        "concurrency.runs.max_concurrent_runs",
    }  # fmt: skip
    only_in_chart = {
        "storage.postgres.should_autocreate_tables",  # the migration makes them, on a laptop the first command does
        "run_coordinator.config.dequeue_use_threads",  # making a Job takes a second: several at once
        "run_coordinator.config.dequeue_num_workers",
        "concurrency.runs.tag_concurrency_limits",  # a value
    }

    assert {key for key in chart.keys() & embedded.keys() if chart[key] != embedded[key]} == meant
    assert {
        key for key in chart.keys() - embedded.keys() if not key.startswith("run_launcher.config.")
    } == only_in_chart
    assert embedded.keys() - chart.keys() == set()


def test_the_launchers_own_fields_are_there():
    config = render("default").file("dagster.yaml")["run_launcher"]

    assert (config["module"], config["class"]) == ("pipeline.launch.launcher", "RunLauncher")
    assert config["config"]["out_of_memory"] == {"factor": 1.5, "limit": "8Gi"}


def test_a_run_pod_is_bounded_and_gone_an_hour_later():
    job = render("default").run_job()
    spec = job["spec"]["template"]["spec"]

    assert (job["spec"]["backoffLimit"], job["spec"]["ttlSecondsAfterFinished"]) == (0, 3600)
    assert (spec["restartPolicy"], spec["terminationGracePeriodSeconds"]) == ("Never", 60)
    assert {"name": "state", "emptyDir": {"sizeLimit": "10Gi"}} in spec["volumes"]
    assert spec["containers"][0]["image"] == "millrace:dev"


def test_a_run_pod_is_found_by_release_and_by_run():
    labels = render("default").run_job()["spec"]["template"]["metadata"]["labels"]

    assert labels.items() >= {
        "app.kubernetes.io/name": "millrace", "app.kubernetes.io/instance": "millrace", "app.kubernetes.io/component": "run_worker",
        "dagster/job": "daily", "dagster/run-id": RUN_ID,
    }.items()  # fmt: skip


def test_a_run_may_ask_for_memory_and_nodes():
    wish = """{"container_config": {"resources": {"limits": {"memory": "4Gi"}}},
        "pod_spec_config": {"node_selector": {"pool": "big"}, "tolerations": [{"key": "big", "operator": "Exists"}]}}"""

    spec = render("default").run_job({"dagster-k8s/config": wish})["spec"]["template"]["spec"]

    assert spec["containers"][0]["resources"]["limits"] == {"memory": "4Gi"}
    assert spec["nodeSelector"] == {"pool": "big"}


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("container_config", "image", '"evil"'),
        ("container_config", "security_context", '{"privileged": true}'),
        ("container_config", "env", '[{"name": "A", "value": "b"}]'),
        ("container_config", "env_from", '[{"secret_ref": {"name": "other"}}]'),
        ("container_config", "volume_mounts", '[{"name": "host", "mount_path": "/host"}]'),
        ("pod_spec_config", "service_account_name", '"millrace-daemon"'),
        ("pod_spec_config", "automount_service_account_token", "true"),
        ("pod_spec_config", "host_network", "true"),
        ("pod_spec_config", "volumes", '[{"name": "host", "host_path": {"path": "/"}}]'),
        ("pod_spec_config", "priority_class_name", '"system-node-critical"'),
        ("job_spec_config", "ttl_seconds_after_finished", "1"),
        ("job_metadata", "labels", '{"app.kubernetes.io/component": "daemon"}'),
        ("pod_template_spec_metadata", "labels", '{"app.kubernetes.io/component": "daemon"}'),
    ],
)
def test_a_run_may_ask_for_nothing_else(section: str, field: str, value: str):
    tag = f'{{"{section}": {{"{field}": {value}}}}}'

    with pytest.raises(Exception, match=rf"violated the allowed list: {section}\.{field}"):
        render("default").run_job({"dagster-k8s/config": tag})


def test_the_workspace_is_the_list_of_code_locations(tmp_path: Path):
    document = render("everything").file("workspace.yaml")
    (tmp_path / "workspace.yaml").write_text(yaml.safe_dump(document))

    origins = location_origins_from_yaml_paths([os.fspath(tmp_path / "workspace.yaml")])

    assert [(origin.location_name, origin.host, origin.port) for origin in origins] == [  # type: ignore[attr-defined]
        ("millrace", "millrace-code-millrace", 4000),
        ("shop", "millrace-code-shop", 4000),
    ]


def test_a_location_runs_in_its_own_image():
    (server,) = render("everything").named("Deployment", "millrace-code-shop")["spec"]["template"]["spec"]["containers"]

    assert server["image"] == "registry.example.test/shop:7"
    assert {"name": "DAGSTER_CURRENT_IMAGE", "value": server["image"]} in server["env"]
    assert server["command"][:5] == ["millrace", "serve", "code-server", "-m", "shop.definitions"]


def test_a_digest_wins_over_the_tag():
    images = {container["image"] for name, container in render("production", "image.tag=dev").containers()}

    assert images == {"registry.example.test/millrace@sha256:" + "0" * 64}


def _literals(node: Any, path: str = "") -> list[str]:
    """Paths of values that look like secrets by their key and are not ``{env: …}``."""
    if isinstance(node, dict):
        return [found for key, value in node.items() for found in _literals(value, f"{path}.{key}")]
    suspicious = ("password", "secret", "token", "access_key", "postgres_url")
    leaf = path.rsplit(".", 1)[-1]
    if isinstance(node, str) and any(part in leaf for part in suspicious):
        return [path.lstrip(".")]
    return []


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node and "env" not in node:
        return {
            key: value
            for name, item in node.items()
            for key, value in _flat(item, f"{path}.{name}" if path else name).items()
        }
    return {path: node}
