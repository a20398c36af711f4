"""What the catalogue says about the lake, against what is in it."""

import random
from contextlib import closing

import psycopg2
import pytest

from pipeline.errors import LakeRejected
from pipeline.lake.catalogue import Column, table, table_statistics, tables
from pipeline.lake.connection import Lake
from pipeline.lake.maintenance import maintain
from pipeline.settings import Settings


def test_a_table_is_described_with_its_columns_comments_and_owner(lake: Lake) -> None:
    def load() -> None:
        lake.query("CREATE SCHEMA raw")
        lake.query("CREATE TABLE raw.trips(id BIGINT, miles DECIMAL(10, 2), tags STRUCT(a VARCHAR[]))")
        lake.query("INSERT INTO raw.trips SELECT range, range, NULL FROM range(100)")
        lake.query("COMMENT ON TABLE raw.trips IS 'every trip'")
        lake.query("COMMENT ON COLUMN raw.trips.miles IS 'statute miles'")

    lake.in_transaction(load, asset="raw/tlc/trips", run_id="run-1")
    lake.query("CREATE VIEW long_trips AS SELECT id FROM raw.trips")

    view, trips = tables(lake)
    assert (trips.name, trips.kind, trips.comment) == ("raw.trips", "table", "every trip")
    assert trips.columns == (
        Column("id", "BIGINT", ""), Column("miles", "DECIMAL(10,2)", "statute miles"), Column("tags", "STRUCT(a VARCHAR[])", "")
    )  # fmt: skip
    assert trips.statistics
    assert (trips.statistics.rows, trips.statistics.files) == (100, 1)
    assert trips.statistics.bytes > 0
    assert (trips.run_id, trips.asset) == ("run-1", "raw/tlc/trips")
    assert lake.query(
        "SELECT snapshot_id, snapshot_time FROM lake.snapshots() WHERE commit_extra_info LIKE '%run-1%'"
    ) == [(trips.snapshot_id, trips.changed_at)]
    assert (view.name, view.kind, view.statistics, view.columns) == (
        "main.long_trips",
        "view",
        None,
        (Column("id", "BIGINT", ""),),
    )
    assert table(lake, "RAW.Trips") == trips
    assert table(lake, "long_trips") == view
    assert table_statistics(lake) == {"raw.trips": trips.statistics}


def test_a_missing_table_is_answered_with_those_that_exist(lake: Lake) -> None:
    with pytest.raises(
        LakeRejected, match=r"Looking up raw\.x: there is no such table in the lake\. There is: nothing yet"
    ):
        table(lake, "raw.x")


def test_row_counts_are_exact_whatever_was_done_to_the_tables(lake: Lake) -> None:
    lake.query("CREATE TABLE a(i BIGINT, s VARCHAR)")
    lake.query("CREATE TABLE b(i BIGINT, s VARCHAR)")
    chance = random.Random(7)
    wrong = []
    for step in range(40):
        name = chance.choice("ab")
        statement = chance.choice(
            [
                f"INSERT INTO {name}(i, s) SELECT range, 'x' FROM range({chance.choice([3, 8, 100])})",
                f"DELETE FROM {name} WHERE i % {chance.randint(5, 40)} = 0",
                f"UPDATE {name} SET s = 'y' WHERE i BETWEEN {chance.randint(0, 50)} AND 55",
                f"MERGE INTO {name} t USING (SELECT range AS i FROM range(5)) u ON t.i = u.i "
                "WHEN MATCHED THEN UPDATE SET s = 'm' WHEN NOT MATCHED THEN INSERT (i) VALUES (u.i)",
                f"ALTER TABLE {name} ADD COLUMN c{step} INTEGER",
                f"DELETE FROM {name} WHERE random() < 0.1",
                "CALL ducklake_rewrite_data_files('lake', delete_threshold => 0.05)",
                "CALL ducklake_merge_adjacent_files('lake')",
                "CALL ducklake_expire_snapshots('lake', older_than => now())",
            ]
        )
        lake.query(statement)
        counted = {f"main.{n}": lake.scalar(f"SELECT count(*) FROM (SELECT i FROM {n} OFFSET 0)") for n in "ab"}
        said = {key: value.rows for key, value in table_statistics(lake).items()}
        if said != counted:
            wrong.append((statement, said, counted))

    assert wrong == []


def test_maintenance_takes_no_table_from_the_run_that_loaded_it(lake: Lake) -> None:
    lake.in_transaction(
        lambda: lake.query("CREATE TABLE t AS SELECT range AS i FROM range(100)"), asset="t", run_id="one"
    )
    lake.in_transaction(lambda: lake.query("DELETE FROM t WHERE i < 50"), asset="t", run_id="two")
    lake.in_transaction(lambda: lake.query("INSERT INTO t VALUES (1)"), asset="t", run_id="three")

    assert maintain(lake, older_than_days=1).files_rewritten == 1

    after = table(lake, "t")
    assert (after.run_id, after.asset) == ("three", "t")
    assert after.statistics
    assert after.statistics.rows == 51


def test_a_change_by_another_tool_and_a_rename_have_no_owner(lake: Lake) -> None:
    lake.in_transaction(lambda: lake.query("CREATE TABLE t AS SELECT 1 AS i"), asset="t", run_id="one")
    lake.query("ALTER TABLE t RENAME TO u")
    assert [(found.name, found.run_id) for found in tables(lake)] == [("main.u", "")]

    lake.query("BEGIN")
    lake.query("INSERT INTO u VALUES (2)")
    lake.query("CALL lake.set_commit_message('me', 'by hand', extra_info => 'not JSON')")
    lake.query("COMMIT")
    assert [(found.name, found.run_id, found.asset) for found in tables(lake)] == [("main.u", "", "")]


def test_an_expired_snapshot_leaves_owner_and_time_unknown(lake: Lake) -> None:
    lake.in_transaction(lambda: lake.query("CREATE TABLE t AS SELECT 1 AS i"), asset="t", run_id="one")
    lake.query("CREATE TABLE later AS SELECT 1 AS i")
    lake.query("CALL ducklake_expire_snapshots('lake', older_than => now())")

    found = table(lake, "t")
    assert (found.run_id, found.changed_at) == ("", None)
    assert found.statistics
    assert (found.statistics.rows, found.statistics.files) == (1, 1)


def test_a_view_of_a_dropped_table_does_not_hide_the_others(lake: Lake) -> None:
    lake.query("CREATE TABLE t AS SELECT 1 AS i")
    lake.query("CREATE VIEW v AS FROM t")
    lake.query("CREATE TABLE other AS SELECT 1 AS i")
    lake.query("DROP TABLE t")

    assert [(found.name, len(found.columns)) for found in tables(lake)] == [("main.other", 1), ("main.v", 0)]


def test_the_cost_does_not_grow_with_tables_or_snapshots(settings: Settings, lake: Lake) -> None:
    with closing(psycopg2.connect(**settings.libpq("lake"))) as connection, connection.cursor() as cursor:
        connection.autocommit = True

        def reads() -> int:
            """Catalogue queries so far, as DuckDB's own log counts them."""
            return int(lake.scalar("SELECT count(*) FROM duckdb_logs WHERE message ILIKE '%ducklake_%'"))

        def cost() -> int:
            before = reads()
            tables(lake)
            return reads() - before

        lake.query("CREATE TABLE t0 AS SELECT 1 AS i")
        lake.query("CALL enable_logging(level => 'info')")
        lake.query("SET enable_logging = true")
        tables(lake)
        few = cost()
        for number in range(1, 30):
            lake.query(f"CREATE TABLE t{number} AS SELECT 1 AS i")
        cursor.execute(
            "INSERT INTO ducklake_snapshot SELECT 100000 + n, now(), 30, 1000, 1000 FROM generate_series(1, 1000) n;"
            "INSERT INTO ducklake_snapshot_changes SELECT 100000 + n, 'inserted_into_table:1', '', '', '{\"run_id\": \"r\"}' "
            "FROM generate_series(1, 1000) n"
        )
        lake.query("SELECT 1 FROM t0")
        tables(lake)
        assert len(tables(lake)) == 30
        assert {found.run_id for found in tables(lake)} == {"", "r"}
        assert cost() == few > 0
