"""Dagster's instance files and tables, made for real."""

import os
import subprocess
import sys
from contextlib import closing

import yaml
from dagster._core.definitions.run_request import InstigatorType
from pydantic import SecretStr

from pipeline.operate.database import connect
from pipeline.operate.instance import ensure_instance, open_instance, write_instance
from pipeline.settings import Settings


def test_the_files_are_written_once_and_again_when_a_setting_changes(settings: Settings) -> None:
    home = write_instance(settings)
    before = (home / "dagster.yaml").stat().st_mtime_ns, (home / "workspace.yaml").stat().st_mtime_ns

    write_instance(settings)
    assert ((home / "dagster.yaml").stat().st_mtime_ns, (home / "workspace.yaml").stat().st_mtime_ns) == before

    write_instance(settings.model_copy(update={"code_server_port": 4321}))
    (location,) = yaml.safe_load((home / "workspace.yaml").read_text())["load_from"]
    assert location["grpc_server"]["port"] == 4321
    assert (home / "dagster.yaml").stat().st_mtime_ns == before[0]
    assert {file.name for file in home.iterdir()} == {"dagster.yaml", "workspace.yaml"}


def test_no_secret_and_no_address_stands_in_the_files(settings: Settings) -> None:
    address = SecretStr("postgresql://someone:hunter2@db.example:6543/")

    home = write_instance(settings.model_copy(update={"database_url": address}))

    text = (home / "dagster.yaml").read_text() + (home / "workspace.yaml").read_text()
    assert not any(secret in text for secret in ("hunter2", "someone", "db.example", "6543"))


def test_dagster_takes_the_instance_as_it_is_meant(settings: Settings) -> None:
    ensure_instance(settings)

    with open_instance(settings) as instance:
        assert instance.get_runs_count() == 0
        assert instance.all_asset_keys() == []
        assert instance.all_instigator_state() == []
        assert type(instance.run_coordinator).__name__ == "QueuedRunCoordinator"
        assert instance.get_tick_retention_settings(InstigatorType.SENSOR)
        assert set(instance.get_tick_retention_settings(InstigatorType.SCHEDULE).values()) == {settings.retention_days}
        assert not instance.telemetry_enabled
        assert not instance.run_retries_retry_on_asset_or_op_failure
        assert instance.run_retries_max_retries == 2
        assert instance.global_op_concurrency_default_limit == 1
        assert instance.run_monitoring_enabled
        assert instance.compute_log_manager._base_dir == str(settings.log_path / "compute")
    assert "DAGSTER_PG_USERNAME" not in os.environ


def test_processes_that_ask_at_once_make_the_tables_once_and_the_next_does_not_import_dagster(
    bare_settings: Settings,
) -> None:
    program = (
        "import sys; from pipeline.settings import Settings; from pipeline.operate.instance import ensure_instance;"
        "ensure_instance(Settings.load()); print('dagster' in sys.modules)"
    )
    assert bare_settings.database_url
    environment = os.environ | {
        "MILLRACE_DATABASE_URL": bare_settings.database_url.get_secret_value(),
        "MILLRACE_STATE_DIR": str(bare_settings.state_dir),
    }

    def ask() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)

    first = sorted(child.communicate(timeout=60)[0].strip() for child in [ask() for _ in range(3)])
    assert first == ["False", "False", "True"]
    assert ask().communicate(timeout=60)[0].strip() == "False"


def test_tables_of_an_older_dagster_are_migrated(settings: Settings) -> None:
    ensure_instance(settings)
    with closing(connect(settings)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("COMMENT ON SCHEMA millrace IS 'dagster 1.0.0'")
        cursor.execute("ALTER TABLE runs DROP COLUMN backfill_id")
        cursor.execute("UPDATE alembic_version SET version_num = '284a732df317'")

    ensure_instance(settings)

    with closing(connect(settings)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SELECT backfill_id FROM runs")
        assert cursor.fetchall() == []
