"""The locked connection: what people may ask, and a long list of what they may not."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import duckdb
import psycopg2
import pytest

from pipeline.errors import LakeRejected, QueryRejected
from pipeline.lake.connection import Lake
from pipeline.lake.reader import FORBIDDEN_FUNCTIONS, Reader
from pipeline.settings import Settings

pytestmark = pytest.mark.usefixtures("filled")


@pytest.fixture
def filled(settings: Settings) -> None:
    """A lake with a table of several versions, deleted rows, JSON, a view and a macro."""
    with Lake.open(settings) as lake:
        for statement in (
            "CREATE SCHEMA raw",
            "CREATE TABLE raw.trips AS SELECT range AS id, 'zone ' || range % 3 AS zone, range / 10 AS miles, "
            "TIMESTAMP '2021-01-01' + to_hours(range::INT) AS started_at, {'a': [range, 2]} AS nested, "
            """'{"k": [' || range || ']}' AS document FROM range(1000)""",
            "COMMENT ON TABLE raw.trips IS 'every trip'",
            "CREATE TABLE zones AS SELECT 'zone ' || range AS zone, range AS number FROM range(3)",
            "CREATE VIEW long_trips AS SELECT * FROM raw.trips WHERE miles > 50",
            "DELETE FROM raw.trips WHERE id < 10",
            "INSERT INTO zones VALUES ('secret', 42)",
            "DELETE FROM zones WHERE zone = 'secret'",
        ):
            lake.query(statement)


@pytest.fixture
def reader(settings: Settings) -> Iterator[Reader]:
    with Reader.open(settings) as opened:
        yield opened


def everything(settings: Settings) -> tuple[object, ...]:
    """Every file under the state folder with its bytes, and every row of the catalogue's tables."""
    files = {path: path.read_bytes() for path in sorted(settings.state_dir.rglob("*")) if path.is_file()}
    folders = sorted(path for path in settings.state_dir.rglob("*") if path.is_dir())
    rows = {}
    with closing(psycopg2.connect(**settings.libpq("lake"))) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
        for (table,) in cursor.fetchall():
            cursor.execute(f'SELECT t::text FROM "{table}" t ORDER BY 1')
            rows[table] = cursor.fetchall()
    return files, folders, rows


ATTACKS = {
    # the example's list
    "read another file": "SELECT count(*) FROM read_text('{here}')",
    "write a file": "COPY (SELECT 1) TO '{tmp}/stolen.csv'",
    "write into the lake's data path": "COPY (SELECT 1) TO '{lake}planted.parquet'",
    "attach the lake again, read-write": "ATTACH 'ducklake:postgres:' AS again (META_SECRET 'catalogue')",
    "attach a new file": "ATTACH '{tmp}/new.duckdb' AS new",
    "load an extension": "LOAD json",
    "raise the memory limit": "SET memory_limit = '100GB'",
    "unlock": "SET lock_configuration = false",
    "insert": "INSERT INTO zones VALUES ('x', 1)",
    "maintenance": "CALL ducklake_expire_snapshots('lake', older_than => now())",
    "two statements": "SELECT 1; ATTACH ':memory:' AS m",
    "explain analyze": "EXPLAIN ANALYZE INSERT INTO zones VALUES ('x', 1)",
    "delete old files in a SELECT": "SELECT count(*) FROM ducklake_cleanup_old_files('lake', cleanup_all => true)",
    "the lake's raw files": "SELECT count(*) FROM read_parquet('{lake}**/*.parquet', union_by_name => true)",
    "the catalogue's tables": "SELECT count(*) FROM __ducklake_metadata_lake.public.ducklake_snapshot",
    "raw files by replacement scan": "SELECT count(*) FROM '{lake}**/*.parquet'",
    "any query in the catalogue's database": "FROM postgres_query('__ducklake_metadata_lake', 'SELECT version()')",
    # other kinds of statement
    "update": "UPDATE zones SET number = 0",
    "delete": "DELETE FROM zones",
    "truncate": "TRUNCATE zones",
    "merge": "MERGE INTO zones z USING zones s ON z.zone = s.zone WHEN MATCHED THEN DELETE",
    "create table": "CREATE TABLE mine AS SELECT 1",
    "create table in memory": "CREATE TABLE memory.main.mine AS SELECT 1",
    "create temporary table": "CREATE TEMP TABLE mine AS SELECT 1",
    "create view": "CREATE VIEW mine AS SELECT 1",
    "create macro": "CREATE MACRO mine() AS 1",
    "create secret": "CREATE SECRET mine (TYPE s3, KEY_ID 'x', SECRET 'y')",
    "drop": "DROP TABLE zones",
    "alter": "ALTER TABLE zones ADD COLUMN x INTEGER",
    "detach": "DETACH lake",
    "use": "USE memory",
    "checkpoint": "CHECKPOINT lake",
    "vacuum": "VACUUM",
    "begin": "BEGIN",
    "prepare": "PREPARE p AS SELECT 1",
    "execute": "EXECUTE p",
    "export": "EXPORT DATABASE '{tmp}/dump'",
    "import": "IMPORT DATABASE '{tmp}'",
    "install": "INSTALL spatial",
    "force install": "FORCE INSTALL httpfs FROM 'http://127.0.0.1:1'",
    "set variable": "SET VARIABLE x = 1",
    "reset": "RESET memory_limit",
    "pragma": "PRAGMA enable_profiling",
    "pragma database_list": "PRAGMA database_list",
    "pragma json plan": "PRAGMA json_execute_serialized_sql('{{}}')",
    "explain": "EXPLAIN SELECT 1",
    "nothing": "",
    "only a comment": "-- hello",
    "nul": "SELECT 1 \0; DROP TABLE zones",
    "writing WITH": "WITH x AS (DELETE FROM zones RETURNING *) FROM x",
    "drop after a comment": "SELECT 1 /* ; */ ; DROP TABLE zones --",
    "set schema": "SET search_path = 'memory'",
    # table functions, everywhere a query can stand
    "glob": "FROM glob('/etc/*')",
    "csv": "FROM read_csv('/etc/passwd')",
    "blob": "FROM read_blob('/etc/passwd')",
    "json file": "FROM read_json('/etc/passwd')",
    "sniff": "FROM sniff_csv('/etc/passwd')",
    "parquet metadata": "FROM parquet_metadata('{lake}**/*.parquet')",
    "http": "FROM read_csv('http://127.0.0.1:1/x.csv')",
    "s3": "FROM read_parquet('s3://bucket/x.parquet')",
    "attach by function": "CALL postgres_attach('host=127.0.0.1')",
    "postgres scan": "FROM postgres_scan('', 'public', 'ducklake_snapshot')",
    "postgres execute": "FROM postgres_execute('__ducklake_metadata_lake', 'DROP TABLE ducklake_snapshot')",
    "query()": "FROM query('SELECT 1')",
    "query_table()": "FROM query_table('/etc/passwd')",
    "query_table of settings": "FROM query_table('duckdb_settings')",
    "serialized": "FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''/etc/passwd'')'))",
    "settings": "FROM duckdb_settings()",
    "secrets": "FROM duckdb_secrets()",
    "which secret": "FROM which_secret('s3://x', 's3')",
    "databases": "FROM duckdb_databases()",
    "logs": "FROM duckdb_logs()",
    "set option": "FROM ducklake_set_option('lake', 'parquet_compression', 'zstd')",
    "commit message": "FROM lake.set_commit_message('a', 'b')",
    "snapshots": "FROM lake.snapshots()",
    "list files": "FROM ducklake_list_files('lake', 'zones')",
    "orphans": "FROM ducklake_delete_orphaned_files('lake', cleanup_all => true)",
    "add files": "FROM ducklake_add_data_files('lake', 'zones', '/etc/passwd')",
    "expire": "FROM ducklake_expire_snapshots('lake', older_than => now())",
    "flush": "FROM ducklake_flush_inlined_data('lake')",
    "deleted rows": "FROM ducklake_table_deletions('lake', 'main', 'zones', 0, 100)",
    "logging": "FROM enable_logging(level => 'debug', storage => 'file', storage_path => '{tmp}')",
    "in upper case": "FROM READ_TEXT('/etc/passwd')",
    "quoted": """FROM "read_text"('/etc/passwd')""",
    "qualified": "FROM system.main.read_text('/etc/passwd')",
    "in a CTE": "WITH x AS (FROM read_text('/etc/passwd')) SELECT 1",
    "in a CTE of a CTE": "WITH x AS (WITH y AS (FROM read_text('/etc/passwd')) FROM y) FROM x",
    "in a recursive CTE": "WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT 1 FROM read_text('/etc/passwd')) FROM r",
    "in a scalar subquery": "SELECT (SELECT count(*) FROM read_text('/etc/passwd'))",
    "in EXISTS": "SELECT 1 WHERE EXISTS (FROM read_text('/etc/passwd'))",
    "in IN": "SELECT 1 WHERE 'x' IN (SELECT content FROM read_text('/etc/passwd'))",
    "in a join": "SELECT 1 FROM zones JOIN read_text('/etc/passwd') ON true",
    "in a lateral join": "SELECT 1 FROM zones, LATERAL (FROM read_text('/etc/passwd'))",
    "in an argument": "FROM range((SELECT count(*) FROM read_text('/etc/passwd')))",
    "in ORDER BY": "SELECT 1 ORDER BY (SELECT content FROM read_text('/etc/passwd'))",
    "in LIMIT": "SELECT 1 LIMIT (SELECT size FROM read_text('/etc/passwd'))",
    "in GROUP BY": "SELECT 1 FROM zones GROUP BY (SELECT content FROM read_text('/etc/passwd'))",
    "in HAVING": "SELECT 1 FROM zones GROUP BY zone HAVING (SELECT true FROM read_text('/etc/passwd'))",
    "in QUALIFY": "SELECT 1 FROM zones QUALIFY row_number() OVER () = (SELECT size FROM read_text('/etc/passwd'))",
    "in a window": "SELECT sum(1) OVER (ORDER BY (SELECT size FROM read_text('/etc/passwd'))) FROM zones",
    "in FILTER": "SELECT count(*) FILTER (SELECT true FROM read_text('/etc/passwd')) FROM zones",
    "in CASE": "SELECT CASE WHEN true THEN (SELECT content FROM read_text('/etc/passwd')) END",
    "in a lambda": "SELECT list_transform([1], lambda x: (SELECT content FROM read_text('/etc/passwd')))",
    "in a struct": "SELECT {{'a': (SELECT content FROM read_text('/etc/passwd'))}}",
    "in UNION": "SELECT 'x' UNION SELECT content FROM read_text('/etc/passwd')",
    "in VALUES": "VALUES ((SELECT content FROM read_text('/etc/passwd')))",
    "in PIVOT": "PIVOT (FROM read_text('/etc/passwd')) ON filename IN ('a') USING count(*)",
    "in PIVOT's list": "FROM zones PIVOT (count(*) FOR zone IN (SELECT content FROM read_text('/etc/passwd')))",
    "in UNPIVOT": "UNPIVOT (FROM read_text('/etc/passwd')) ON size, filename",
    "in SUMMARIZE": "SUMMARIZE FROM read_text('/etc/passwd')",
    "in DESCRIBE": "DESCRIBE FROM read_csv('/etc/passwd')",
    "in AT": "FROM zones AT (VERSION => (SELECT size FROM read_text('/etc/passwd')))",
    "in COLUMNS": "SELECT COLUMNS(c -> (SELECT true FROM read_text('/etc/passwd'))) FROM zones",
    "in SAMPLE's parentheses": "FROM (FROM read_text('/etc/passwd')) USING SAMPLE 1",
    # names
    "a file as a table": "FROM '/etc/passwd'",
    "a file as a quoted table": 'FROM "/etc/passwd.csv"',
    "a csv file": "FROM 'passwd.csv'",
    "parent folder": "FROM '{lake}../postgres.ready'",
    "a Python variable": "FROM settings",
    "information schema": "FROM information_schema.tables",
    "pg_settings": "FROM pg_catalog.pg_settings",
    "pg_class": "FROM pg_class",
    "sqlite_master": "FROM sqlite_master",
    "views of duckdb": "FROM duckdb_databases",
    "database list": "FROM pragma_database_list",
    "another catalogue": "FROM system.main.duckdb_views",
    "the memory catalogue": "FROM memory.main.x",
    "metadata by two parts": "FROM __ducklake_metadata_lake.ducklake_snapshot",
    "a missing table": "FROM raw.nothing",
    "show databases": "SHOW DATABASES",
    "show tables": "SHOW ALL TABLES",
    "show in a subquery": "FROM (SHOW DATABASES)",
    "a CTE that hides a system view": "SELECT * FROM (WITH duckdb_databases AS (SELECT 1) FROM duckdb_databases) a, duckdb_databases",
    "a CTE named like a file": """SELECT * FROM (WITH "{lake}x.parquet" AS (SELECT 1) SELECT 1) a, "{lake}x.parquet" """,
    # scalar functions
    "setting": "SELECT current_setting('temp_directory')",
    "setting in upper case": "SELECT Current_Setting('s3_secret_access_key')",
    "qualified setting": "SELECT system.main.current_setting('memory_limit')",
    "method call": "SELECT 'memory_limit'.current_setting()",
    "setting deep inside": "SELECT list_transform(['memory_limit'], lambda x: current_setting(x))",
    "variable": "SELECT getvariable('x')",
    "environment": "SELECT getenv('HOME')",
    "log": "SELECT write_log('x')",
    "plan of hidden SQL": "SELECT json_serialize_plan('FROM read_text(''/etc/passwd'')')",
    "sleep": "SELECT sleep_ms(1000)",
    "internal": "SELECT __internal_decompress_string(1::HUGEINT)",
    "scalar read_text": "SELECT read_text('/etc/passwd')",
    "sequence": "SELECT nextval('s')",
    "unbound parameter": "SELECT ?",
    # size
    "too long": "SELECT 1 --" + "x" * 100_001,
    "subqueries in subqueries": "SELECT * FROM (" * 900 + "SELECT 1" + ")" * 900,
    "operators on operators": "SELECT " + "NOT " * 5000 + "true",
    "parentheses": "(" * 20_000 + "SELECT 1" + ")" * 20_000,
}  # fmt: skip


def test_every_attack_is_refused_and_changes_nothing(settings: Settings, reader: Reader, tmp_path: Path) -> None:
    before, environment = everything(settings), dict(os.environ)
    succeeded = {}

    for name, attack in ATTACKS.items():
        sql = attack.replace("{here}", __file__).replace("{tmp}", str(tmp_path)).replace("{lake}", settings.lake_path)
        try:
            answer = reader.query(sql.replace("{{", "{").replace("}}", "}"), timeout_seconds=5)
        except QueryRejected:
            continue
        succeeded[name] = answer

    assert succeeded == {}
    assert everything(settings) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]
    assert dict(os.environ) == environment
    assert reader.query("SELECT count(*) FROM raw.trips").rows == [(990,)]


REFUSALS = (
    ("DROP TABLE zones", "this is DROP"),
    ("SELECT 1; SELECT 2", "this is SELECT and SELECT"),
    ("FROM read_text('/etc/passwd')", "the table function read_text; there are generate_series"),
    ("FROM pg_class", "there is no table pg_class in the lake"),
    ("SELECT current_setting('x')", "the function current_setting reads settings"),
    ("PIVOT zones ON zone USING sum(number)", "A PIVOT needs its values"),
    ("SELEC 1", "The query is not right: Parser Error"),
    ("SELECT nothing FROM zones", "The query is not right: Binder Error"),
    ("SELECT 'x'::INT", "The query is not right: Conversion Error"),
)


def test_a_refusal_says_what_was_refused_and_what_is_allowed(reader: Reader) -> None:
    for attack, refusal in REFUSALS:
        with pytest.raises(QueryRejected) as caught:
            reader.query(attack)

        assert refusal in str(caught.value)
        assert "One SELECT" in str(caught.value) or "not right" in refusal


# Not here, because DuckLake writes the file before it refuses: CREATE TABLE … AS. Only the check, or a data path
# mounted read-only, stops that.
UNCHECKED_ATTACKS = (
    "FROM read_text('/etc/passwd')",
    "COPY (SELECT 1) TO '/tmp/never-made-by-millrace.csv'",
    "ATTACH '/tmp/never-made-by-millrace.duckdb'",
    "ATTACH 'ducklake:postgres:' AS again (META_SECRET 'catalogue')",
    "ATTACH 'host=127.0.0.1' AS pg (TYPE postgres)",
    "LOAD httpfs",
    "SET memory_limit = '100GB'",
    "SET lock_configuration = false",
    "SET enable_external_access = true",
    "SET allowed_directories = ['/']",
    "SET temp_directory = '/tmp'",
    "INSERT INTO zones VALUES ('x', 1)",
    "CALL ducklake_expire_snapshots('lake', older_than => now())",
    "CALL postgres_execute('__ducklake_metadata_lake', 'DELETE FROM ducklake_snapshot')",
    "FROM postgres_query('__ducklake_metadata_lake', 'DELETE FROM ducklake_snapshot RETURNING 1 AS x')",
    "FROM postgres_query('__ducklake_metadata_lake', 'SELECT pg_read_file(''/etc/passwd'') AS x')",
)


def test_the_engine_refuses_even_what_the_check_would_let_through(settings: Settings, reader: Reader) -> None:
    before = everything(settings)
    succeeded = []

    for attack in UNCHECKED_ATTACKS:
        with suppress(duckdb.Error):
            succeeded.append((attack, reader._lake.connection.execute(attack).fetchall()))

    assert succeeded == []
    assert everything(settings) == before


def test_the_catalogue_role_sees_only_the_catalogue(settings: Settings) -> None:
    with pytest.raises(psycopg2.OperationalError, match='permission denied for database "dagster"'):
        psycopg2.connect(**settings.libpq("dagster", "lake_reader"))


LEGITIMATE = {
    "a literal": ("SELECT 42", [(42,)]),
    "a default schema": ("SELECT count(*) FROM zones", [(3,)]),
    "a whole name": ("SELECT count(*) FROM lake.raw.trips", [(990,)]),
    "a catalogue name": ("SELECT count(*) FROM lake.zones", [(3,)]),
    "in upper case": ("SELECT COUNT(*) FROM RAW.TRIPS", [(990,)]),
    "quoted": ('SELECT count(*) FROM "raw"."trips"', [(990,)]),
    "from first": ("FROM zones SELECT max(number)", [(2,)]),
    "table": ("TABLE zones", [("zone 0", 0), ("zone 1", 1), ("zone 2", 2)]),
    "values": ("VALUES (1, 'a'), (2, 'b')", [(1, "a"), (2, "b")]),
    "a semicolon": ("SELECT 1;", [(1,)]),
    "a comment": ("SELECT 1 -- one", [(1,)]),
    "a view": ("SELECT count(*) FROM long_trips", [(499,)]),
    "a join": ("SELECT count(*) FROM raw.trips JOIN zones USING (zone) WHERE number = 1", [(330,)]),
    "a window": ("SELECT id FROM raw.trips QUALIFY row_number() OVER (ORDER BY miles DESC) = 1", [(999,)]),
    "a CTE": ("WITH far AS (FROM raw.trips WHERE miles > 99), n AS (SELECT count(*) c FROM far) SELECT c FROM n", [(9,)]),
    "a CTE in a subquery": ("SELECT * FROM (WITH x AS (SELECT 7) FROM x)", [(7,)]),
    "recursion": ("WITH RECURSIVE r AS (SELECT 1 i UNION ALL SELECT i + 1 FROM r WHERE i < 5) SELECT sum(i) FROM r", [(15,)]),
    "a correlated subquery": ("SELECT count(*) FROM zones z WHERE EXISTS (FROM raw.trips t WHERE t.zone = z.zone)", [(3,)]),
    "lateral": ("SELECT sum(y) FROM zones, LATERAL (SELECT number * 2 AS y)", [(6,)]),
    "union": ("SELECT 1 UNION SELECT 1 UNION ALL SELECT 2 ORDER BY 1", [(1,), (2,)]),
    "except": ("SELECT zone FROM zones EXCEPT SELECT 'zone 0' ORDER BY 1", [("zone 1",), ("zone 2",)]),
    "grouping sets": ("SELECT count(*) FROM (SELECT zone FROM raw.trips GROUP BY ROLLUP (zone))", [(4,)]),
    "range": ("SELECT sum(range) FROM range(10)", [(45,)]),
    "generate_series": ("SELECT count(*) FROM generate_series(DATE '2021-01-01', DATE '2021-01-31', INTERVAL 1 DAY)", [(31,)]),
    "unnest": ("SELECT sum(x) FROM (SELECT unnest(nested.a) AS x FROM raw.trips WHERE id = 20)", [(22,)]),
    "unnest in FROM": ("SELECT * FROM unnest([1, 2])", [(1,), (2,)]),
    "json functions": ("SELECT (document->'k'->>0)::INT FROM raw.trips WHERE id = 12", [(12,)]),
    "json_each": ("""SELECT key, value::VARCHAR FROM json_each('{"a": 1}')""", [("a", "1")]),
    "regular expressions": ("SELECT regexp_extract('zone 12', '([0-9]+)', 1), regexp_replace('aXb', 'X', '-')", [("12", "a-b")]),
    "list functions": ("SELECT list_sum(list_transform([1, 2], lambda x: x * 2))", [(6,)]),
    "dates": ("SELECT count(DISTINCT date_trunc('day', started_at)) FROM raw.trips", [(42,)]),
    "aggregates": ("SELECT approx_count_distinct(zone), quantile_cont(miles, 0.5), max_by(zone, id) FROM raw.trips", [(3, 50.45, "zone 0")]),
    "a pivot": ("PIVOT raw.trips ON zone IN ('zone 0', 'zone 1') USING count(*) GROUP BY nested", None),
    "an unpivot": ("SELECT count(*) FROM (UNPIVOT zones ON number)", [(3,)]),
    "a sample": ("SELECT count(*) FROM zones USING SAMPLE 100%", [(3,)]),
    "an earlier version": ("SELECT count(*) FROM raw.trips AT (VERSION => 2)", [(1000,)]),
    "an asof join": ("SELECT count(*) FROM raw.trips t ASOF JOIN zones z ON t.id >= z.number", [(990,)]),
    "a lateral alias": ("SELECT number + 1 AS n, n * 2 FROM zones WHERE number = 1", [(2, 4)]),
    "columns": ("SELECT COLUMNS('^n.*') FROM zones WHERE number = 1", [(1,)]),
    "distinct on": ("SELECT DISTINCT ON (zone) zone FROM raw.trips ORDER BY zone", [("zone 0",), ("zone 1",), ("zone 2",)]),
    "describe": ("DESCRIBE zones", None),
    "summarize": ("SUMMARIZE raw.trips", None),
    "NaN": ("SELECT isnan('NaN'::DOUBLE)", [(True,)]),
    "nothing found": ("SELECT * FROM zones WHERE false", []),
}  # fmt: skip


def test_what_people_need_works(reader: Reader) -> None:
    wrong: dict[str, object] = {}

    for name, (sql, expected) in LEGITIMATE.items():
        try:
            rows = reader.query(sql).rows
        except QueryRejected as error:
            wrong[name] = str(error)
        else:
            if not (rows if expected is None else rows == expected):
                wrong[name] = rows

    assert wrong == {}


def test_an_answer_has_columns_types_and_seconds(reader: Reader) -> None:
    answer = reader.query("SELECT number, zone, number / 2 AS half FROM zones ORDER BY 1 LIMIT 1")

    assert (answer.columns, answer.types, answer.rows) == (
        ("number", "zone", "half"), ("BIGINT", "VARCHAR", "DOUBLE"), [(0, "zone 0", 0.0)]
    )  # fmt: skip
    assert 0 < answer.seconds < 5


def test_rows_are_cut_at_the_limit(reader: Reader) -> None:
    for max_rows, truncated in ((989, True), (990, False), (0, True)):
        answer = reader.query("SELECT id FROM raw.trips", max_rows=max_rows)

        assert (len(answer.rows), answer.truncated) == (max_rows, truncated)


def test_an_answer_is_cut_at_its_bytes(reader: Reader) -> None:
    answer = reader.query("SELECT repeat('x', 1000) FROM range(1000)", max_bytes=100_000)

    assert (len(answer.rows), answer.truncated) == (100, True)


ENDLESS = (
    "SELECT count(*) FROM range(10000000000) a, range(1000) b WHERE a.range + b.range = 3",
    "WITH RECURSIVE r AS (SELECT 1 i UNION ALL SELECT i + 1 FROM r) SELECT max(i) FROM r",
    "SELECT count(*) FROM raw.trips a, raw.trips b, raw.trips c, raw.trips d WHERE a.miles + b.miles + c.miles > d.miles",
)


def test_a_slow_query_is_stopped_and_the_next_one_works(reader: Reader) -> None:
    for endless in ENDLESS:
        started = time.monotonic()
        with pytest.raises(QueryRejected, match=r"stopped after 0\.5 s"):
            reader.query(endless, timeout_seconds=0.5)

        assert time.monotonic() - started < 5
        assert reader.query("SELECT 1").rows == [(1,)]


def test_a_hungry_query_is_stopped_at_the_memory_limit(settings: Settings) -> None:
    small = Settings(state_dir=settings.state_dir, database_url=settings.database_url, memory_limit_gib=0.1)
    with Reader.open(small) as reader:
        with pytest.raises(QueryRejected, match="more memory than it may use"):
            reader.query("SELECT count(*) FROM (SELECT DISTINCT range, md5(range::VARCHAR) FROM range(30000000))")

        assert reader.query("SELECT count(*) FROM zones").rows == [(3,)]
    assert not (settings.scratch_path / "duckdb").exists() or not list((settings.scratch_path / "duckdb").iterdir())


def test_threads_share_a_reader(reader: Reader) -> None:
    answers: list[int] = []
    threads = [
        threading.Thread(
            target=lambda n=n: answers.append(reader.query(f"SELECT count(*) + {n} FROM zones").rows[0][0])
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answers) == list(range(3, 11))


def test_a_reader_sees_what_is_committed_after_it_opened(settings: Settings, reader: Reader) -> None:
    assert reader.query("SELECT count(*) FROM zones").rows == [(3,)]
    with Lake.open(settings) as lake:
        lake.query("INSERT INTO zones VALUES ('new', 9)")
        lake.query("CREATE TABLE fresh AS SELECT 5 AS x")

    assert reader.query("SELECT count(*) FROM zones").rows == [(4,)]
    assert reader.query("SELECT x FROM fresh").rows == [(5,)]


def test_tables_and_describe_need_no_sql(reader: Reader) -> None:
    assert [table.name for table in reader.tables()] == ["main.long_trips", "main.zones", "raw.trips"]
    trips = reader.describe("raw.trips")
    assert (trips.comment, trips.statistics and trips.statistics.rows) == ("every trip", 990)
    assert [column.name for column in reader.describe("zones").columns] == ["zone", "number"]
    with pytest.raises(QueryRejected, match=r"no such table in the lake\. There is: main\.long_trips"):
        reader.describe("raw.nothing")


def test_a_reader_needs_no_write_access_and_makes_no_folder(settings: Settings, tmp_path: Path) -> None:
    elsewhere = settings.model_copy(update={"state_dir": tmp_path / "elsewhere", "lake_data": settings.lake_path})
    with Reader.open(elsewhere) as reader:
        assert reader.query("SELECT count(*) FROM raw.trips").rows == [(990,)]

    assert not (tmp_path / "elsewhere").exists()


def test_a_reader_of_no_lake_says_how_to_make_one(settings: Settings, tmp_path: Path) -> None:
    with closing(psycopg2.connect(**settings.libpq("lake"))) as connection, connection, connection.cursor() as cursor:
        cursor.execute("DROP OWNED BY millrace; CREATE SCHEMA IF NOT EXISTS public")

    with pytest.raises(LakeRejected, match="there is no lake yet"):
        Reader.open(settings)


def test_every_scalar_function_of_this_duckdb_was_reviewed(lake: Lake) -> None:
    """A new DuckDB brings new functions: look at them, then change the number."""
    names = {
        name
        for (name,) in lake.query(
            "SELECT DISTINCT function_name FROM duckdb_functions() "
            "WHERE function_type IN ('scalar', 'macro') AND regexp_matches(function_name, '^[a-z]') "
            "AND NOT starts_with(function_name, 'icu_collate')"
        )
    }

    assert names >= FORBIDDEN_FUNCTIONS.keys() - {"getenv"}  # getenv is the command line's
    assert len(names) == 551
