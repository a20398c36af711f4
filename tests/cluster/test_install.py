"""Installing, upgrading, rolling back, removing: what platform engineers do, and what they get wrong."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from pipeline.operate.schema import wanted_version
from tests.cluster.conftest import LITTLE, trials_release
from tests.cluster.release import Release, kubectl, until

# Some revisions of Dagster's back: with another index, with which the running version works as well.
OLDER = """COMMENT ON SCHEMA millrace IS 'dagster 1.0.0, millrace 0000'; DROP INDEX IF EXISTS idx_run_tags_run_id;
CREATE INDEX IF NOT EXISTS idx_run_tags ON run_tags (key, value); UPDATE alembic_version SET version_num = '16e3655b4d9b'"""
README = Path(__file__).parents[2] / "deploy" / "README.md"
LONGEST = "a-release-name-of-fifty-three-characters-is-the-longest"[:53]


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of this test's own, gone with all that is in it."""
    name = f"millrace-{request.function.__name__.removeprefix('test_').replace('_', '-')[:30].strip('-')}"
    kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=120s")
    yield name
    listed = subprocess.run(["helm", "list", "-q", "-n", name], capture_output=True, text=True, check=True)
    for release in listed.stdout.split():
        Release(name, release).remove()
    kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


def test_two_releases_in_a_namespace_one_under_a_path_and_nothing_stays_but_volumes(namespace: str):
    under_a_path = ["--set", "webserver.pathPrefix=/data/runs,webserver.readOnly.enabled=true"]
    first, second = Release(namespace, values=[*LITTLE, *under_a_path]), Release(namespace, LONGEST, LITTLE)
    first.install()
    second.helm("install")

    assert first.http("/data/runs/server_info").json()["dagster_webserver_version"]
    (script, *_) = re.findall(r'src="([^"]+\.js)"', first.http("/data/runs/").text)
    assert script.startswith("/data/runs/")
    assert "javascript" in first.http(script).headers["content-type"]
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
    release = Release(namespace, values=LITTLE)
    kubectl("create", "namespace", namespace)
    secret = {
        "host": "nowhere",
        "port": "5432",
        "username": "u",
        "password": "secret-of-mine",
        "url": "postgresql://u:secret-of-mine@nowhere:5432/dagster",
        "exporter-password": "secret-of-mine",
        "lake-reader-password": "secret-of-mine",
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
    release.wait(release.launch(assets=["first"], location="trials"), "SUCCESS")
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


def test_a_migration_that_is_killed_is_made_by_the_next_attempt(release: Release):
    release.database(OLDER)
    # Readers go on, and what changes the table waits.
    hold = "BEGIN; LOCK TABLE run_tags IN ACCESS SHARE MODE; SELECT pg_sleep(110)"
    holder = threading.Thread(target=lambda: release.database(hold, check=False))
    upgrade = threading.Thread(target=release.upgrade)
    holder.start()
    upgrade.start()
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'run_tags'"
    until(lambda: release.database(waits) != [["0"]], seconds=60, what="a migration in the middle")
    release.kill(release.pod("migration"))
    release.database("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    holder.join()
    upgrade.join()

    version = "SELECT obj_description(to_regnamespace('millrace')::oid, 'pg_namespace')"
    assert release.database(version) == [[wanted_version()]]
    indexes = {name for (name,) in release.database("SELECT indexname FROM pg_indexes WHERE tablename = 'run_tags'")}
    assert "idx_run_tags" not in indexes


def test_what_the_readme_says_about_restoring_brings_back_runs_lake_and_the_older_tables(
    namespace: str, tmp_path: Path
):
    release = trials_release(namespace, "--set", "backup.enabled=true,backup.files=true")
    kept = release.launch(assets=["writer_0"], location="trials")
    release.wait(kept, "SUCCESS")
    release.database(OLDER)
    kubectl("-n", namespace, "create", "job", "before", "--from=cronjob/millrace-backup")
    kubectl("-n", namespace, "wait", "--for=condition=Complete", "job/before", "--timeout=110s")
    release.upgrade()
    later = release.launch(assets=["writer_1"], location="trials")
    release.wait(later, "SUCCESS")
    until(lambda: not release.pods("run_worker") or _all_over(release), seconds=60, what="no run pod at work")

    said = follow(README, "## Backup and restore", namespace, tmp_path)
    assert "Restored 2" in said
    assert "_before_" in said
    comment = "SELECT obj_description(to_regnamespace('millrace')::oid, 'pg_namespace')"
    assert release.database(comment) == [["dagster 1.0.0, millrace 0000"]]
    helm = ["helm", "rollback", release.name, "1", "-n", namespace, "--wait", "--timeout", "180s"]
    subprocess.run(helm, check=True, capture_output=True)

    assert release.database(comment) == [[wanted_version()]]
    assert [run["runId"] for run in until(release.runs, seconds=60, what="runs in the UI")] == [kept]
    assert release.lake("SELECT count(*) AS n FROM trials.writer_0") == [{"n": 5000}]
    again = release.launch(assets=["writer_1"], location="trials")
    release.wait(again, "SUCCESS")
    assert release.lake("SELECT count(*) AS n FROM trials.writer_1") == [{"n": 5000}]


def _all_over(release: Release) -> bool:
    return all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in release.pods("run_worker"))


def follow(page: Path, heading: str, namespace: str, tmp_path: Path) -> str:
    """Run the commands under *heading* as a person in *namespace* would; returns what they print."""
    section = page.read_text().split(f"{heading}\n", 1)[1]
    commands = section.split("```\n", 2)[1]
    config = tmp_path / "kubeconfig"
    config.write_text(Path(os.environ["KUBECONFIG"]).read_text())
    environment = {**os.environ, "KUBECONFIG": str(config)}
    context = ["kubectl", "config", "set-context", "--current", f"--namespace={namespace}"]
    subprocess.run(context, env=environment, check=True, capture_output=True)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
