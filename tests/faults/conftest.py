"""The release of the cluster tests, and the faults: how each is made and ended."""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.cluster.conftest import embedded_run as embedded_run
from tests.cluster.conftest import needs_a_cluster as needs_a_cluster
from tests.cluster.conftest import pytest_collection_modifyitems as pytest_collection_modifyitems
from tests.cluster.conftest import release as release
from tests.cluster.release import Release, kubectl

Fault = Callable[[Release], None]
OUTAGE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def _node_control(request: pytest.FixtureRequest) -> None:
    """Faults of the node need somebody who makes them."""
    if request.node.get_closest_marker("node") and not os.environ.get("MILLRACE_NODE_CONTROL"):
        pytest.skip("needs MILLRACE_NODE_CONTROL, a command that takes stop|start kubelet|apiserver|disk")


def node(verb: str, part: str) -> str:
    """Have the node's *part* stopped or started; returns what the command prints."""
    control = shlex.split(os.environ["MILLRACE_NODE_CONTROL"])
    done = subprocess.run([*control, verb, part], check=True, timeout=180, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def kill(component: str) -> Fault:
    """The pod of *component* ends without grace."""
    return lambda release: release.kill(release.pod(component))


def evict(release: Release) -> None:
    """A drained node: the pod of the run is asked to go."""
    pod = release.pod("run_worker")
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": release.namespace},
    }
    path = f"/api/v1/namespaces/{release.namespace}/pods/{pod}/eviction"
    kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


def without_postgres(release: Release) -> None:
    """No database for a minute."""
    name = f"statefulset/{release.name}-postgresql"
    kubectl("-n", release.namespace, "scale", name, "--replicas=0")
    time.sleep(OUTAGE_SECONDS)
    kubectl("-n", release.namespace, "scale", name, "--replicas=1")
    release.pod("postgresql")


def without(part: str) -> Fault:
    """The node's *part* is stopped for a minute."""

    def make(_: Release) -> None:
        node("stop", part)
        try:
            time.sleep(OUTAGE_SECONDS)
        finally:
            node("start", part)

    return make
