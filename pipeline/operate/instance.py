"""The Dagster instance of the embedded platform: its two files, its schema, its runs that nobody works on any more."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.operate.database import connect
from pipeline.operate.schema import ensure_schema
from pipeline.settings import Settings, process_environment

if TYPE_CHECKING:
    from dagster import DagsterInstance

HOST = "127.0.0.1"
LOCATION = "millrace"


def write_instance(settings: Settings) -> Path:
    """Write dagster.yaml and workspace.yaml for *settings*; files that are right already stay untouched.

    Returns:
        The folder of both: DAGSTER_HOME.
    """
    import yaml

    server = {"host": HOST, "port": settings.code_server_port, "location_name": LOCATION}
    files = {"dagster.yaml": _instance(settings), "workspace.yaml": {"load_from": [{"grpc_server": server}]}}
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        file, text = (
            settings.dagster_home / name,
            "# Written by Millrace: edits are lost.\n" + yaml.safe_dump(content, sort_keys=False),
        )
        if not file.exists() or file.read_text() != text:
            partial = file.with_suffix(f".{os.getpid()}")
            partial.write_text(text)
            partial.replace(file)  # a reader sees the whole file or the one before
    return settings.dagster_home


def _instance(settings: Settings) -> dict[str, Any]:
    return {
        "telemetry": {"enabled": False},
        "nux": {"enabled": False},
        "storage": {
            "postgres": {
                "postgres_db": {
                    "username": {"env": "DAGSTER_PG_USERNAME"},
                    "password": {"env": "DAGSTER_PG_PASSWORD"},
                    "hostname": {"env": "DAGSTER_PG_HOST"},
                    "port": {"env": "DAGSTER_PG_PORT"},
                    "db_name": {"env": "DAGSTER_PG_DB"},
                    "scheme": "postgresql+psycopg2",  # the bare scheme means psycopg 3 to SQLAlchemy 2.1
                    "params": {"connect_timeout": 10, "application_name": "dagster"},
                }
            }
        },
        "compute_logs": {
            "module": "dagster.core.storage.local_compute_log_manager",
            "class": "LocalComputeLogManager",
            "config": {"base_dir": settings.compute_log_path},
        },
        "local_artifact_storage": {
            "module": "dagster.core.storage.root",
            "class": "LocalArtifactStorage",
            "config": {"base_dir": str(settings.dagster_home)},
        },
        "run_launcher": {"module": "dagster.core.launcher", "class": "DefaultRunLauncher"},
        "run_coordinator": {
            "module": "dagster.core.run_coordinator",
            "class": "QueuedRunCoordinator",
            "config": {
                "dequeue_interval_seconds": 1,
                "max_user_code_failure_retries": 360,  # an hour; default 0: a restart of the code server loses queued runs
                "user_code_failure_retry_delay": 10,
            },
        },
        "concurrency": {
            "runs": {"max_concurrent_runs": max(2, min(4, (os.cpu_count() or 1) // 2))},
            "pools": {"default_limit": 1, "granularity": "run"},
        },
        "run_monitoring": {
            "enabled": True,
            "start_timeout_seconds": 180,
            "cancel_timeout_seconds": 60,
            "max_resume_run_attempts": 0,
            "poll_interval_seconds": 20,
            "free_slots_after_run_end_seconds": 60,  # without it a killed run keeps its pool slot for ever
        },
        # Crashes only: run retries do not hear of Failure(allow_retries=False).
        "run_retries": {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False},
        "retention": {
            kind: {"purge_after_days": settings.retention_days} for kind in ("schedule", "sensor", "auto_materialize")
        },
        "sensors": {"use_threads": True, "num_workers": 4},
        "schedules": {"use_threads": True, "num_workers": 4},
    }


def ensure_instance(settings: Settings) -> None:
    """Write the instance's files unless somebody else did, and bring the tables to this version.

    *settings* must have a database that answers.
    """
    if settings.instance_dir is None:
        write_instance(settings)
    ensure_schema(settings)


@contextmanager
def open_instance(settings: Settings) -> Iterator["DagsterInstance"]:
    """The instance, for use in this process. `ensure_instance` comes first.

    Meanwhile `Settings.child_environment` is this process's environment: dagster.yaml names variables, not values.
    """
    from dagster import DagsterInstance

    with (
        process_environment(settings.child_environment()),
        DagsterInstance.from_config(str(settings.dagster_home)) as instance,
    ):
        yield instance


def launched_runs(settings: Settings) -> list[str]:
    """Ids of the runs that a code server launched and that are under way."""
    under_way = """SELECT run_id FROM runs JOIN run_tags USING (run_id)
        WHERE status IN ('STARTING', 'STARTED', 'CANCELING') AND key = '.dagster/grpc_info'"""
    with closing(connect(settings)) as connection, connection.cursor() as cursor:
        cursor.execute(under_way)
        return [run_id for (run_id,) in cursor.fetchall()]


def fail_runs(settings: Settings, run_ids: list[str]) -> None:
    """Mark *run_ids*, whose processes ended with their code server, as failed; run retries then start them anew.

    Nothing else would: such a run would keep its pool's slot for ever. A retry asks the code server and is given up
    if that does not answer, so call this when the next one does.
    """
    with open_instance(settings) as instance:
        for run_id in run_ids:
            run = instance.get_run_by_id(run_id)
            if run and run.status.value == "CANCELING":
                instance.report_run_canceled(run, "The code server ended while this run was being cancelled.")
            elif run and not run.is_finished:
                instance.report_run_failed(run, "The code server ended, and this run with it.")
