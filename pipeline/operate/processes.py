"""The processes of the services: found by the marks in their environment, which their descendants inherit.

So they are found after their supervisor was killed, and without a pid file that could be stale.
"""

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.settings import Settings

if TYPE_CHECKING:
    import psutil

ROUNDS = 3
GRACE_SECONDS = 20.0  # for runs to report their end; the code server drains within it


def end_processes(settings: Settings, service: str | None = None, *, grace_seconds: float = GRACE_SECONDS) -> int:
    """End every process of *service* (None: of all), found by the marks in its environment; returns their number.

    Children of a run process are left to it, so that the run says it was interrupted and not that its tool failed;
    what is left after the grace is killed.
    """
    import psutil

    ended = 0
    for _ in range(ROUNDS):  # a process that was just starting another is seen only with the next look
        found = _marked(settings, service)
        if not found:
            break
        workers = {process.pid for process in found if _is_run_worker(process)}
        for process in found:
            with suppress(psutil.Error):
                if process.ppid() not in workers:
                    process.terminate()
        _, alive = psutil.wait_procs(found, timeout=grace_seconds)
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=5)
        ended += len(found)
    return ended


def await_exit(pid: int, *, seconds: float) -> None:
    """Return when process *pid*, not a child of this one, is gone or a zombie; after *seconds* in any case."""
    import psutil

    deadline = time.monotonic() + seconds
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.05)


def _marked(settings: Settings, service: str | None) -> "list[psutil.Process]":
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            marks = process.environ()
            if marks.get("MILLRACE_STATE_DIR") != str(settings.state_dir) or "MILLRACE_SERVICE" not in marks:
                continue
            if service in (None, marks["MILLRACE_SERVICE"]) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _is_run_worker(process: "psutil.Process") -> bool:
    import psutil

    with suppress(psutil.Error):
        return any("multiprocessing.spawn" in argument for argument in process.cmdline())
    return False


def memory_bytes(pid: int) -> int:
    """Resident memory of process *pid* and its direct children; 0 if it is gone."""
    import psutil

    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children()):
            with suppress(psutil.Error):
                total += each.memory_info().rss
    return total
