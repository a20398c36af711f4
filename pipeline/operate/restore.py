"""Restoring a backup: beside what is there, then exchanged for it in one transaction.

A kill at any moment leaves the old databases in their place or the restored ones. The old ones are never dropped here.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from pipeline.errors import BackupError, ConfigError, ServiceError
from pipeline.operate.backup import Report, register
from pipeline.operate.backup_catalogue import read_catalogue
from pipeline.operate.backup_manifest import DATABASES, Checked, Manifest, chosen, files_store, load, names, open_target
from pipeline.operate.backup_programs import Programs, programs_for
from pipeline.operate.database import alone, connect, embedded_url, owner_role, prepare_database, prepare_roles
from pipeline.operate.store import Store, copy, open_store
from pipeline.settings import Settings

if TYPE_CHECKING:
    import psycopg2.extensions

FRESH = "_restore"  # appended to a database's name until it is complete
IN_USE = {
    "dagster": ("runs", "SELECT 1 FROM public.runs LIMIT 1"),
    "lake": ("ducklake_table", "SELECT 1 FROM public.ducklake_table WHERE end_snapshot IS NULL LIMIT 1"),
}
SETTLE_SECONDS = 2.0  # a session that was closed just now, this command's own too, is still shown
SESSIONS = """SELECT datname, coalesce(nullif(application_name, ''), 'unnamed'), usename, array_agg(pid ORDER BY pid)
FROM pg_stat_activity WHERE datname = ANY(%s) AND backend_type IS DISTINCT FROM 'autovacuum worker'
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"""


@dataclass(frozen=True)
class Restored:
    """What was restored; `before` are the new names of the old databases, `missing` data files (name → bytes)."""

    name: str
    manifest: Manifest
    before: tuple[str, ...]
    missing: dict[str, int]


def restore(
    settings: Settings,
    target: str,
    name: str | None = None,
    *,
    replace: bool = False,
    now: datetime | None = None,
    report: Report = lambda _: None,
) -> Restored:
    """Make both databases what they were at a backup, the newest of *target* unless *name* says which.

    Copied data files that are missing in the lake's path are put back. What is then still missing does not stop the
    restore, as the other tables can be read: see `Restored.missing`. Databases in use give way only with *replace*.

    Raises:
        ConfigError: if there is no such backup, or it is of another lake or a newer server.
        BackupError: if the databases are in use, something is connected to them, or the backup is damaged.
        ServiceError: if the server does not answer or refuses a statement.
    """
    store = open_target(target, settings)
    name = chosen(store, name)
    manifest = load(store, name)
    if manifest.lake_path != settings.lake_path:
        raise ConfigError(
            f"The backup {name} is of the lake in {manifest.lake_path}, and this one is configured for {settings.lake_path}. "
            f"Set MILLRACE_LAKE_DATA to {manifest.lake_path.rstrip('/')}."
        )
    admin = _administrators(settings)
    with _server(admin) as execute:
        programs = _programs(execute, manifest, name)
        for database in DATABASES:
            execute(f"DROP DATABASE IF EXISTS {database}{FRESH} WITH (FORCE)")
        existing = {
            item for (item,) in execute("SELECT datname FROM pg_database WHERE datname = ANY(%s)", list(DATABASES))
        }
        there = [database for database in DATABASES if database in existing]
        _require_no_sessions(execute)
        if not replace:
            _require_unused(settings, there)
        parts = admin.libpq(execute("SELECT current_database()")[0][0])
        prepare_roles(parts)
        for database in DATABASES:
            execute(f'CREATE DATABASE {database}{FRESH} TEMPLATE template0 OWNER "{owner_role(parts)}"')
            _fill(settings, store, name, manifest, programs, database)
            prepare_database(parts, database, name=f"{database}{FRESH}")
            report(f"{database}: {manifest.dumps[database].bytes / 1e6:,.1f} MB restored")
        _carry_rows(settings, store, name, manifest, replaces="dagster" in there)
        missing = _put_files_back(settings, store, name, programs, report)
        before = _free_names(execute, there, now or datetime.now(UTC))
        _exchange(execute, before)
    return Restored(name, manifest, tuple(before.values()), missing)


def _administrators(settings: Settings) -> Settings:
    """*settings* with a role that may make databases: the configured one, or the embedded server's administrator."""
    assert settings.database_url
    url = settings.database_url.get_secret_value()
    if url != embedded_url(settings):
        return settings
    return settings.model_copy(update={"database_url": SecretStr(url.replace("//millrace@", "//postgres@"))})


Execute = Callable[..., list[tuple[Any, ...]]]


@contextmanager
def _server(admin: Settings) -> Iterator[Execute]:
    """A function that runs statements from a database that is none of ours, alone of all restores."""
    import psycopg2

    def execute(statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    try:
        with closing(_maintenance_connection(admin)) as connection:
            connection.autocommit = True
            with alone(connection, "millrace restore") as is_alone:
                if not is_alone:
                    raise BackupError("Restoring: another restore is under way. Wait for it to end.")
                yield execute
    except psycopg2.errors.InsufficientPrivilege as error:
        raise ServiceError(
            f"Restoring: the database said: {str(error).strip()}. The role of MILLRACE_DATABASE_URL must own the databases "
            "dagster and lake and may need CREATEDB: ALTER ROLE … CREATEDB."
        ) from error
    except psycopg2.Error as error:
        raise ServiceError(f"Restoring: the database said: {str(error).strip()}") from error


def _maintenance_connection(admin: Settings) -> "psycopg2.extensions.connection":
    """To ``postgres``, or where a server has none to the database that the address names: not to one of ours."""
    import psycopg2
    import psycopg2.extensions

    assert admin.database_url
    named = psycopg2.extensions.parse_dsn(admin.database_url.get_secret_value()).get("dbname", "")
    others = [database for database in (named, "template1") if database and database not in DATABASES]
    try:
        return connect(admin, "postgres")
    except psycopg2.OperationalError as error:
        for database in others if "postgres" in str(error).rpartition("FATAL")[2] else ():
            try:
                return connect(admin, database)
            except psycopg2.OperationalError:
                continue
        raise


def _programs(execute: Execute, manifest: Manifest, name: str) -> Programs:
    ((number, server),) = execute("SELECT current_setting('server_version_num')::int / 10000, current_setting('server_version')")  # fmt: skip
    if number < int(manifest.server.partition(".")[0]):
        raise ConfigError(
            f"The backup {name} was made from PostgreSQL {manifest.server}, and this server is {server}. "
            "Restore it into a server of that version or a newer one."
        )
    return programs_for(number, at_least=int(manifest.pg_dump.partition(".")[0]))


def _require_no_sessions(execute: Execute) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while found := execute(SESSIONS, list(DATABASES)):
        if time.monotonic() < deadline:
            time.sleep(0.1)
            continue
        sessions = "; ".join(
            f"{database}: {application} of role {role}, pid {', '.join(map(str, pids))}"
            for database, application, role, pids in found
        )
        raise BackupError(
            f"Restoring: the databases are being used ({sessions}). Stop what is connected: `millrace down` on one machine; "
            "in a cluster scale the services to 0 and suspend the schedules."
        )


def _require_unused(settings: Settings, there: list[str]) -> None:
    for database in there:
        table, query = IN_USE[database]
        with closing(connect(settings, database)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass(%s)", [f"public.{table}"])
            if cursor.fetchone() == (None,):
                continue
            cursor.execute(query)
            if cursor.fetchone():
                raise BackupError(
                    f"Restoring: the database {database} is not empty: it has {'runs' if database == 'dagster' else 'tables'}. "
                    "With --replace it is renamed and the restored one takes its place."
                )


def _fill(settings: Settings, store: Store, name: str, manifest: Manifest, programs: Programs, database: str) -> None:
    file = f"{name}/{database}.dump"
    checked = Checked(store.read(file))
    failed: BackupError | None = None
    try:
        programs.restore(checked, programs.contents(store.read(file)), settings, f"{database}{FRESH}")
    except BackupError as error:
        failed = error
    for _ in checked:  # pg_restore may have refused to start
        pass
    if checked.dump != manifest.dumps[database]:
        raise BackupError(
            f"Restoring {store.location}/{file}: it is not what was written: damaged. Take another backup."
        )
    if failed:
        raise failed


def _carry_rows(settings: Settings, store: Store, name: str, manifest: Manifest, *, replaces: bool) -> None:
    """Make the restored table of backups say which there are now: it knows none made since, nor its own end.

    What the backups made since refer to is unknown to the restored catalogue, and would be deleted as orphans: they
    pin the lake from this backup's time on.
    """
    rows: list[tuple[Any, ...]] = []
    if replaces:
        with closing(connect(settings)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('millrace.backups')")
            if cursor.fetchone() != (None,):
                cursor.execute("SELECT name, target, started_at, finished_at, bytes FROM millrace.backups WHERE finished_at IS NOT NULL")  # fmt: skip
                rows = cursor.fetchall()
    with closing(connect(settings, f"dagster{FRESH}")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM millrace.backups WHERE finished_at IS NULL")
        for row in rows:
            cursor.execute(
                "INSERT INTO millrace.backups VALUES (%s, %s, %s, %s, %s) ON CONFLICT (name) DO NOTHING", row
            )
        for other in names(store):
            try:
                register(connection, store.location, other, load(store, other))
            except BackupError:  # `verify` names it
                continue
        cursor.execute("UPDATE millrace.backups SET started_at = least(started_at, %s)", [manifest.started_at])


def _put_files_back(settings: Settings, store: Store, name: str, programs: Programs, report: Report) -> dict[str, int]:
    catalogue = read_catalogue(programs, store.read(f"{name}/lake.dump"))
    copied, missing = copy(catalogue.files, files_store(store, settings), open_store(settings.lake_path, settings))
    report(
        f"data files: {len(catalogue.files):,}, of which {copied / 1e6:,.1f} MB were put back, {len(missing):,} are missing"
    )
    return missing


def _free_names(execute: Execute, databases: list[str], now: datetime) -> dict[str, str]:
    """What *databases* will be called: with the time, or the next second that an earlier restore has not taken."""
    taken = {name for (name,) in execute("SELECT datname FROM pg_database")}
    while True:
        names = {database: f"{database}_before_{now:%Y%m%d_%H%M%S}" for database in databases}
        if not taken & set(names.values()):
            return names
        now += timedelta(seconds=1)


def _exchange(execute: Execute, before: dict[str, str]) -> None:
    import psycopg2

    statements = [f"ALTER DATABASE {old} RENAME TO {new}" for old, new in before.items()]
    statements += [f"ALTER DATABASE {database}{FRESH} RENAME TO {database}" for database in DATABASES]
    execute("BEGIN")
    try:
        for statement in statements:
            execute(statement)
        execute("COMMIT")
    except psycopg2.errors.ObjectInUse as error:  # after the server has waited 5 s for its end
        execute("ROLLBACK")
        _require_no_sessions(execute)
        raise BackupError(f"Restoring: {str(error).strip()}. Stop what is connected, and repeat it.") from error
