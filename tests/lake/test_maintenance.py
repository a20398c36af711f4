"""Maintenance beside writers and readers: smaller afterwards, and never a row lost."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, LakeConflict
from pipeline.lake.connection import Lake
from pipeline.lake.maintenance import delete_orphans, maintain, rewrite
from pipeline.settings import Settings
from tests.lake.test_connection import child, in_catalogue

AGE_SNAPSHOTS = "UPDATE ducklake_snapshot SET snapshot_time = snapshot_time - interval '40 days'"
AGE_UNUSED = "UPDATE ducklake_files_scheduled_for_deletion SET schedule_start = schedule_start - interval '40 days'"
DAY = 86_400


def files(settings: Settings) -> set[Path]:
    return set(Path(settings.lake_path).rglob("*.parquet"))


def age(path: Path, days: float) -> None:
    os.utime(path, (time.time() - days * DAY,) * 2)


def test_many_small_files_with_deletes_become_one_and_the_rest_goes_with_time(settings: Settings, lake: Lake) -> None:
    lake.query("CREATE TABLE t(id BIGINT)")
    for step in range(20):
        lake.query(f"INSERT INTO t SELECT range + {step * 100} FROM range(100)")
    for step in range(5):
        lake.query(f"DELETE FROM t WHERE id % 100 BETWEEN {step * 10} AND {step * 10 + 5}")
    lake.query("ALTER TABLE t ADD COLUMN note VARCHAR")
    lake.query("INSERT INTO t VALUES (-1, 'a column that the other files do not have')")
    rows = lake.query("FROM t ORDER BY id")
    in_catalogue(settings, AGE_SNAPSHOTS)
    lines: list[str] = []

    first = maintain(lake, older_than_days=7, run_id="run-1", report=lines.append)

    assert (first.files_rewritten, first.snapshots_expired > 20) == (20, True)
    assert (first.files_deleted, first.orphans_deleted) == (0, 0)  # a query may still read them: a day
    assert first.after.live_files <= 2 < first.before.live_files
    assert lake.scalar("SELECT count(*) FROM lake.snapshots() WHERE commit_message = 'maintenance by run-1'") > 0
    assert lines[0] == "files rewritten: 20"

    in_catalogue(settings, AGE_SNAPSHOTS)
    in_catalogue(settings, AGE_UNUSED)
    second = maintain(lake, older_than_days=7)
    in_catalogue(settings, AGE_UNUSED)
    third = maintain(lake, older_than_days=7)

    assert second.files_deleted + third.files_deleted > 20
    assert len(files(settings)) == third.after.files == third.after.live_files <= 2
    assert lake.query("FROM t ORDER BY id") == rows


def test_a_young_snapshot_stays_readable(lake: Lake) -> None:
    lake.query("CREATE TABLE t AS SELECT range AS id FROM range(100)")
    version = lake.scalar("SELECT max(snapshot_id) FROM lake.snapshots()")
    lake.query("DELETE FROM t WHERE id < 90")

    maintain(lake, older_than_days=1)

    assert lake.scalar(f"SELECT count(*) FROM t AT (VERSION => {version})") == 100
    assert lake.scalar("SELECT count(*) FROM t") == 10


def test_nothing_younger_than_a_day_can_be_expired(lake: Lake) -> None:
    with pytest.raises(ConfigError, match="older_than_days is 0"):
        maintain(lake, older_than_days=0)


def test_only_one_process_maintains_at_a_time(settings: Settings, lake: Lake) -> None:
    held = Lake.open(settings)
    with held, held.lock("lake maintenance"), pytest.raises(LakeConflict, match="another process is doing it now"):
        maintain(lake, older_than_days=7)


def test_a_load_that_is_open_for_a_day_loses_no_row_to_maintenance(settings: Settings, lake: Lake) -> None:
    lake.query("CREATE TABLE t AS SELECT range AS id FROM range(1000)")
    before = files(settings)
    script = """
def work():
    lake.connection.execute("INSERT INTO t SELECT range + 1000 FROM range(5000)")
    print("written", flush=True)
    sys.stdin.readline()
    lake.connection.execute("DELETE FROM t WHERE id < 10")
lake.in_transaction(work, asset="t", run_id="long")
"""
    with child(settings, script) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == "written\n"
        (uncommitted,) = files(settings) - before
        age(uncommitted, days=1.9)
        report = maintain(lake, older_than_days=1)
        _, errors = writer.communicate("\n", timeout=60)
        assert writer.returncode == 0, errors

    assert report.orphans_deleted == 0
    assert lake.query("SELECT count(*), sum(id) FROM t") == [(5990, sum(range(10, 6000)))]


def test_what_a_killed_writer_left_is_deleted_after_two_days_and_nothing_else(settings: Settings, lake: Lake) -> None:
    lake.query("CREATE TABLE t AS SELECT range AS id FROM range(1000)")
    committed = files(settings)
    script = """
lake.connection.execute("BEGIN")
lake.connection.execute("INSERT INTO t SELECT * FROM range(5000)")
print("written", flush=True)
sys.stdin.read()
"""
    with child(settings, script) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    foreign = Path(settings.lake_path) / "README.txt"
    foreign.write_text("not a file of the lake")
    for path in (*files(settings), foreign):
        age(path, days=1.9)

    assert delete_orphans(lake) == 0
    for path in (*files(settings), foreign):
        age(path, days=2.1)
    assert delete_orphans(lake) == 1

    assert files(settings) == committed
    assert foreign.exists()
    assert lake.scalar("SELECT count(*) FROM t") == 1000


def test_a_file_that_is_gone_already_does_not_stop_the_clean_up(settings: Settings, lake: Lake) -> None:
    lake.query("CREATE TABLE t AS SELECT range AS id FROM range(1000)")
    (path,) = files(settings)
    lake.query("DROP TABLE t")
    lake.query("CREATE TABLE u AS SELECT range AS id FROM range(1000)")
    in_catalogue(settings, AGE_SNAPSHOTS)
    maintain(lake, older_than_days=1)
    in_catalogue(settings, AGE_UNUSED)
    path.unlink()

    assert maintain(lake, older_than_days=1).files_deleted == 1
    assert maintain(lake, older_than_days=1).files_deleted == 0


def test_a_small_change_beside_a_compaction_is_not_lost(settings: Settings, lake: Lake) -> None:
    """With rows inlined in the catalogue DuckLake commits both and the deleted rows are back."""
    statements = {
        "DELETE FROM t WHERE id IN (20, 21)": -41,
        "UPDATE t SET id = id + 1000 WHERE id = 22": 1000,
        "INSERT INTO t VALUES (7)": 7,
    }
    with Lake.open(settings) as other:
        for statement, effect in statements.items():
            lake.query("CREATE OR REPLACE TABLE t AS SELECT range AS id FROM range(100)")
            lake.query("DELETE FROM t WHERE id < 20")
            before = lake.scalar("SELECT sum(id) FROM t")
            tries = []

            def work(statement: str = statement, tries: list[int] = tries) -> None:
                lake.connection.execute(statement)
                tries.append(1)
                if len(tries) == 1:
                    assert rewrite(other) == 1

            lake.in_transaction(work, asset="t")

            assert lake.scalar("SELECT sum(id) FROM t") == before + effect, statement


def test_files_that_vanish_while_orphans_are_looked_for_are_no_failure(settings: Settings, lake: Lake) -> None:
    lake.query("CREATE TABLE t AS SELECT 1 AS id")
    folder, ended = Path(settings.lake_path) / "main" / "t", threading.Event()

    def write_and_undo() -> None:  # as writers do whose commit fails
        while not ended.is_set():
            made = [folder / f"undone-{number}.parquet" for number in range(20)]
            for file in made:
                file.touch()
            for file in made:
                file.unlink()
            time.sleep(0.1)

    writer = threading.Thread(target=write_and_undo)
    writer.start()
    try:
        assert [delete_orphans(lake) for _ in range(40)] == [0] * 40
    finally:
        ended.set()
        writer.join()


def test_writers_and_readers_beside_maintenance_lose_nothing(settings: Settings, lake: Lake) -> None:
    lake.query("CREATE TABLE t(writer BIGINT, step BIGINT, part BIGINT)")
    write = """
writer = int(sys.argv[1])
for step in range(15):
    def work():
        lake.connection.execute("DELETE FROM t WHERE writer = ? AND step = ? AND part < 5", [writer, step - 1])
        lake.connection.execute("INSERT INTO t SELECT ?, ?, range FROM range(?)", [writer, step, 5 + step])
    lake.in_transaction(work, asset="t")
print("done")
"""
    read = """
import json
torn = []
for _ in range(60):
    found = lake.query("SELECT writer, max(step), count(*) FROM t GROUP BY 1")
    torn += [row for row in found if row[2] != sum(range(row[1])) + 5 + row[1]]
print(json.dumps(torn))
"""
    with child(settings, write, "1") as one, child(settings, write, "2") as two, child(settings, read) as reader:
        reports = []
        while one.poll() is None or two.poll() is None:
            with suppress(LakeConflict):  # the writers were quicker every time
                reports.append(maintain(lake, older_than_days=1))
        reports.append(maintain(lake, older_than_days=1))
        outputs = [process.communicate(timeout=120) for process in (one, two, reader)]

    assert [output for output, _ in outputs] == ["done\n", "done\n", "[]\n"], outputs
    assert sum(report.files_rewritten for report in reports) > 0
    assert lake.query("SELECT writer, count(*), max(step) FROM t GROUP BY 1 ORDER BY 1") == [
        (writer, sum(range(14)) + 5 + 14, 14) for writer in (1, 2)
    ]
