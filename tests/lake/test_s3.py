"""The lake on a real S3 server."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import duckdb
import pytest
from moto.server import ThreadedMotoServer

from pipeline import aws
from pipeline.errors import LakeRejected, LakeUnavailable, QueryRejected
from pipeline.lake.connection import Lake
from pipeline.lake.maintenance import maintain
from pipeline.lake.reader import Reader
from pipeline.settings import Settings
from pipeline.transform.project import invocation

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAREADER",
    "AWS_SECRET_ACCESS_KEY": "it's geheim",
    "AWS_SESSION_TOKEN": "vertraulich",
}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ThreadedMotoServer, str]]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="lake-data")
    yield started, f"http://{host}:{port}"
    started.stop()


@pytest.fixture
def on_s3(settings: Settings, s3: tuple[ThreadedMotoServer, str]) -> Settings:
    return Settings(
        state_dir=settings.state_dir,
        database_url=settings.database_url,
        lake_data="s3://lake-data/lake",
        s3_endpoint=s3[1],
    )


def test_a_pod_with_a_role_and_no_key_uses_the_roles_credentials_and_renews_them(
    on_s3: Settings, s3: tuple[ThreadedMotoServer, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SECRETS:
        monkeypatch.delenv(name)
    (tmp_path / "token").write_text("a token of the cluster's")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/millrace")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3[1])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    aws._role.cache_clear()

    first = aws.credentials()
    assert set(first) == set(SECRETS)
    with Lake.open(on_s3) as lake:
        write = lambda: lake.query("CREATE OR REPLACE TABLE t AS SELECT 1 AS id")  # noqa: E731
        lake.in_transaction(write, asset="t")
        aws._role.cache_clear()  # as after an hour
        lake.in_transaction(write, asset="t")
        assert lake._s3_credentials == aws.credentials() != first
        with invocation(on_s3, "run") as environment:  # dbt's
            assert {name: environment[name] for name in SECRETS} == aws.credentials()
    aws._role.cache_clear()


def test_a_role_that_gives_nothing_is_named(on_s3: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    (tmp_path / "token").write_text("a token")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/millrace")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    aws._role.cache_clear()

    with pytest.raises(LakeUnavailable, match="Getting the credentials of arn:aws:iam::123456789012:role/millrace"):
        Lake.open(on_s3)
    aws._role.cache_clear()


def test_rows_go_to_the_bucket_and_come_back_also_after_maintenance(on_s3: Settings) -> None:
    with Lake.open(on_s3) as lake:
        lake.query("CREATE TABLE t(id BIGINT)")
        for step in range(5):
            lake.in_transaction(
                lambda step=step: lake.query("INSERT INTO t SELECT range + ? FROM range(100)", [step * 100]), asset="t"
            )
        lake.query("DELETE FROM t WHERE id % 10 = 0")
        report = maintain(lake, older_than_days=1)

        assert report.after.live_files == 1
        assert lake.query("SELECT count(*), sum(id) FROM t") == [(450, sum(i for i in range(500) if i % 10))]
        assert all(path.startswith("s3://lake-data/lake/") for (path,) in lake.query(
            "SELECT data_file FROM ducklake_list_files('lake', 't')"))  # fmt: skip
    assert not (on_s3.state_dir / "lake").exists()


def test_the_locked_reader_reaches_the_lake_and_nothing_else(on_s3: Settings) -> None:
    with Lake.open(on_s3) as lake:
        lake.query("CREATE TABLE t AS SELECT range AS id FROM range(100)")
        lake.query("COPY (SELECT 1 AS x) TO 's3://lake-data/private.parquet'")

    with Reader.open(on_s3) as reader:
        assert reader.query("SELECT sum(id) FROM t").rows == [(4950,)]
        for attack in (
            "FROM 's3://lake-data/private.parquet'",
            "FROM read_parquet('s3://lake-data/lake/**/*.parquet')",
        ):
            with pytest.raises(QueryRejected):
                reader.query(attack)
        # The prefix is DuckDB's own wall, behind the check of the statement.
        for path in ("s3://lake-data/private.parquet", "s3://other/x.parquet", "/etc/passwd", "http://127.0.0.1:1/x"):
            with pytest.raises(duckdb.PermissionException):
                reader._lake.connection.execute(f"FROM read_text('{path}')")


def test_credentials_are_shown_nowhere(on_s3: Settings, s3: tuple[ThreadedMotoServer, str]) -> None:
    with Lake.open(on_s3) as lake:
        lake.query("CREATE TABLE t AS SELECT range AS id FROM range(100)")
        shown = str(
            [lake.query(f"FROM {name}()") for name in ("duckdb_settings", "duckdb_secrets", "duckdb_databases")]
        )
        s3[0].stop()
        with pytest.raises(LakeUnavailable) as caught:
            lake.query("INSERT INTO t SELECT * FROM range(100)")
        shown += f"{caught.value} {caught.value.__cause__}"

    assert "geheim" not in shown
    assert "vertraulich" not in shown
    assert "secret=redacted" in shown


def test_a_bucket_that_is_not_there_is_refused(on_s3: Settings) -> None:
    elsewhere = on_s3.model_copy(update={"lake_data": "s3://no-such-bucket/lake"})
    with Lake.open(elsewhere) as lake, pytest.raises(LakeRejected, match="NoSuchBucket"):
        lake.query("CREATE TABLE t AS SELECT range AS id FROM range(100)")
