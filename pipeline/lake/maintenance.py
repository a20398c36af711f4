"""Keeping the lake small: few big files, no old snapshots, nothing left behind by killed writers.

Every step may run beside writers and readers, and may be killed: the next call continues. What is safe to delete
is decided by age alone, and the floors below are constants on purpose: DuckLake's own call with a younger age
deletes the files of open transactions, whose commit then succeeds and whose rows cannot be read.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import stamina

from pipeline.errors import ConfigError, LakeConflict, LakeError
from pipeline.lake.catalogue import catalogue_query
from pipeline.lake.connection import Lake

log = logging.getLogger(__name__)

ORPHAN_AGE = timedelta(days=2)  # longer than any writer's transaction: a connector may sync for hours
UNUSED_AGE = timedelta(days=1)  # longer than any reader's query
ORPHAN_ATTEMPTS = 10
DELETED_SHARE = 0.05  # DuckLake's own threshold, 0.95, leaves a file of which half is deleted as it is, unmerged

_STORAGE = """
SELECT count(*) FILTER (WHERE is_live) AS live_files, coalesce(sum(bytes) FILTER (WHERE is_live), 0)::bigint AS live_bytes,
       count(*) AS files, coalesce(sum(bytes), 0)::bigint AS bytes
FROM (SELECT file_size_bytes AS bytes, end_snapshot IS NULL AS is_live FROM ducklake_data_file
      UNION ALL SELECT file_size_bytes, end_snapshot IS NULL FROM ducklake_delete_file) f
"""


@dataclass(frozen=True)
class Storage:
    """What the catalogue refers to: the files of the newest snapshot, and those of every snapshot not yet expired."""

    live_files: int
    live_bytes: int
    files: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """What one call of `maintain` did."""

    files_rewritten: int
    files_merged: int
    snapshots_expired: int
    files_deleted: int
    orphans_deleted: int
    before: Storage
    after: Storage
    seconds: float


def maintain(
    lake: Lake,
    *,
    older_than_days: int,
    keep_since: datetime | None = None,
    run_id: str = "",
    report: Callable[[str], None] = log.info,
) -> Report:
    """Do every step once, in the order in which each finds what the one before made; *report* gets a line a step.

    Snapshots older than *older_than_days* can no longer be queried. Their files are deleted a day after, but none that
    a catalogue dumped at *keep_since* or later refers to.

    Raises:
        ConfigError: if *older_than_days* is less than 1.
        LakeConflict: if another process is doing this now, or writers kept winning.
        LakeError: as `Lake.errors` translates; the steps before stay done.
    """
    if older_than_days < 1:
        raise ConfigError(
            f"Maintaining the lake: older_than_days is {older_than_days}. Give 1 or more: running queries and loads "
            "still use younger snapshots."
        )
    started = time.monotonic()
    with lake.lock("lake maintenance") as is_held:
        if not is_held:
            raise LakeConflict("Maintaining the lake: another process is doing it now. Wait for it to end.")
        before = storage(lake)
        steps: dict[str, Callable[[], int]] = {
            "files_rewritten": lambda: rewrite(lake, run_id=run_id),
            "files_merged": lambda: merge(lake, run_id=run_id),
            "snapshots_expired": lambda: expire(lake, older_than_days=older_than_days),
            "files_deleted": lambda: delete_unused(lake, keep_since=keep_since),
            "orphans_deleted": lambda: delete_orphans(lake, keep_since=keep_since),
        }
        counts = {}
        for name, step in steps.items():
            counts[name] = step()
            report(f"{name.replace('_', ' ')}: {counts[name]:,}")
        if keep_since:
            report(f"kept for a backup: files in use since {keep_since.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z")
        return Report(**counts, before=before, after=storage(lake), seconds=time.monotonic() - started)


def storage(lake: Lake) -> Storage:
    """Number and bytes of the files that the catalogue refers to."""
    ((*figures,),) = catalogue_query(lake, _STORAGE)
    return Storage(*figures)


def rewrite(lake: Lake, *, run_id: str = "") -> int:
    """Write files with deleted rows anew without them; returns the files replaced. Merging skips files with deletes."""
    return _compact(lake, f"ducklake_rewrite_data_files('lake', delete_threshold => {DELETED_SHARE})", run_id)


def merge(lake: Lake, *, run_id: str = "") -> int:
    """Join small files of a table into bigger ones; returns the files replaced."""
    return _compact(lake, "ducklake_merge_adjacent_files('lake')", run_id)


def expire(lake: Lake, *, older_than_days: int) -> int:
    """Forget snapshots older than *older_than_days*, at least one day; returns their number."""
    limit = datetime.now(UTC) - timedelta(days=max(older_than_days, 1))
    return len(lake.query("FROM ducklake_expire_snapshots('lake', older_than => ?)", [limit]))


def delete_unused(lake: Lake, *, keep_since: datetime | None = None) -> int:
    """Delete the files that no snapshot has used for `UNUSED_AGE`, nor since *keep_since*; returns their number."""
    limit = _limit(UNUSED_AGE, keep_since)
    return len(lake.query("FROM ducklake_cleanup_old_files('lake', older_than => ?)", [limit]))


@stamina.retry(on=LakeConflict, attempts=ORPHAN_ATTEMPTS, timeout=None, wait_initial=0.1)
def delete_orphans(lake: Lake, *, keep_since: datetime | None = None) -> int:
    """Delete files older than `ORPHAN_AGE` and *keep_since* that no commit ever named; returns their number.

    After a restore what was written since the backup is named by no commit, yet a younger backup may refer to it.
    """
    limit = _limit(ORPHAN_AGE, keep_since)
    try:
        return len(lake.query("FROM ducklake_delete_orphaned_files('lake', older_than => ?)", [limit]))
    except LakeError as error:
        # DuckLake lists all files, then opens each; a writer takes away those of a try that failed.
        if "No such file" not in str(error):
            raise
        raise LakeConflict(f"Deleting orphaned files: one vanished while it was looked at. ({error})") from error


def _limit(age: timedelta, keep_since: datetime | None) -> datetime:
    """What is younger than this stays.

    DuckLake dates a file's end of use, and the writer a file, before the commit: at the start of its transaction, at
    the earliest. One that was under way at *keep_since* may bear a date before it, hence a transaction's length.
    """
    limit = datetime.now(UTC) - age
    return min(limit, keep_since - ORPHAN_AGE) if keep_since else limit


def _compact(lake: Lake, call: str, run_id: str) -> int:
    def work() -> int:
        return sum(row[2] for row in lake.connection.execute(f"FROM {call}").fetchall())

    return lake.in_transaction(work, asset="maintenance", run_id=run_id)
