"""What a pod of each kind reaches, tried from within one that carries its labels."""

import json
from collections.abc import Iterator

import pytest

from tests.cluster.release import Release, kubectl, until

TRY = """
import json, socket, sys
found = {}
for name in sys.argv[1:]:
    host, port = name.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        found[name] = True
    except OSError:
        found[name] = False
print(json.dumps(found))
"""


@pytest.fixture
def pod_with(release: Release) -> Iterator[object]:
    """Makes a pod with labels, and gives a function that tries addresses from it."""
    made: list[str] = []

    def make(name: str, **labels: str) -> object:
        made.append(name)
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        image = release.get("deployments", "-l", "app.kubernetes.io/component=webserver")[0]
        (container,) = image["spec"]["template"]["spec"]["containers"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {key.replace("__", "/"): value for key, value in labels.items()}},
            "spec": {
                "automountServiceAccountToken": False,
                "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{"name": "main", "image": container["image"], "command": ["sleep", "600"], "securityContext": security,
                                "resources": container["resources"]}],
            },
        }  # fmt: skip
        kubectl("-n", release.namespace, "apply", "-f", "-", stdin=json.dumps(pod))
        kubectl("-n", release.namespace, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")

        def reaches(*addresses: str) -> dict[str, bool]:
            out = kubectl("-n", release.namespace, "exec", name, "--", "python", "-c", TRY, *addresses)
            found: dict[str, bool] = json.loads(out)
            return found

        return reaches

    yield make
    for name in made:
        kubectl(
            "-n", release.namespace, "delete", "pod", name, "--grace-period=0", "--force", "--wait=false", check=False
        )


def test_a_run_pod_reaches_the_database_and_neither_the_api_server_nor_our_services(release: Release, pod_with):
    reaches = pod_with(
        "like-a-run",
        **{f"app.kubernetes.io__{key}": value for key, value in
           {"name": "millrace", "instance": release.name, "component": "run_worker"}.items()},
    )  # fmt: skip
    (api,) = (item["subsets"][0] for item in release_endpoints())
    server = f"{api['addresses'][0]['ip']}:{api['ports'][0]['port']}"

    assert reaches("millrace-postgresql:5432", "example:8080") == {
        "millrace-postgresql:5432": True,
        "example:8080": True,
    }
    denied = ["kubernetes.default:443", server, "millrace-webserver:3001", "millrace-code-millrace:4000", "1.1.1.1:443"]
    assert reaches(*denied) == dict.fromkeys(denied, False)


def test_a_stranger_in_the_namespace_reaches_neither_code_location_nor_database(release: Release, pod_with):
    reaches = pod_with("stranger")
    denied = ["millrace-code-millrace:4000", "millrace-postgresql:5432", "millrace-webserver:3001"]

    assert reaches(*denied, "example:8080") == {**dict.fromkeys(denied, False), "example:8080": True}


def test_run_pods_and_code_locations_have_no_token(release: Release):
    run_id = release.launch(assets=["first"], location="trials")
    pods = [release.run_pod(run_id), *release.pods("code"), *release.pods("postgresql")]

    for pod in pods:
        mounts = [
            mount["mountPath"] for container in pod["spec"]["containers"] for mount in container.get("volumeMounts", ())
        ]
        assert not any("serviceaccount" in path for path in mounts), pod["metadata"]["name"]
    until(lambda: release.run(run_id)["status"] == "SUCCESS", seconds=120, what="the run's success")


def release_endpoints() -> list[dict[str, object]]:
    items: list[dict[str, object]] = [
        json.loads(kubectl("-n", "default", "get", "endpoints", "kubernetes", "-o", "json"))
    ]
    return items
