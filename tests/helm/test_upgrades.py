"""What an upgrade changes and what it keeps. Helm asks a small API server of this module's, which knows a few secrets."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import CHART, Manifest, Rendered, helm, parse, render

pytestmark = pytest.mark.tools
KINDS = {
    "v1": ["Secret", "ServiceAccount", "ConfigMap", "Service", "PersistentVolumeClaim", "Pod"],
    "apps/v1": ["Deployment", "StatefulSet"],
    "batch/v1": ["Job", "CronJob"],
    "networking.k8s.io/v1": ["NetworkPolicy", "Ingress"],
    "policy/v1": ["PodDisruptionBudget"],
    "rbac.authorization.k8s.io/v1": ["Role", "RoleBinding"],
    "scheduling.k8s.io/v1": ["PriorityClass"],
}
OF_THE_OPERATOR = {
    "monitoring.coreos.com/v1": ["ServiceMonitor", "PrometheusRule"],
    "monitoring.coreos.com/v1alpha1": ["AlertmanagerConfig"],
}
Secrets = dict[tuple[str, str], dict[str, str]]
Ask = Callable[..., Any]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """Render with ``lookup`` answered from *secrets*, {(namespace, name): data}; gives (objects, stderr)."""
    secrets: Secrets = {}
    kinds: dict[str, list[str]] = {}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = _answer(self.path.split("?")[0], secrets, kinds)
            body = json.dumps(
                answer or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            )
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [],
        "clusters": [{"name": "c", "cluster": {"server": address}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
    }))  # fmt: skip

    def run(
        *settings: str, known: Secrets, upgrade: bool = False, scenario: str = "", operator: bool = False
    ) -> tuple[Rendered, str]:
        secrets.clear()
        secrets.update(known)
        kinds.clear()
        kinds.update(KINDS | (OF_THE_OPERATOR if operator else {}))
        values = ["--values", str(CHART / "ci" / f"{scenario}.yaml")] if scenario else []
        flags = [
            *values,
            *(part for setting in settings for part in ("--set", setting)),
            *(["--is-upgrade"] if upgrade else []),
        ]
        result = helm(
            "template",
            "millrace",
            str(CHART),
            "--namespace",
            "data",
            "--dry-run=server",
            "--disable-openapi-validation",
            "--kubeconfig",
            str(kubeconfig),
            *flags,
        )
        return Rendered(parse(result.stdout)), result.stderr

    yield run
    server.shutdown()
    server.server_close()


def test_generated_passwords_are_kept_over_upgrades(ask: Ask):
    first, _ = ask(known={})
    (made,) = first.of_kind("Secret")

    second, _ = ask(known={("data", "millrace-database"): made["stringData"]}, upgrade=True)

    (kept,) = second.of_kind("Secret")
    assert kept["stringData"] == made["stringData"]


def test_they_are_kept_under_other_names_of_keys_too(ask: Ask):
    names = "database.secretKeys.password=pw,database.secretKeys.exporterPassword=metrics"
    first, _ = ask(names, known={})
    (made,) = first.of_kind("Secret")

    second, _ = ask(names, known={("data", "millrace-database"): made["stringData"]}, upgrade=True)

    assert made["stringData"].keys() >= {"pw", "metrics"}
    assert second.of_kind("Secret")[0]["stringData"] == made["stringData"]


def test_a_password_that_is_new_in_the_chart_joins_the_kept_ones(ask: Ask):
    known = {("data", "millrace-database"): {"password": "kept"}}

    rendered, _ = ask(known=known, upgrade=True)

    (secret,) = rendered.of_kind("Secret")
    assert secret["stringData"]["password"] == "kept"
    assert secret["stringData"]["url"] == "postgresql://millrace:kept@millrace-postgresql.data:5432/dagster"
    assert len(secret["stringData"]["exporter-password"]) == 32


def test_runs_elsewhere_have_a_copy_of_the_secret(ask: Ask):
    rendered, _ = ask("runs.namespace=runs,lake.type=s3,lake.url=s3://l,computeLogs.type=none", known={})

    (here, there) = rendered.of_kind("Secret")
    assert here["stringData"] == there["stringData"]
    assert [here["metadata"]["namespace"], there["metadata"]["namespace"]] == ["data", "runs"]


def test_a_secret_that_is_missing_is_named_before_anything_is_made(ask: Ask):
    _, message = ask(known={}, scenario="pooled")

    assert "database.existingSecret names Secret trial-database, which is not in namespace data." in message


def test_a_key_that_is_missing_is_named_with_those_that_are_there(ask: Ask):
    known = {("data", "trial-database"): {"uri": "x", "host": "h", "port": "1", "username": "u", "password": "p"}}

    _, message = ask(known=known, scenario="pooled")

    assert (
        "Secret trial-database in namespace data has no key url; it has host, password, port, uri, username." in message
    )


def test_the_passwords_of_the_exporters_roles_are_asked_for(ask: Ask):
    database = {"url": "x", "host": "h", "port": "1", "username": "u", "password": "p", "lake-reader-password": "l"}

    _, of_one = ask(known={("data", "trial-database"): database}, scenario="pooled")
    _, of_two = ask("database.rolesSecret=roles", known={("data", "trial-database"): database}, scenario="pooled")
    rendered, _ = ask("exporter.enabled=false", known={("data", "trial-database"): database}, scenario="pooled")

    assert (
        "exporter.enabled needs two roles to log in, and database.existingSecret: Secret trial-database in namespace data "
        "has no key exporter-password; it has host, lake-reader-password, password, port, url, username." in of_one
    )
    assert "and database.rolesSecret names Secret roles, which is not in namespace data." in of_two
    assert rendered.of_kind("Deployment")


def test_a_receivers_secret_that_is_missing_is_named(ask: Ask):
    _, message = ask(known={}, scenario="trial")
    _, of_key = ask(known={("data", "receivers"): {"email-password": "p"}}, scenario="trial")

    assert "monitoring.alertmanager.existingSecret names Secret receivers, which is not in namespace data." in message
    assert "Secret receivers in namespace data has no key pagerduty-key; it has email-password." in of_key


def test_a_cluster_without_the_operator_is_told_so(ask: Ask):
    mode = "monitoring.mode=operator"

    _, message = ask(mode, known={})
    rendered, _ = ask(mode, known={}, operator=True)

    assert (
        "this cluster does not know monitoring.coreos.com/v1 PrometheusRule. Install the Prometheus Operator" in message
    )
    assert rendered.of_kind("PrometheusRule")


def test_a_secret_is_needed_where_the_runs_are_too(ask: Ask):
    database = {"uri": "x", "host": "h", "port": "1", "username": "u", "password": "p"}
    known = {("data", "millrace-postgres-app"): database, ("data", "millrace-postgres-ca"): {"ca.crt": "x"}}

    _, message = ask(known=known, scenario="production")

    assert "names Secret millrace-postgres-app, which is not in namespace millrace-runs." in message


def test_a_secret_that_comes_with_the_release_is_not_waited_for(ask: Ask):
    rendered, _ = ask("checkSecrets=false", known={}, scenario="pooled")

    assert rendered.of_kind("Deployment")


def test_on_install_the_migration_is_no_hook():
    """A post-install hook would wait for pods that wait for its tables."""
    job = render("default").named("Job", "millrace-migration-1")

    assert "annotations" not in job["metadata"]


def test_services_wait_for_their_tables_and_what_makes_or_restores_them_does_not():
    pods = render("default", "backup.enabled=true").pods()
    waits = {
        name: "--tables" in container["command"]
        for name, pod in pods.items()
        for container in pod["spec"].get("initContainers", ())
    }

    assert {name for name, for_tables in waits.items() if not for_tables} == {
        "CronJob/millrace-backup",
        "CronJob/millrace-restore",
        "Job/millrace-backup-1",
        "Job/millrace-migration-1",
    }
    assert waits["Deployment/millrace-daemon"]


def test_on_upgrade_and_rollback_the_migration_comes_before_all_else_with_the_new_configuration():
    rendered = render("default", upgrade=True)
    hooks = [item for item in rendered.objects if "helm.sh/hook" in item["metadata"].get("annotations", {})]
    before = {
        f"{item['kind']}/{item['metadata']['name']}": item
        for item in hooks
        if item["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade,pre-rollback"
    }
    (container,) = before["Job/millrace-migration-1"]["spec"]["template"]["spec"]["containers"]

    configs = {"environment": "millrace-migration-1-environment", "instance": "millrace-migration-1-instance"}

    policy = "NetworkPolicy/millrace-migration-1"
    assert before.keys() == {"Job/millrace-migration-1", policy, *(f"ConfigMap/{name}" for name in configs.values())}
    weights = {
        name: int(item["metadata"]["annotations"].get("helm.sh/hook-weight", 0)) for name, item in before.items()
    }
    assert min(weights, key=weights.__getitem__) == policy
    assert max(weights, key=weights.__getitem__) == "Job/millrace-migration-1"
    assert container["command"] == ["millrace", "migrate"]
    assert container["envFrom"] == [{"configMapRef": {"name": configs["environment"]}}]
    assert all(
        int(before[f"ConfigMap/{name}"]["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0
        for name in configs.values()
    )
    assert (
        before[f"ConfigMap/{configs['environment']}"]["data"]
        == rendered.named("ConfigMap", "millrace-environment")["data"]
    )


@pytest.mark.parametrize("upgrade", [False, True], ids=["install", "upgrade"])
def test_the_migration_alone_makes_tables_and_goes_round_the_pooler(upgrade: bool):
    rendered = render("pooled", upgrade=upgrade)
    services, migration = (
        yaml.safe_load(rendered.named("ConfigMap", name)["data"]["dagster.yaml"])["storage"]["postgres"]
        for name in ("millrace-instance", "millrace-migration-1-instance")
    )

    assert (services.pop("should_autocreate_tables"), migration.pop("should_autocreate_tables")) == (False, True)
    assert services["postgres_db"]["params"].pop("sslmode") == "disable"
    assert services == migration


def test_the_migration_waits_for_the_database_and_says_so():
    (wait,) = render("default").named("Job", "millrace-migration-1")["spec"]["template"]["spec"]["initContainers"]

    assert (wait["name"], wait["command"]) == ("wait-database", ["millrace", "wait-database", "--timeout", "120"])


def test_the_migration_needs_nothing_that_its_upgrade_is_only_about_to_make():
    """A claim, a class or a policy that the values name for the first time is not there when the hook runs."""
    spec = render("example", upgrade=True).named("Job", "millrace-migration-1")["spec"]["template"]["spec"]

    assert "priorityClassName" not in spec
    assert not [volume for volume in spec["volumes"] if "persistentVolumeClaim" in volume]
    (policy,) = (
        item for item in render("production", upgrade=True).of_kind("NetworkPolicy")
        if item["metadata"]["name"].startswith("millrace-migration")
    )  # fmt: skip
    labels = {"kubernetes.io/metadata.name": "databases"}
    assert labels in [peer["namespaceSelector"]["matchLabels"] for rule in policy["spec"]["egress"] for peer in rule.get("to", ()) if "namespaceSelector" in peer]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "target"),
    [("backup.files=true", "/var/lib/millrace-backup"), ("backup.type=s3,backup.url=s3://b/x", "s3://b/x")],
)
def test_a_restore_is_made_on_request_alone_and_tried_once(settings: str, target: str):
    rendered = render("default", f"backup.enabled=true,{settings}")
    backup, restore = (rendered.named("CronJob", f"millrace-{name}")["spec"] for name in ("backup", "restore"))
    command = restore["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]

    assert (backup["suspend"], restore["suspend"]) == (False, True)
    assert restore["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert command == ["millrace", "restore", "--from", target, "--replace"]
    of_backup = backup["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert of_backup == [
        "millrace",
        "backup",
        "--to",
        target,
        "--keep",
        "7",
        *(["--files"] if "files" in settings else []),
    ]


@pytest.mark.parametrize("setting", ["runs.maxConcurrent=11", "retention.days=31", "lake.type=s3,lake.url=s3://l"])
def test_a_change_of_configuration_rolls_the_services(setting: str):
    before, after = _checksums(render("default")), _checksums(render("default", setting))

    assert before.keys() == after.keys() >= {"millrace-daemon", "millrace-webserver", "millrace-code-millrace"}
    assert not set(before.values()) & set(after.values())


def test_a_change_elsewhere_rolls_nothing_else():
    before = {
        item["metadata"]["name"]: item["spec"]["template"]
        for item in render("default").of_kind("Deployment", "StatefulSet")
    }
    after = {
        item["metadata"]["name"]: item["spec"]["template"]
        for item in render("default", "daemon.resources.limits.memory=2Gi").of_kind("Deployment", "StatefulSet")
    }

    assert {name for name in before if before[name] != after[name]} == {"millrace-daemon"}


def test_a_new_version_leaves_the_bundled_database_running():
    """Its pod's template does not name the version."""
    template = json.dumps(render("default").named("StatefulSet", "millrace-postgresql")["spec"]["template"])

    assert "helm.sh/chart" not in template
    assert "app.kubernetes.io/version" not in template


def test_what_holds_data_outlives_the_release():
    rendered = render("default", "backup.enabled=true")
    claims = {
        item["metadata"]["name"]: item["metadata"]["annotations"] for item in rendered.of_kind("PersistentVolumeClaim")
    }

    keep = {"helm.sh/resource-policy": "keep"}
    assert claims == {"millrace-lake": keep, "millrace-logs": keep, "millrace-backup": keep}


def _checksums(rendered: Rendered) -> dict[str, str]:
    found = {}
    for item in rendered.of_kind("Deployment"):
        annotations: Manifest = item["spec"]["template"]["metadata"]["annotations"]
        found[item["metadata"]["name"]] = annotations["checksum/config"]
    return found


def _answer(path: str, secrets: Secrets, kinds: dict[str, list[str]]) -> dict[str, Any] | None:
    """Discovery, the account that every namespace has, and the secrets."""
    if path == "/version":
        return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = [{"groupVersion": version, "version": version.split("/")[-1]} for version in kinds]
        groups = [
            {"name": v["groupVersion"].split("/")[0], "versions": [v], "preferredVersion": v}
            for v in versions
            if "/" in v["groupVersion"]
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if (version := path.removeprefix("/apis/").removeprefix("/api/")) in kinds:
        resources = [
            {
                "name": _plural(kind),
                "kind": kind,
                "namespaced": kind != "PriorityClass",
                "verbs": ["get"],
                "singularName": "",
            }
            for kind in kinds[version]
        ]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
    match path.strip("/").split("/"):
        case ["api", "v1", "namespaces", namespace, "serviceaccounts", "default"]:
            return {
                "kind": "ServiceAccount",
                "apiVersion": "v1",
                "metadata": {"name": "default", "namespace": namespace},
            }
        case ["api", "v1", "namespaces", namespace, "secrets", name] if (namespace, name) in secrets:
            data = {key: base64.b64encode(value.encode()).decode() for key, value in secrets[namespace, name].items()}
            return {
                "kind": "Secret",
                "apiVersion": "v1",
                "metadata": {"name": name, "namespace": namespace},
                "data": data,
            }
    return None


def _plural(kind: str) -> str:
    name = kind.lower()
    return name[:-1] + "ies" if name.endswith("y") else name + ("es" if name.endswith("s") else "s")
