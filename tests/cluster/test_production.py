"""A release as production has it: PostgreSQL over TLS and a pooler before it, everything on S3, runs in their own namespace."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from tests.cluster.conftest import HERE, LITTLE, configmap_of_trials
from tests.cluster.release import Release, image_value, kubectl, until

NAME = "millrace-production"
SERVERS, RUNS = f"{NAME}-servers", f"{NAME}-runs"
HOST = f"postgres.{SERVERS}.svc.cluster.local"
PASSWORD = "right-'\"\\ %s"  # of those that break connection strings
TRIALS = yaml.safe_load((HERE / "trials.yaml").read_text())


PGBOUNCER = os.environ.get("MILLRACE_TEST_PGBOUNCER")
VALUES = {
    "codeLocations": [{"name": "trials", "module": "trials"}],
    "postgresql": {"enabled": False},
    "database": {"existingSecret": "database", "tls": {"mode": "verify-full", "caSecret": "database-ca"}},
    "pgbouncer": {"enabled": True, **({"image": image_value(PGBOUNCER)} if PGBOUNCER else {})},
    "s3": {"endpoint": f"http://store.{SERVERS}:7070", "existingSecret": "store"},
    "lake": {"type": "s3", "url": "s3://company/lake"},
    "computeLogs": {"type": "s3", "url": "s3://company/logs"},
    "backup": {"enabled": True, "type": "s3", "url": "s3://company/backup"},
    "runs": {"namespace": RUNS},
    "networkPolicy": {
        "database": {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": SERVERS}}}]},
        "s3": {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": SERVERS}}}], "ports": [7070]},
    },
    "extraVolumes": [each for each in TRIALS["extraVolumes"] if each["name"] == "trials"],
    "extraVolumeMounts": [each for each in TRIALS["extraVolumeMounts"] if each["name"] == "trials"],
    "extraEnv": [{"name": "PYTHONPATH", "value": "/srv/trials"}],
}  # fmt: skip


def secret(namespace: str, name: str, **data: str) -> None:
    """Make or change a Secret."""
    item = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": data,
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(item))


def database_secret(password: str) -> None:
    """Where the database is, in both namespaces of the release."""
    url = f"postgresql://owner:{quote(password, safe='')}@{HOST}:5432/postgres"
    for namespace in (NAME, RUNS):
        roles = {"lake-reader-password": "a-reader's password", "exporter-password": 'the-exporter\'s "password"'}
        secret(namespace, "database", host=HOST, port="5432", username="owner", password=password, url=url, **roles)


@pytest.fixture
def production(needs_a_cluster: None, tmp_path: Path) -> Iterator[Release]:
    """The servers and the secrets, that of the database with a wrong password; nothing installed."""
    namespaces = (NAME, RUNS, SERVERS)
    kubectl("delete", "namespace", *namespaces, "--ignore-not-found", "--timeout=120s")
    for namespace in namespaces:
        kubectl("create", "namespace", namespace)
    kubectl("label", "namespace", NAME, RUNS, "pod-security.kubernetes.io/enforce=restricted")
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={HOST}",
               "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", "tls.key", "-out", "tls.crt"]  # fmt: skip
    subprocess.run(openssl, cwd=tmp_path, check=True, capture_output=True)
    certificate = (tmp_path / "tls.crt").read_text()
    secret(
        SERVERS, "server", password=PASSWORD, **{"tls.crt": certificate, "tls.key": (tmp_path / "tls.key").read_text()}
    )
    for namespace in (NAME, RUNS):
        secret(namespace, "database-ca", **{"ca.crt": certificate})
        secret(namespace, "store", AWS_ACCESS_KEY_ID="key-of-tests", AWS_SECRET_ACCESS_KEY="secret-of-tests")  # noqa: S106
        configmap_of_trials(namespace)
    database_secret("wrong-password")
    kubectl("-n", SERVERS, "apply", "-f", str(HERE / "production.yaml"))
    for name in ("postgres", "store"):
        kubectl("-n", SERVERS, "rollout", "status", f"deployment/{name}", "--timeout=110s")
    (tmp_path / "values.yaml").write_text(json.dumps(VALUES))
    yield Release(NAME, values=[*LITTLE, "--values", str(tmp_path / "values.yaml")])
    Release(NAME).remove()
    kubectl("delete", "namespace", RUNS, SERVERS, "--wait=false")


def test_a_release_on_servers_of_ones_own(production: Release):
    with pytest.raises(AssertionError, match="not ready"):
        production.helm("install", timeout=30)
    (pod,) = production.pods("daemon")
    said = until(
        lambda: kubectl("-n", NAME, "logs", pod["metadata"]["name"], "-c", "wait-database"), seconds=60, what="a log"
    )
    assert 'password authentication failed for user "owner"' in said
    assert "wrong-password" not in said

    database_secret(PASSWORD)
    kubectl("-n", NAME, "delete", "pod", "--all", "--wait=false")  # those that wait read it anew at once
    production.helm("upgrade")
    assert production.pod("pgbouncer")

    run_id = production.launch(assets=["says", "writer_0"], location="trials")
    job = until(
        lambda: kubectl("-n", RUNS, "get", "job", f"dagster-run-{run_id}", "-o", "name"), seconds=60, what="a Job"
    )
    production.wait(run_id, "SUCCESS")
    assert production.lake("SELECT count(*) AS n FROM trials.writer_0") == [{"n": 5000}]
    kubectl("-n", RUNS, "delete", job.strip(), "--wait")
    keys = [event["fileKey"] for event in production.events(run_id) if event["__typename"] == "LogsCapturedEvent"]
    query = "query($key: [String!]!) { capturedLogs(logKey: $key) { stdout } }"
    printed = [
        production.graphql(query, key=[run_id, "compute_logs", key])["capturedLogs"]["stdout"] or "" for key in keys
    ]
    assert f"said by {run_id}" in "".join(printed)

    kubectl("-n", NAME, "create", "job", "now", "--from=cronjob/millrace-backup")
    kubectl("-n", NAME, "wait", "--for=condition=Complete", "job/now", "--timeout=110s")
    assert "damaged" not in production.execute("code", "millrace", "backups", "--at", "s3://company/backup")
    files = kubectl(
        "-n", SERVERS, "exec", "deployment/store", "-c", "looks", "--", "find", "/data/company", "-type", "f"
    )
    assert len([name for name in files.splitlines() if name.endswith(".parquet")]) >= 5
    assert len([name for name in files.splitlines() if name.endswith(".dump")]) == 2

    plain = (
        "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE NOT ssl AND client_addr IS NOT NULL"
    )
    encrypted = plain.replace("NOT ssl", "ssl")
    asked = kubectl("-n", SERVERS, "exec", "deployment/postgres", "--", "psql", "-U", "owner", "-d", "postgres", "-Atc", f"{plain}; {encrypted}")  # fmt: skip
    assert asked.split()[0] == "0"
    assert int(asked.split()[1]) > 0
