"""One release for all tests of this folder, with the bundled project on generated data and the trials beside it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.lake.catalogue import tables
from pipeline.lake.connection import Lake
from pipeline.operate.database import with_database
from pipeline.projects.nyc.demo import example_data
from pipeline.settings import Settings
from tests.cluster.release import CHART, Release, kubectl, until
from tests.conftest import LENT_CONNECTORS
from tests.tools import lacks

HERE = Path(__file__).parent
MILLRACE = str(Path(sys.executable).with_name("millrace"))
LITTLE = ["--values", str(HERE / "requests.yaml")]
VALUES = ["--values", str(CHART / "example.yaml"), "--values", str(HERE / "trials.yaml"), *LITTLE]
PROMETHEUS_RULES = "prometheusrules.monitoring.coreos.com"
MONTHS = "for m in $(seq 0 23); do f=$(date -d \"2023-01-01 +$m months\" +%Y-%m); printf 'id,month\\n1,%s\\n2,%s\\n' $f $f > /srv/example/data/months/$f.csv; done"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything here and in tests/faults, and what needs the shared release; tests of alerts, which count seconds, last."""
    for item in items:
        if item.path.is_relative_to(HERE) or item.path.is_relative_to(HERE.with_name("faults")):
            item.add_marker(pytest.mark.cluster)
            if "release" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.shared_release)
    items.sort(key=lambda item: item.path.name == "test_alerts.py")


@pytest.fixture(scope="session", autouse=True)
def needs_a_cluster() -> None:
    """Without one nothing here runs; `.ci/run` asks for all of it."""
    missing = [name for name in ("KUBECONFIG", "MILLRACE_TEST_IMAGE") if not os.environ.get(name)]
    missing += [tool for tool in ("kubectl", "helm") if not shutil.which(tool)]
    if missing:
        lacks(f"needs {', '.join(missing)}")


def configmap_of_trials(namespace: str) -> None:
    """The second code location, as tests/cluster/trials.yaml mounts it."""
    files = [
        f"--from-file={file}"
        for file in sorted((HERE / "trials").rglob("*"))
        if file.is_file() and "__pycache__" not in str(file)
    ]
    kubectl("-n", namespace, "create", "configmap", "trials", *files)


def trials_release(namespace: str, *values: str, objects: str = "") -> Release:
    """A release with everything that the tests launch, installed by one command once its ConfigMap and *objects* are there."""
    release = Release(namespace, values=[*VALUES, *values])
    kubectl("create", "namespace", namespace)
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    configmap_of_trials(namespace)
    if objects:
        kubectl("-n", namespace, "apply", "-f", "-", stdin=objects)
    release.helm("install")
    kubectl("-n", namespace, "exec", "deploy/example", "--", "sh", "-c", f"mkdir -p /srv/example/data/months; {MONTHS}")
    return release


def monitored(namespace: str) -> list[str]:
    """Values of a release that the Prometheus Operator watches, if there is one; tests/cluster/receiver.yaml is told."""
    if PROMETHEUS_RULES not in kubectl("get", "crd", "-o", "name"):
        return []
    webhook = f"monitoring.alertmanager.webhook.url=http://receiver.{namespace}.svc:8080/"
    return ["--values", str(HERE / "monitoring.yaml"), "--set", webhook]


@pytest.fixture(scope="session")
def release(needs_a_cluster: None, embedded_run: Future[dict[str, int]] | None) -> Iterator[Release]:
    """The release that most tests share. MILLRACE_TEST_KEEP leaves it for the next session, which then uses it."""
    name = "millrace-cluster-tests"
    values = [*VALUES, *monitored(name)]
    if os.environ.get("MILLRACE_TEST_KEEP") and f"namespace/{name}" in kubectl("get", "namespace", "-o", "name"):
        yield Release(name, values=values)
        return
    gone = lambda: f"namespace/{name}" not in kubectl("get", "namespace", "-o", "name")  # noqa: E731
    if not gone():  # of an interrupted run
        Release(name).remove()
        until(gone, seconds=120, what=f"namespace {name} gone")
    made = trials_release(name, *monitored(name))
    yield made
    if not os.environ.get("MILLRACE_TEST_KEEP"):
        made.remove()


@pytest.fixture(scope="session")
def embedded_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[dict[str, int]] | None]:
    """Begun with the release where a test wants it: the first tests wait for pods most of their time."""
    if not any("embedded" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    with ThreadPoolExecutor(1) as beside:
        yield beside.submit(run_embedded, tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="session")
def embedded(embedded_run: Future[dict[str, int]]) -> dict[str, int]:
    """Rows of every table that `make demo` leaves: the same project on the same data, without a cluster."""
    return embedded_run.result()


def run_embedded(state: Path) -> dict[str, int]:
    """Run the bundled project in *state*; rows by table."""
    environment = {**os.environ, "MILLRACE_STATE_DIR": str(state)}
    if LENT_CONNECTORS:
        environment["MILLRACE_CONNECTORS_DIR"] = LENT_CONNECTORS
    with example_data(Settings(state_dir=state)) as variables:
        for command in (["sources", "install"], ["run"]):
            subprocess.run([MILLRACE, *command], env={**environment, **variables}, check=True, capture_output=True)
    try:
        with Lake.open(with_database(Settings(state_dir=state)), read_only=True) as lake:
            return {table.name: lake.scalar(f"SELECT count(*) FROM {table.name}") for table in tables(lake)}
    finally:
        subprocess.run([MILLRACE, "down"], env=environment, check=True)
