"""Removing old history: runs, their events, ticks, backfills and logs; never what an asset's present state rests on.

``instance.delete_run`` is not the way: it deletes materialisations too, and their partitions become missing. Here an
event about an asset stays while it is the newest of its kind for the asset and partition, a check's result while it
is the check's newest, and a run while such an event is its own. That is bounded by what exists, not by time.
"""

import logging
import os
import shutil
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.operate.database import connect
from pipeline.operate.store import open_store
from pipeline.settings import Settings

if TYPE_CHECKING:
    import psycopg2.extensions

log = logging.getLogger(__name__)

BATCH = 100  # runs or ticks in one transaction
LOG_BYTES = 10_000_000
OLD_LOGS = 20  # files kept of each service, whatever their age

# Superseded: a newer one of the same kind, about the same asset and partition. In two halves, one for each index.
EVENT_IS_OLD_NEWS = """(
    e.asset_key IS NULL
    OR e.partition IS NULL AND EXISTS (
        SELECT 1 FROM event_logs n WHERE n.asset_key = e.asset_key AND n.dagster_event_type = e.dagster_event_type
        AND n.partition IS NULL AND n.id > e.id)
    OR EXISTS (
        SELECT 1 FROM event_logs n WHERE n.asset_key = e.asset_key AND n.dagster_event_type = e.dagster_event_type
        AND n.partition = e.partition AND n.id > e.id))"""

# A check that was planned and never ran must not hide its last result, hence the last line.
CHECK_IS_OLD_NEWS = """EXISTS (
    SELECT 1 FROM asset_check_executions n
    WHERE n.asset_key = c.asset_key AND n.check_name = c.check_name AND n.partition IS NOT DISTINCT FROM c.partition
    AND n.id > c.id AND (n.evaluation_event_storage_id IS NULL) = (c.evaluation_event_storage_id IS NULL))"""

RUN_IS_UNUSED = """(
    NOT EXISTS (SELECT 1 FROM event_logs e WHERE e.run_id = r.run_id)
    AND NOT EXISTS (SELECT 1 FROM asset_check_executions c WHERE c.run_id = r.run_id)
    AND NOT EXISTS (SELECT 1 FROM asset_keys k WHERE k.last_run_id = r.run_id))"""

# A run stays a candidate until nothing more of it can go, so a kill between two batches costs nothing.
RUNS = f"""SELECT run_id FROM runs r
    WHERE status IN ('SUCCESS', 'FAILURE', 'CANCELED') AND update_timestamp < %(before)s AND (
        EXISTS (SELECT 1 FROM event_logs e WHERE e.run_id = r.run_id AND {EVENT_IS_OLD_NEWS})
        OR EXISTS (SELECT 1 FROM asset_check_executions c WHERE c.run_id = r.run_id AND {CHECK_IS_OLD_NEWS})
        OR {RUN_IS_UNUSED})
    ORDER BY id LIMIT {BATCH} FOR UPDATE SKIP LOCKED"""

EVENTS = f"""WITH gone AS (
        DELETE FROM event_logs e WHERE e.run_id = ANY(%(runs)s) AND {EVENT_IS_OLD_NEWS} RETURNING e.id),
    tags AS (DELETE FROM asset_event_tags WHERE event_id IN (SELECT id FROM gone))
    SELECT count(*) FROM gone"""

CHECKS = f"DELETE FROM asset_check_executions c WHERE c.run_id = ANY(%(runs)s) AND {CHECK_IS_OLD_NEWS}"

UNUSED_RUNS = f"DELETE FROM runs r WHERE r.run_id = ANY(%(runs)s) AND {RUN_IS_UNUSED}"

# The newest tick stays: the scheduler goes on from there.
TICKS = f"""DELETE FROM job_ticks WHERE id IN (
    SELECT id FROM job_ticks t WHERE timestamp < %(before)s AND EXISTS (
        SELECT 1 FROM job_ticks n WHERE n.selector_id = t.selector_id AND n.timestamp > t.timestamp)
    LIMIT {BATCH})"""

BACKFILLS = f"""DELETE FROM bulk_actions WHERE id IN (
    SELECT id FROM bulk_actions WHERE timestamp < %(before)s
    AND status IN ('COMPLETED', 'COMPLETED_SUCCESS', 'COMPLETED_FAILED', 'FAILED', 'CANCELED')
    LIMIT {BATCH}) RETURNING key"""

BACKFILL_TAGS = "DELETE FROM backfill_tags WHERE backfill_id = ANY(%(keys)s)"


@dataclass
class Purged:
    """How many rows and files went."""

    runs: int = 0
    events: int = 0
    ticks: int = 0
    backfills: int = 0
    files: int = 0


def purge(settings: Settings, *, older_than_days: float, now: datetime, budget_seconds: float = 600) -> Purged:
    """Remove history from before *now* minus *older_than_days*, and log files not written since.

    Works in short transactions until done or *budget_seconds* have passed; the next call goes on. Safe to kill and
    to run twice at once. Live runs and the services' present log files are never touched.
    """
    before = now.astimezone(UTC) - timedelta(days=older_than_days)
    deadline = time.monotonic() + budget_seconds
    purged = Purged(files=_purge_files(settings.log_path, before.timestamp()) + _purge_compute_logs(settings, before))
    with closing(connect(settings)) as connection:
        for step in (_purge_runs, _purge_ticks, _purge_backfills):
            while time.monotonic() < deadline and step(connection, before, purged):
                pass
    if purged != Purged():
        log.info("Removed history from before %s: %s", f"{before:%Y-%m-%d %H:%M}Z", purged)
    return purged


def rotate_log(path: Path, *, now: datetime, over_bytes: int = LOG_BYTES) -> bool:
    """Move the content of *path*, if it has more than *over_bytes*, to ``old/`` beside it; its writer goes on.

    The writer must append (as services and PostgreSQL do). Lines of the moment between copy and truncation are lost.
    """
    if not path.exists() or path.stat().st_size <= over_bytes:
        return False
    old = path.parent / "old"
    old.mkdir(exist_ok=True)
    shutil.copyfile(path, old / f"{path.stem}-{now.astimezone(UTC):%Y%m%dT%H%M%S}Z.log")
    os.truncate(path, 0)
    for surplus in sorted(old.glob(f"{path.stem}-2*.log"))[:-OLD_LOGS]:
        surplus.unlink()
    return True


def _purge_runs(connection: "psycopg2.extensions.connection", before: datetime, purged: Purged) -> int:
    with connection, connection.cursor() as cursor:
        cursor.execute(RUNS, {"before": before.replace(tzinfo=None)})
        runs = [run_id for (run_id,) in cursor.fetchall()]
        cursor.execute(EVENTS, {"runs": runs})
        purged.events += (cursor.fetchone() or (0,))[0]
        cursor.execute(CHECKS, {"runs": runs})
        cursor.execute(UNUSED_RUNS, {"runs": runs})
        purged.runs += cursor.rowcount
    return len(runs)


def _purge_ticks(connection: "psycopg2.extensions.connection", before: datetime, purged: Purged) -> int:
    with connection, connection.cursor() as cursor:
        cursor.execute(TICKS, {"before": before.replace(tzinfo=None)})
        purged.ticks += cursor.rowcount
        return cursor.rowcount


def _purge_backfills(connection: "psycopg2.extensions.connection", before: datetime, purged: Purged) -> int:
    with connection, connection.cursor() as cursor:
        cursor.execute(BACKFILLS, {"before": before.replace(tzinfo=None)})
        keys = [key for (key,) in cursor.fetchall()]
        cursor.execute(BACKFILL_TAGS, {"keys": keys})
    purged.backfills += len(keys)
    return len(keys)


def _purge_compute_logs(settings: Settings, before: datetime) -> int:
    """The output of runs, where it lies elsewhere than with the other logs."""
    if not settings.compute_logs:
        return 0
    path = f"{settings.compute_log_path}/"
    is_bucket = path.startswith("s3://") and "/" not in path.removeprefix("s3://").rstrip("/")
    if is_bucket or settings.lake_path.startswith(path):
        raise ConfigError(
            f"Deleting old compute logs: MILLRACE_COMPUTE_LOGS is {settings.compute_logs}, "
            f"{'a whole bucket' if is_bucket else f'where the lake lies ({settings.lake_path})'}. Give it a place of its own."
        )
    if not settings.compute_logs.startswith("s3://"):
        return _purge_files(Path(settings.compute_log_path), before.timestamp())
    store = open_store(settings.compute_log_path, settings)
    old = store.unchanged_since(before)
    store.delete(old)
    return len(old)


def _purge_files(logs: Path, before: float) -> int:
    """Delete what was last written before *before* (Unix time) in the folders of *logs*; its own files are live."""
    removed = 0
    for folder, names, files in os.walk(logs, topdown=False):
        if Path(folder) == logs:
            continue
        for file in (Path(folder, name) for name in files):
            with suppress(FileNotFoundError):
                if file.stat().st_mtime < before:
                    file.unlink()
                    removed += 1
        for empty in (Path(folder, name) for name in names):
            with suppress(OSError):  # not empty
                if empty.stat().st_mtime < before:
                    empty.rmdir()
    return removed
