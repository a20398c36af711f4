"""Making backups: both databases as dumps, in a folder or a bucket; and what of the lake must stay because of them.

How a backup looks is `backup_manifest`'s business, reading one back `restore`'s, looking whether that would work
`verify`'s. A target belongs to one installation.
"""

import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipeline.errors import BackupError, ConfigError, MillraceError, ServiceError
from pipeline.operate.backup_catalogue import Catalogue, read_catalogue
from pipeline.operate.backup_manifest import (
    DATABASES,
    MANIFEST,
    NAME_FORMAT,
    Checked,
    Manifest,
    files_store,
    folders,
    load,
    names,
    open_target,
)
from pipeline.operate.backup_programs import newest_programs, programs_for
from pipeline.operate.database import alone, connect
from pipeline.operate.schema import schema_version
from pipeline.operate.store import Store, copy, open_store
from pipeline.settings import Settings

if TYPE_CHECKING:
    import psycopg2.extensions

log = logging.getLogger(__name__)

# A backup keeps files from being deleted for this long at most, or one at a place that nobody looks at any more would
# do so for ever. With copied files a backup can be restored after it too.
PIN_AGE = timedelta(days=90)

Report = Callable[[str], object]


@dataclass(frozen=True)
class Made:
    """A new backup; `missing` are data files (name → bytes) that should have been copied and are not in the lake."""

    name: str
    manifest: Manifest
    missing: dict[str, int]
    removed: tuple[str, ...]


def backup(
    settings: Settings,
    target: str,
    *,
    keep: int,
    files: bool = False,
    now: datetime | None = None,
    report: Report = log.info,
) -> Made:
    """Make a backup at *target*, then remove all but the *keep* newest; with *files* copy the lake's data files too.

    Safe to kill: the next call removes what was left.

    Raises:
        ConfigError: if the target cannot be used.
        BackupError: if another one is being made, or a program or the bucket failed; nothing of it is left.
        ServiceError: if the database does not answer.
    """
    store = open_target(target, settings)
    with _database(settings, "Backing up") as connection, alone(connection, "millrace backup") as is_alone:
        _require_tables(connection)
        if not is_alone:
            raise BackupError("Backing up: another backup is being made now. Wait for it to end.")
        _tidy(connection, store, settings)
        name = _free_name(connection, store, now or datetime.now(UTC))
        # Before the dumps, so that maintenance cannot delete what they are about to refer to.
        started_at = _execute(
            connection, "INSERT INTO millrace.backups (name, target, started_at) VALUES (%s, %s, now()) RETURNING started_at",
            name, store.location,
        )[0][0].astimezone(UTC)  # fmt: skip
        try:
            manifest, catalogue = _dump(connection, settings, store, name, started_at, files, report)
            copied, missing = _copy_files(catalogue, settings, store, report) if files else (0, {})
            manifest = manifest.model_copy(update={"finished_at": datetime.now(UTC)})
            store.write(f"{name}/{MANIFEST}", [manifest.model_dump_json(indent=2).encode()])
        except BaseException:
            with suppress(Exception):  # the next call does it then
                _remove(connection, store, name)
            raise
        register(connection, store.location, name, manifest, copied=copied)
        others = [other for other in names(store) if other != name]
        removed = others[: max(len(others) - keep + 1, 0)]
        for other in removed:
            _remove(connection, store, other)
        _prune_files(store, settings)
        if room := store.room():
            tell = "UPDATE millrace.backups SET volume_free_bytes = %s, volume_bytes = %s WHERE name = %s"
            _execute(connection, tell, *room, name)
    return Made(name, manifest, missing, tuple(removed))


def lake_pin(settings: Settings) -> datetime | None:
    """Since when the lake's files must stay, for the sake of the backups there are: `maintain` wants to know.

    Raises:
        ServiceError: if the database does not answer.
    """
    with _database(settings, "Asking which backups there are") as connection:
        if not _execute(connection, "SELECT 1 WHERE to_regclass('millrace.backups') IS NOT NULL"):
            return None
        oldest = "SELECT min(started_at) FROM millrace.backups WHERE started_at > now() - %s"
        ((started_at,),) = _execute(connection, oldest, PIN_AGE)
    return started_at  # type: ignore[no-any-return]


def register(
    connection: "psycopg2.extensions.connection", target: str, name: str, manifest: Manifest, *, copied: int = 0
) -> None:
    """Write the row of a backup that exists."""
    _execute(
        connection,
        """INSERT INTO millrace.backups (name, target, started_at, finished_at, bytes) VALUES (%s, %s, %s, %s, %s)
        ON CONFLICT (name) DO UPDATE SET target = excluded.target, finished_at = excluded.finished_at,
            bytes = excluded.bytes""",
        name, target, manifest.started_at, manifest.finished_at, manifest.dump_bytes + copied,
    )  # fmt: skip


def _dump(
    connection: "psycopg2.extensions.connection",
    settings: Settings,
    store: Store,
    name: str,
    started_at: datetime,
    files: bool,
    report: Report,
) -> tuple[Manifest, Catalogue]:
    server = connection.info.parameter_status("server_version") or ""
    programs = programs_for(connection.info.server_version // 10_000)
    dumps = {}
    for database in DATABASES:
        checked = Checked(programs.dump(settings, database))
        store.write(f"{name}/{database}.dump", checked)
        dumps[database] = checked.dump
        report(f"{database}.dump: {checked.bytes / 1e6:,.1f} MB")
    catalogue = read_catalogue(programs, store.read(f"{name}/lake.dump"))
    manifest = Manifest(
        millrace=importlib.metadata.version("millrace"),
        dagster=importlib.metadata.version("dagster"),
        ducklake=importlib.metadata.version("duckdb-extension-ducklake"),
        schema_version=schema_version(settings) or "",
        server=server.partition(" ")[0],
        pg_dump=programs.version,
        started_at=started_at,
        finished_at=started_at,
        dumps=dumps,
        lake_path=settings.lake_path,
        snapshot_id=catalogue.snapshot_id,
        data_files=len(catalogue.files),
        data_bytes=sum(catalogue.files.values()),
        has_files=files,
    )
    return manifest, catalogue


def _copy_files(catalogue: Catalogue, settings: Settings, store: Store, report: Report) -> tuple[int, dict[str, int]]:
    copied, missing = copy(catalogue.files, open_store(settings.lake_path, settings), files_store(store, settings))
    report(f"data files: {copied / 1e6:,.1f} MB copied of {sum(catalogue.files.values()) / 1e6:,.1f} MB")
    return copied, missing


def _prune_files(store: Store, settings: Settings) -> None:
    """Remove copied data files to which no backup refers; all stay if one of the backups cannot be read."""
    copies = files_store(store, settings)
    stored = copies.sizes()
    if not stored:
        return
    programs = newest_programs()
    needed: set[str] = set()
    try:
        for name in names(store):
            needed |= read_catalogue(programs, store.read(f"{name}/lake.dump")).files.keys()
    except MillraceError as error:
        log.warning("Copied data files that no backup needs are not removed now: %s", error)
        return
    copies.delete(stored.keys() - needed)


def _tidy(connection: "psycopg2.extensions.connection", store: Store, settings: Settings) -> None:
    """Remove what killed backups left, and make the rows of this target say what is there."""
    rows = {name for (name,) in _execute(connection, "SELECT name FROM millrace.backups WHERE target = %s AND finished_at IS NOT NULL", store.location)}  # fmt: skip
    if rows and not store.exists():
        raise ConfigError(
            f"{store.location} is not there, and {len(rows)} backups were made in it, the last one {max(rows)}. Mount it; "
            "if they are gone for good, make the folder."
        )
    store.make()
    there = set(names(store))
    for name in set(folders(store)) - there:
        log.warning("Removing %s/%s, which a killed backup left.", store.location, name)
        store.delete(store.sizes(name))
    # Under the lock nobody else is making one, here or at another target.
    _execute(connection, "DELETE FROM millrace.backups WHERE finished_at IS NULL")
    _execute(connection, "DELETE FROM millrace.backups WHERE target = %s AND name = ANY(%s)", store.location, list(rows - there))  # fmt: skip
    for name in there - rows:
        with suppress(BackupError):  # `verify` names it
            register(connection, store.location, name, load(store, name))


def _remove(connection: "psycopg2.extensions.connection", store: Store, name: str) -> None:
    """The manifest first, for a kill to leave no backup rather than half of one; the row, which pins, last."""
    store.delete([f"{name}/{MANIFEST}"])
    store.delete(store.sizes(name))
    _execute(connection, "DELETE FROM millrace.backups WHERE name = %s", name)


def _free_name(connection: "psycopg2.extensions.connection", store: Store, now: datetime) -> str:
    taken = {name for (name,) in _execute(connection, "SELECT name FROM millrace.backups")} | set(folders(store))
    while (name := f"{now.astimezone(UTC):{NAME_FORMAT}}") in taken:
        now += timedelta(seconds=1)
    return name


def _require_tables(connection: "psycopg2.extensions.connection") -> None:
    if not _execute(connection, "SELECT 1 WHERE to_regclass('millrace.backups') IS NOT NULL"):
        raise ServiceError(
            "Backing up: the tables are not made yet, or are of an older version: `millrace migrate` first."
        )


@contextmanager
def _database(settings: Settings, doing: str) -> "Iterator[psycopg2.extensions.connection]":
    import psycopg2

    try:
        with closing(connect(settings)) as connection:
            connection.autocommit = True
            yield connection
    except psycopg2.Error as error:
        raise ServiceError(f"{doing}: the database said: {str(error).strip()}") from error


def _execute(connection: "psycopg2.extensions.connection", statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []
