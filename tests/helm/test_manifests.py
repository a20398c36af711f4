"""What every object must be, in every scenario: valid for Kubernetes 1.30 to 1.34, complete, named for its release."""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.helm.chart import CHART, SCENARIOS, Manifest, Rendered, helm, parse, render

pytestmark = pytest.mark.tools
KUBERNETES = ("1.30", "1.31", "1.32", "1.33", "1.34")
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)  # megabytes

REFERENCES = {
    "configMapRef": "ConfigMap", "configMapKeyRef": "ConfigMap", "configMap": "ConfigMap", "secretRef": "Secret", "secretKeyRef": "Secret",
    "secret": "Secret", "imagePullSecrets": "Secret", "persistentVolumeClaim": "PersistentVolumeClaim", "serviceAccountName": "ServiceAccount",
    "priorityClassName": "PriorityClass",
}  # fmt: skip

# Of gateway.networking.k8s.io/v1, the fields that the chart sets: our own words, as the CRD has no offline copy here.
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}
HTTP_ROUTE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "gateway.networking.k8s.io/v1"},
        "kind": {"const": "HTTPRoute"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "parentRefs": {
                    "type": "array",
                    "maxItems": 32,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name"],
                        "properties": {"name": NAME, "namespace": NAME, "sectionName": NAME, "port": {"type": "integer"}},
                    },
                },
                "hostnames": {"type": "array", "maxItems": 16, "items": {"type": "string", "pattern": r"^(\*\.)?[a-z0-9.-]+$"}},
                "rules": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "matches": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "additionalProperties": False,
                                    "properties": {
                                        "path": {
                                            "type": "object",
                                            "additionalProperties": False,
                                            "properties": {"type": {"enum": ["Exact", "PathPrefix", "RegularExpression"]}, "value": {"type": "string", "pattern": "^/"}},
                                        }
                                    },
                                },
                            },
                            "filters": {"type": "array", "items": {"type": "object", "required": ["type"]}},
                            "backendRefs": {
                                "type": "array",
                                "items": {"type": "object", "additionalProperties": False, "required": ["name", "port"], "properties": {"name": NAME, "port": {"type": "integer"}}},
                            },
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip


@pytest.fixture(params=SCENARIOS)
def scenario(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["install", "upgrade"])
def rendered(scenario: str, request: pytest.FixtureRequest) -> Rendered:
    return render(scenario, upgrade=request.param == "upgrade")


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_valid(rendered: Rendered, version: str):
    for item in (*rendered.objects, rendered.run_job()):
        if item["kind"] == "HTTPRoute":
            jsonschema.validate(item, HTTP_ROUTE)
        elif not item["apiVersion"].startswith("monitoring.coreos.com/"):  # see test_monitoring
            _validate(json.dumps(item, sort_keys=True), version)


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_of_the_example_is_valid(version: str):
    for item in render("example").objects:
        _validate(json.dumps(item, sort_keys=True), version)


@functools.cache  # most objects are the same in every scenario
def _validate(item: str, version: str) -> None:
    kubernetes_validate.validate(json.loads(item), version, strict=True)


@pytest.mark.parametrize("name", ["1000", "1e3", "0x1f", "true", "null"])
def test_names_that_yaml_takes_for_something_else_stay_texts(name: str):
    values = ["--values", str(CHART / "ci" / "object-store.yaml"), "--set-string", f"runs.namespace={name}0"]
    elsewhere = helm("template", name, str(CHART), "--namespace", name, *values)
    assert elsewhere.returncode == 0, elsewhere.stderr
    for item in (
        *parse(elsewhere.stdout),
        *render("example", release=name, namespace=name).objects,
    ):
        _validate(json.dumps(item, sort_keys=True), "1.34")


def test_a_field_that_kubernetes_does_not_know_is_found():
    daemon = render("default").named("Deployment", "millrace-daemon")

    with pytest.raises(kubernetes_validate.ValidationError, match="replicaz"):
        kubernetes_validate.validate({**daemon, "spec": {**daemon["spec"], "replicaz": 1}}, "1.34", strict=True)


def test_no_reference_dangles(scenario: str, rendered: Rendered):
    """What a pod, binding, route or claim names is rendered, or the scenario's `# exists:` line declares it."""
    first_lines = (CHART / "ci" / f"{scenario}.yaml").read_text().splitlines()
    declared = {
        name for line in first_lines if line.startswith("# exists:") for name in line[9:].replace(",", " ").split()
    }
    there = {(_namespace(item), f"{item['kind']}/{item['metadata']['name']}") for item in rendered.objects}

    referred = set(_references(rendered))

    assert {name for name in referred - there if name[1] not in declared} == set()
    assert declared - {name for _, name in referred} == set(), "declared, but nothing refers to it"
    assert not declared & {name for _, name in there}


def test_every_key_of_a_secret_that_is_read_is_in_the_secret(rendered: Rendered):
    secrets = {item["metadata"]["name"]: item["stringData"] for item in rendered.of_kind("Secret")}

    for name, container in rendered.containers():
        for variable in container.get("env", ()):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference and reference["name"] in secrets:
                assert reference["key"] in secrets[reference["name"]], name


def test_every_port_that_is_named_is_a_port(rendered: Rendered):
    pods = rendered.pods().values()
    for service in rendered.of_kind("Service"):
        selected = [
            pod for pod in pods if service["spec"]["selector"].items() <= pod["metadata"].get("labels", {}).items()
        ]
        assert len(selected) == 1, service["metadata"]["name"]
        names = {port["name"] for container in selected[0]["spec"]["containers"] for port in container.get("ports", ())}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for name, container in rendered.containers():
        ports = {port["name"] for port in container.get("ports", ())}
        numbers = {port["containerPort"] for port in container.get("ports", ())}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            for action in container.get(probe, {}).values():
                if isinstance(action, dict) and "port" in action:
                    assert action["port"] in ports | numbers, f"{name}: {probe}"


def test_every_mount_has_its_volume(rendered: Rendered):
    for name, pod in rendered.pods().items():
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", ())}
        volumes |= {"data"} if name.startswith("StatefulSet/") else set()
        mounted = {
            mount["name"]
            for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])
            for mount in container.get("volumeMounts", ())
        }
        assert mounted == volumes, name


def test_no_two_objects_have_one_name(rendered: Rendered):
    seen = Counter(
        (item["kind"], item["metadata"].get("namespace", "data"), item["metadata"]["name"]) for item in rendered.objects
    )

    assert [name for name, count in seen.items() if count > 1] == []


@pytest.mark.parametrize("release", ["r", "a" * 53, "team.data", "x" + "-y" * 26, "9lives", "1" * 53])
def test_names_of_any_release_fit(release: str):
    """A CronJob's name may have 52 characters, since its Jobs add eleven; everything else 63."""
    optional = "backup.enabled=true,webserver.readOnly.enabled=true,pgbouncer.enabled=true"
    bundled = "monitoring.mode=plain,monitoring.bundled.enabled=true,monitoring.bundled.prometheus.storage=1Gi"

    for item in (
        *render("everything", optional, bundled, release=release).objects,
        *render("operator", release=release).objects,
    ):
        name = item["metadata"]["name"]
        if name.removesuffix("-extra") == release:
            continue  # the scenario's own object
        assert len(name) <= (52 if item["kind"] in ("CronJob", "StatefulSet") else 63), name
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), name
        assert all(len(value) <= 63 for value in item["metadata"]["labels"].values()), name


@pytest.mark.parametrize(
    "other", [{"release": "b" * 53}, {"namespace": "other"}], ids=["in one namespace", "of one name"]
)
def test_two_releases_share_nothing(other: dict[str, str]):
    """Two of 53 characters that differ only at the end, too. Classes belong to the cluster, the rest to a namespace."""
    first = {"release": "b" * 52 + "a", "namespace": "data"}

    both = [
        _identities(render("default", **first), "data"),
        _identities(render("default", **{**first, **other}), other.get("namespace", "data")),
    ]  # type: ignore[arg-type]

    assert both[0] & both[1] == set()


def test_no_selector_selects_the_pods_of_another_component(rendered: Rendered):
    pods = rendered.pods()
    for item in rendered.of_kind("Deployment", "StatefulSet"):
        labels = item["spec"]["selector"]["matchLabels"].items()
        selected = [name for name, pod in pods.items() if labels <= pod["metadata"].get("labels", {}).items()]
        assert selected == [f"{item['kind']}/{item['metadata']['name']}"]


def test_selectors_are_what_they_always_were():
    """A Deployment's selector cannot be changed: an upgrade would fail. Never edit what stands here."""
    selectors = {
        item["metadata"]["name"]: item["spec"]["selector"]["matchLabels"]
        for item in render(
            "everything", "pgbouncer.enabled=true,monitoring.mode=plain,monitoring.bundled.enabled=true"
        ).of_kind("Deployment", "StatefulSet")
    }
    common = {"app.kubernetes.io/name": "millrace", "app.kubernetes.io/instance": "millrace"}

    assert selectors == {
        "millrace-code-millrace": {
            **common,
            "app.kubernetes.io/component": "code",
            "dagster/code-location": "millrace",
        },
        "millrace-code-shop": {**common, "app.kubernetes.io/component": "code", "dagster/code-location": "shop"},
        "millrace-daemon": {**common, "app.kubernetes.io/component": "daemon"},
        "millrace-exporter": {**common, "app.kubernetes.io/component": "exporter"},
        "millrace-prometheus": {**common, "app.kubernetes.io/component": "prometheus"},
        "millrace-alertmanager": {**common, "app.kubernetes.io/component": "alertmanager"},
        "millrace-webserver": {**common, "app.kubernetes.io/component": "webserver"},
        "millrace-pgbouncer": {**common, "app.kubernetes.io/component": "pgbouncer"},
        "millrace-postgresql": {**common, "app.kubernetes.io/component": "postgresql"},
    }


def test_extra_manifests_are_templates():
    assert render("everything").named("ConfigMap", "millrace-extra")["data"] == {"colour": "blue"}


@pytest.mark.parametrize("scenario", ["pooled", "operator", "plain"])
def test_the_packaged_chart_renders_the_same(tmp_path, scenario):
    """The rules, which are a link in the checkout, are in the package."""
    packed = helm("package", str(CHART), "--destination", str(tmp_path))
    assert packed.returncode == 0, packed.stderr
    (archive,) = tmp_path.glob("*.tgz")
    result = helm(
        "template", "millrace", str(archive), "--namespace", "data", "--values", str(CHART / "ci" / f"{scenario}.yaml")
    )

    assert _without_passwords(parse(result.stdout)) == _without_passwords(render(scenario).objects)


def _without_passwords(objects: tuple[Manifest, ...]) -> list[Manifest]:
    """Those of the bundled server are made at each rendering."""
    return [item for item in objects if not (item["kind"] == "Secret" and "url" in item["stringData"])]


def test_lint_finds_nothing():
    result = helm("lint", "--strict", str(CHART))

    assert result.returncode == 0, result.stdout


def _references(rendered: Rendered) -> Iterator[tuple[str, str]]:
    """Namespace and kind/name of everything that is referred to."""
    for item in (*rendered.objects, rendered.run_job()):
        spec, namespace = item.get("spec", {}), _namespace(item)
        yield from (("" if name.startswith("PriorityClass/") else namespace, name) for name in _named_in(item))
        match item["kind"]:
            case "RoleBinding":
                yield namespace, f"Role/{item['roleRef']['name']}"
                yield from ((subject["namespace"], f"ServiceAccount/{subject['name']}") for subject in item["subjects"])
            case "StatefulSet":
                yield namespace, f"Service/{spec['serviceName']}"
            case "Ingress":
                for path in (path for rule in spec["rules"] for path in rule["http"]["paths"]):
                    yield namespace, f"Service/{path['backend']['service']['name']}"
                yield from ((namespace, f"Secret/{tls['secretName']}") for tls in spec.get("tls", ()))
            case "AlertmanagerConfig":
                yield from ((namespace, f"Secret/{name}") for name in _secrets_with_keys(spec))
            case "HTTPRoute":
                for backend in (backend for rule in spec["rules"] for backend in rule["backendRefs"]):
                    yield namespace, f"Service/{backend['name']}"
    for location in rendered.file("workspace.yaml")["load_from"]:
        yield "data", f"Service/{location['grpc_server']['host']}"
    yield "data", f"ConfigMap/{rendered.file('dagster.yaml')['run_launcher']['config']['instance_config_map']}"


def _secrets_with_keys(node: Any) -> Iterator[str]:
    """Of every `{name: …, key: …}` below *node*."""
    if isinstance(node, dict) and node.keys() == {"name", "key"}:
        yield node["name"]
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _secrets_with_keys(child)


def _namespace(item: Manifest) -> str:
    return "" if item["kind"] == "PriorityClass" else item["metadata"].get("namespace", "data")


def _named_in(node: Any) -> set[str]:
    """What a pod template, wherever it is in *node*, names: by field, in containers, volumes and the pod itself."""
    if isinstance(node, list):
        return {name for item in node for name in _named_in(item)}
    if not isinstance(node, dict):
        return set()
    found = {name for item in node.values() for name in _named_in(item)}
    for key, kind in REFERENCES.items():
        named = node.get(key)
        if isinstance(named, dict):
            found.add(f"{kind}/{named.get('name') or named.get('secretName') or named['claimName']}")
        elif isinstance(named, str):
            found.add(f"{kind}/{named}")
        elif isinstance(named, list):
            found |= {f"{kind}/{item['name']}" for item in named}
    return found


def _identities(rendered: Rendered, namespace: str) -> set[tuple[str, str, str]]:
    return {
        (
            item["kind"],
            "" if item["kind"] == "PriorityClass" else item["metadata"].get("namespace", namespace),
            item["metadata"]["name"],
        )
        for item in rendered.objects
    }


def test_the_database_url_leads_to_the_bundled_server(rendered: Rendered):
    for secret in (item for item in rendered.of_kind("Secret") if "url" in item["stringData"]):
        host, namespace = secret["stringData"]["host"].split(".")
        assert (rendered.named("Service", host)["metadata"]["name"], namespace) == (host, "data")
        assert secret["stringData"]["url"].split("@")[1] == f"{host}.{namespace}:5432/dagster"


def test_an_object_outside_the_releases_namespace_is_one_of_a_run():
    manifests: list[Manifest] = [
        item for item in render("production").objects if item["metadata"].get("namespace") == "millrace-runs"
    ]

    assert sorted(f"{item['kind']}/{item['metadata']['name']}" for item in manifests) == [
        "ConfigMap/millrace-environment", "ConfigMap/millrace-instance", "LimitRange/millrace-run", "NetworkPolicy/millrace-default-deny", "NetworkPolicy/millrace-run-worker",
        "ResourceQuota/millrace-run", "Role/millrace-daemon", "Role/millrace-webserver", "RoleBinding/millrace-daemon",
        "RoleBinding/millrace-webserver", "ServiceAccount/millrace-run",
    ]  # fmt: skip
