"""Rows and states of connectors in a real lake; only the connector is a stand-in, and it is a real process."""

import json
import os
from collections.abc import Callable

import pytest

from pipeline.errors import SourceRejected, SourceUnavailable
from pipeline.ingest import airbyte, airbyte_sync
from pipeline.ingest.airbyte import sync
from pipeline.ingest.spec import SourceFile
from pipeline.lake.connection import Lake
from pipeline.settings import Settings

Shop = Callable[..., SourceFile]
APPEND = "- {name: items, sync: incremental_append}"
DEDUPED = "- {name: items, sync: incremental_deduped, primary_key: [id]}"
PLAIN = "- {name: plain}"


def ids(lake: Lake, table: str = "shop__items") -> list[int]:
    return [row[0] for row in lake.query(f"SELECT id FROM raw.{table} ORDER BY id")]


def states(lake: Lake) -> list[tuple[str, dict]]:
    rows = lake.query("SELECT stream, state FROM ingest.connector_state ORDER BY stream, sequence")
    return [(stream, json.loads(state)) for stream, state in rows]


def test_values_arrive_in_the_types_of_the_schema(lake: Lake, connected: Settings, shop: Shop) -> None:
    sync(lake, shop(plan={"count": 1}), None, settings=connected, run_id="run-1")

    columns = lake.query("SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 'shop__items'")
    assert columns == [
        ("id", "BIGINT"),
        ("name", "VARCHAR"),
        ("amount", "DOUBLE"),
        ("is_active", "BOOLEAN"),
        ("created_at", "TIMESTAMP WITH TIME ZONE"),
        ("local_time", "TIMESTAMP"),
        ("day", "DATE"),
        ("tags", "JSON"),
        ("address", "JSON"),
        ("anything", "JSON"),
        ("_loaded_at", "TIMESTAMP WITH TIME ZONE"),
        ("_run_id", "VARCHAR"),
    ]
    (row,) = lake.query(
        "SELECT created_at::VARCHAR, local_time::VARCHAR, tags, address->>'zip', anything, _run_id FROM raw.shop__items"
    )
    assert row == ("2021-03-04 03:06:07.5+00", "2021-03-04 05:06:07", '["a","b"]', "10001", None, "run-1")


@pytest.mark.parametrize("layout", ["compact", "spaces", "keys reversed"])
def test_every_layout_of_a_record_line_is_read(lake: Lake, connected: Settings, shop: Shop, layout: str) -> None:
    two = f"{APPEND}\n- {{name: other_items, sync: incremental_append}}"

    sync(lake, shop(two, plan={"count": 30, "layout": layout}), None, settings=connected, run_id="r")

    assert ids(lake) == ids(lake, "shop__other_items") == list(range(1, 31))


def test_an_append_continues_from_its_state(lake: Lake, connected: Settings, shop: Shop) -> None:
    (first,) = sync(lake, shop(plan={"count": 7}), None, settings=connected, run_id="r1")
    (second,) = sync(lake, shop(plan={"count": 9}), None, settings=connected, run_id="r2")

    assert (first.rows, second.rows) == (7, 2)
    assert ids(lake) == list(range(1, 10))
    assert [state["stream"]["stream_state"]["id"] for _, state in states(lake)] == [7, 9]
    assert lake.query("SELECT rows, run_id FROM ingest.loads ORDER BY recorded_at") == [(7, "r1"), (2, "r2")]


def test_a_deduplicated_stream_keeps_the_last_record_of_each_key(lake: Lake, connected: Settings, shop: Shop) -> None:
    sync(lake, shop(DEDUPED, plan={"count": 8}), None, settings=connected, run_id="r1")
    again = shop(
        DEDUPED, plan={"count": 10, "reread": 3, "break": {"7": {"Name": "changed"}, "9": {"id": 8, "Name": "newest"}}}
    )

    (result,) = sync(lake, again, None, settings=connected, run_id="r2")

    assert ids(lake) == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert lake.query("SELECT id, name, _run_id FROM raw.shop__items WHERE id BETWEEN 5 AND 8 ORDER BY id") == [
        (5, "item 5", "r1"),
        (6, "item 6", "r2"),
        (7, "changed", "r2"),
        (8, "newest", "r2"),
    ]
    assert result.rows == 4


def test_a_full_refresh_replaces_the_table(lake: Lake, connected: Settings, shop: Shop) -> None:
    sync(lake, shop(PLAIN, plan={"count": 8}), None, settings=connected, run_id="r1")
    sync(lake, shop(PLAIN, plan={"count": 3}), None, settings=connected, run_id="r2")

    assert lake.query("SELECT id, _run_id FROM raw.shop__plain ORDER BY id") == [(1, "r2"), (2, "r2"), (3, "r2")]
    assert states(lake) == []


def test_a_full_refresh_that_fails_keeps_the_former_table(lake: Lake, connected: Settings, shop: Shop) -> None:
    sync(lake, shop(PLAIN, plan={"count": 8}), None, settings=connected, run_id="r1")

    with pytest.raises(SourceUnavailable, match="ended with code 1"):
        sync(lake, shop(PLAIN, plan={"count": 9, "at": {"5": "exit"}}), None, settings=connected, run_id="r2")

    assert ids(lake, "shop__plain") == list(range(1, 9))


def test_an_empty_full_refresh_does_not_empty_the_table_unless_that_is_declared(
    lake: Lake, connected: Settings, shop: Shop
) -> None:
    sync(lake, shop(PLAIN, plan={"count": 8}), None, settings=connected, run_id="r1")

    with pytest.raises(SourceRejected, match="plain has no records; the table keeps what it has"):
        sync(lake, shop(PLAIN, plan={"count": 0}), None, settings=connected, run_id="r2")
    assert len(ids(lake, "shop__plain")) == 8
    sync(lake, shop("- {name: plain, rows: {min: 0}}", plan={"count": 0}), None, settings=connected, run_id="r3")
    assert ids(lake, "shop__plain") == []


def test_a_full_load_of_an_incremental_stream_starts_anew(lake: Lake, connected: Settings, shop: Shop) -> None:
    sync(lake, shop(plan={"count": 8}), None, settings=connected, run_id="r1")
    sync(lake, shop(plan={"count": 6}), None, settings=connected, run_id="r2", full=True)
    sync(lake, shop(plan={"count": 7}), None, settings=connected, run_id="r3")

    assert lake.query("SELECT id, _run_id FROM raw.shop__items ORDER BY id") == [
        *((n, "r2") for n in range(1, 7)),
        (7, "r3"),
    ]


@pytest.mark.parametrize("state_type", ["GLOBAL", "LEGACY"])
def test_a_state_of_all_streams_continues_each_of_them(
    lake: Lake, connected: Settings, shop: Shop, state_type: str
) -> None:
    two = f"{APPEND}\n- {{name: other_items, sync: incremental_append}}"
    sync(lake, shop(two, plan={"count": 7, "state_type": state_type}), None, settings=connected, run_id="r1")

    results = sync(lake, shop(two, plan={"count": 12, "state_type": state_type}), None, settings=connected, run_id="r2")

    assert [result.rows for result in results] == [5, 5]
    assert ids(lake) == ids(lake, "shop__other_items") == list(range(1, 13))
    assert {stream for stream, _ in states(lake)} == {""}


def test_a_global_state_of_one_stream_keeps_what_is_known_of_the_other(
    lake: Lake, connected: Settings, shop: Shop
) -> None:
    two = f"{APPEND}\n- {{name: other_items, sync: incremental_append}}"
    sync(lake, shop(two, plan={"count": 7, "state_type": "GLOBAL"}), None, settings=connected, run_id="r1")
    sync(lake, shop(two, plan={"count": 9, "state_type": "GLOBAL"}), ["items"], settings=connected, run_id="r2")

    sync(lake, shop(two, plan={"count": 9, "state_type": "GLOBAL"}), None, settings=connected, run_id="r3")

    assert ids(lake) == ids(lake, "shop__other_items") == list(range(1, 10))


def test_only_the_chosen_streams_are_read(lake: Lake, connected: Settings, shop: Shop) -> None:
    results = sync(lake, shop(f"{APPEND}\n{PLAIN}"), ["plain"], settings=connected, run_id="r")

    assert [result.table for result in results] == ["raw.shop__plain"]
    assert lake.query("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'shop__items'") == [(0,)]


def test_states_that_come_often_do_not_each_cost_a_commit(lake: Lake, connected: Settings, shop: Shop) -> None:
    sync(lake, shop(plan={"count": 500, "state_every": 1}), None, settings=connected, run_id="r")

    assert len(states(lake)) == 1
    assert lake.query("SELECT count(*) FROM lake.snapshots() WHERE commit_message LIKE 'raw/shop/items%'") == [(1,)]


def test_a_long_sync_commits_as_it_goes(
    lake: Lake, connected: Settings, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(airbyte_sync, "COMMIT_BYTES", 1000)

    (result,) = sync(lake, shop(plan={"count": 50}), None, settings=connected, run_id="r")

    assert result.rows == 50
    assert [state["stream"]["stream_state"]["id"] for _, state in states(lake)] == [
        5,
        10,
        15,
        20,
        25,
        30,
        35,
        40,
        45,
        50,
    ]


def test_a_new_property_becomes_a_column_and_is_recorded(lake: Lake, connected: Settings, shop: Shop) -> None:
    before = '{token: "${STAND_IN_TOKEN}", properties: {id: {type: integer}}}'
    after = '{token: "${STAND_IN_TOKEN}", properties: {id: {type: integer}, Name: {type: string}}}'
    sync(lake, shop(config=before, plan={"count": 2}), None, settings=connected, run_id="r1")

    (result,) = sync(lake, shop(config=after, plan={"count": 3}), None, settings=connected, run_id="r2")

    assert result.columns_added == ("name",)
    assert lake.query("SELECT id, name FROM raw.shop__items ORDER BY id") == [(1, None), (2, None), (3, "item 3")]
    changes = lake.query("SELECT stream, column_name, type, change, run_id FROM ingest.schema_changes")
    assert changes == [("items", "name", "VARCHAR", "added", "r2")]


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ("{Name: {type: string}}", "column id is gone from the connector's schema"),
        ("{id: {type: string}, Name: {type: string}}", "type changed: id is VARCHAR, the table has BIGINT"),
    ],
    ids=["lost", "changed"],
)
def test_a_lost_or_changed_column_is_refused_until_a_full_load_makes_the_table_anew(
    lake: Lake, connected: Settings, shop: Shop, properties: str, message: str
) -> None:
    config = '{{token: "${{STAND_IN_TOKEN}}", properties: {}}}'
    first = config.format("{id: {type: integer}, Name: {type: string}}")
    sync(lake, shop(config=first, plan={"count": 2}), None, settings=connected, run_id="r1")
    changed = shop(config=config.format(properties), plan={"count": 3})

    with pytest.raises(SourceRejected, match=message):
        sync(lake, changed, None, settings=connected, run_id="r2")
    assert ids(lake) == [1, 2]

    sync(lake, changed, None, settings=connected, run_id="r3", full=True)
    assert lake.query("SELECT name FROM raw.shop__items ORDER BY name") == [("item 1",), ("item 2",), ("item 3",)]


def test_a_second_sync_of_a_stream_is_refused_while_the_first_runs(
    lake: Lake, connected: Settings, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(airbyte, "LOCK_WAIT_SECONDS", 0.1)
    file = shop(f"{APPEND}\n{PLAIN}")

    with lake.lock("raw/shop/items") as held:
        assert held
        with pytest.raises(SourceUnavailable, match="shop/items: another run has been loading it"):
            sync(lake, file, ["items"], settings=connected, run_id="r")
        sync(lake, file, ["plain"], settings=connected, run_id="r")

    assert len(ids(lake, "shop__plain")) == 10


def test_progress_counts_rows_and_bytes(lake: Lake, connected: Settings, shop: Shop) -> None:
    reports = []

    sync(lake, shop(), None, settings=connected, run_id="r", report=reports.append)

    assert (reports[-1].task, reports[-1].rows) == ("shop/items", 10)
    assert reports[-1].bytes_done > 2000


def test_no_file_with_a_secret_stays_and_the_connector_sees_no_password_of_ours(
    lake: Lake, connected: Settings, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ours")
    file = shop(plan={"at": {"5": "exit"}})

    with pytest.raises(SourceUnavailable):
        sync(lake, file, None, settings=connected, run_id="r")

    assert not list(connected.scratch_path.glob("*connector-*"))
    from pipeline.ingest.airbyte_process import connector_environment

    passed = connector_environment(connected.scratch_path)
    assert "PATH" in passed
    assert not {name for name in passed if name.startswith(("AWS_", "PG", "MILLRACE_", "STAND_IN"))}
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "ours"
