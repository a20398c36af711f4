"""The exporter as a process: what it serves, and that kills cost no event and double none."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from pipeline.operate.database import connect
from pipeline.settings import Settings
from tests.exporter.conftest import Watched

# Saves twice a second instead of every minute, so that kills come before, between and after.
PROGRAM = """import sys; from pipeline.exporter import exporter; exporter.SAVE_SECONDS = 0.5
from pipeline.cli import main; sys.argv[1:] = ["serve", "metrics"]; main()"""


class Process:
    """``millrace serve metrics`` on a free port."""

    def __init__(
        self, settings: Settings, *, program: str = PROGRAM, output: Path | None = None, **environment: str
    ) -> None:
        self._program, self._output = program, output
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert settings.database_url
        self._environment = {
            **os.environ,
            "MILLRACE_DATABASE_URL": settings.database_url.get_secret_value(),
            "MILLRACE_STATE_DIR": str(settings.state_dir),
            "MILLRACE_METRICS_PORT": self.address.rpartition(":")[2],
            "MILLRACE_METRICS_INTERVAL_SECONDS": "0.1",
            "MILLRACE_WEBSERVER_URL": "http://127.0.0.1:9",  # nobody answers there
            **environment,
        }
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", self._program]
        if self._output is None:
            self._process = subprocess.Popen(command, env=self._environment)
        else:
            with self._output.open("ab") as stdout:
                self._process = subprocess.Popen(command, env=self._environment, stdout=stdout)

    def end(self, number: int) -> int:
        self._process.send_signal(number)
        return self._process.wait(20)

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return httpx2.get(f"{self.address}{path}", headers=headers, timeout=5)

    def successes(self) -> float | None:
        """What a scrape shows now; None if nothing answers."""
        try:
            lines = self.get("/metrics").text.splitlines()
        except httpx2.HTTPError:
            return None
        found = [float(line.rsplit(" ", 1)[1]) for line in lines
                 if line.startswith("dagster_runs_completed_total{") and 'status="success"' in line]  # fmt: skip
        return sum(found) if found else None

    def until(self, wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not wanted():
            assert time.monotonic() < deadline, "it did not come to that"
            time.sleep(0.05)


@pytest.fixture
def process(settings: Settings, watched: Watched) -> Iterator[Process]:
    """Its first start is over, and with it the decision that nothing before is counted."""
    watched.exporter.save()
    watched.database.close()
    started = Process(settings)
    started.until(lambda: status_of(started, "/healthz") == 200)
    yield started
    started.end(signal.SIGKILL)


def status_of(process: Process, path: str) -> int:
    try:
        return process.get(path).status_code
    except httpx2.HTTPError:
        return 0


def test_it_serves_both_formats_and_says_how_it_is(process: Process, event: Callable[..., None]):
    event("PIPELINE_SUCCESS")
    process.until(lambda: process.successes() == 1)

    plain = process.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    modern = process.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    assert modern.text.endswith("# EOF\n")
    assert process.get("/healthz").status_code == 200
    assert process.get("/elsewhere").status_code == 404
    assert process.get("/monitor?hours=1").json()["window"]["asked_hours"] == 1
    assert process.get("/monitor?hours=none").status_code == 400
    # The webserver does not answer: what it would tell is missing, which is said, and the rest is there.
    assert process.get("/readyz").status_code == 503
    assert 'dagster_exporter_poll_errors_total{collector="workspace"} ' in plain.text


def test_ended_by_sigterm_it_has_saved_all(process: Process, settings: Settings, event: Callable[..., None]):
    event("PIPELINE_SUCCESS")
    process.until(lambda: process.successes() == 1)
    assert process.end(signal.SIGTERM) == 0

    with closing(connect(settings)) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM event_logs")
    assert Watched(settings).start().value("dagster_runs_completed_total", status="success") == 1
    process.start()


def test_killed_again_and_again_under_load_it_shows_the_truth_and_never_less(process: Process, settings: Settings):
    stop, written = threading.Event(), [0, 0, 0]

    def write(writer: int) -> None:
        rows = random.Random(writer)
        with closing(connect(settings)) as connection:
            while not stop.is_set():
                with connection.cursor() as cursor:
                    cursor.execute(
                        "INSERT INTO event_logs (run_id, event, dagster_event_type, timestamp) "
                        "VALUES (%s, '{}', 'PIPELINE_SUCCESS', now() AT TIME ZONE 'UTC')",
                        [f"{writer}-{written[writer]}"],
                    )
                    time.sleep(rows.random() * 0.01)  # its id is taken, and others commit before it
                if rows.random() < 0.1:
                    connection.rollback()
                else:
                    connection.commit()
                    written[writer] += 1

    writers = [threading.Thread(target=write, args=[number]) for number in range(3)]
    for writer in writers:
        writer.start()
    seen: list[float] = []
    try:
        for _ in range(4):
            before = len(seen)

            def scraped_ten_times(before: int = before) -> bool:
                if (now := process.successes()) is not None:
                    seen.append(now)
                return len(seen) >= before + 10

            process.until(scraped_ten_times)
            process.end(signal.SIGKILL)
            process.start()
    finally:
        stop.set()
        for writer in writers:
            writer.join()

    process.until(lambda: process.successes() == sum(written))
    assert sum(written) > 200
    assert len(set(seen)) > 10
    assert seen == sorted(seen)
