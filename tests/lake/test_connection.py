"""The lake's connection, on a real PostgreSQL catalogue."""

from pipeline.lake.connection import Lake


def test_a_commit_names_the_asset_and_the_run(lake: Lake) -> None:
    lake.in_transaction(lambda: lake.query("CREATE TABLE t(a BIGINT)"), asset="raw/t", run_id="run-1")

    (row,) = lake.query(
        "SELECT commit_message, commit_extra_info FROM lake.snapshots() ORDER BY snapshot_id DESC LIMIT 1"
    )
    assert row == ("raw/t by run-1", '{"asset": "raw/t", "run_id": "run-1"}')
