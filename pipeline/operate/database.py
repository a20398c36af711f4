"""The PostgreSQL server behind everything: the embedded one where none is configured; databases and roles on any.

Schema migrations of Dagster and of the ledger are not here: they belong to who owns the tables.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic import SecretStr

from pipeline.errors import ConfigError
from pipeline.operate import postgres
from pipeline.operate.postgres import postgres_bin as postgres_bin
from pipeline.settings import Settings

if TYPE_CHECKING:
    import psycopg2.extensions

DATABASES = ("dagster", "lake")


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on *path*; the kernel gives it back when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def with_database(settings: Settings) -> Settings:
    """*settings* with a database that answers: the configured one, or the embedded one, started if need be.

    The embedded server outlives this process; `stop_embedded` ends it.

    Raises:
        ConfigError: if the state folder cannot be used, or holds data of another PostgreSQL version.
        ServiceError: if the embedded server does not start; names its log.
    """
    if not settings.is_embedded:
        return settings
    data = settings.state_dir / "postgres"
    try:
        socket = postgres.answering_socket(data)
        if socket is None:
            with file_lock(settings.state_dir / "postgres.lock"):
                socket = postgres.answering_socket(data) or _started(data)
    except OSError as error:
        raise ConfigError(
            f"Starting the embedded PostgreSQL in {data}: {error.strerror or error} ({error.filename}). "
            "Choose a folder that this user can write, with MILLRACE_STATE_DIR."
        ) from error
    return settings.model_copy(update={"database_url": SecretStr(_url("millrace", "", socket))})


def stop_embedded(settings: Settings) -> bool:
    """End the embedded server cleanly, whoever started it; False if it was not running."""
    data = settings.state_dir / "postgres"
    if not (data / "postmaster.pid").exists():
        return False
    with file_lock(settings.state_dir / "postgres.lock"):
        return postgres.stop(data)


def embedded_url(settings: Settings) -> str | None:
    """Address of this state folder's server, as `with_database` gives it; None if it does not answer."""
    socket = postgres.answering_socket(settings.state_dir / "postgres")
    return _url("millrace", "", socket) if socket else None


def _started(data: Path) -> Path:
    socket = postgres.start(data)
    prepare(_url("postgres", "postgres", socket))
    (data / postgres.READY).touch()
    return socket


def _url(role: str, database: str, socket: Path) -> str:
    return f"postgresql://{role}@/{database}?host={quote(str(socket), safe='')}&port=5432"


def connect(settings: Settings, database: str = "dagster") -> "psycopg2.extensions.connection":
    """A connection of psycopg2's to *database*; wrap it in ``closing``."""
    import psycopg2

    keywords: dict[str, Any] = {"connect_timeout": "10", **settings.libpq(database)}
    connection: psycopg2.extensions.connection = psycopg2.connect(**keywords)
    return connection


def prepare(admin_url: str) -> None:
    """Make the two databases and the three roles on the server of *admin_url*. Running it again changes nothing.

    Passwords, where wanted, come from ``MILLRACE_<ROLE>_PASSWORD``; the embedded server trusts its own socket.
    """
    import psycopg2
    from psycopg2 import sql

    with closing(psycopg2.connect(admin_url)) as connection:
        connection.autocommit = True  # CREATE DATABASE cannot run in a transaction
        with connection.cursor() as cursor:
            for role in ("millrace", "lake_reader", "exporter"):
                cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
                if not cursor.fetchone():
                    cursor.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
                password = os.environ.get(f"MILLRACE_{role.upper()}_PASSWORD")
                if password:
                    cursor.execute(sql.SQL("ALTER ROLE {} PASSWORD %s").format(sql.Identifier(role)), [password])
            for database in DATABASES:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database])
                if not cursor.fetchone():
                    cursor.execute(sql.SQL("CREATE DATABASE {} OWNER millrace").format(sql.Identifier(database)))
                name = sql.Identifier(database)
                cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
            cursor.execute("GRANT CONNECT ON DATABASE lake TO lake_reader")
            cursor.execute("GRANT CONNECT ON DATABASE dagster TO exporter")
    for database, reader in (("lake", "lake_reader"), ("dagster", "exporter")):
        parts = psycopg2.extensions.parse_dsn(admin_url) | {"dbname": database}
        with closing(psycopg2.connect(**parts)) as connection, connection, connection.cursor() as cursor:
            cursor.execute("ALTER SCHEMA public OWNER TO millrace")
            for statement in (
                "GRANT USAGE ON SCHEMA public TO {reader}",
                "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}",
                "ALTER DEFAULT PRIVILEGES FOR ROLE millrace IN SCHEMA public GRANT SELECT ON TABLES TO {reader}",
            ):
                cursor.execute(sql.SQL(statement).format(reader=sql.Identifier(reader)))
            if database == "dagster":
                cursor.execute("CREATE SCHEMA IF NOT EXISTS millrace AUTHORIZATION millrace")
