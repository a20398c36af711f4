"""Installing, upgrading, rolling back, removing: what platform engineers do, and what they get wrong."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest

from pipeline.operate.schema import wanted_version
from tests.cluster.release import Release, kubectl, until

# Two revisions of Dagster's back: with other indexes, on which the running version works as well.
OLDER = """COMMENT ON SCHEMA millrace IS 'dagster 1.0.0, millrace 0000'; DROP INDEX idx_run_tags_run_id;
CREATE INDEX idx_run_tags ON run_tags (key, value); UPDATE alembic_version SET version_num = '16e3655b4d9b'"""
LONGEST = "a-release-name-of-fifty-three-characters-is-the-longest"[:53]


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of this test's own, gone with all that is in it."""
    name = f"millrace-{request.function.__name__.removeprefix('test_').replace('_', '-')[:30].strip('-')}"
    kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=120s")
    yield name
    if not os.environ.get("MILLRACE_TEST_KEEP"):
        for release in json.loads(
            subprocess.run(
                ["helm", "list", "-n", name, "-o", "json"], capture_output=True, text=True, check=True
            ).stdout
        ):
            Release(name, release["name"]).remove()
        kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


def test_two_releases_in_a_namespace_one_under_a_path_and_nothing_stays_but_volumes(namespace: str):
    first, second = Release(namespace), Release(namespace, LONGEST)
    first.values = ["--set", "webserver.pathPrefix=/data/runs,webserver.readOnly.enabled=true"]
    first.install()
    second.helm("install")

    assert first.http("/data/runs/server_info").json()["dagster_webserver_version"]
    assert "<title>" in first.http("/data/runs/").text
    assert second.http("/server_info").status_code == 200
    for release in (first, second):
        done = subprocess.run(
            ["helm", "test", release.name, "-n", namespace, "--timeout", "120s"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for release in (second, first):
        subprocess.run(["helm", "uninstall", release.name, "-n", namespace, "--wait"], capture_output=True, check=True)
    kinds = "all,cm,secret,sa,role,rolebinding,networkpolicy,ingress,pdb,pvc,quota"
    until(lambda: not kubectl("-n", namespace, "get", "pods", "-o", "name"), seconds=90, what="no pods")
    left = {
        name
        for name in kubectl("-n", namespace, "get", kinds, "-o", "name").split()
        if not name.endswith(("kube-root-ca.crt", "/default"))
    }
    claims = {name for name in left if name.startswith("persistentvolumeclaim/")}
    assert len(claims) == 6  # lake, logs and database of each
    assert left == claims
    assert not [name for name in kubectl("get", "priorityclass", "-o", "name").split() if namespace in name]


def test_a_server_that_cannot_be_reached_is_waited_for_and_named(namespace: str):
    release = Release(namespace)
    kubectl("create", "namespace", namespace)
    secret = {
        "host": "nowhere",
        "port": "5432",
        "username": "u",
        "password": "secret-of-mine",
        "url": "postgresql://u:secret-of-mine@nowhere:5432/dagster",
    }
    kubectl(
        "-n",
        namespace,
        "create",
        "secret",
        "generic",
        "mine",
        *(f"--from-literal={key}={value}" for key, value in secret.items()),
    )
    with pytest.raises(AssertionError, match="not ready"):
        release.helm("install", "--set", "postgresql.enabled=false,database.existingSecret=mine", timeout=20)

    (pod,) = release.pods("daemon")
    said = until(
        lambda: kubectl("-n", namespace, "logs", pod["metadata"]["name"], "-c", "wait-database"),
        seconds=60,
        what="a line in the log",
    )
    assert 'Waiting for the database: could not translate host name "nowhere"' in said
    assert "secret-of-mine" not in said


def test_an_upgrade_migrates_an_older_database_harms_no_run_and_the_ui_stays_up(release: Release):
    before = {run["runId"] for run in release.runs()}
    in_flight = release.launch(assets=["sleeps"], location="trials", tags={"trials/seconds": "75"})
    release.wait(in_flight, "STARTED")
    release.database(OLDER)
    with Watch(release) as outage:
        release.upgrade("--set", "runs.dequeueIntervalSeconds=2")

    assert release.database("SELECT obj_description(to_regnamespace('millrace')::oid, 'pg_namespace')") == [
        [wanted_version()]
    ]
    indexes = {name for (name,) in release.database("SELECT indexname FROM pg_indexes WHERE tablename = 'run_tags'")}
    assert "idx_run_tags_run_id" in indexes
    assert "idx_run_tags" not in indexes
    release.wait(in_flight, "SUCCESS")
    assert release.lake(f"SELECT number FROM trials.sleeps WHERE key = '{in_flight}'") == [{"number": 0}]
    assert before < {run["runId"] for run in release.runs()}
    assert outage.longest < 5

    subprocess.run(
        ["helm", "rollback", release.name, "-n", release.namespace, "--wait", "--timeout", "180s"],
        check=True,
        capture_output=True,
    )
    release.wait(release.launch(assets=["first"], location="trials"), "SUCCESS")


class Watch:
    """Asks the UI four times a second; `longest` is the longest time without an answer, seconds."""

    def __init__(self, release: Release) -> None:
        self.release, self.longest = release, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        answered = time.monotonic()
        while not self._stop.wait(0.25):
            try:
                if self.release.http("/server_info", timeout=2).status_code == 200:
                    answered = time.monotonic()
            except httpx2.HTTPError:
                pass
            self.longest = max(self.longest, time.monotonic() - answered)
