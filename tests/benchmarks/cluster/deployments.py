"""What is compared: a release of the chart, and Dagster's own pieces deployed as its users do."""

import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

import yaml

from tests.cluster.release import CHART, Release, kubectl, until

HERE = Path(__file__).parent
TESTS = Path(__file__).parents[2] / "cluster"
STOCK_IMAGE = "dagster-stock:bench"
PGBOUNCER = "millrace-pgbouncer:test"


class Stock(Release):
    """Dagster's own launcher, daemon, webserver and code server in namespace *namespace*."""

    def pods(self, component: str) -> list[dict[str, Any]]:
        found = self.get("pods", "-l", f"component={component}")
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    def database(self, query: str, database: str = "dagster") -> list[list[str]]:
        out = self.execute("postgresql", "psql", "-U", "dagster", "-d", database, "-AtF", "\t", "-c", query)
        return [line.split("\t") for line in out.splitlines()]


@contextmanager
def millrace(namespace: str, **values: Any) -> Iterator[Release]:
    """A release with the platform's definitions and the two-asset job in code location ``bench``."""
    kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=120s")
    kubectl("create", "namespace", namespace)
    kubectl("-n", namespace, "create", "configmap", "bench", f"--from-file=bench.py={HERE / 'definitions.py'}")
    example = yaml.safe_load((CHART / "example.yaml").read_text())
    content = {
        "codeLocations": [{"name": "bench", "module": "bench"}],
        "runs": {"tagConcurrencyLimits": [{"key": "bench/pods", "value": str(pods), "limit": pods} for pods in (1, 2, 4)]},
        "extraVolumes": [*example["extraVolumes"], {"name": "bench", "configMap": {"name": "bench"}}],
        "extraVolumeMounts": [*example["extraVolumeMounts"], {"name": "bench", "mountPath": "/srv/bench", "readOnly": True}],
        "extraEnv": [*example["extraEnv"], {"name": "PYTHONPATH", "value": "/srv/bench"}],
        **values,
    }  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(json.dumps(content))
        file.flush()
        release = Release(namespace, values=["--values", str(CHART / "example.yaml"), "--values", file.name])
        try:
            release.helm("install")
            yield release
        finally:
            release.remove()


@contextmanager
def stock(
    namespace: str, *, image: str = STOCK_IMAGE, module: str = "jobs", dequeue_seconds: int = 5
) -> Iterator[Stock]:
    """Dagster's own pieces from *image*, with the definitions of *module*."""
    kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=120s")
    kubectl("create", "namespace", namespace)
    text = Template((HERE / "stock" / "stock.yaml").read_text()).substitute(
        IMAGE=image, MODULE=module, DEQUEUE=dequeue_seconds, NAMESPACE=namespace
    )
    kubectl("-n", namespace, "apply", "-f", "-", stdin=text)
    found = Stock(namespace)
    try:
        for name in ("postgres", "code", "daemon", "webserver"):
            kubectl("-n", namespace, "rollout", "status", f"deployment/{name}", "--timeout=180s", timeout=200)
        until(lambda: found.http("/server_info").status_code == 200, seconds=60, what="the UI")
        yield found
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false")


def build_images() -> None:
    """Stock Dagster's and PgBouncer's, with the command that the tests of the image use."""
    command = shlex.split(os.environ["MILLRACE_TEST_BUILD"])
    for folder, name, file in ((HERE / "stock", STOCK_IMAGE, "Dockerfile"), (TESTS, PGBOUNCER, "pgbouncer.Dockerfile")):
        subprocess.run([*command, "-t", name, "-f", file, "."], cwd=folder, check=True, capture_output=True)


def cgroup(release: Release, component: str) -> tuple[float, float]:
    """Memory in use (bytes, without what the kernel may drop) and CPU seconds used so far, of all its pods."""
    memory = cpu = 0.0
    script = (
        "cd /sys/fs/cgroup; if [ -d memory ]; then cat memory/memory.usage_in_bytes; "
        "grep ^total_inactive_file memory/memory.stat | cut -d' ' -f2; cat cpuacct/cpuacct.usage; "
        "else cat memory.current; grep ^inactive_file memory.stat | cut -d' ' -f2; "
        "echo $(( $(grep ^usage_usec cpu.stat | cut -d' ' -f2) * 1000 )); fi"
    )
    for pod in release.pods(component):
        out = kubectl("-n", release.namespace, "exec", pod["metadata"]["name"], "--", "sh", "-c", script)
        used, droppable, nanoseconds = (int(line) for line in out.split())
        memory += used - droppable
        cpu += nanoseconds / 1e9
    return memory, cpu


def idle(release: Release, seconds: float = 120) -> tuple[float, float]:
    """Bytes in use and share of one core, of all services together while nothing runs."""
    components = ("code", "daemon", "webserver", "postgresql")
    time.sleep(30)
    before = {name: cgroup(release, name) for name in components}
    started = time.monotonic()
    time.sleep(seconds)
    after = {name: cgroup(release, name) for name in components}
    elapsed = time.monotonic() - started
    return sum(each[0] for each in after.values()), sum(
        after[name][1] - before[name][1] for name in components
    ) / elapsed
