"""The PostgreSQL server behind everything: the embedded one where none is configured; databases and roles on any.

Schema migrations of Dagster and of the ledger are not here: they belong to who owns the tables.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic import SecretStr

from pipeline.errors import ConfigError, ServiceError
from pipeline.locks import file_lock
from pipeline.operate import postgres
from pipeline.operate.postgres import postgres_bin as postgres_bin
from pipeline.settings import Settings

if TYPE_CHECKING:
    import psycopg2.extensions

DATABASES = ("dagster", "lake")
LOCK_SECONDS = 1
PREPARE_SECONDS = 60

# Versions before 0.1 had them in our schema.
DAGSTERS_TABLES_TO_PUBLIC = """DO $$ DECLARE name text; BEGIN
    IF to_regclass('millrace.runs') IS NOT NULL AND to_regclass('public.runs') IS NULL THEN
        FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'millrace' LOOP
            EXECUTE format('ALTER TABLE millrace.%I SET SCHEMA public', name);
        END LOOP;
    END IF;
END $$"""


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


@contextmanager
def alone(
    connection: "psycopg2.extensions.connection", name: str, *, wait_seconds: float = LOCK_SECONDS
) -> Iterator[bool]:
    """Hold the lock *name* of this connection's database; yields False if another session has it for *wait_seconds*.

    The server frees it with the connection, however this process ends, but a moment after, hence the wait.
    """
    import psycopg2.errors

    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", [f"{wait_seconds}s"])
        try:
            cursor.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
        except psycopg2.errors.LockNotAvailable:
            yield False
            return
        cursor.execute("RESET lock_timeout")
    yield True


def prepare(admin_url: str) -> None:
    """Make the two databases and the roles on the server of *admin_url*, as far as they are missing.

    Their owner is the role of *admin_url*, or `millrace` where that is the embedded server's administrator. Passwords,
    where wanted, come from ``MILLRACE_<ROLE>_PASSWORD``; the embedded server trusts its own socket.

    Raises:
        ServiceError: if the server does not answer or refuses a statement, which an administrator has to run then.
    """
    import psycopg2.extensions

    parts = psycopg2.extensions.parse_dsn(admin_url)
    parts["dbname"] = _other_than_ours(parts)
    prepare_roles(parts)
    with _administrator(parts) as execute:
        for database in DATABASES:
            if not execute("SELECT 1 FROM pg_database WHERE datname = %s", database):
                execute("CREATE DATABASE {} OWNER {}", names=[database, owner_role(parts)])
    for database in DATABASES:
        prepare_database(parts, database)


def administration_database(settings: Settings) -> str:
    """A database that is there before ours are: the one that the address names, or ``postgres``."""
    import psycopg2.extensions

    assert settings.database_url
    return _other_than_ours(psycopg2.extensions.parse_dsn(settings.database_url.get_secret_value()))


def _other_than_ours(parts: dict[str, str]) -> str:
    name = parts.get("dbname", "")
    return "postgres" if name in ("", *DATABASES) else name


def owner_role(parts: dict[str, str]) -> str:
    """The role to which everything belongs on the server of the libpq keywords *parts*, an administrator's."""
    return "millrace" if parts["user"] == "postgres" else parts["user"]


def prepare_roles(parts: dict[str, str]) -> None:
    """Make the roles that are missing, and set the passwords that are given."""
    with _administrator(parts) as execute:
        for role in sorted({owner_role(parts), "lake_reader", "exporter"}):
            if not execute("SELECT 1 FROM pg_roles WHERE rolname = %s", role):
                execute("CREATE ROLE {} LOGIN", names=[role])
            password = os.environ.get(f"MILLRACE_{role.upper()}_PASSWORD")
            if password and role != parts["user"]:
                execute("ALTER ROLE {} PASSWORD %s", password, names=[role])


def prepare_database(parts: dict[str, str], database: str, *, name: str | None = None) -> None:
    """Give *database* (``dagster`` or ``lake``; *name* where it is called otherwise) its settings and grants."""
    owner, name = owner_role(parts), name or database
    reader = {"lake": "lake_reader", "dagster": "exporter"}[database]
    with _administrator(parts | {"dbname": name}) as execute:
        if not execute("SELECT 1 WHERE has_schema_privilege(%s, 'public', 'CREATE')", owner):
            execute("ALTER SCHEMA public OWNER TO {}", names=[owner])
        if database == "dagster":
            # By default a role's tables go to the schema of its own name first: Dagster's would be among ours.
            execute("ALTER DATABASE {} SET search_path TO public", names=[name])
            execute("CREATE SCHEMA IF NOT EXISTS millrace AUTHORIZATION {}", names=[owner])
            execute(DAGSTERS_TABLES_TO_PUBLIC)
        if execute("SELECT 1 WHERE has_database_privilege(%s, %s, 'CONNECT')", "public", name):
            execute("REVOKE ALL ON DATABASE {} FROM PUBLIC", names=[name])
        execute("GRANT CONNECT ON DATABASE {} TO {}", names=[name, reader])
        execute("GRANT USAGE ON SCHEMA public TO {}", names=[reader])
        for kind in ("TABLES", "SEQUENCES"):
            execute(f"GRANT SELECT ON ALL {kind} IN SCHEMA public TO {{}}", names=[reader])
            execute(
                f"ALTER DEFAULT PRIVILEGES FOR ROLE {{}} IN SCHEMA public GRANT SELECT ON {kind} TO {{}}",
                names=[owner, reader],
            )


@contextmanager
def _administrator(parts: dict[str, str]) -> Iterator[Callable[..., list[Any]]]:
    """A function that runs a statement with values and ``{}`` names, alone, and says what was refused."""
    import psycopg2.extensions
    from psycopg2 import sql

    try:
        connection = psycopg2.connect(psycopg2.extensions.make_dsn(**{"connect_timeout": "10", **parts}))
    except psycopg2.OperationalError as error:
        raise ServiceError(f"Connecting to the database server: {str(error).strip()}") from error
    connection.autocommit = True  # CREATE DATABASE cannot run in a transaction
    # Of two GRANTs on one object at once the server refuses one: "tuple concurrently updated".
    with (
        closing(connection),
        alone(connection, "millrace prepare", wait_seconds=PREPARE_SECONDS) as is_alone,
        connection.cursor() as cursor,
    ):
        if not is_alone:
            raise ServiceError(
                f"Preparing the database server: another process has been doing it for {PREPARE_SECONDS} s. Look at what it "
                "waits for in pg_stat_activity, end it and try again."
            )

        def execute(statement: str, *values: str, names: Sequence[str] = ()) -> list[Any]:
            composed = sql.SQL(statement).format(*map(sql.Identifier, names))
            try:
                cursor.execute(composed, values or None)
            except (
                psycopg2.errors.DuplicateDatabase,
                psycopg2.errors.DuplicateObject,
                psycopg2.errors.UniqueViolation,
            ):
                return []  # another process was faster
            except psycopg2.errors.InsufficientPrivilege as error:
                raise ServiceError(
                    f"Preparing the database server: role {parts['user']} may not: {composed.as_string(cursor)}. "
                    "Let an administrator run it, or give the role CREATEDB and CREATEROLE."
                ) from error
            return cursor.fetchall() if cursor.description else []

        yield execute
