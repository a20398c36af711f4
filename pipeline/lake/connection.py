"""Opening the lake and changing it: one DuckDB engine a process, every change one retried transaction.

What is in the lake (tables, columns, sizes) is `catalogue`; reading by untrusted SQL is `reader`.
"""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import duckdb

from pipeline.aws import credentials, duckdb_secret
from pipeline.errors import LakeConflict, LakeError, LakeRejected, LakeUnavailable
from pipeline.retries import retry_context
from pipeline.settings import Role, Settings

EXTENSIONS = ("ducklake", "postgres_scanner", "httpfs")
TRANSACTION_ATTEMPTS = 8
T = TypeVar("T")


@cache
def extension_file(name: str) -> Path:
    """The signed binary of extension *name* for this DuckDB build, from its wheel: nothing is downloaded.

    Raises:
        LakeRejected: if the wheel is missing or made for another build.
    """
    spec = importlib.util.find_spec(f"duckdb_extension_{name}")
    if spec and spec.origin:
        path = Path(spec.origin).parent / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
        if path.exists():
            return path
    raise LakeRejected(
        f"Loading DuckDB's extension {name}: no binary for DuckDB {duckdb.__version__}. "
        f"Install duckdb-extension-{name.replace('_', '-')}=={duckdb.__version__}."
    )


def install_extensions(directory: Path) -> None:
    """Put the extensions where DuckDB loads them by name (dbt does); does nothing if they are there."""
    target = directory / f"v{duckdb.__version__}" / _platform()
    target.mkdir(parents=True, exist_ok=True)
    for name in EXTENSIONS:
        file = target / f"{name}.duckdb_extension"
        if not file.exists():
            partial = file.with_suffix(f".{os.getpid()}")
            partial.symlink_to(extension_file(name))
            partial.replace(file)


@cache
def _platform() -> str:
    with duckdb.connect() as connection:
        (name,) = connection.execute("PRAGMA platform").fetchone() or ("",)
    return str(name)


class Lake:
    """The attached lake. `connection` is DuckDB with the lake as its default database, named ``lake``.

    One per process at a time: the engine, its memory limit and its spill folder belong to it.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
        self.connection = connection
        self.settings = settings
        self._s3_credentials: dict[str, str] = {}

    @classmethod
    def open(cls, settings: Settings, *, read_only: bool = False, role: Role | None = None) -> "Lake":
        """Attach the lake; a writer makes it if it is not there.

        Raises:
            LakeUnavailable: if the catalogue's database does not answer.
            LakeRejected: if the lake cannot be used: unknown format, other data path, unwritable folder.
        """
        path = settings.lake_path
        scratch = settings.scratch_path / "duckdb"
        if not read_only:
            _prepare_folders(path, scratch)
        connection = duckdb.connect(
            config={
                "autoinstall_known_extensions": False,  # a missing file fails at once, not after a DNS time-out
                "autoload_known_extensions": False,  # nothing comes from the user's home folder
                # To check a signature takes 0.3 s, for each at each opening. These files came with wheels, as DuckDB
                # itself did, and were checked with them. Whatever is loaded after them is checked.
                "allow_unsigned_extensions": True,
                "memory_limit": f"{settings.memory_limit_bytes}B",
                "threads": settings.thread_count,
                "temp_directory": str(scratch),
            }
        )
        lake = cls(connection, settings)
        try:
            with lake.errors("Opening the lake"):
                connection.execute("SET TimeZone = 'UTC'")
                for name in EXTENSIONS if path.startswith("s3://") else EXTENSIONS[:2]:
                    connection.execute(f"LOAD {sql_text(str(extension_file(name)))}")
                connection.execute("SET allow_unsigned_extensions = false")
                if path.startswith("s3://"):
                    lake._configure_s3()
                lake._create_secret("catalogue", "postgres", _catalogue_secret(settings, role))
            lake._attach(path, read_only=read_only)
        except BaseException:
            connection.close()
            raise
        return lake

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the engine's memory, spill files and database sessions back."""
        self.connection.close()

    def query(self, sql: str, parameters: list[Any] | dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """All rows of one statement.

        Raises:
            LakeError: as `errors` translates.
        """
        with self.errors("Querying the lake"):
            return self.connection.execute(sql, parameters).fetchall()

    def scalar(self, sql: str, parameters: list[Any] | dict[str, Any] | None = None) -> Any:
        """The first value of the first row, None if there is no row."""
        rows = self.query(sql, parameters)
        return rows[0][0] if rows else None

    def in_transaction(self, work: Callable[[], T], *, asset: str, run_id: str = "") -> T:
        """Run *work* in one transaction, from its start again when another writer won; returns its value.

        The snapshot's commit message names *asset* and *run_id*. DuckLake repeats plain inserts itself, but not
        a delete, update, alter or drop beside another writer of the table, and a failed transaction cannot be
        continued: the whole of *work* has to be safe to repeat.

        Raises:
            LakeConflict: when other writers won every time.
            LakeError: as `errors` translates; nothing was committed.
        """
        for attempt in retry_context(
            on=LakeConflict, attempts=TRANSACTION_ATTEMPTS, timeout=None, wait_initial=0.05, wait_max=2, wait_jitter=0.2
        ):
            with attempt, self.errors(f"Writing {asset}"):
                self._renew_s3_credentials()
                try:
                    self.connection.execute("BEGIN")
                    value = work()
                    info = json.dumps({"asset": asset, "run_id": run_id})
                    self.connection.execute(
                        "CALL lake.set_commit_message('millrace', ?, extra_info => ?)",
                        [f"{asset} by {run_id or 'hand'}", info],
                    )
                    self.connection.execute("COMMIT")
                except BaseException:
                    with suppress(duckdb.Error):  # the failed commit may have rolled back already
                        self.connection.execute("ROLLBACK")
                    raise
                return value
        raise AssertionError("unreachable")

    @contextmanager
    def lock(self, name: str, *, wait_seconds: float = 0) -> Iterator[bool]:
        """Hold the lock *name* of all processes on this lake; yields False if another has it after the wait.

        It is PostgreSQL's, held by a transaction: it ends with the process, and works through a pooler.
        """
        import psycopg2.errors
        import psycopg2.extensions

        address = psycopg2.extensions.make_dsn(connect_timeout=10, **self.settings.libpq("lake"))
        try:
            connection = psycopg2.connect(address)
        except psycopg2.OperationalError as error:
            raise LakeUnavailable(f"Locking {name}: the catalogue does not answer: {error}".strip()) from error
        with closing(connection), connection.cursor() as cursor:
            try:
                cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{max(int(wait_seconds * 1000), 1)}ms"])
                cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [name])
            except psycopg2.errors.LockNotAvailable:
                yield False
                return
            except psycopg2.Error as error:
                raise LakeUnavailable(f"Locking {name}: the catalogue ended the connection: {error}".strip()) from error
            try:
                yield True
            finally:
                # Closing alone lets the server end the transaction later, when the next one has already asked.
                with suppress(psycopg2.Error):
                    connection.rollback()

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Translate DuckDB's errors into ours, whose class says whether a retry can help."""
        try:
            yield
        except duckdb.Error as error:
            raise _translated(doing, error) from error

    def _attach(self, path: str, *, read_only: bool) -> None:
        """Make the lake the default database. Writers that find none all make it: one does, the others attach that."""
        # No address in the path: duckdb_databases() shows it, and so does the error of a failed ATTACH.
        options = ["META_SECRET 'catalogue'", f"DATA_PATH {sql_text(path)}", "DATA_INLINING_ROW_LIMIT 0"]
        options += ["READ_ONLY"] * read_only
        for attempt in retry_context(on=LakeConflict, attempts=TRANSACTION_ATTEMPTS, timeout=None, wait_initial=0.1):
            with attempt, self.errors("Opening the lake"):
                self.connection.execute(f"ATTACH IF NOT EXISTS 'ducklake:postgres:' AS lake ({', '.join(options)})")
                self.connection.execute("USE lake")
                if not read_only:
                    self._keep_all_rows_in_files()

    def _keep_all_rows_in_files(self) -> None:
        """Tell every later connection, dbt's too, what this one has as an option of its ATTACH.

        By default DuckLake keeps inserts and deletes of up to ten rows in the catalogue, and such a delete beside
        a compaction is lost without a conflict: both commit, and the rows are back.
        """
        missing = "SELECT 1 WHERE NOT EXISTS (FROM lake.options() WHERE option_name = 'data_inlining_row_limit' AND value = '0')"
        if self.query(missing):
            with self.lock("options of the lake", wait_seconds=10):  # two that set it would leave it there twice
                if self.query(missing):
                    self.query("CALL lake.set_option('data_inlining_row_limit', 0)")

    def _renew_s3_credentials(self) -> None:
        """Those of a role end after an hour or so, and a run may take longer."""
        if self._s3_credentials and credentials() != self._s3_credentials:
            self._configure_s3()

    def _configure_s3(self) -> None:
        """Credentials as `pipeline.aws` finds them; `credential_chain` would need another extension."""
        self._s3_credentials = credentials()
        values = duckdb_secret(self._s3_credentials, region=self.settings.s3_region, endpoint=self.settings.s3_endpoint)
        self._create_secret("lake_data", "s3", values)
        for name in ("s3_access_key_id", "s3_secret_access_key", "s3_session_token"):
            # LOAD httpfs copies AWS_* into settings, which duckdb_settings() shows in clear.
            self.connection.execute(f"SET {name} = ''")

    def _create_secret(self, name: str, kind: str, values: dict[str, str]) -> None:
        given = {key: value for key, value in values.items() if value}
        # Bound and not written into the statement: no error text and no log can repeat them.
        options = "".join(f", {key} ?" for key in given)
        self.connection.execute(f"CREATE OR REPLACE SECRET {name} (TYPE {kind}{options})", list(given.values()))


def _prepare_folders(path: str, scratch: Path) -> None:
    try:
        if not path.startswith("s3://"):
            Path(path).mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK):
                raise PermissionError(13, "Permission denied")
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LakeRejected(
            f"Opening the lake: {error.filename or path}: {error.strerror}. "
            "Make the folder writable, or set MILLRACE_LAKE_DATA and MILLRACE_STATE_DIR to others."
        ) from error


def _catalogue_secret(settings: Settings, role: Role | None) -> dict[str, str]:
    """The catalogue's address as options of a ``postgres`` secret."""
    names = {"dbname": "DBNAME", "host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD",
             "sslmode": "SSLMODE", "sslrootcert": "SSLROOTCERT", "connect_timeout": "CONNECT_TIMEOUT"}  # fmt: skip
    parts = {"connect_timeout": "10", **settings.libpq("lake", role)}
    return {names[key]: value for key, value in parts.items() if key in names}


def sql_text(value: str) -> str:
    """*value* as an SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


def sql_name(*parts: str) -> str:
    """*parts* as a quoted, dotted SQL name."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


# What DuckDB's, DuckLake's and libpq's messages contain, most telling first; all seen, see tests/lake.
_CONFLICT = ("transaction conflict", "conflict on", "retry count", "could not serialize access", "deadlock detected")
_MADE_MEANWHILE = ("pg_type_typname_nsp_index", "pg_class_relname_nsp_index", "already exists")
_DISK_FULL = ("no space left", "disk quota", "file too large")
_NOT_ALLOWED = ("permission denied", "permission error", "read-only", "fatal: password authentication", "fatal: no pg_hba.conf",
                "fatal: role", "fatal: database", "access denied", "http 401", "http 403", "http 404",
                "http code 401", "http code 403", "http code 404")  # fmt: skip
_UNREACHABLE = ("unable to connect", "could not connect", "connection refused", "server closed", "terminating connection",
                "connection to server", "no connection to the server", "ssl syscall", "bad connection", "http error",
                "failed to execute query \"rollback\"", "failed to execute query \"commit\"", "could not resolve")  # fmt: skip


def _translated(doing: str, error: duckdb.Error) -> LakeError:
    text = " ".join(str(error).split())
    lower, found = text.lower(), text[:500]  # the telling end of a long message is searched, not shown

    def mentions(signs: tuple[str, ...]) -> bool:
        return any(sign in lower for sign in signs)

    if "failed to initialize ducklake" in lower and mentions(_MADE_MEANWHILE):
        return LakeConflict(f"{doing}: another process makes the lake at this moment. ({found})")
    if mentions(_CONFLICT):
        return LakeConflict(f"{doing}: another writer of the same table committed first. ({found})")
    if mentions(_DISK_FULL):
        return LakeRejected(f"{doing}: the disk is full. Nothing was committed; free space and run again. ({found})")
    if isinstance(error, duckdb.OutOfMemoryException):
        return LakeRejected(
            f"{doing}: DuckDB's memory limit was reached. Raise MILLRACE_MEMORY_LIMIT_GIB or load less at once. ({found})"
        )
    if "catalog version mismatch" in lower or "only ducklake versions" in lower:
        return LakeRejected(
            f"{doing}: the lake's format is not the one this version reads ({found}). A newer lake needs a newer "
            "Millrace. An older one: back up the database `lake`, then attach it once in DuckDB with "
            "AUTOMATIC_MIGRATION true."
        )
    if "does not match existing data path" in lower:
        return LakeRejected(f"{doing}: {found} Set MILLRACE_LAKE_DATA to the path this lake was made with.")
    if "creating a new ducklake is explicitly disabled" in lower:
        return LakeRejected(f"{doing}: there is no lake yet. Load something first: `millrace run` makes it.")
    if mentions(_NOT_ALLOWED):
        return LakeRejected(
            f"{doing}: not permitted, or not there ({found}). Correct the address, the credentials or the permissions."
        )
    if mentions(_UNREACHABLE):
        return LakeUnavailable(f"{doing}: the catalogue or its data cannot be reached ({found}).")
    return LakeError(f"{doing}: {str(error).strip()[:3000]}")
