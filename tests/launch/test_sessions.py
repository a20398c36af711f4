"""Sessions at a real PostgreSQL."""

from contextlib import closing

import pytest
from dagster import DagsterInstance, RunsFilter
from dagster._daemon import cli as daemon_cli

from pipeline.launch import sessions
from pipeline.operate.database import connect
from pipeline.settings import Settings
from tests.receivers import wait_until


def ask(settings: Settings, sql: str) -> int:
    with closing(connect(settings)) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        (found,) = cursor.fetchone() or (0,)
        return int(found)


def sessions_now(settings: Settings) -> int:
    return ask(
        settings, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def end_all(settings: Settings) -> int:
    return ask(
        settings,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


def test_queries_share_a_session_and_a_server_that_ended_it_fails_none(settings: Settings, instance: DagsterInstance):
    sessions.pool(instance)
    pids = set()
    for _ in range(5):
        instance.get_runs(RunsFilter())
        with instance.run_storage._engine.connect() as connection:  # type: ignore[attr-defined]
            pids.add(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar())
    assert len(pids) == 1
    assert sessions_now(settings) == 1

    assert end_all(settings) == 1
    assert instance.get_runs(RunsFilter()) == []


def test_the_webserver_outlives_the_end_of_its_sessions(settings: Settings, instance: DagsterInstance):
    sessions.outlive_the_server()
    instance.optimize_for_webserver(60_000, pool_recycle=3600, max_overflow=20)  # as dagster-webserver does
    instance.get_runs(RunsFilter())
    instance.all_instigator_state()
    instance.get_asset_keys()

    assert end_all(settings) == 3  # of each of the storages
    assert instance.get_runs(RunsFilter()) == []
    assert list(instance.all_instigator_state()) == []
    assert list(instance.get_asset_keys()) == []


def test_without_it_nothing_is_kept(settings: Settings, instance: DagsterInstance):
    instance.get_runs(RunsFilter())

    wait_until(lambda: sessions_now(settings) == 0)  # the server ends a session some time after its client has


def test_the_daemon_gets_such_an_instance(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(daemon_cli, "get_instance_for_cli", daemon_cli.get_instance_for_cli)  # put back afterwards
    sessions.install()

    with daemon_cli.get_instance_for_cli(instance_ref=instance.get_ref()) as made:
        for _ in range(3):
            made.get_runs(RunsFilter())
        with made.run_storage._engine.connect() as connection:
            first = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        with made.run_storage._engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT pg_backend_pid()").scalar() == first
