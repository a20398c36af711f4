"""The embedded PostgreSQL, started and ended for real in folders of each test's own."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import psycopg2
import pytest

from pipeline.errors import ConfigError, ServiceError
from pipeline.operate.database import connect, postgres_bin, stop_embedded, with_database
from pipeline.settings import Settings


@pytest.fixture
def make_home() -> Iterator[Callable[..., Settings]]:
    """Makes settings with a state folder of this test's own; their servers are ended."""
    made: list[Settings] = []
    with tempfile.TemporaryDirectory(prefix="millrace-tests-") as folder:

        def make(name: str = "state") -> Settings:
            made.append(Settings(state_dir=Path(folder) / name))
            return made[-1]

        yield make
        for settings in made:
            if os.access(settings.state_dir, os.W_OK):
                stop_embedded(settings)


def postmaster(settings: Settings) -> int:
    return int((settings.state_dir / "postgres" / "postmaster.pid").read_text().split()[0])


def answer(settings: Settings, query: str = "SELECT 42") -> object:
    with closing(connect(with_database(settings), "lake")) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return (cursor.fetchone() or (None,))[0]


def in_child(settings: Settings, count: int = 1) -> list[str]:
    """What *count* processes print that ask for the database at the same time."""
    program = (
        "from pipeline.settings import Settings; from pipeline.operate.database import with_database, connect;"
        "connect(with_database(Settings.load()), 'lake').close(); print('connected')"
    )
    environment = os.environ | {"MILLRACE_STATE_DIR": str(settings.state_dir)}
    children = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    return [child.communicate(timeout=60)[0].strip() for child in children]


def test_ten_processes_on_a_fresh_folder_get_one_server(make_home: Callable[..., Settings]) -> None:
    settings = make_home()

    assert in_child(settings, count=10) == ["connected"] * 10

    data = str(settings.state_dir / "postgres")
    servers = [process for process in psutil.process_iter() if data in _arguments(process)]
    assert [process.pid for process in servers] == [postmaster(settings)]


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_asking_for_a_running_server_takes_no_time(make_home: Callable[..., Settings]) -> None:
    settings = make_home()
    with_database(settings)

    begin = time.monotonic()
    for _ in range(10):
        with_database(settings)

    assert (time.monotonic() - begin) / 10 < 0.15


@pytest.mark.parametrize("name", ["a folder, 'quoted'", "x" * 120], ids=["quoting", "longer than a socket's path"])
def test_any_folder_name_will_do(make_home: Callable[..., Settings], name: str) -> None:
    settings = make_home(name)

    assert answer(settings) == 42

    environment = os.environ | with_database(settings).libpq_environment()
    printed = subprocess.run(
        [postgres_bin() / "psql", "-Atc", "SELECT current_user"], env=environment, capture_output=True, text=True
    )
    assert printed.stdout == "millrace\n"


def test_only_its_own_user_may_reach_the_socket(make_home: Callable[..., Settings]) -> None:
    for name in ("short", "x" * 120):
        with_url = with_database(make_home(name))
        folder = Path(with_url.libpq("lake")["host"])

        assert folder.stat().st_mode & 0o077 == 0
        assert (folder / ".s.PGSQL.5432").stat().st_mode & 0o077 == 0


def test_a_killed_server_is_started_again_with_what_was_committed(make_home: Callable[..., Settings]) -> None:
    settings = make_home()
    with closing(connect(with_database(settings), "lake")) as connection, connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept AS SELECT 7 AS number")
    killed = postmaster(settings)

    os.kill(killed, signal.SIGKILL)

    assert answer(settings, "SELECT number FROM kept") == 7
    assert postmaster(settings) != killed


def test_a_pid_file_from_before_a_reboot_is_seen_through(make_home: Callable[..., Settings]) -> None:
    settings = make_home()
    with_database(settings)
    pid_file = settings.state_dir / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    os.kill(int(lines[0]), signal.SIGKILL)
    with subprocess.Popen(["sleep", "60"]) as innocent:
        pid_file.write_text("\n".join([str(innocent.pid), *lines[1:]]) + "\n")

        assert answer(settings) == 42

        assert stop_embedded(settings)
        assert innocent.poll() is None
        innocent.kill()


def test_a_copied_state_folder_gets_a_server_of_its_own(make_home: Callable[..., Settings]) -> None:
    original, copy = make_home("original"), make_home("copy")
    with_database(original)
    shutil.copytree(original.state_dir, copy.state_dir, ignore=shutil.ignore_patterns(".s.PGSQL*"))
    owner = (original.state_dir / "postgres").stat()
    for path in [copy.state_dir / "postgres", *(copy.state_dir / "postgres").rglob("*")]:
        os.chown(path, owner.st_uid, owner.st_gid)

    for settings in (copy, original):
        assert with_database(settings).libpq("lake")["host"] == str(settings.state_dir / "postgres")
        assert answer(settings) == 42
    assert postmaster(copy) != postmaster(original)


def test_a_folder_half_made_by_a_killed_process_is_made_anew(make_home: Callable[..., Settings]) -> None:
    settings = make_home()
    (settings.state_dir / "postgres.new" / "base").mkdir(parents=True)

    assert answer(settings) == 42


def test_stopping_ends_the_server_and_may_be_repeated(make_home: Callable[..., Settings]) -> None:
    settings = make_home("x" * 120)
    host = Path(with_database(settings).libpq("lake")["host"])

    assert stop_embedded(settings)
    assert not stop_embedded(settings)
    assert not host.exists()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(host=str(host), dbname="lake", user="millrace")


def test_data_of_another_version_is_refused_by_name(make_home: Callable[..., Settings]) -> None:
    settings = make_home()
    with_database(settings)
    stop_embedded(settings)
    (settings.state_dir / "postgres" / "PG_VERSION").write_text("15\n")

    with pytest.raises(ConfigError, match=r"data of PostgreSQL 15; this Millrace runs 16.*MILLRACE_STATE_DIR"):
        with_database(settings)


def test_a_server_that_cannot_start_shows_its_log(make_home: Callable[..., Settings]) -> None:
    settings = make_home()
    with_database(settings)
    stop_embedded(settings)
    with (settings.state_dir / "postgres" / "postgresql.conf").open("a") as file:
        file.write("max_connections = many\n")

    with pytest.raises(ServiceError, match='invalid value for parameter "max_connections"'):
        with_database(settings)


def test_a_foreign_folder_is_left_alone(make_home: Callable[..., Settings]) -> None:
    settings = make_home()
    precious = settings.state_dir / "postgres" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")

    with pytest.raises(ConfigError, match="is not empty and is no PostgreSQL data folder"):
        with_database(settings)

    assert precious.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
def test_without_root_it_works_and_a_folder_it_may_not_write_is_named(make_home: Callable[..., Settings]) -> None:
    mine, roots = make_home("mine"), make_home("roots")
    nobody = pwd.getpwnam("nobody")
    mine.state_dir.mkdir()
    os.chown(mine.state_dir, nobody.pw_uid, nobody.pw_gid)
    roots.state_dir.mkdir()
    for folder in mine.state_dir.parents:
        folder.chmod(folder.stat().st_mode | 0o001)
    reader, writer = os.pipe()

    # A fork and no new program: the interpreter may be in a folder of root's.
    if not (child := os.fork()):
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
        said = []
        for settings in (mine, roots):
            try:
                said.append(str(answer(settings)))
            except ConfigError as error:
                said.append(str(error))
        os.write(writer, "|".join(said).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    worked, refused = os.read(reader, 10_000).decode().split("|")
    os.close(reader)

    assert worked == "42"
    assert (mine.state_dir / "postgres").stat().st_uid == nobody.pw_uid
    assert refused.startswith(f"Starting the embedded PostgreSQL in {roots.state_dir / 'postgres'}: Permission denied")
    assert "MILLRACE_STATE_DIR" in refused
