"""A small project of its own for the tests of whole runs."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import httpx2
import pytest
from moto.server import ThreadedMotoServer

from pipeline.operate.scaffold import write_project
from pipeline.settings import Settings

SECOND_SOURCE = """\
name: second
kind: files
owner: team:data
location: data
streams:
  - name: sales
    path: sales_{month}.csv
    months: {first: 2021-01, last: 2021-03}
    primary_key: [id]
    columns: [{name: id, type: BIGINT}, {name: city}, {name: amount, type: DOUBLE}]
"""


@pytest.fixture
def project(settings: Settings, tmp_path: Path, parsed: Path) -> Settings:
    """A project of two sources, one of them monthly, and three models, of which two read only the first source."""
    directory = tmp_path / "shop"
    write_project(directory)
    (directory / "sources" / "second.yaml").write_text(SECOND_SOURCE)
    for month, ids in (("2021-01", (1, 2)), ("2021-02", (3, 4)), ("2021-03", (5, 6))):
        rows = "".join(f"{number},New York,{number}.5\n" for number in ids)
        (directory / "data" / f"sales_{month}.csv").write_text("id,city,amount\n" + rows)
    models = directory / "dbt" / "models"
    (models / "sources.yml").write_text(
        (models / "sources.yml").read_text()
        + "  - {name: second, schema: raw, database: lake, tables: [{name: sales, identifier: second__sales}]}\n"
    )
    (models / "marts" / "fct_sales.sql").write_text("select id, city, amount from {{ source('second', 'sales') }}\n")
    return settings.model_copy(update={"project_dir": directory, "dbt_parsed_dir": parsed})


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an S3 server that has one bucket, company."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIABACKUP")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim-s3")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    httpx2.post(f"http://{host}:{port}/moto-api/reset").raise_for_status()  # what it keeps outlives the server
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="company")
    yield f"http://{host}:{port}"
    server.stop()
