"""The tables of both owners on a real PostgreSQL: made, upgraded, killed, left alone when they are newer."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from dagster import DagsterInstance, job, op
from pydantic import SecretStr

from pipeline.errors import ServiceError
from pipeline.operate.database import connect, prepare
from pipeline.operate.instance import ensure_instance, open_instance, write_instance
from pipeline.operate.schema import migrate, schema_version, wait_until_ready, wanted_version
from pipeline.settings import Settings
from tests.conftest import administrators_url

MIGRATE = """
import sys, time
from pipeline.settings import Settings
from pipeline.operate import schema
from pipeline.operate.instance import write_instance
upgrade = schema._upgrade_dagster
def slowly(settings):
    print("working", flush=True)
    time.sleep(float(sys.argv[1]))
    upgrade(settings)
schema._upgrade_dagster = slowly
settings = Settings.load()
write_instance(settings)
print(schema.migrate(settings), flush=True)
"""


@op
def nothing() -> None: ...


@job
def two() -> None:
    nothing()


def answer(settings: Settings, query: str, *values: Any) -> Any:
    with closing(connect(settings)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(query, values)
        return cursor.fetchall() if cursor.description else None


def to_an_older_version(settings: Settings) -> None:
    """As a database of Dagster from before backfills had a column of their own."""
    answer(settings, "COMMENT ON SCHEMA millrace IS 'dagster 1.0.0, millrace 0000'")
    answer(settings, "ALTER TABLE runs DROP COLUMN backfill_id")
    answer(settings, "UPDATE alembic_version SET version_num = '284a732df317'")


def in_child(settings: Settings, delay_seconds: float) -> "subprocess.Popen[str]":
    assert settings.database_url
    environment = os.environ | {
        "MILLRACE_DATABASE_URL": settings.database_url.get_secret_value(),
        "MILLRACE_STATE_DIR": str(settings.state_dir),
    }
    return subprocess.Popen(
        [sys.executable, "-c", MIGRATE, str(delay_seconds)], env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def old(settings: Settings) -> Settings:
    """A database of an older version, with a run in it."""
    ensure_instance(settings)
    with open_instance(settings) as instance:
        two.execute_in_process(instance=instance)
    to_an_older_version(settings)
    return settings


def runs(settings: Settings) -> list[str]:
    with open_instance(settings) as instance:
        assert isinstance(instance, DagsterInstance)
        return [run.status.value for run in instance.get_runs()]


def test_an_older_version_is_upgraded_with_its_runs(old: Settings):
    assert migrate(old) is True

    assert schema_version(old) == wanted_version()
    assert answer(old, "SELECT count(*) FROM runs WHERE backfill_id IS NULL") == [(1,)]
    assert runs(old) == ["SUCCESS"]
    assert migrate(old) is False


def test_two_at_once_upgrade_once(old: Settings):
    children = [in_child(old, 1) for _ in range(2)]

    said = sorted(child.communicate(timeout=90)[0].split()[-1] for child in children)

    assert said == ["False", "True"]
    assert runs(old) == ["SUCCESS"]


def test_a_killed_upgrade_leaves_the_old_tables_and_the_next_one_goes_on(old: Settings):
    with in_child(old, 60) as child:
        assert child.stdout
        assert child.stdout.readline() == "working\n"
        child.send_signal(signal.SIGKILL)

    assert schema_version(old) == "dagster 1.0.0, millrace 0000"
    started = time.monotonic()
    assert migrate(old) is True
    assert time.monotonic() - started < 30  # the dead one's lock is free
    assert runs(old) == ["SUCCESS"]


@pytest.mark.parametrize("table", ["public.alembic_version", "millrace.alembic_version"])
def test_newer_tables_stay_as_they_are(settings: Settings, table: str, caplog: pytest.LogCaptureFixture):
    ensure_instance(settings)
    answer(settings, "COMMENT ON SCHEMA millrace IS 'dagster 9.0.0, millrace 0999'")
    answer(settings, f"UPDATE {table} SET version_num = 'newer'")

    assert migrate(settings) is False

    assert schema_version(settings) == "dagster 9.0.0, millrace 0999"
    assert "restore the backup" in caplog.text


def test_dagsters_tables_are_not_among_ours(settings: Settings):
    ensure_instance(settings)

    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = %s"
    assert {name for (name,) in answer(settings, tables, "millrace")} == {
        "alembic_version",
        "alert_silences",
        "backups",
        "exporter_state",
        "service_memory",
        "monitor_samples",
        "volumes",
    }
    assert ("runs",) in answer(settings, tables, "public")


def test_dagsters_tables_that_were_among_ours_are_moved_with_their_runs(settings: Settings):
    ensure_instance(settings)
    with open_instance(settings) as instance:
        two.execute_in_process(instance=instance)
    for (name,) in answer(settings, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        answer(settings, f"DROP TABLE IF EXISTS millrace.{name}")
        answer(settings, f'ALTER TABLE public."{name}" SET SCHEMA millrace')

    prepare(administrators_url(settings).replace("@/?", "@/postgres?"))

    assert runs(settings) == ["SUCCESS"]


def test_processes_that_prepare_the_server_at_once_all_succeed(settings: Settings):
    url = administrators_url(settings).replace("@/?", "@/postgres?")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(prepare, [url] * 24))

    assert answer(settings, "SELECT has_table_privilege('exporter', 'runs', 'SELECT')") == [(True,)]


def test_a_role_that_may_not_make_databases_is_told_which_statement_to_have_run(settings: Settings):
    admin = administrators_url(settings)
    with closing(psycopg2.connect(admin, dbname="postgres")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("DROP DATABASE lake WITH (FORCE)")
            cursor.execute("DROP ROLE IF EXISTS humble")
            cursor.execute("CREATE ROLE humble LOGIN")
            cursor.execute("GRANT CONNECT ON DATABASE postgres TO humble")
    humble = SecretStr(admin.replace("postgres@", "humble@").replace("@/?", "@/postgres?"))

    with pytest.raises(
        ServiceError, match=r'role humble may not: CREATE DATABASE "lake" OWNER "humble"\. Let an administrator'
    ):
        migrate(settings.model_copy(update={"database_url": humble}))


def test_an_address_that_names_a_database_of_ours_makes_it(bare_settings: Settings):
    admin = administrators_url(bare_settings)
    with closing(psycopg2.connect(admin, dbname="postgres")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("DROP DATABASE dagster WITH (FORCE)")
    named = bare_settings.model_copy(update={"database_url": SecretStr(admin.replace("@/?", "@/dagster?"))})

    wait_until_ready(named, tables=False, timeout_seconds=5)
    assert migrate(named) is True

    assert schema_version(bare_settings) == wanted_version()


def test_what_is_waited_for_is_said_and_the_wait_is_bounded(bare_settings: Settings):
    nobody = bare_settings.model_copy(update={"database_url": SecretStr("postgresql://millrace:x@127.0.0.1:1/dagster")})
    said: list[str] = []

    with pytest.raises(ServiceError, match=r"after 1 s still .*Connection refused"):
        wait_until_ready(nobody, tables=False, timeout_seconds=1, echo=said.append)
    with pytest.raises(ServiceError, match="the tables are not made yet"):
        wait_until_ready(bare_settings, tables=True, timeout_seconds=0.1, echo=said.append)
    assert len(said) == 2  # each once, not once a second
    write_instance(bare_settings)
    migrate(bare_settings)
    wait_until_ready(bare_settings, tables=True, timeout_seconds=1)


def test_services_wait_for_an_upgrade_of_older_tables_and_use_newer_ones(settings: Settings):
    ensure_instance(settings)
    *dagster, millrace = wanted_version().rsplit(" ", 1)
    for older in ("dagster 1.0.0, millrace 0001", f"{dagster[0]} 0000", "dagster 1.9.12, millrace " + millrace):
        answer(settings, "COMMENT ON SCHEMA millrace IS %s", older)
        with pytest.raises(ServiceError, match=rf"older version \({older}\): `millrace migrate`"):
            wait_until_ready(settings, tables=True, timeout_seconds=0.1)
    for usable in ("dagster 9.0.0, millrace 0999", f"{dagster[0]} 0999", "dagster 9.0.0, millrace 0000"):
        answer(settings, "COMMENT ON SCHEMA millrace IS %s", usable)
        wait_until_ready(settings, tables=True, timeout_seconds=1)
