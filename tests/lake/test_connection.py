"""The lake's connection, on a real PostgreSQL catalogue, with real second processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import duckdb
import psycopg2
import pytest
import stamina
from pydantic import SecretStr

from pipeline.cgroup import memory_limit
from pipeline.errors import LakeConflict, LakeError, LakeRejected, LakeUnavailable
from pipeline.lake.connection import Lake, extension_file, install_extensions
from pipeline.operate.database import stop_embedded, with_database
from pipeline.settings import Settings


@contextmanager
def child(settings: Settings, script: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A Python process in which ``lake`` is the open lake; ended with the test."""
    assert settings.database_url
    environment = {
        **os.environ,
        "MILLRACE_STATE_DIR": str(settings.state_dir),
        "MILLRACE_DATABASE_URL": settings.database_url.get_secret_value(),
    }
    start = "import sys\nfrom pipeline.lake.connection import Lake\nfrom pipeline.settings import Settings\nlake = Lake.open(Settings.load())\n"
    process = subprocess.Popen(
        [sys.executable, "-c", start + script, *arguments],
        env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def in_catalogue(settings: Settings, sql: str) -> None:
    with closing(psycopg2.connect(**settings.libpq("lake"))) as connection, connection, connection.cursor() as cursor:
        cursor.execute(sql)


def test_a_commit_names_the_asset_and_the_run(lake: Lake) -> None:
    lake.in_transaction(lambda: lake.query("CREATE TABLE t(a BIGINT)"), asset="raw/t", run_id="run-1")

    (row,) = lake.query(
        "SELECT commit_message, commit_extra_info FROM lake.snapshots() ORDER BY snapshot_id DESC LIMIT 1"
    )
    assert row == ("raw/t by run-1", '{"asset": "raw/t", "run_id": "run-1"}')


OPERATIONS = {
    "insert": "INSERT INTO t SELECT 1000 + {n}, 'new' FROM range(20)",
    "delete": "DELETE FROM t WHERE id = {n}",
    "update": "UPDATE t SET name = 'updated' WHERE id = {n}",
    "merge": "MERGE INTO t USING (SELECT {n} AS id) s ON t.id = s.id WHEN MATCHED THEN UPDATE SET name = 'merged' "
    "WHEN NOT MATCHED THEN INSERT (id, name) VALUES (s.id, 'merged')",
}


def test_a_transaction_that_loses_to_another_writer_is_run_again_whole(settings: Settings, lake: Lake) -> None:
    attempts = {}
    with Lake.open(settings) as other:
        for first in OPERATIONS:
            for second in OPERATIONS:
                lake.query("CREATE OR REPLACE TABLE t AS SELECT range AS id, 'old' AS name FROM range(100)")
                tries = []

                def work(first: str = first, second: str = second, tries: list[int] = tries) -> None:
                    lake.connection.execute(OPERATIONS[second].format(n=20))
                    tries.append(len(tries))
                    if len(tries) == 1:  # the other writer commits while this transaction is open
                        other.query(OPERATIONS[first].format(n=10))

                lake.in_transaction(work, asset="t")

                attempts[first, second] = len(tries)
                rows = lake.query("SELECT count(*), sum(id) FROM t")[0]
                effects = {"insert": lambda n: (20, 20 * (1000 + n)), "delete": lambda n: (-1, -n)}
                changes = [effects.get(kind, lambda n: (0, 0))(n) for kind, n in ((first, 10), (second, 20))]
                assert rows == (100 + sum(c[0] for c in changes), 4950 + sum(c[1] for c in changes)), (first, second)

    assert attempts == {pair: 1 if pair == ("insert", "insert") else 2 for pair in attempts}


def test_a_writer_that_loses_every_time_gives_up_with_nothing_committed(settings: Settings, lake: Lake) -> None:
    lake.query("CREATE TABLE t AS SELECT range AS id FROM range(100)")
    ids = iter(range(50))
    with Lake.open(settings) as other, stamina.set_testing(True, attempts=3):

        def work() -> None:
            lake.connection.execute("UPDATE t SET id = -1 WHERE id = 99")
            other.query("DELETE FROM t WHERE id = ?", [next(ids)])

        with pytest.raises(LakeConflict, match="Writing raw/t: another writer of the same table committed first"):
            lake.in_transaction(work, asset="raw/t")

    assert lake.query("SELECT count(*), min(id) FROM t") == [(97, 3)]


def test_processes_that_write_one_table_lose_nothing(settings: Settings, lake: Lake) -> None:
    lake.query("CREATE TABLE t(writer BIGINT, step BIGINT)")
    script = """
writer = int(sys.argv[1])
for step in range(10):
    def work():
        lake.connection.execute("DELETE FROM t WHERE writer = ? AND step = ?", [writer, step - 1])
        lake.connection.execute("INSERT INTO t SELECT ?, ? FROM range(15)", [writer, step])
    lake.in_transaction(work, asset="t", run_id=f"{writer}-{step}")
"""
    with (
        child(settings, script, "1") as one,
        child(settings, script, "2") as two,
        child(settings, script, "3") as three,
    ):
        for process in (one, two, three):
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors

    assert lake.query("SELECT writer, step, count(*) FROM t GROUP BY ALL ORDER BY ALL") == [
        (1, 9, 15),
        (2, 9, 15),
        (3, 9, 15),
    ]
    assert lake.scalar("SELECT count(*) FROM lake.snapshots() WHERE commit_extra_info LIKE '%run_id%'") == 30


def test_a_lock_is_between_processes_and_ends_with_its_process(settings: Settings, lake: Lake) -> None:
    script = "with lake.lock('load'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    with child(settings, script) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with lake.lock("load") as is_held:
            assert not is_held
        with lake.lock("something else") as is_held:
            assert is_held

        holder.send_signal(signal.SIGKILL)

        with lake.lock("load", wait_seconds=10) as is_held:
            assert is_held
    with lake.lock("load") as is_held:
        assert is_held


def test_a_lock_that_was_given_back_is_free_at_once(lake: Lake) -> None:
    held = []
    with closing(psycopg2.connect(**lake.settings.libpq("lake"))) as watcher, watcher.cursor() as cursor:
        watcher.autocommit = True
        for _ in range(50):
            with lake.lock("load"):
                pass
            cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            held += cursor.fetchone() or ()

    assert held == [0] * 50


def test_a_writer_killed_in_mid_transaction_leaves_nothing_visible(settings: Settings, lake: Lake) -> None:
    lake.query("CREATE TABLE t AS SELECT range AS id FROM range(100)")
    script = """
def work():
    lake.connection.execute("INSERT INTO t SELECT * FROM range(5000)")
    print("written", flush=True)
    sys.stdin.read()
lake.in_transaction(work, asset="t")
"""
    with child(settings, script) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()

    assert lake.scalar("SELECT count(*) FROM t") == 100
    lake.in_transaction(lambda: lake.query("UPDATE t SET id = id + 1"), asset="t")
    assert lake.scalar("SELECT sum(id) FROM t") == 5050


def test_a_database_that_stops_in_mid_transaction_is_unavailable_and_nothing_is_half_done(tmp_path: Path) -> None:
    home = Settings(state_dir=tmp_path / "state")
    settings = with_database(home)
    try:
        with Lake.open(settings) as lake:
            lake.query("CREATE TABLE t AS SELECT range AS id FROM range(100)")

            def work() -> None:
                lake.connection.execute("INSERT INTO t SELECT * FROM range(5000)")
                stop_embedded(home)
                lake.connection.execute("INSERT INTO t SELECT * FROM range(5000)")

            with pytest.raises(LakeUnavailable, match="Writing t: the catalogue or its data cannot be reached"):
                lake.in_transaction(work, asset="t")
            with pytest.raises(LakeUnavailable):
                lake.query("SELECT count(*) FROM t")
            with pytest.raises(LakeUnavailable, match="Locking t"), lake.lock("t"):
                pass
            with pytest.raises(LakeUnavailable, match="Opening the lake"):
                Lake.open(settings)

            with_database(home)

            assert lake.scalar("SELECT count(*) FROM t") == 100
            lake.in_transaction(lambda: lake.query("INSERT INTO t SELECT * FROM range(5000)"), asset="t")
            assert lake.scalar("SELECT count(*) FROM t") == 5100
    finally:
        stop_embedded(home)


def test_a_full_disk_refuses_the_write_and_loses_nothing(settings: Settings, lake: Lake) -> None:
    lake.query("CREATE TABLE t AS SELECT range AS id FROM range(100)")
    script = """
import resource
from pipeline.errors import LakeRejected
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    lake.in_transaction(lambda: lake.connection.execute("INSERT INTO t SELECT (random() * 1e9)::BIGINT FROM range(1000000)"), asset="t")
except LakeRejected as error:
    print(error)
"""
    with child(settings, script) as writer:
        output, errors = writer.communicate(timeout=60)

    assert "Writing t: the disk is full. Nothing was committed; free space and run again." in output, errors
    assert lake.scalar("SELECT count(*) FROM t") == 100
    lake.in_transaction(lambda: lake.query("INSERT INTO t SELECT * FROM range(50)"), asset="t")
    assert lake.scalar("SELECT count(*) FROM t") == 150


@pytest.mark.parametrize("version", ["0.3", "2.0"])
def test_a_lake_of_another_format_is_refused_and_left_as_it_is(settings: Settings, lake: Lake, version: str) -> None:
    in_catalogue(settings, f"UPDATE ducklake_metadata SET value = '{version}' WHERE key = 'version'")

    for read_only in (False, True):
        with pytest.raises(LakeRejected) as caught:
            Lake.open(settings, read_only=read_only)
        assert f"catalog version is {version}" in str(caught.value)
        assert "A newer lake needs a newer Millrace. An older one: back up the database" in str(caught.value)

    in_catalogue(settings, "UPDATE ducklake_metadata SET value = '1.0' WHERE key = 'version'")
    Lake.open(settings).close()


def test_another_data_path_is_refused(settings: Settings, lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(LakeRejected, match="Set MILLRACE_LAKE_DATA to the path this lake was made with"):
        Lake.open(settings.model_copy(update={"lake_data": str(tmp_path / "other")}))


def test_a_folder_that_cannot_be_made_is_named(settings: Settings) -> None:
    with pytest.raises(LakeRejected, match=r"Opening the lake: /proc/lake.*Make the folder writable"):
        Lake.open(settings.model_copy(update={"lake_data": "/proc/lake"}))


def test_writers_that_all_find_no_lake_make_one(settings: Settings) -> None:
    def write(number: int) -> None:
        with Lake.open(settings) as lake:
            lake.in_transaction(lambda: lake.connection.execute(f"CREATE TABLE t_{number} (n BIGINT)"), asset="t")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    with Lake.open(settings, read_only=True) as lake:
        assert lake.scalar("SELECT count(*) FROM duckdb_tables() WHERE table_name LIKE 't\\__' ESCAPE '\\'") == 8
        assert lake.query("SELECT value FROM lake.options() WHERE option_name = 'data_inlining_row_limit'") == [("0",)]


def test_a_missing_lake_is_not_made_by_a_reader(settings: Settings) -> None:
    with pytest.raises(LakeRejected, match="there is no lake yet"):
        Lake.open(settings, read_only=True)

    assert not Path(settings.lake_path).exists()


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        ("postgresql://millrace:geheim@127.0.0.1:1/", LakeUnavailable, "Connection refused"),
        ("postgresql://nobody_known:geheim@/?host={socket}", LakeRejected, 'role "nobody_known" does not exist'),
    ],
)
def test_an_error_about_the_address_shows_no_password(
    settings: Settings, address: str, error: type[LakeError], said: str
) -> None:
    url = SecretStr(address.replace("{socket}", settings.libpq("lake")["host"]))

    with pytest.raises(error, match=said) as caught:
        Lake.open(settings.model_copy(update={"database_url": url}))

    assert "geheim" not in f"{caught.value} {caught.value.__cause__}"


def test_the_password_is_nowhere_in_the_connection_and_the_environment_stays(settings: Settings) -> None:
    environment = dict(os.environ)
    parts = settings.libpq("lake")
    url = SecretStr(f"postgresql://millrace:geheim@/?host={parts['host']}")
    with Lake.open(settings.model_copy(update={"database_url": url})) as lake:
        for function in ("duckdb_settings", "duckdb_secrets", "duckdb_databases"):
            shown = str(lake.query(f"FROM {function}()"))
            assert "geheim" not in shown
            assert "catalogue" in shown or function != "duckdb_secrets"

    assert dict(os.environ) == environment


def test_the_engine_is_limited_and_works_in_utc(settings: Settings) -> None:
    limited = Settings(
        state_dir=settings.state_dir, database_url=settings.database_url, memory_limit_gib=0.5, threads=1
    )
    with Lake.open(limited) as lake:
        names = ("TimeZone", "memory_limit", "threads", "autoinstall_known_extensions", "autoload_known_extensions")
        assert [lake.scalar(f"SELECT current_setting('{name}')") for name in names] == [
            "UTC",
            "512.0 MiB",
            1,
            False,
            False,
        ]
        assert lake.scalar("SELECT TIMESTAMPTZ '2021-06-01 12:00:00+02'::VARCHAR") == "2021-06-01 10:00:00+00"
        with pytest.raises(LakeError, match="spatial"):
            lake.query("LOAD spatial")


def test_a_query_beyond_the_memory_limit_says_what_to_raise(settings: Settings) -> None:
    limited = Settings(state_dir=settings.state_dir, database_url=settings.database_url, memory_limit_gib=0.05)
    with Lake.open(limited) as lake:
        lake.query("SET temp_directory = ''")
        with pytest.raises(LakeRejected, match="Raise MILLRACE_MEMORY_LIMIT_GIB"):
            lake.query("SELECT count(*) FROM (SELECT DISTINCT range, md5(range::VARCHAR) FROM range(30000000))")


def test_extensions_are_found_by_name_after_they_are_put_in_place(tmp_path: Path) -> None:
    install_extensions(tmp_path)
    install_extensions(tmp_path)

    with duckdb.connect(config={"extension_directory": str(tmp_path), "autoinstall_known_extensions": False}) as plain:
        for name in ("ducklake", "postgres_scanner", "httpfs"):
            plain.execute(f"LOAD {name}")
    with pytest.raises(LakeRejected, match="Install duckdb-extension-spatial=="):
        extension_file("spatial")


def test_nothing_unsigned_is_loaded_into_an_open_lake(lake: Lake, tmp_path: Path) -> None:
    content = bytearray(extension_file("httpfs").read_bytes())
    content[1000] ^= 1
    forged = tmp_path / "httpfs.duckdb_extension"
    forged.write_bytes(content)

    with pytest.raises(LakeError, match="signature is either missing or invalid"):
        lake.query(f"LOAD '{forged}'")
    with pytest.raises(LakeError, match="Cannot change allow_unsigned_extensions"):
        lake.query("SET allow_unsigned_extensions = true")


@pytest.mark.parametrize(
    ("file", "content", "limit"),
    [
        ("memory.max", "1073741824\n", 1 << 30),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "536870912\n", 1 << 29),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("nothing", "", None),
    ],
)
def test_the_memory_limit_of_the_container_is_read(tmp_path: Path, file: str, content: str, limit: int | None) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)

    assert memory_limit(tmp_path) == limit


def test_no_row_stays_in_the_catalogue_whoever_writes_it(settings: Settings, lake: Lake) -> None:
    lake.query("CREATE TABLE t AS SELECT 1 AS a")
    with duckdb.connect() as plain:  # as dbt attaches
        for name in ("ducklake", "postgres_scanner"):
            plain.execute(f"LOAD '{extension_file(name)}'")
        parts = settings.libpq("lake")
        plain.execute(
            "CREATE SECRET here (TYPE postgres, HOST ?, DBNAME 'lake', USER ?)", [parts["host"], parts["user"]]
        )
        plain.execute(f"ATTACH 'ducklake:postgres:' AS lake (META_SECRET 'here', DATA_PATH '{settings.lake_path}')")
        plain.execute("INSERT INTO lake.t VALUES (2)")
        plain.execute("DELETE FROM lake.t WHERE a = 1")

    assert lake.query("SELECT count(*) FROM t") == [(1,)]
    changes = lake.query("SELECT changes_made FROM __ducklake_metadata_lake.public.ducklake_snapshot_changes")
    assert "inline" not in str(changes)


def test_the_commit_information_is_json(lake: Lake) -> None:
    lake.in_transaction(lambda: lake.query("CREATE TABLE t(a BIGINT)"), asset='odd "name"', run_id="ein's")

    info = lake.scalar("SELECT commit_extra_info FROM lake.snapshots() ORDER BY snapshot_id DESC LIMIT 1")
    assert json.loads(info) == {"asset": 'odd "name"', "run_id": "ein's"}
