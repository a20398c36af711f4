"""Fixtures of all tests: one real PostgreSQL for the session, an empty lake for each test that asks."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from pipeline.lake.connection import Lake
from pipeline.operate.database import prepare, stop_embedded, with_database
from pipeline.operate.instance import ensure_instance
from pipeline.settings import Settings

# Read before the session's clean environment: who has the environments already may lend them to the tests.
LENT_CONNECTORS = os.environ.get("MILLRACE_CONNECTORS_DIR")
MEMORY = "/dev/shm"  # noqa: S108 - the server's folder in it has a random name
PROVIDER_FILES = Path(__file__).parents[2] / "shared" / "data" / "nyc"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files of this folder first: at the end one worker would be at them, and the others without work."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting of the person who runs the tests reaches them."""
    # A shell's background job ignores SIGINT; Dagster gives SIGTERM the same handler, and no child could be ended.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    kept = dict(os.environ)
    for name in list(os.environ):
        of_the_tests = name in ("MILLRACE_REQUIRE_TOOLS", "MILLRACE_NODE_CONTROL") or name.startswith("MILLRACE_TEST_")
        if name.startswith(("MILLRACE_", "DAGSTER_", "DBT_", "PG", "AWS_")) and not of_the_tests:
            del os.environ[name]
    os.environ["MILLRACE_STATE_DIR"] = str(tmp_path_factory.mktemp("state"))
    os.environ["GOGC"] = "400"  # promtool, helm and kubectl live for seconds, half of which they would collect garbage
    os.environ["MILLRACE_THREADS"] = "1"  # tests share the cores; with two an insert takes twice the CPU's time
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(autouse=True)
def _restored_environment(_clean_environment: None) -> Iterator[None]:
    """What a test puts into the environment ends with it."""
    kept = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope="session")
def server() -> Iterator[Settings]:
    """Settings whose database is a real PostgreSQL of this session."""
    # Not below pytest's own folder: every session of pytest closes that to others, the server's account included.
    with tempfile.TemporaryDirectory(prefix="millrace-tests-", dir=_memory()) as folder:
        home = Settings(state_dir=Path(folder))
        settings = with_database(home)
        with closing(psycopg2.connect(administrators_url(settings), dbname="postgres")) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:  # a power failure is not among the tests
                cursor.execute("ALTER SYSTEM SET fsync = off")
                cursor.execute("SELECT pg_reload_conf()")
        ensure_instance(settings)
        recreate(settings, "tables", template="dagster")
        yield settings
        stop_embedded(home)


def _memory() -> str | None:
    """A folder in memory where there is room: making the two databases of a test takes a tenth of the time there."""
    return MEMORY if Path(MEMORY).is_dir() and shutil.disk_usage(MEMORY).free > 2**31 else None


def recreate(settings: Settings, name: str, *, template: str = "template1") -> None:
    """Make the database *name* of the embedded server anew, a copy of *template*."""
    with closing(psycopg2.connect(administrators_url(settings), dbname="postgres")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            cursor.execute(f"CREATE DATABASE {name} OWNER millrace TEMPLATE {template} STRATEGY FILE_COPY")


def administrators_url(settings: Settings) -> str:
    """The address of the embedded server for its administrator."""
    assert settings.database_url
    return settings.database_url.get_secret_value().replace("millrace@", "postgres@")


@pytest.fixture
def settings(server: Settings, tmp_path: Path) -> Settings:
    """Settings with an empty lake, and a Dagster database of this test's own: its tables are there, and empty."""
    recreate(server, "dagster", template="tables")
    return _with_lake(server, tmp_path)


@pytest.fixture
def bare_settings(server: Settings, tmp_path: Path) -> Settings:
    """The same, before any table is made."""
    recreate(server, "dagster")
    return _with_lake(server, tmp_path)


def _with_lake(server: Settings, folder: Path) -> Settings:
    recreate(server, "lake")
    prepare(administrators_url(server).replace("@/?", "@/postgres?"))
    return Settings(state_dir=folder / "state", database_url=server.database_url)


@pytest.fixture(scope="session")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where dbt projects are parsed to, as in an image: not again for each test whose project has the same files."""
    return tmp_path_factory.mktemp("parsed")


@pytest.fixture
def lake(settings: Settings) -> Iterator[Lake]:
    """An open, empty lake."""
    with Lake.open(settings) as opened:
        yield opened


@pytest.fixture(scope="session")
def provider_files() -> Path:
    """Folder of real provider files; the test is skipped where it is not at hand."""
    if not PROVIDER_FILES.is_dir():
        pytest.skip(f"no provider files in {PROVIDER_FILES}")
    return PROVIDER_FILES
