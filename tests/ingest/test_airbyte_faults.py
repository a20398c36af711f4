"""Connectors that misbehave: one clear error, what was committed stays, and the next sync is fine."""

import logging
import time
from collections.abc import Callable

import psutil
import pytest

from pipeline.errors import ConfigError, SourceRejected, SourceUnavailable
from pipeline.ingest import airbyte_process
from pipeline.ingest.airbyte import sync
from pipeline.ingest.spec import SourceFile
from pipeline.lake.connection import Lake
from pipeline.settings import Settings

Shop = Callable[..., SourceFile]
COMPLETE = {"count": 10}


def ids(lake: Lake) -> list[int]:
    tables = lake.scalar("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'shop__items'")
    return [row[0] for row in lake.query("SELECT id FROM raw.shop__items ORDER BY id")] if tables else []


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (
            "exit",
            SourceUnavailable,
            r"ended with code 1 and no reason. Its last words: the database went away, token was \*\*\*\*",
        ),
        ("config_error", SourceRejected, r"it reports: the API said no to \*\*\*\*. Correct its configuration"),
        ("transient_error", SourceUnavailable, r"it reports: the API said no to \*\*\*\*"),
        ("hang", SourceUnavailable, "silent for 1 s and was ended"),
        ("stranger", SourceRejected, "a record of stream strangers, which was not asked for"),
        ("broken state", SourceRejected, "a message that breaks the protocol"),
        ("long line", SourceRejected, "a line is longer than 16 MiB"),
    ],
)
def test_a_connector_that_fails_is_one_clear_error_and_the_next_sync_goes_on(
    lake: Lake, connected: Settings, shop: Shop, fault: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        sync(lake, shop(plan={"count": 10, "at": {"8": fault}}, idle=1), None, settings=connected, run_id="r1")

    assert str(caught.value).startswith("Loading shop by connector ")
    assert "Committed before: 5 rows of items; the next sync goes on from there." in str(caught.value)
    assert "s3cret-token" not in str(caught.value)
    assert ids(lake) == [1, 2, 3, 4, 5]
    (result,) = sync(lake, shop(plan=COMPLETE), None, settings=connected, run_id="r2")
    assert (result.rows, ids(lake)) == (5, list(range(1, 11)))


def test_a_connector_that_never_says_a_word_is_ended_once_its_time_to_start_is_over(
    lake: Lake, connected: Settings, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(airbyte_process, "START_SECONDS", 1)

    with pytest.raises(SourceUnavailable, match="silent for 2 s and was ended"):
        sync(lake, shop(plan={"mute": True}, idle=1), None, settings=connected, run_id="r")


def test_a_connector_that_never_stops_is_ended_with_its_children(lake: Lake, connected: Settings, shop: Shop) -> None:
    endless = {"count": 10_000_000, "state_every": 20_000_000}
    started = time.monotonic()

    with pytest.raises(SourceUnavailable, match=r"ran for more than 1\.5 s and was ended"):
        sync(lake, shop(plan=endless, total=1.5), None, settings=connected, run_id="r")

    assert time.monotonic() - started < 15
    assert ids(lake) == []
    assert not [
        child for child in psutil.Process().children(recursive=True) if "source_items" in " ".join(child.cmdline())
    ]


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"garbage_only": True}, "only lines that are no messages, such as 'hello'"),
        ({"silent": True}, "it sent nothing at all"),
    ],
)
def test_a_connector_that_does_not_speak_the_protocol_is_refused(
    lake: Lake, connected: Settings, shop: Shop, plan: dict, says: str
) -> None:
    with pytest.raises(SourceRejected, match=says):
        sync(lake, shop("- {name: plain}", plan=plan), None, settings=connected, run_id="r")


def test_lines_that_are_no_messages_are_logged_and_passed_over(
    lake: Lake, connected: Settings, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="pipeline.ingest"):
        sync(lake, shop(plan={"count": 10, "at": {"3": "garbage"}}), None, settings=connected, run_id="r")

    assert ids(lake) == list(range(1, 11))
    assert "not a message: Downloading the internet..." in caplog.text


def test_a_flood_on_standard_error_neither_blocks_nor_fills_memory(lake: Lake, connected: Settings, shop: Shop) -> None:
    before = psutil.Process().memory_info().rss

    sync(lake, shop(plan={"count": 10, "at": {"5": "stderr flood"}}), None, settings=connected, run_id="r")

    assert ids(lake) == list(range(1, 11))
    assert psutil.Process().memory_info().rss - before < 60 << 20


@pytest.mark.parametrize("plan", [{"state_first": True}, {"stateless": True}])
def test_records_that_no_state_follows_are_not_committed_nor_is_the_state_before_them(
    lake: Lake, connected: Settings, shop: Shop, plan: dict
) -> None:
    with pytest.raises(SourceRejected, match="items ended without a state after its last 10 records"):
        sync(lake, shop(plan={"count": 10, **plan}), None, settings=connected, run_id="r1")

    assert ids(lake) == []
    assert lake.query("SELECT * FROM ingest.connector_state") == []
    sync(lake, shop(plan=COMPLETE), None, settings=connected, run_id="r2")
    assert ids(lake) == list(range(1, 11))


BROKEN = {"3": {"id": 1.5}, "4": {"amount": "a lot"}, "6": {"day": "2021-02-30"}, "8": {"is active": "perhaps"}}


def test_records_that_break_their_schema_are_set_aside_with_column_and_reason(
    lake: Lake, connected: Settings, shop: Shop
) -> None:
    stream = "- {name: items, sync: incremental_append, max_reject_share: 0.5}"

    (result,) = sync(lake, shop(stream, plan={"count": 10, "break": BROKEN}), None, settings=connected, run_id="r")

    assert (result.rows, result.rejects) == (6, 4)
    assert ids(lake) == [1, 2, 5, 7, 9, 10]
    assert lake.query('SELECT _file, _row, "column", reason FROM raw.shop__items__rejects ORDER BY _row') == [
        (None, 3, "id", "1.5 is not BIGINT"),
        (None, 4, "amount", "a lot is not DOUBLE"),
        (None, 6, "day", "2021-02-30 is not DATE"),
        (None, 8, "is_active", "perhaps is not BOOLEAN"),
    ]
    assert lake.scalar("SELECT line FROM raw.shop__items__rejects WHERE _row = 3").startswith('{"type":"RECORD"')


def test_a_fraction_is_not_rounded_into_an_integer_column(lake: Lake, connected: Settings, shop: Shop) -> None:
    with pytest.raises(SourceRejected, match=r"record 3, id: 1\.5 is not BIGINT"):
        sync(lake, shop(plan={"count": 10, "break": {"3": {"id": 1.5}}}), None, settings=connected, run_id="r")


def test_a_record_that_is_cut_off_is_set_aside(lake: Lake, connected: Settings, shop: Shop) -> None:
    stream = "- {name: items, sync: incremental_append, max_reject_share: 0.5}"

    sync(lake, shop(stream, plan={"count": 10, "at": {"8": "broken record"}}), None, settings=connected, run_id="r")

    assert ids(lake) == list(range(1, 11))
    assert lake.query("SELECT _row, reason FROM raw.shop__items__rejects") == [(8, "no JSON object as data")]


def test_too_many_rejects_fail_the_load_and_nothing_of_it_is_committed(
    lake: Lake, connected: Settings, shop: Shop
) -> None:
    with pytest.raises(SourceRejected, match=r"4 of 10 rows do not fit.*record 3, id: 1.5 is not BIGINT"):
        sync(lake, shop(plan={"count": 10, "break": BROKEN}), None, settings=connected, run_id="r1")

    assert ids(lake) == []
    assert lake.query("SELECT * FROM ingest.connector_state") == []
    sync(lake, shop(plan=COMPLETE), None, settings=connected, run_id="r2")
    assert ids(lake) == list(range(1, 11))


def test_the_refused_rows_of_one_stream_do_not_hold_back_another(lake: Lake, connected: Settings, shop: Shop) -> None:
    two = "- {name: items, sync: incremental_append}\n- {name: other_items, sync: incremental_append, max_reject_share: 0.5}"

    with pytest.raises(SourceRejected, match="shop/items: 4 of 10 rows do not fit"):
        sync(lake, shop(two, plan={"count": 10, "break": BROKEN}), None, settings=connected, run_id="r1")

    assert ids(lake) == []
    assert lake.scalar("SELECT count(*) FROM raw.shop__other_items") == 6


@pytest.mark.parametrize("value", [5.0, "7"], ids=["whole number with a point", "number as text"])
def test_an_integer_written_otherwise_is_still_an_integer(
    lake: Lake, connected: Settings, shop: Shop, value: object
) -> None:
    sync(lake, shop(plan={"count": 1, "break": {"1": {"id": value}}}), None, settings=connected, run_id="r")

    assert ids(lake) == [int(value)]


@pytest.mark.parametrize(
    ("streams", "says"),
    [
        ("- {name: missing}", "the connector has no stream 'missing'; it offers items, other_items, plain"),
        ("- {name: plain, sync: incremental_append}", "offers it as full_refresh only"),
    ],
)
def test_a_stream_that_is_not_offered_so_is_named(
    lake: Lake, connected: Settings, shop: Shop, streams: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        sync(lake, shop(streams), None, settings=connected, run_id="r")


def test_a_key_that_is_no_column_is_named(lake: Lake, connected: Settings, shop: Shop) -> None:
    file = shop("- {name: items, sync: incremental_deduped, primary_key: [uuid]}")

    with pytest.raises(SourceRejected, match="primary_key uuid is not among its columns"):
        sync(lake, file, None, settings=connected, run_id="r")
