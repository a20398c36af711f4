"""A sync killed at any moment: nothing lost, nothing doubled, no connector left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import psycopg2
import pytest

from pipeline.ingest.airbyte import sync
from pipeline.ingest.spec import SourceFile
from pipeline.lake.connection import Lake
from pipeline.settings import Settings

SYNC_ONCE = Path(__file__).with_name("connectors") / "sync_once.py"
COUNT = 400
Shop = Callable[..., SourceFile]


@contextmanager
def syncing(settings: Settings, file: SourceFile, commit_bytes: int) -> Iterator[subprocess.Popen[bytes]]:
    """A sync in another process, which is gone at the end of the block."""
    assert settings.database_url
    environment = {
        **os.environ,
        "MILLRACE_DATABASE_URL": settings.database_url.get_secret_value(),
        "MILLRACE_STATE_DIR": str(settings.state_dir),
        "MILLRACE_CONNECTORS_DIR": str(settings.connectors_path),
    }
    with subprocess.Popen(
        [sys.executable, str(SYNC_ONCE), str(file.path), str(commit_bytes)], env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the sync ended by itself"
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.05)


def is_gone(pid_file: Path) -> bool:
    pid = int(pid_file.read_text())
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def row_count(lake: Lake) -> int:
    tables = lake.scalar("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'shop__items'")
    return lake.scalar("SELECT count(*) FROM raw.shop__items") if tables else 0


@pytest.mark.parametrize("mode", ["incremental_append", "incremental_deduped", "full_refresh"])
@pytest.mark.parametrize("phase", ["before", "during", "after"])
def test_a_sync_killed_around_its_commit_is_completed_by_the_next(
    connected: Settings, shop: Shop, tmp_path: Path, phase: str, mode: str
) -> None:
    pid_file = tmp_path / "pid"
    streams = f"- {{name: items, sync: {mode}, primary_key: [id]}}"
    plan = {"count": COUNT, "state_every": 100, "pid_file": str(pid_file)}
    with Lake.open(connected) as lake, closing(psycopg2.connect(**connected.libpq("lake"))) as catalogue:
        cursor = catalogue.cursor()
        if phase == "before":
            file = shop(streams, plan={**plan, "at": {"350": "hang"}})
        elif phase == "during":
            file = shop(streams, plan={**plan, "at": {str(COUNT + 1): "hang"} if mode != "full_refresh" else {}})
        else:
            file = shop(streams, plan={**plan, "pause": 0.3})
        prepare_tables(lake)
        if phase == "during":  # a commit has to write here
            cursor.execute("LOCK TABLE ducklake_snapshot IN SHARE MODE")

        with syncing(connected, file, 1 if phase != "before" else 1 << 30) as process:
            if phase == "before":
                wait_for(lambda: spooled(connected) > 50_000, process)
            elif phase == "during":
                with closing(psycopg2.connect(**connected.libpq("lake"))) as watching:
                    watching.autocommit = True
                    wait_for(lambda: is_blocked(watching), process)
            elif mode == "full_refresh":
                wait_for(lambda: row_count(lake) == COUNT or process.poll() is not None, process)
            else:
                wait_for(lambda: row_count(lake) > 0, process)
            process.send_signal(signal.SIGKILL)
            process.wait()

        catalogue.rollback()
        assert is_gone(pid_file)
        committed = row_count(lake)
        if phase == "before":
            assert committed == 0
        sync(lake, shop(streams, plan={"count": COUNT}), None, settings=connected, run_id="next")
        found = lake.query("SELECT count(*), count(DISTINCT id), min(id), max(id) FROM raw.shop__items")
        assert found == [(COUNT, COUNT, 1, COUNT)]
        if phase == "after" and mode != "full_refresh":
            assert lake.scalar("SELECT count(*) FROM raw.shop__items WHERE _run_id = 'killed'") >= committed
    assert not list(connected.scratch_path.glob("connector-*"))


def prepare_tables(lake: Lake) -> None:
    from pipeline.ingest.raw import prepare

    prepare(lake)


def spooled(settings: Settings) -> int:
    return sum(path.stat().st_size for path in settings.scratch_path.glob("connector-*/items.ndjson"))


def is_blocked(watching: "psycopg2.extensions.connection") -> bool:
    with watching.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'ducklake_snapshot'::regclass")
        return cursor.fetchone()[0] > 0


def test_sigterm_ends_the_connector_too(connected: Settings, shop: Shop, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    file = shop(plan={"at": {"5": "hang"}, "pid_file": str(pid_file)})

    with syncing(connected, file, 1) as process:
        wait_for(lambda: pid_file.exists() and pid_file.read_text(), process)
        process.send_signal(signal.SIGTERM)
        code = process.wait(20)

    assert code == 128 + signal.SIGTERM
    assert is_gone(pid_file)
    assert not list(connected.scratch_path.glob("*connector-*"))
