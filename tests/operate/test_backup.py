"""Backups made, looked at and restored for real: PostgreSQL, a lake, Dagster's runs, a bucket, processes that are killed."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import psutil
import psycopg2
import pytest
from pydantic import SecretStr

from pipeline.errors import BackupError, ConfigError, ServiceError
from pipeline.lake import maintenance
from pipeline.lake.connection import Lake
from pipeline.lake.maintenance import maintain
from pipeline.operate.backup import PIN_AGE, Made, backup, lake_pin
from pipeline.operate.backup_manifest import listing, names, open_target
from pipeline.operate.backup_programs import newest_programs, programs_for
from pipeline.operate.database import connect, with_database
from pipeline.operate.instance import ensure_instance, open_instance
from pipeline.operate.restore import restore
from pipeline.operate.schema import ensure_schema
from pipeline.operate.verify import verify
from pipeline.settings import Settings
from tests.conftest import administrators_url
from tests.lake.test_connection import in_catalogue
from tests.lake.test_maintenance import AGE_SNAPSHOTS, files

MILLRACE = str(Path(sys.executable).with_name("millrace"))
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)
Execute = Callable[..., list[tuple[Any, ...]]]


@dg.asset
def trips() -> dg.MaterializeResult[None]:
    return dg.MaterializeResult(metadata={"rows": 3})


@pytest.fixture(scope="module")
def administrator(server: Settings) -> Iterator[Execute]:
    """Runs a statement as the server's administrator. Until the end our role may make databases, as on one's own server."""
    url = administrators_url(server)
    with closing(psycopg2.connect(url, dbname="postgres")) as connection, connection.cursor() as cursor:
        connection.autocommit = True

        def execute(statement: str, *values: Any) -> list[tuple[Any, ...]]:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

        execute("ALTER ROLE millrace CREATEDB")
        yield execute
        execute("ALTER ROLE millrace NOCREATEDB")


@pytest.fixture
def installation(settings: Settings, administrator: Execute) -> Iterator[Settings]:
    """An empty lake and Dagster's and our tables, empty."""
    ensure_instance(settings)
    yield settings
    for (name,) in administrator("SELECT datname FROM pg_database WHERE datname ~ '_(before|restore)'"):
        administrator(f"DROP DATABASE {name} WITH (FORCE)")


def run_trips(settings: Settings) -> str:
    with open_instance(settings) as instance:
        return dg.materialize([trips], instance=instance).run_id


def load(settings: Settings, *statements: str) -> None:
    with Lake.open(settings) as lake:
        for statement in statements:
            lake.query(statement)


def fill(settings: Settings) -> None:
    """Two tables of several files each, some of deletions, some of which are no longer of the newest snapshot."""
    load(
        settings,
        "CREATE SCHEMA raw",
        "CREATE TABLE raw.trips(id BIGINT, city VARCHAR)",
        "INSERT INTO raw.trips SELECT range, 'Porto' FROM range(1000)",
        "INSERT INTO raw.trips SELECT range + 1000, 'Graz' FROM range(1000)",
        "DELETE FROM raw.trips WHERE id % 10 = 3",
        "DELETE FROM raw.trips WHERE id % 10 = 4",
        "CREATE TABLE zones AS SELECT range AS id FROM range(265)",
        "CREATE TABLE by_city(city VARCHAR, n INT)",
        "ALTER TABLE by_city SET PARTITIONED BY (city)",
        "INSERT INTO by_city VALUES ('São Paulo #1 100%', 1), (E'a\\tb\\\\c', 2)",
    )


def rows(settings: Settings) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the lake, by table."""
    with Lake.open(settings, read_only=True) as lake:
        tables = lake.query("SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE database_name = 'lake'")
        return {table: sorted(lake.query(f"FROM {table}")) for (table,) in tables}


def query(settings: Settings, sql: str, database: str = "dagster") -> list[tuple[Any, ...]]:
    with closing(connect(settings, database)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else []


def backup_rows(settings: Settings) -> list[str]:
    """Names in the table of backups; each must be of a finished one."""
    found = query(settings, "SELECT name, finished_at > started_at, bytes > 0 FROM millrace.backups ORDER BY name")
    assert all(
        facts == (True, True) for _, *facts in [(name, (done, size)) for name, done, size in found] for facts in facts
    )
    return [name for name, *_ in found]


def make(settings: Settings, target: Path, **options: Any) -> Made:
    return backup(settings, str(target), **{"keep": 7, **options})


def problems(settings: Settings, target: Path | str, name: str | None = None) -> list[str]:
    """What is wrong with one backup, or with any."""
    return [line for verdict in verify(settings, str(target), name, every=name is None) for line in verdict.problems]


def delete_all_that_may_be(settings: Settings, monkeypatch: pytest.MonkeyPatch, keep_since: datetime | None) -> None:
    """Maintenance as it will be when every age has passed."""
    monkeypatch.setattr(maintenance, "UNUSED_AGE", timedelta(0))
    monkeypatch.setattr(maintenance, "ORPHAN_AGE", timedelta(seconds=1))  # DuckDB reads a file's date in whole seconds
    with Lake.open(settings) as lake:
        for _ in range(2):
            in_catalogue(settings, AGE_SNAPSHOTS)
            maintain(lake, older_than_days=1, keep_since=keep_since)


# made and restored


def test_after_a_restore_runs_assets_and_rows_are_those_of_the_backup(installation: Settings, tmp_path: Path) -> None:
    first = run_trips(installation)
    fill(installation)
    before = rows(installation)
    query(installation, "GRANT SELECT ON millrace.backups TO exporter")
    query(installation, "GRANT USAGE ON SCHEMA millrace TO exporter")
    query(installation, "INSERT INTO millrace.monitor_samples (at, sample) VALUES (now(), '{}')")
    made = make(installation, tmp_path / "backups")

    run_trips(installation)
    query(installation, "DELETE FROM event_logs")
    load(installation, "DROP TABLE raw.trips", "INSERT INTO zones VALUES (-1)", "CREATE TABLE other AS SELECT 1 AS id")
    done = restore(installation, str(tmp_path / "backups"), replace=True)

    assert done.name == made.name
    assert done.missing == {}
    assert rows(installation) == before
    assert not ensure_schema(installation)
    with open_instance(installation) as instance:
        assert [run.run_id for run in instance.get_runs()] == [first]
        event = instance.get_latest_materialization_event(trips.key)
        assert event
        assert event.run_id == first
        assert len(instance.all_logs(first)) > 5
        assert dg.materialize([trips], instance=instance).success
    load(installation, "INSERT INTO zones VALUES (266)")
    assert len(rows(installation)["main.zones"]) == len(before["main.zones"]) + 1
    assert backup_rows(installation) == [made.name]
    assert query(installation, "SHOW search_path") == [("public",)]
    assert query(installation, "SELECT count(*) FROM millrace.monitor_samples") == [(0,)]  # of no use to a backup
    for database, role, may in (("dagster", "exporter", "public.runs"), ("dagster", "exporter", "millrace.backups"),
                                ("lake", "lake_reader", "public.ducklake_snapshot")):  # fmt: skip
        granted = f"SELECT has_table_privilege('{role}', '{may}', 'SELECT'), has_database_privilege('{role}', '{database}', 'CONNECT')"
        assert query(installation, granted, database) == [(True, True)]
    assert query(installation, "SELECT has_database_privilege('exporter', 'lake', 'CONNECT')") == [(False,)]
    query(installation, "CREATE TABLE made_after(id INT)")
    assert query(installation, "SELECT has_table_privilege('exporter', 'made_after', 'SELECT')") == [(True,)]
    old_dagster, old_lake = done.before
    assert query(installation, "SELECT count(*) FROM runs", old_dagster) == [(2,)]
    assert query(installation, "SELECT 1 FROM ducklake_table WHERE table_name = 'other'", old_lake) == [(1,)]


def test_a_restore_into_a_server_that_has_nothing(
    installation: Settings, administrator: Execute, tmp_path: Path
) -> None:
    fill(installation)
    before = rows(installation)
    make(installation, tmp_path / "backups")
    for database in ("dagster", "lake"):
        administrator(f"DROP DATABASE {database} WITH (FORCE)")
    administrator("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")  # as on some managed servers

    try:
        done = restore(installation, str(tmp_path / "backups"))
    finally:
        administrator("GRANT CONNECT ON DATABASE postgres TO PUBLIC")

    assert done.before == ()
    assert rows(installation) == before


def test_the_embedded_server_is_restored_by_its_administrator(
    installation: Settings, server: Settings, administrator: Execute, tmp_path: Path
) -> None:
    embedded = with_database(Settings(state_dir=server.state_dir, lake_data=str(tmp_path / "lake")))
    load(embedded, "CREATE TABLE t AS SELECT range AS id FROM range(10)")
    make(embedded, tmp_path / "backups")
    load(embedded, "DROP TABLE t")
    administrator("ALTER ROLE millrace NOCREATEDB")
    try:
        with pytest.raises(ServiceError, match="CREATEDB"):
            restore(
                installation.model_copy(update={"lake_data": str(tmp_path / "lake")}),
                str(tmp_path / "backups"),
                replace=True,
            )
        restore(embedded, str(tmp_path / "backups"), replace=True)
    finally:
        administrator("ALTER ROLE millrace CREATEDB")

    assert len(rows(embedded)["main.t"]) == 10
    assert query(embedded, "SELECT tableowner FROM pg_tables WHERE tablename = 'backups'") == [("millrace",)]


def test_a_lake_that_is_still_empty_can_be_backed_up(installation: Settings, tmp_path: Path) -> None:
    made = make(installation, tmp_path / "backups")
    restore(installation, str(tmp_path / "backups"))

    assert (made.manifest.snapshot_id, made.manifest.data_files) == (None, 0)
    assert problems(installation, tmp_path / "backups") == []
    load(installation, "CREATE TABLE t AS SELECT 1 AS id")
    assert rows(installation) == {"main.t": [(1,)]}


def test_the_manifest_says_what_was_backed_up(installation: Settings, tmp_path: Path) -> None:
    fill(installation)

    made = make(installation, tmp_path / "backups", now=NOON)

    folder = tmp_path / "backups" / "20261121T120000Z"
    assert sorted(path.name for path in folder.iterdir()) == ["backup.json", "dagster.dump", "lake.dump"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    written = json.loads((folder / "backup.json").read_text())
    assert written["dumps"]["lake"]["bytes"] == (folder / "lake.dump").stat().st_size
    assert written["snapshot_id"] == query(installation, "SELECT max(snapshot_id) FROM ducklake_snapshot", "lake")[0][0]
    assert (
        written["data_files"] == made.manifest.data_files == len(files(installation)) - 2
    )  # two deletions are replaced
    assert written["server"].startswith("16.")
    assert written["lake_path"] == installation.lake_path
    assert datetime.fromisoformat(written["started_at"]) < datetime.fromisoformat(written["finished_at"])
    ((free, total),) = query(installation, "SELECT volume_free_bytes, volume_bytes FROM millrace.backups")
    assert total == shutil.disk_usage(tmp_path).total
    assert abs(free - shutil.disk_usage(tmp_path).free) < total / 10


# the lake's files


def test_every_row_is_restorable_after_maintenance_has_deleted_all_it_may(
    installation: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(installation)
    before = rows(installation)
    make(installation, tmp_path / "backups")

    load(
        installation,
        "DELETE FROM raw.trips WHERE id % 10 = 5",
        "CREATE OR REPLACE TABLE zones AS SELECT range AS id FROM range(3)",
        "UPDATE by_city SET n = n + 1",
        "CREATE TABLE other AS SELECT 1 AS id",
        "DROP TABLE other",
    )
    delete_all_that_may_be(installation, monkeypatch, lake_pin(installation))
    load(installation, "DROP TABLE raw.trips", "DELETE FROM zones")
    delete_all_that_may_be(installation, monkeypatch, lake_pin(installation))

    assert problems(installation, tmp_path / "backups") == []
    restore(installation, str(tmp_path / "backups"), replace=True)
    assert rows(installation) == before

    delete_all_that_may_be(installation, monkeypatch, lake_pin(installation))
    assert rows(installation) == before


def test_without_the_pin_the_same_maintenance_deletes_what_the_backup_needs(
    installation: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(installation)
    make(installation, tmp_path / "backups")

    load(installation, "DROP TABLE raw.trips")
    delete_all_that_may_be(installation, monkeypatch, None)

    assert len(problems(installation, tmp_path / "backups")) >= 3
    done = restore(installation, str(tmp_path / "backups"), replace=True)
    assert len(done.missing) >= 3
    assert len(rows_of(installation, "zones")) == 265


def rows_of(settings: Settings, table: str) -> list[tuple[Any, ...]]:
    with Lake.open(settings) as lake:
        return lake.query(f"FROM {table}")


def test_a_compaction_under_way_while_the_dump_was_made_deletes_nothing_of_it(
    installation: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(installation)
    before = rows(installation)
    monkeypatch.setattr(maintenance, "UNUSED_AGE", timedelta(0))
    monkeypatch.setattr(maintenance, "ORPHAN_AGE", timedelta(hours=1))

    with Lake.open(installation) as lake:
        lake.connection.execute("BEGIN")
        lake.connection.execute("FROM ducklake_rewrite_data_files('lake', delete_threshold => 0.05)").fetchall()
        lake.connection.execute("FROM ducklake_merge_adjacent_files('lake')").fetchall()
        made = make(installation, tmp_path / "backups")
        lake.connection.execute("COMMIT")
        in_catalogue(installation, AGE_SNAPSHOTS)
        maintain(lake, older_than_days=1, keep_since=lake_pin(installation))

    dated = query(installation, "SELECT min(schedule_start) FROM ducklake_files_scheduled_for_deletion", "lake")
    assert dated[0][0] < made.manifest.started_at
    restore(installation, str(tmp_path / "backups"), replace=True)
    assert rows(installation) == before


def test_after_a_restore_a_younger_backup_stays_restorable(
    installation: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(installation)
    old = make(installation, tmp_path / "backups").name
    load(installation, "INSERT INTO zones SELECT range + 1000 FROM range(500)", "CREATE TABLE other AS SELECT 1 AS id")
    younger, expected = make(installation, tmp_path / "backups").name, rows(installation)

    restore(installation, str(tmp_path / "backups"), old, replace=True)
    assert backup_rows(installation) == [old, younger]
    delete_all_that_may_be(installation, monkeypatch, lake_pin(installation))
    make(installation, tmp_path / "backups", keep=2)
    assert old not in names(open_target(str(tmp_path / "backups"), installation))
    delete_all_that_may_be(installation, monkeypatch, lake_pin(installation))

    assert problems(installation, tmp_path / "backups", younger) == []
    restore(installation, str(tmp_path / "backups"), younger, replace=True)
    assert rows(installation) == expected


def test_a_lake_whose_volume_is_lost_comes_back_from_the_copied_files(installation: Settings, tmp_path: Path) -> None:
    fill(installation)
    before = rows(installation)
    target = tmp_path / "backups"
    first = make(installation, target, files=True)
    copied = {path: path.stat().st_mtime_ns for path in (target / "files").rglob("*.parquet")}
    load(installation, "INSERT INTO zones VALUES (1000)")
    make(installation, target, files=True)

    assert len(copied) == first.manifest.data_files
    assert len(list((target / "files").rglob("*.parquet"))) == len(copied) + 1
    assert {path: path.stat().st_mtime_ns for path in copied} == copied
    shutil.rmtree(installation.lake_path)
    assert problems(installation, target) == []
    done = restore(installation, str(target), first.name, replace=True)
    assert done.missing == {}
    assert rows(installation) == before


def test_copied_files_that_no_backup_needs_are_removed(
    installation: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(installation)
    target = tmp_path / "backups"
    make(installation, target, files=True)
    load(installation, "CREATE OR REPLACE TABLE zones AS SELECT 1 AS id", "DROP TABLE raw.trips")
    delete_all_that_may_be(installation, monkeypatch, None)
    (target / "files" / "half.parquet.partial").write_text("of a killed copy")

    second = make(installation, target, keep=1)

    needed = {path.relative_to(installation.lake_path) for path in files(installation)}
    there = {path.relative_to(target / "files") for path in (target / "files").rglob("*") if path.is_file()}
    assert there < needed  # one is not copied: the second backup was made without
    assert len(there) == second.manifest.data_files - 1


# what pins


def test_backups_beyond_the_wanted_number_go_oldest_first(installation: Settings, tmp_path: Path) -> None:
    target = tmp_path / "backups"
    made = [make(installation, target, keep=2, now=NOON + day * DAY) for day in range(3)]

    assert [item.removed for item in made] == [(), (), (made[0].name,)]
    assert sorted(path.name for path in target.iterdir()) == [made[1].name, made[2].name]
    assert backup_rows(installation) == [made[1].name, made[2].name]

    of_a_wrong_clock = make(installation, target, keep=1, now=NOON - 400 * DAY)
    assert [path.name for path in target.iterdir()] == [of_a_wrong_clock.name]
    same_second = make(installation, target, keep=2, now=NOON - 400 * DAY)
    assert same_second.name > of_a_wrong_clock.name


def test_a_backup_that_somebody_deleted_pins_nothing_after_the_next(installation: Settings, tmp_path: Path) -> None:
    target = tmp_path / "backups"
    gone, kept = make(installation, target, now=NOON), make(installation, target, now=NOON + DAY)
    shutil.rmtree(target / gone.name)
    query(installation, f"DELETE FROM millrace.backups WHERE name = '{kept.name}'")

    new = make(installation, target, now=NOON + 2 * DAY)

    assert backup_rows(installation) == [kept.name, new.name]
    assert lake_pin(installation) == kept.manifest.started_at
    shutil.rmtree(target)
    with pytest.raises(ConfigError, match=r"2 backups were made in it.*Mount it"):
        make(installation, target)
    target.mkdir()
    last = make(installation, target)
    assert backup_rows(installation) == [last.name]


def test_a_backup_at_a_place_that_nobody_looks_at_pins_for_ninety_days(installation: Settings, tmp_path: Path) -> None:
    forgotten = make(installation, tmp_path / "forgotten")
    assert lake_pin(installation) == forgotten.manifest.started_at

    query(installation, f"UPDATE millrace.backups SET started_at = now() - interval '{PIN_AGE.days - 1} days'")
    made = make(installation, tmp_path / "backups")
    pin = lake_pin(installation)
    assert pin
    assert pin < made.manifest.started_at
    query(
        installation,
        f"UPDATE millrace.backups SET started_at = started_at - interval '2 days' WHERE name = '{forgotten.name}'",
    )

    assert lake_pin(installation) == made.manifest.started_at


def test_maintenance_knows_the_pin_from_the_command_and_the_job(installation: Settings, tmp_path: Path) -> None:
    fill(installation)
    made = make(installation, tmp_path / "backups")
    since = f"files in use since {made.manifest.started_at:%Y-%m-%d %H:%M:%S}Z"

    done = millrace(installation, "lake", "maintain")
    assert since in done.stderr

    from pipeline.operate.jobs import MAINTAIN, build_jobs

    (job,) = [item for item in build_jobs(installation) if item.name == MAINTAIN]
    with Lake.open(installation) as lake:
        told: list[datetime | None] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(maintenance, "maintain", lambda *_, keep_since, **__: told.append(keep_since))
            assert job.execute_in_process(resources={"lake": lake}).success
    assert told == [made.manifest.started_at]


# killed, and two at once

CHILD = """
import sys
from pipeline.operate import backup, store, restore
from pipeline.settings import Settings

what, target, moment = sys.argv[1:]
reads = []


def stop(*_, **__):
    print("here", flush=True)
    sys.stdin.read()


def half(blocks):
    for block in blocks:
        yield block[: len(block) // 2]
        stop()


folder = store._Folder
write, read, delete = folder.write, folder.read, folder.delete
if what == "backup":
    if moment == "register":
        backup.register = stop
    elif moment == "delete":
        folder.delete = lambda self, names: (delete(self, names), stop())
    else:
        folder.write = lambda self, name, blocks: write(self, name, half(blocks) if name.endswith(moment) else blocks)
    backup.backup(Settings.load(), target, keep=1, files=True)
else:
    if moment == "exchange":
        restore._exchange = stop
    elif moment == "renaming":
        exchange = restore._exchange

        def slowly(execute):
            return lambda statement, *values: (execute(statement, *values), "RENAME TO dagster" in statement and stop())

        restore._exchange = lambda execute, before: exchange(slowly(execute), before)
    elif moment == "exchanged":
        exchange = restore._exchange
        restore._exchange = lambda *given: (exchange(*given), stop())
    else:
        def reading(self, name):
            reads.append(name)
            # The first time it is for the table of contents.
            return half(read(self, name)) if name.endswith(moment) and reads.count(name) == 2 else read(self, name)
        folder.read = reading
    restore.restore(Settings.load(), target, replace=True)
"""


def environment(settings: Settings) -> dict[str, str]:
    assert settings.database_url
    return {
        **os.environ,
        "MILLRACE_STATE_DIR": str(settings.state_dir),
        "MILLRACE_LAKE_DATA": settings.lake_data,
        "MILLRACE_S3_ENDPOINT": settings.s3_endpoint,
        "MILLRACE_DATABASE_URL": settings.database_url.get_secret_value(),
    }


@contextmanager
def stopped_at(settings: Settings, what: str, target: Path, moment: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that has come to *moment* of its backup or restore; killed with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, what, str(target), moment], env=environment(settings), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout
        if process.stdout.readline() != "here\n":
            pytest.fail(process.communicate()[1])
        yield process
    finally:
        process.kill()
        process.communicate()


def millrace(settings: Settings, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [MILLRACE, *arguments], env=environment(settings), capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def when_the_server_has_noticed(settings: Settings) -> None:
    """Return when no session of a killed process is left."""
    sessions = (
        "SELECT 1 FROM pg_stat_activity WHERE datname IS NOT NULL AND pid <> pg_backend_pid() AND usename = 'millrace'"
    )
    deadline = time.monotonic() + 10
    while query(settings, sessions) and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_backup_that_is_killed_leaves_the_one_before_and_the_next_succeeds(
    installation: Settings, tmp_path: Path
) -> None:
    fill(installation)
    before = rows(installation)
    target = tmp_path / "backups"
    good = make(installation, target, files=True).name

    for number, moment in enumerate(("dagster.dump", "lake.dump", ".parquet", "backup.json", "register", "delete")):
        load(installation, f"INSERT INTO zones VALUES ({1000 + number})")
        with stopped_at(installation, "backup", target, moment):
            pass
        when_the_server_has_noticed(installation)
        whole = names(open_target(str(target), installation))
        assert whole, moment
        assert (good in whole) == (moment != "delete"), moment
        assert problems(installation, target) == [], moment

        good = make(installation, target, keep=1, files=True).name
        assert sorted(path.name for path in target.iterdir()) == [good, "files"], moment
        assert backup_rows(installation) == [good], moment
        assert problems(installation, target) == [], moment
        assert not list(target.rglob("*.partial")), moment

    restore(installation, str(target), replace=True)
    after = rows(installation)
    assert len(after.pop("main.zones")) == len(before.pop("main.zones")) + 6
    assert after == before


def test_a_restore_that_is_killed_leaves_the_old_state_or_the_new_and_the_next_succeeds(
    installation: Settings, administrator: Execute, tmp_path: Path
) -> None:
    fill(installation)
    saved = rows(installation)
    make(installation, tmp_path / "backups")
    load(installation, "DROP TABLE raw.trips")
    query(installation, "INSERT INTO kvs (key, value) VALUES ('since', 'the backup')")
    changed = rows(installation)

    for moment in ("dagster.dump", "lake.dump", "exchange", "renaming", "exchanged"):
        with stopped_at(installation, "restore", tmp_path / "backups", moment):
            if moment == "exchange":
                with pytest.raises(BackupError, match="another restore is under way"):
                    restore(installation, str(tmp_path / "backups"), replace=True)
        when_the_server_has_noticed(installation)
        is_new = moment == "exchanged"
        assert rows(installation) == (saved if is_new else changed), moment
        assert query(installation, "SELECT count(*) FROM kvs") == [(0 if is_new else 1,)], moment

    restore(installation, str(tmp_path / "backups"), replace=True)
    assert rows(installation) == saved
    assert administrator("SELECT 1 FROM pg_database WHERE datname LIKE '%_restore'") == []


def test_two_restores_within_a_second_keep_both_states_before(installation: Settings, tmp_path: Path) -> None:
    fill(installation)
    make(installation, tmp_path / "backups")

    before = [sorted(restore(installation, str(tmp_path / "backups"), replace=True, now=NOON).before) for _ in range(2)]

    assert before == [
        ["dagster_before_20261121_120000", "lake_before_20261121_120000"],
        ["dagster_before_20261121_120001", "lake_before_20261121_120001"],
    ]


def test_of_two_backups_at_once_one_is_refused(installation: Settings, tmp_path: Path) -> None:
    with stopped_at(installation, "backup", tmp_path / "backups", "lake.dump") as first:
        with pytest.raises(BackupError, match="another backup is being made now"):
            make(installation, tmp_path / "backups")
        with pytest.raises(BackupError, match="another backup is being made now"):
            make(installation, tmp_path / "elsewhere")
        pin = lake_pin(installation)
        assert pin
        first.kill()
    when_the_server_has_noticed(installation)

    made = make(installation, tmp_path / "elsewhere")

    assert lake_pin(installation) == made.manifest.started_at


# looked at


def test_what_is_wrong_with_a_backup_is_named(installation: Settings, tmp_path: Path) -> None:
    fill(installation)
    target = tmp_path / "backups"
    made = make(installation, target)
    dump = target / made.name / "dagster.dump"
    whole = dump.read_bytes()
    (verdict,) = verify(installation, str(target))
    assert verdict.problems == ()
    assert f"not copied: they are in {installation.lake_path} alone" in verdict.detail

    dump.write_bytes(whole[:-1000])
    assert f"dagster.dump is damaged: {len(whole):,} bytes were written, {len(whole) - 1000:,} are there." in problems(
        installation, target
    )
    dump.write_bytes(whole[:40_000] + bytes([whole[40_000] ^ 255]) + whole[40_001:])
    assert f"dagster.dump is damaged: its {len(whole):,} bytes are not those that were written." in problems(
        installation, target
    )
    dump.unlink()
    assert any("dagster.dump: No such file" in line for line in problems(installation, target))
    dump.write_bytes(whole)

    (deleted,) = (path for path in files(installation) if "zones" in str(path))
    changed = min(path for path in files(installation) if "trips" in str(path) and "delete" not in path.name)
    content = deleted.read_bytes()
    deleted.unlink()
    changed.write_bytes(changed.read_bytes()[:-1])
    first, second = problems(installation, target, made.name)
    assert first == f"data file main/zones/{deleted.name} of {len(content):,} bytes is missing"
    assert second.startswith(f"data file raw/trips/{changed.name} of ")
    assert second.endswith(" now")

    (target / made.name / "backup.json").write_text('{"format": 2}')
    (line,) = problems(installation, target)
    assert "backup.json cannot be read" in line
    assert listing(installation, str(target)) == [(made.name, None)]
    with pytest.raises(ConfigError, match=f"no backup 20200101T000000Z. There are: {made.name}"):
        verify(installation, str(target), "20200101T000000Z")


def test_a_damaged_dump_is_not_restored(installation: Settings, tmp_path: Path) -> None:
    fill(installation)
    target = tmp_path / "backups"
    made = make(installation, target)
    before = rows(installation)
    for database, damage in (
        ("lake", lambda whole: whole[: len(whole) // 2]),
        ("lake", lambda whole: whole[:-50] + b"\0" * 50),  # which pg_restore does not notice
        ("dagster", lambda whole: b"nothing"),
    ):
        dump = target / made.name / f"{database}.dump"
        whole = dump.read_bytes()
        dump.write_bytes(damage(whole))
        with pytest.raises(BackupError, match=f"{database}.dump: it is not what was written"):
            restore(installation, str(target), replace=True)
        dump.write_bytes(whole)

    assert rows(installation) == before
    restore(installation, str(target), replace=True)


# refused


def test_a_server_in_use_gives_way_only_on_request(installation: Settings, tmp_path: Path) -> None:
    make(installation, tmp_path / "backups")
    run_trips(installation)
    with pytest.raises(BackupError, match=r"database dagster is not empty: it has runs. With --replace"):
        restore(installation, str(tmp_path / "backups"))
    query(installation, "DELETE FROM runs")
    load(installation, "CREATE TABLE t AS SELECT 1 AS id")
    with pytest.raises(BackupError, match=r"database lake is not empty: it has tables. With --replace"):
        restore(installation, str(tmp_path / "backups"))
    load(installation, "DROP TABLE t")

    assert len(restore(installation, str(tmp_path / "backups")).before) == 2


def test_what_is_connected_is_named_before_anything_is_restored(
    installation: Settings, administrator: Execute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.operate.restore.SETTLE_SECONDS", 0.5)
    make(installation, tmp_path / "backups")
    for database in ("dagster", "lake"):
        with (
            closing(psycopg2.connect(**installation.libpq(database), application_name="dagster-daemon")) as session,
            pytest.raises(BackupError, match=f"{database}: dagster-daemon .* pid {session.info.backend_pid}"),
        ):
            restore(installation, str(tmp_path / "backups"), replace=True)

    assert administrator("SELECT 1 FROM pg_database WHERE datname LIKE '%_restore'") == []
    assert len(restore(installation, str(tmp_path / "backups")).before) == 2


def test_a_session_that_comes_during_the_restore_stops_it(installation: Settings, tmp_path: Path) -> None:
    fill(installation)
    make(installation, tmp_path / "backups")
    load(installation, "DROP TABLE zones")
    sessions = []
    try:
        with pytest.raises(BackupError, match="lake: late of role millrace"):
            restore(
                installation, str(tmp_path / "backups"), replace=True,
                report=lambda _: sessions.append(psycopg2.connect(**installation.libpq("lake"), application_name="late")),
            )  # fmt: skip
    finally:
        for session in sessions:
            session.close()

    assert "main.zones" not in rows(installation)


def test_a_backup_of_another_lake_or_of_a_newer_server_is_refused(installation: Settings, tmp_path: Path) -> None:
    made = make(installation, tmp_path / "backups")
    moved = installation.model_copy(update={"lake_data": str(tmp_path / "moved")})
    with pytest.raises(ConfigError, match=f"Set MILLRACE_LAKE_DATA to {installation.lake_path.rstrip('/')}"):
        restore(moved, str(tmp_path / "backups"))

    manifest = tmp_path / "backups" / made.name / "backup.json"
    manifest.write_text(manifest.read_text().replace(f'"server": "{made.manifest.server}"', '"server": "17.2"'))
    with pytest.raises(ConfigError, match=r"made from PostgreSQL 17.2, and this server is 16"):
        restore(installation, str(tmp_path / "backups"))


def test_a_target_that_cannot_be_used_is_an_error_before_anything_is_made(
    installation: Settings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    for target, message in (
        (f"{tmp_path}/file/backups", "Not a directory"),
        ("ftp://host/backups", "is no place for files"),
        (f"{installation.lake_path}backups", "inside the lake's own path"),
    ):
        with pytest.raises(ConfigError, match=message):
            backup(installation, target, keep=1)
    assert backup_rows(installation) == []
    with pytest.raises(ConfigError, match=r"holds no backup. Make one with"):
        restore(installation, str(tmp_path / "nothing"))


def test_a_server_that_refuses_or_does_not_answer_is_an_error_that_names_no_password(
    installation: Settings, administrator: Execute, server: Settings, tmp_path: Path
) -> None:
    assert installation.database_url
    administrator("CREATE ROLE locked LOGIN PASSWORD 'right'")
    rules = server.state_dir / "postgres" / "pg_hba.conf"
    kept = rules.read_text()
    try:
        rules.write_text("local all locked scram-sha-256\n" + kept)
        administrator("SELECT pg_reload_conf()")
        url = installation.database_url.get_secret_value()
        for address, message in (
            (url.replace("millrace@", "locked:geheim-pg@"), "password authentication failed"),
            ("postgresql://millrace:geheim-pg@127.0.0.1:9/", "Connection refused"),
        ):
            other = installation.model_copy(update={"database_url": SecretStr(address)})
            done = millrace(other, "backup", "--to", str(tmp_path / "backups"), code=1)
            assert message in done.stderr
            assert done.stderr.startswith("Error: ")
            assert "geheim" not in done.stderr + done.stdout
    finally:
        rules.write_text(kept)
        administrator("SELECT pg_reload_conf()")
        administrator("DROP ROLE locked")
    assert not (tmp_path / "backups").exists()


def test_what_pg_dump_says_is_part_of_the_error_and_nothing_is_left(
    installation: Settings, administrator: Execute, server: Settings, tmp_path: Path
) -> None:
    url = administrators_url(server)
    with closing(psycopg2.connect(url, dbname="lake")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE of_somebody_else(id INT)")
        cursor.execute("REVOKE ALL ON of_somebody_else FROM millrace")

    with pytest.raises(
        BackupError,
        match=r"Dumping the database lake: pg_dump ended with 1: .*permission denied for table of_somebody_else",
    ):
        make(installation, tmp_path / "backups")

    assert list((tmp_path / "backups").iterdir()) == []
    assert backup_rows(installation) == []


def test_the_oldest_programs_that_know_the_server_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [programs_for(version).major for version in (14, 16, 17, 18)] == [16, 16, 18, 18]
    assert programs_for(16, at_least=18).major == 18
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"of version 19, .* found: 16\.\d+, 18\.\d+. Install"):
        programs_for(19)
    for program in ("pg_dump", "pg_restore"):
        (tmp_path / program).write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) 19.1 (Debian)'\n")
        (tmp_path / program).chmod(0o755)

    assert programs_for(19).folder == tmp_path
    assert newest_programs().version == "19.1"
    assert programs_for(16).major == 16


# in a bucket, by command


def test_lake_and_backups_in_a_bucket_by_command_and_no_secret_is_shown(
    installation: Settings, bucket: str, tmp_path: Path
) -> None:
    assert installation.database_url
    with_password = installation.database_url.get_secret_value().replace("millrace@", "millrace:geheim-pg@")
    on_s3 = installation.model_copy(
        update={"lake_data": "s3://company/lake", "s3_endpoint": bucket, "database_url": SecretStr(with_password)}
    )
    fill(on_s3)
    before = rows(on_s3)
    client = boto3.client("s3", endpoint_url=bucket, region_name="us-east-1")
    target, shown, commands = "s3://company/backups/main", "", []

    def run(*arguments: str, code: int = 0) -> str:
        process = subprocess.Popen(
            [MILLRACE, *arguments], env=environment(on_s3), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            time.sleep(0.005)
            with suppress(psutil.Error):
                commands.extend(
                    " ".join(item.cmdline()) for item in psutil.Process(process.pid).children(recursive=True)
                )
        printed = process.communicate()[0]
        assert process.returncode == code, printed
        nonlocal shown
        shown += printed
        return printed

    assert "removed" not in run("backup", "--to", target, "--keep", "1", "--files")
    load(on_s3, "CREATE OR REPLACE TABLE zones AS SELECT 1 AS id")
    run("backup", "--to", target, "--keep", "2")
    assert run("backups", "--at", target).count("Z │") == 2
    assert run("verify", "--at", target, "--all").count("✓") == 2
    first, second = sorted(item["Prefix"].split("/")[-2] for item in client.list_objects_v2(Bucket="company", Prefix="backups/main/2", Delimiter="/")["CommonPrefixes"])  # fmt: skip
    lost = [item["Key"] for item in client.list_objects_v2(Bucket="company", Prefix="lake/")["Contents"]]
    for key in lost:
        client.delete_object(Bucket="company", Key=key)
    assert "data file main/zones/" in run("verify", "--at", target, "--all", code=1)
    assert "is not empty" in run("restore", "--from", target, first, code=1)
    assert f"Restored {first}" in run("restore", "--from", target, first, "--replace")

    assert rows(on_s3) == before
    assert "✗ missing: main/zones/" in run("restore", "--from", target, second, "--replace", code=1)
    assert {"pg_dump", "pg_restore"} <= {Path(line.split()[0]).name for line in commands if line}
    assert "geheim" not in shown + " ".join(commands)
    assert "The backup is made, but 1 data files are neither" in run("backup", "--to", target, "--files", code=1)
