"""Counting across gaps, kills, wiped tables and a database that goes away."""

import threading
from collections.abc import Callable

import pytest

from pipeline.errors import ServiceError
from pipeline.exporter import tail as tail_module
from pipeline.operate.database import connect
from pipeline.settings import Settings
from tests.exporter.conftest import Watched


def successes(watched: Watched) -> float | None:
    return watched.value("dagster_runs_completed_total", status="success")


def test_an_event_whose_transaction_commits_late_is_counted(
    watched: Watched, settings: Settings, event: Callable[..., None]
):
    late = connect(settings)
    with late.cursor() as cursor:
        cursor.execute(
            "INSERT INTO event_logs (run_id, event, dagster_event_type) VALUES ('late', '{}', 'PIPELINE_SUCCESS')"
        )
    event("PIPELINE_SUCCESS", "early")
    watched.poll()
    assert successes(watched) == 1
    assert watched.value("dagster_exporter_gaps_pending") == 1

    late.commit()
    late.close()
    watched.poll()
    assert successes(watched) == 2
    assert watched.value("dagster_exporter_gaps_pending") == 0


def test_an_id_that_never_comes_is_given_up_and_told(
    settings: Settings, sql: Callable[..., None], event: Callable[..., None]
):
    now = [1_000.0]
    watched = Watched(settings, clock=lambda: now[0]).start()
    event("PIPELINE_SUCCESS", "a")
    sql("SELECT nextval('event_logs_id_seq') FROM generate_series(1, 3)")  # as three inserts that fail
    event("PIPELINE_SUCCESS", "b")
    watched.poll()
    assert watched.value("dagster_exporter_gaps_pending") == 3

    now[0] += tail_module.GIVE_UP_SECONDS + 1
    watched.poll()
    assert watched.value("dagster_exporter_gaps_pending") == 0
    assert watched.value("dagster_exporter_gaps_abandoned_total") == 3
    assert successes(watched) == 2


def test_after_a_kill_the_figures_are_those_of_the_log(watched: Watched, event: Callable[..., None]):
    for number in range(5):
        event("PIPELINE_SUCCESS", f"before-{number}")
    watched.poll()
    watched.exporter.save()
    for number in range(3):
        event("PIPELINE_SUCCESS", f"lost-{number}")
    watched.poll()
    assert successes(watched) == 8

    second = watched.again()  # what was counted after the save died with the first
    event("PIPELINE_SUCCESS", "while-away")
    second.start()
    assert successes(second) == 9
    second.exporter.save()
    assert successes(second.again().start()) == 9


@pytest.mark.parametrize("state", ['{"format": 1}', "", "bm8gc3RhdGU="])
def test_what_another_version_saved_otherwise_is_left_and_counting_begins_anew(
    watched: Watched, sql: Callable[..., None], event: Callable[..., None], state: str
):
    event("PIPELINE_SUCCESS", "before")
    watched.poll()
    watched.exporter.save()
    sql("UPDATE millrace.exporter_state SET state = %s", state)

    second = watched.again().start()
    event("PIPELINE_SUCCESS", "after")
    second.poll()
    assert successes(second) == 1


def test_a_start_that_is_cut_off_is_gone_on_with_and_counts_nothing_twice(
    watched: Watched, event: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    watched.exporter.save()
    monkeypatch.setattr(tail_module, "PAGE", 10)
    for _ in range(30):
        event("STEP_FAILURE")
    second = watched.again()
    read, pages = second.database.rows, 0

    def rows(statement: str, *values: object) -> list[tuple[object, ...]]:
        nonlocal pages
        pages += "FROM event_logs WHERE id >" in statement
        if pages == 3:
            pages += 1
            raise ServiceError("the database is away")
        return read(statement, *values)

    second.database.rows = rows  # type: ignore[method-assign]
    with pytest.raises(ServiceError):
        second.start()

    assert second.start().value("dagster_steps_completed_total", status="failure") == 30


def test_an_end_that_two_report_is_counted_once_even_over_a_restart(watched: Watched, event: Callable[..., None]):
    event("PIPELINE_FAILURE", "r")
    event("PIPELINE_FAILURE", "r")
    watched.poll()
    watched.exporter.save()
    second = watched.again().start()
    event("PIPELINE_FAILURE", "r")
    second.poll()

    assert second.value("dagster_runs_completed_total", status="failure") == 1


def test_a_standby_that_took_over_without_the_newest_events_gives_their_ids_to_others_and_these_are_counted(
    watched: Watched, sql: Callable[..., None], event: Callable[..., None], end_session: Callable[[], None]
):
    for number in range(5):
        event("PIPELINE_SUCCESS", f"r{number}", at=1_700_000_000.0 + number)
    watched.poll()
    sql("DELETE FROM event_logs WHERE run_id IN ('r2', 'r3', 'r4')")
    sql("SELECT setval('event_logs_id_seq', (SELECT max(id) FROM event_logs))")
    for number in range(4):
        event("PIPELINE_SUCCESS", f"new{number}", at=1_700_000_100.0 + number)
    end_session()

    assert not watched.exporter.poll()
    watched.poll()
    assert successes(watched) == 9


def test_a_gap_of_more_ids_than_may_be_looked_for_is_told(
    watched: Watched, sql: Callable[..., None], event: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tail_module, "MAX_GAPS", 10)
    event("PIPELINE_SUCCESS", "before")
    watched.poll()
    sql("SELECT setval('event_logs_id_seq', (SELECT max(id) + 1000 FROM event_logs))")
    event("PIPELINE_SUCCESS", "after")
    watched.poll()

    assert watched.value("dagster_exporter_gaps_pending") == 10
    assert watched.value("dagster_exporter_gaps_abandoned_total") == 990
    sql("INSERT INTO event_logs (id, run_id, event, dagster_event_type) VALUES ("
        "(SELECT max(id) - 1 FROM event_logs), 'late', '{}', 'PIPELINE_SUCCESS')")  # fmt: skip
    watched.poll()
    assert successes(watched) == 3


def test_who_is_far_behind_shows_how_far_in_between_and_a_start_counts_up_to_the_present(
    watched: Watched, event: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tail_module, "PAGE", 10)
    monkeypatch.setattr(tail_module, "MAX_PAGES", 1)
    watched.exporter.save()
    for number in range(35):
        event("PIPELINE_SUCCESS", f"r{number}")
    watched.poll()
    assert successes(watched) == 10
    assert watched.value("dagster_exporter_event_cursor_lag") == 25
    watched.poll()
    assert watched.value("dagster_exporter_event_cursor_lag") == 15

    assert successes(watched.again().start()) == 35


def test_a_wiped_log_is_counted_on_from_its_new_start(
    watched: Watched, sql: Callable[..., None], event: Callable[..., None]
):
    for number in range(10):
        event("PIPELINE_SUCCESS", f"r{number}")
    watched.poll()
    sql("TRUNCATE event_logs RESTART IDENTITY")
    event("PIPELINE_SUCCESS", "new", at=1_700_000_100.0)
    watched.poll()
    watched.poll()

    assert successes(watched) == 11


def test_a_log_restored_from_a_backup_is_not_counted_twice(
    watched: Watched, sql: Callable[..., None], event: Callable[..., None]
):
    for number in range(10):
        event("PIPELINE_SUCCESS", f"r{number}", at=1_700_000_000.0 + number)
    watched.poll()
    sql("DELETE FROM event_logs WHERE id > 6")
    sql("SELECT setval('event_logs_id_seq', 6)")
    watched.poll()
    event("PIPELINE_SUCCESS", "after", at=1_700_000_100.0)
    watched.poll()

    assert successes(watched) == 11


def test_a_database_that_goes_away_leaves_the_figures_and_is_told(
    watched: Watched, end_session: Callable[[], None], event: Callable[..., None]
):
    event("PIPELINE_SUCCESS", "r")
    watched.poll()
    end_session()
    assert not watched.exporter.poll()
    assert successes(watched) == 1
    assert watched.value("dagster_exporter_poll_errors_total", collector="events") == 1

    event("PIPELINE_SUCCESS", "later")
    watched.poll()
    assert successes(watched) == 2


def test_only_one_exporter_counts_and_the_other_takes_over(watched: Watched, settings: Settings):
    second = Watched(settings)
    stop = threading.Event()
    assert watched.exporter.wait_for_turn(stop)
    assert not second.database.try_lock("millrace exporter")

    watched.database.close()
    assert second.exporter.wait_for_turn(stop, interval_seconds=0.1)


def test_the_role_reads_and_writes_only_its_own_row(watched: Watched):
    for statement in (
        "DELETE FROM runs",
        "UPDATE millrace.backups SET bytes = 0",
        "DELETE FROM millrace.exporter_state",
    ):
        with pytest.raises(ServiceError, match="permission denied"):
            watched.database.write(statement)
    with pytest.raises(ServiceError, match="read-only transaction"):
        watched.database.rows("DELETE FROM runs")


@pytest.mark.parametrize(
    "body", ["", "no JSON", "[]", '{"dagster_event": null}', '{"dagster_event": {"event_specific_data": 7}}']
)
def test_a_line_that_dagster_would_not_write_is_counted_as_far_as_it_goes(
    watched: Watched, event: Callable[..., None], body: str
):
    for kind in ("STEP_SUCCESS", "ASSET_CHECK_EVALUATION", "ASSET_MATERIALIZATION", "ENGINE_EVENT", "PIPELINE_FAILURE"):
        event(kind, "odd", body=body)
    event("PIPELINE_SUCCESS", "next")
    watched.poll()

    assert successes(watched) == 1
    assert watched.value("dagster_run_failures_total", reason="unknown") == 1
    assert watched.value("dagster_exporter_gaps_pending") == 0


def test_an_event_that_cannot_be_counted_takes_no_other_with_it_and_shows_in_the_age_of_its_figures(
    settings: Settings, event: Callable[..., None]
):
    now = [1e9]
    watched = Watched(settings, clock=lambda: now[0]).start()
    odd = '{"dagster_event": {"event_specific_data": {"materialization": {"metadata_entries": [7]}}}}'
    event("ASSET_MATERIALIZATION", asset='["a"]')
    event("ASSET_MATERIALIZATION", asset='["b"]', body=odd)
    event("ASSET_MATERIALIZATION", asset='["c"]')
    now[0] += 15
    assert not watched.exporter.poll()

    assert [watched.value("dagster_asset_materializations_total", asset_key=key) for key in "abc"] == [1, None, 1]
    assert watched.value("dagster_exporter_poll_errors_total", collector="assets") == 1
    assert watched.value("dagster_exporter_last_success_timestamp_seconds", collector="assets") == 1e9
    now[0] += 15
    watched.poll()
    assert watched.value("dagster_exporter_last_success_timestamp_seconds", collector="assets") == 1e9 + 30


def test_an_answer_of_another_shape_stops_one_collector_and_no_other(watched: Watched, event: Callable[..., None]):
    watched.workspace = {"workspaceOrError": {"locationEntries": [{"surprise": 1}]}, "instance": {"daemonHealth": {}}}
    (workspace,) = (topic for topic in watched.exporter.topics if topic.name == "workspace")
    workspace._asked_at = 0.0
    event("PIPELINE_SUCCESS")

    assert not watched.exporter.poll()
    assert watched.value("dagster_exporter_poll_errors_total", collector="workspace") == 1
    assert successes(watched) == 1


def test_the_past_is_counted_on_request(settings: Settings, event: Callable[..., None]):
    for number in range(100):
        event("PIPELINE_SUCCESS", f"r{number}", at=1_700_000_000.0 + number)

    assert successes(Watched(settings).start()) is None
    assert successes(Watched(settings).start(since=1_700_000_090.0)) == 10
