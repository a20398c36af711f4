"""Loads that are killed, collide, or lose their disk or database: as real processes."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import stamina
from pydantic import SecretStr

from pipeline.errors import LakeError, LakeRejected, SourceUnavailable
from pipeline.lake.connection import Lake
from pipeline.lake.maintenance import maintain
from pipeline.operate.database import stop_embedded, with_database
from pipeline.settings import Settings
from tests.ingest.file_sources import Shop

CHILD = Path(__file__).with_name("load_once.py")
ROWS = 200_000
MANY = 2_000_000  # enough to be caught in the middle
COLUMNS = {"id": "BIGINT", "name": "VARCHAR"}


class Loader:
    """A child process that loads the shop's source."""

    def __init__(self, shop: Shop, run_id: str = "child", *, months: str = "", stops: str = "") -> None:
        url = shop.settings.database_url
        assert url
        environment = {
            **os.environ,
            "MILLRACE_STATE_DIR": str(shop.settings.state_dir),
            "MILLRACE_DATABASE_URL": url.get_secret_value(),
            "MILLRACE_THREADS": "2",
        }
        self.process = subprocess.Popen(
            [sys.executable, CHILD, shop.file.path, run_id, months, stops],
            env=environment, cwd=Path(__file__).parents[2], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.wait_for("ready")

    def wait_for(self, line: str) -> None:
        assert self.process.stdout
        while True:
            found = self.process.stdout.readline()
            if not found:
                raise AssertionError(f"the child ended before {line!r}: {self.process.wait()}")
            if found.strip() == line:
                return

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """Exit code and the last words."""
        output, _ = self.process.communicate(timeout=120)
        return self.process.returncode, output.strip().rpartition("done")[2].partition("\n")[2] or output

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=30)
        assert self.process.returncode == -signal.SIGKILL


@pytest.fixture
def loaders() -> Iterator[Callable[..., Loader]]:
    started: list[Loader] = []

    def start(*arguments: object, **options: str) -> Loader:
        started.append(Loader(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for loader in started:
        if loader.process.returncode is None:
            loader.process.kill()
            loader.process.communicate()


@pytest.fixture
def shop(lake: Lake, settings: Settings, tmp_path: Path) -> Shop:
    return Shop(lake, settings, tmp_path / "project")


def write(shop: Shop, name: str, version: int, rows: int = ROWS) -> None:
    """A file whose every row tells its version; whole from one moment to the next."""
    path = shop.parquet(
        f"{name}.new", f"SELECT range AS id, 'v{version} ' || md5(range::VARCHAR) AS name FROM range({rows})"
    )
    path.rename(shop.folder / name)


def versions(shop: Shop, rows: int = ROWS) -> list[str]:
    """The versions in the table; each must be there whole, without doubles."""
    if not shop.has_table():
        return []
    found = shop.lake.query(
        "SELECT split_part(name, ' ', 1), count(*), count(DISTINCT id) FROM raw.shop__sales GROUP BY ALL ORDER BY 1"
    )
    assert {row[1:] for row in found} <= {(rows, rows)}
    return [row[0] for row in found]


def wait_until(true: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def lake_files(shop: Shop) -> int:
    return len(list(Path(shop.settings.lake_path).rglob("*.parquet")))


# kill -9


def test_a_load_killed_before_its_commit_leaves_nothing_and_the_next_loads_all(shop: Shop, loaders):
    shop.declare(path="*.parquet", columns=COLUMNS)
    write(shop, "a.parquet", 1, rows=MANY)
    child = loaders(shop)
    child.go()
    wait_until(lambda: lake_files(shop) > 0)

    child.kill()

    assert versions(shop, MANY) == []
    assert lake_files(shop) > 0, "an orphan"
    assert shop.load().rows == MANY
    assert versions(shop, MANY) == ["v1"]


def test_a_load_killed_after_a_commit_keeps_it_and_the_next_continues(shop: Shop, loaders):
    shop.declare(path="{month}.parquet", months={"first": "2021-01"}, columns=COLUMNS)
    write(shop, "2021-01.parquet", 1)
    write(shop, "2021-02.parquet", 2)
    child = loaders(shop, stops="1")
    child.go()
    child.wait_for("done 1")

    child.kill()

    assert versions(shop) == ["v1"]
    result = shop.load()
    assert (result.files_loaded, result.files_unchanged) == (("2021-02.parquet",), 1)
    assert versions(shop) == ["v1", "v2"]


def test_a_load_killed_at_any_moment_leaves_one_version_whole(shop: Shop, loaders):
    shop.declare(path="*.parquet", columns=COLUMNS)
    write(shop, "a.parquet", 0)
    child = loaders(shop)
    started = time.monotonic()
    child.go()
    assert child.end()[0] == 0
    seconds = time.monotonic() - started
    moments = random.Random(7)

    for version in range(1, 9):
        write(shop, "a.parquet", version)
        child = loaders(shop, f"run-{version}")
        child.go()
        time.sleep(moments.uniform(0.2, 1.1) * seconds)
        child.process.kill()  # or it is done already
        child.end()
        (found,) = versions(shop)
        assert found in (f"v{version - 1}", f"v{version}")
        shop.load()
        assert versions(shop) == [f"v{version}"]

    assert shop.lake.scalar("SELECT count(*) FROM ingest.loads") == 9


# Several at once


@pytest.mark.parametrize("table", ["new table", "old table"])
def test_two_loads_of_one_new_file_at_once_load_it_once(shop: Shop, loaders, table: str):
    shop.declare(path="*.parquet", columns=COLUMNS)
    if table == "old table":  # two inserts into it would both succeed
        write(shop, "old.parquet", 0)
        shop.load()
        shop.lake.query("DELETE FROM raw.shop__sales")
    write(shop, "new.parquet", 1, rows=MANY)
    children = [loaders(shop, run) for run in ("one", "two")]

    for child in children:
        child.go()

    ends = [child.end() for child in children]
    assert sorted(ends) == [(0, "rows 0"), (0, f"rows {MANY}")]
    assert versions(shop, MANY) == ["v1"]


def test_six_loads_of_different_months_at_once_all_succeed(shop: Shop, loaders):
    months = [f"2021-{number:02}" for number in range(1, 7)]
    shop.declare(path="{month}.parquet", months={"first": "2021-01"}, columns=COLUMNS)
    for version in (1, 2):  # first they all make the table, then they all replace rows of it
        for number, month in enumerate(months):
            write(shop, f"{month}.parquet", version * 10 + number, rows=20_000)
        children = [loaders(shop, month, months=month) for month in months]

        for child in children:
            child.go()

        ends = [child.end() for child in children]
        assert ends == [(0, "rows 20000")] * 6
        assert versions(shop, 20_000) == [f"v{version * 10 + number}" for number in range(6)]


def test_maintenance_during_loads_loses_nothing(shop: Shop, loaders):
    months = [f"2021-{number:02}" for number in range(1, 13)]
    shop.declare(path="{month}.parquet", months={"first": "2021-01"}, columns=COLUMNS)
    for number, month in enumerate(months):
        write(shop, f"{month}.parquet", 100 + number, rows=20_000)
    child = loaders(shop)
    child.go()
    rounds = 0

    while child.process.poll() is None:
        maintain(shop.lake, older_than_days=1)
        rounds += 1

    assert child.end()[0] == 0
    assert rounds > 0
    assert versions(shop, 20_000) == [f"v{100 + number}" for number in range(12)]


# The disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts file systems in memory of a given size."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"mounting a small disk is not allowed here: {error}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_full_disk_while_downloading_is_told_and_passes(shop: Shop, small_disk: Callable[[str], Path]):
    disk = small_disk("size=1m")
    shop.declare(path="a.parquet", columns=COLUMNS)
    write(shop, "a.parquet", 1)
    with served(shop.folder) as address, stamina.set_testing(True, attempts=2):
        shop.declare(path="a.parquet", columns=COLUMNS, location=address)
        settings = shop.settings.model_copy(update={"scratch_dir": disk})

        shop.refused(
            "Fetching a.parquet",
            "No space left on device",
            "MILLRACE_SCRATCH_DIR",
            kind=SourceUnavailable,
            settings=settings,
        )
        assert list((disk / "downloads").iterdir()) == []

        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert shop.load(settings=settings).rows == ROWS


def test_a_full_disk_while_writing_the_lake_is_told_and_commits_nothing(
    settings: Settings, tmp_path: Path, small_disk: Callable[[str], Path]
):
    disk = small_disk("size=2m")
    with Lake.open(settings.model_copy(update={"lake_data": str(disk)})) as lake:
        shop = Shop(lake, lake.settings, tmp_path / "project")
        shop.declare(path="*.parquet", columns=COLUMNS)
        write(shop, "a.parquet", 1)

        with pytest.raises(LakeRejected, match=r"Writing raw/shop/sales: the disk is full"):
            shop.load()

        assert not shop.has_table()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert shop.load().rows == ROWS
        assert versions(shop) == ["v1"]


def test_a_state_folder_that_cannot_be_written_is_named(settings: Settings, small_disk: Callable[[str], Path]):
    disk = small_disk("size=1m,ro")

    with pytest.raises(LakeRejected, match=rf"{disk}.*Read-only file system.*MILLRACE_STATE_DIR"):
        Lake.open(settings.model_copy(update={"state_dir": disk}))


# The database


def test_a_database_gone_in_mid_load_is_unavailable_and_the_next_load_is_whole(tmp_path: Path, loaders):
    settings = with_database(Settings(state_dir=tmp_path / "own"))
    try:
        with Lake.open(settings) as lake:
            shop = Shop(lake, settings, tmp_path / "project")
            shop.declare(path="*.parquet", columns=COLUMNS)
            write(shop, "a.parquet", 1, rows=MANY)
            child = loaders(shop)
        child.go()
        wait_until(lambda: lake_files(shop) > 0)
        server = int((tmp_path / "own/postgres/postmaster.pid").read_text().split()[0])
        os.kill(server, signal.SIGQUIT)  # what `pg_ctl stop -m immediate` does

        code, words = child.end()

        assert (code, words.partition(":")[0]) == (75, "LakeUnavailable"), words
        settings = with_database(Settings(state_dir=tmp_path / "own"))
        with Lake.open(settings) as lake:
            shop.lake = lake
            assert not shop.has_table()
            assert shop.load().rows == MANY
            assert versions(shop, MANY) == ["v1"]
    finally:
        stop_embedded(Settings(state_dir=tmp_path / "own"))


def test_a_database_that_is_down_is_unavailable(settings: Settings):
    url = SecretStr("postgresql://millrace@127.0.0.1:9/")

    with pytest.raises(LakeError) as caught:
        Lake.open(settings.model_copy(update={"database_url": url}))

    assert caught.value.is_transient
