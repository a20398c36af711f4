"""Opening the lake and changing it: one DuckDB engine a process, every change one retried transaction.

What is in the lake (tables, columns, sizes) is `catalogue`; reading by untrusted SQL is `reader`.
"""

import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import duckdb
import stamina

from pipeline.errors import LakeConflict, LakeError, LakeRejected, LakeUnavailable
from pipeline.settings import Role, Settings

log = logging.getLogger(__name__)

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
            shutil.copyfile(extension_file(name), partial)
            partial.rename(file)  # a reader sees the whole file or none


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

    @classmethod
    def open(cls, settings: Settings, *, read_only: bool = False, role: Role | None = None) -> "Lake":
        """Attach the lake; a writer makes it if it is not there.

        Raises:
            LakeUnavailable: if the catalogue's database does not answer.
            LakeRejected: if the lake cannot be used: unknown format, other data path, unwritable folder.
        """
        path = settings.lake_path
        # In the environment and not in the statement: an ATTACH text is shown by duckdb_databases().
        os.environ.update(settings.libpq_environment(role=role))
        scratch = settings.scratch_path / "duckdb"
        try:
            if not path.startswith("s3://") and not read_only:
                Path(path).mkdir(parents=True, exist_ok=True)
                if not os.access(path, os.W_OK):
                    raise PermissionError(13, "Permission denied")
            scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LakeRejected(
                f"Opening the lake: {error.filename or path}: {error.strerror}. "
                "Make the folder writable, or set MILLRACE_LAKE_DATA and MILLRACE_STATE_DIR to others."
            ) from error
        connection = duckdb.connect(
            config={
                "autoinstall_known_extensions": False,  # a missing file fails at once, not after a DNS time-out
                "memory_limit": f"{settings.memory_limit_bytes}B",
                "threads": settings.thread_count,
                "temp_directory": str(scratch),
            }
        )
        lake = cls(connection, settings)
        try:
            connection.execute("SET TimeZone = 'UTC'")
            for name in EXTENSIONS if path.startswith("s3://") else EXTENSIONS[:2]:
                connection.execute(f"LOAD '{extension_file(name)}'")
            if path.startswith("s3://"):
                lake._configure_s3()
            options = [f"DATA_PATH '{path}'"] + (["READ_ONLY"] if read_only else [])
            with lake.errors("Opening the lake"):
                connection.execute(f"ATTACH 'ducklake:postgres:' AS lake ({', '.join(options)})")
                connection.execute("USE lake")
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
        for attempt in stamina.retry_context(
            on=LakeConflict, attempts=TRANSACTION_ATTEMPTS, timeout=None, wait_initial=0.05, wait_max=2, wait_jitter=0.2
        ):
            with attempt, self.errors(f"Writing {asset}"):
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
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{max(int(wait_seconds * 1000), 1)}ms"])
            try:
                cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [name])
            except psycopg2.errors.LockNotAvailable:
                yield False
                return
            yield True

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Translate DuckDB's errors into ours, whose class says whether a retry can help."""
        try:
            yield
        except duckdb.Error as error:
            raise _translated(doing, error) from error

    def _configure_s3(self) -> None:
        """Credentials from the standard ``AWS_*`` variables; `credential_chain` would need another extension."""
        endpoint = self.settings.s3_endpoint
        values = {
            "KEY_ID": os.environ.get("AWS_ACCESS_KEY_ID", ""),
            "SECRET": os.environ.get("AWS_SECRET_ACCESS_KEY", ""),
            "SESSION_TOKEN": os.environ.get("AWS_SESSION_TOKEN", ""),
            "REGION": self.settings.s3_region,
            "ENDPOINT": endpoint.removeprefix("http://").removeprefix("https://"),
            "URL_STYLE": "path" if endpoint else "vhost",
            "USE_SSL": "false" if endpoint.startswith("http://") else "true",
        }
        options = ", ".join(f"{key} {sql_text(value)}" for key, value in values.items() if value)
        self.connection.execute(f"CREATE SECRET lake_data (TYPE s3, {options})")


def sql_text(value: str) -> str:
    """*value* as an SQL string literal."""
    return "'" + value.replace("'", "''") + "'"


def sql_name(*parts: str) -> str:
    """*parts* as a quoted, dotted SQL name."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def _translated(doing: str, error: duckdb.Error) -> LakeError:
    text = str(error).strip()
    lower = text.lower()
    first = text.splitlines()[0]
    if "transaction conflict" in lower or "conflict on" in lower:
        return LakeConflict(f"{doing}: another writer of the same table committed first. {text.splitlines()[-1]}")
    if "no space left" in lower or "disk quota" in lower:
        return LakeRejected(f"{doing}: the disk is full. Nothing was committed; free space and run again. ({first})")
    if isinstance(error, duckdb.OutOfMemoryException):
        return LakeRejected(
            f"{doing}: DuckDB's memory limit was reached. Raise MILLRACE_MEMORY_LIMIT_GIB or load less at once. ({first})"
        )
    if "only ducklake versions" in lower or "ducklake catalog version" in lower or "catalog version mismatch" in lower:
        return LakeRejected(
            f"{doing}: the lake's format is not the one this version reads ({first}). "
            "A newer lake needs a newer Millrace; an older one is migrated on purpose, after a backup."
        )
    if "data_path" in lower or "data path" in lower:
        return LakeRejected(f"{doing}: {first} Set MILLRACE_LAKE_DATA to the path this lake was made with.")
    if any(
        sign in lower
        for sign in ("unable to connect", "connection refused", "server closed", "could not connect", "terminating connection",
                     "connection to server", "no connection to the server", "ssl syscall", "bad connection", "http error")
    ):  # fmt: skip
        return LakeUnavailable(f"{doing}: the catalogue or its data cannot be reached ({first}).")
    if "permission denied" in lower or "read-only" in lower:
        return LakeRejected(f"{doing}: not permitted ({first}).")
    return LakeError(f"{doing}: {text}")
