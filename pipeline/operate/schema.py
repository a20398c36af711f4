"""The tables in database ``dagster``, Dagster's and our own, brought to this version: once, however many ask.

Each of the two migrates in one transaction, so that a kill leaves the old tables or the new. Which version they are
made for stands in the database, as a comment of our schema: asking costs one connection and does not import dagster.
"""

import importlib.metadata
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ServiceError
from pipeline.operate.database import administration_database, alone, connect, embedded_url, prepare
from pipeline.settings import Settings

if TYPE_CHECKING:
    import psycopg2.extensions
    from alembic.config import Config

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
REPEAT_SECONDS = 30.0
PATIENCE_SECONDS = 1800.0  # an index over a long history takes minutes


def migrate(settings: Settings) -> bool:
    """Make databases, roles and tables as far as they are missing or old; False if nothing was to be done.

    Raises:
        ServiceError: if the server does not answer, or refuses what is needed; it names the statement.
    """
    from pipeline.operate.instance import write_instance

    assert settings.database_url
    url = settings.database_url.get_secret_value()
    if url != embedded_url(settings):  # which is prepared when it is started, by its administrator
        prepare(url)
    if settings.instance_dir is None:
        write_instance(settings)
    return ensure_schema(settings)


def ensure_schema(settings: Settings) -> bool:
    """Bring the tables to this version, one process at a time; False if they are. Newer ones are left as they are.

    The instance's files must be there.
    """
    if schema_version(settings) == wanted_version():
        return False
    with _alone(settings) as connection:
        if _comment(connection) == wanted_version():
            return False
        if newer := _newer(connection):
            log.warning(
                "The tables are of a newer version (%s) and stay as they are. If this version cannot use them, restore "
                "the backup that was made before the upgrade: `millrace restore`.",
                newer,
            )
            return False
        _upgrade_dagster(settings)
        _upgrade_ours(settings)
        with connection.cursor() as cursor:
            cursor.execute("COMMENT ON SCHEMA millrace IS %s", [wanted_version()])
    return True


def wait_until_ready(
    settings: Settings, *, tables: bool, timeout_seconds: float, echo: Callable[[str], object] = log.info
) -> None:
    """Return when the server answers, with *tables* when they are of this version or a newer one too.

    *echo* hears what is missing meanwhile.
    Without *tables* another database than ours is asked, as ours may not be made yet.

    Raises:
        ServiceError: after *timeout_seconds*, with what is missing.
    """
    deadline, told = time.monotonic() + timeout_seconds, ("", 0.0)
    while missing := _missing(settings, tables=tables):
        if missing != told[0] or time.monotonic() > told[1] + REPEAT_SECONDS:
            echo(f"Waiting for the database: {missing}")
            told = missing, time.monotonic()
        if time.monotonic() > deadline:
            raise ServiceError(f"Waiting for the database: after {timeout_seconds:.0f} s still {missing}")
        time.sleep(1)


def _missing(settings: Settings, *, tables: bool) -> str:
    import psycopg2

    try:
        if not tables:
            connect(settings, administration_database(settings)).close()
            return ""
        with closing(connect(settings)) as connection:
            version = _comment(connection)
    except psycopg2.OperationalError as error:
        return str(error).strip()
    if not version:
        return "the tables are not made yet: `millrace migrate` makes them"
    if _is_older(version):
        return f"the tables are of an older version ({version}): `millrace migrate` upgrades them"
    return ""


def _is_older(version: str) -> bool:
    """True if `ensure_schema` would upgrade tables of *version*, without an import of Dagster."""
    halves = zip(version.split(", "), wanted_version().split(", "), strict=True)
    pairs = [[[int(number) for number in re.findall(r"\d+", half)] for half in pair] for pair in halves]
    return any(theirs < ours for theirs, ours in pairs) and not any(theirs > ours for theirs, ours in pairs)


def schema_version(settings: Settings) -> str | None:
    """What the tables are made for; None if there are none.

    Raises:
        ServiceError: if the database does not answer.
    """
    import psycopg2

    try:
        with closing(connect(settings)) as connection:
            return _comment(connection)
    except psycopg2.OperationalError as error:
        raise ServiceError(f"Asking the database for its version: {str(error).strip()}") from error


def wanted_version() -> str:
    """What this version makes: Dagster's, and the last of our own changes."""
    ours = max(file.stem for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))
    return f"dagster {importlib.metadata.version('dagster')}, millrace {ours}"


@contextmanager
def _alone(settings: Settings) -> "Iterator[psycopg2.extensions.connection]":
    """A connection that holds the lock: the server frees it with the connection, however this process ends.

    It is asked for again and again: one call that waits would hold a snapshot, and the other process's CREATE INDEX
    CONCURRENTLY waits for every snapshot to end.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    with closing(connect(settings)) as connection:
        connection.autocommit = True
        while True:
            with alone(connection, "millrace schema") as is_alone:
                if is_alone:
                    yield connection
                    return
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"Upgrading the tables: another process has been doing it for {PATIENCE_SECONDS:.0f} s. Look at what it "
                    "waits for in pg_stat_activity, end it and run `millrace migrate` again."
                )


def _comment(connection: "psycopg2.extensions.connection") -> str | None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT obj_description(to_regnamespace('millrace')::oid, 'pg_namespace')")
        (comment,) = cursor.fetchone() or (None,)
    return str(comment) if comment else None


def _newer(connection: "psycopg2.extensions.connection") -> str:
    """The revision of either half that this version does not know; empty if it knows both."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from dagster._core.storage.sql import get_alembic_config

    for schema, config in (("public", get_alembic_config(__file__, "alembic.ini")), ("millrace", _config())):
        table = f"{schema}.alembic_version"
        with connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass(%s)", [table])
            if cursor.fetchone() == (None,):
                continue
            cursor.execute(f"SELECT version_num FROM {table}")
            revisions = [revision for (revision,) in cursor.fetchall()]
        scripts = ScriptDirectory.from_config(config)
        for revision in revisions:
            try:
                scripts.get_revision(revision)
            except CommandError:
                return f"{schema}: {revision}"
    return ""


def _upgrade_dagster(settings: Settings) -> None:
    from pipeline.operate.instance import open_instance

    with open_instance(settings) as instance:
        instance.upgrade()


def _upgrade_ours(settings: Settings) -> None:
    import sqlalchemy as sa
    from alembic.command import upgrade
    from sqlalchemy.pool import NullPool

    engine = sa.create_engine("postgresql+psycopg2://", creator=lambda: connect(settings), poolclass=NullPool)
    with engine.connect() as connection:
        config = _config()
        config.attributes["connection"] = connection
        upgrade(config, "head")
        connection.commit()


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config
