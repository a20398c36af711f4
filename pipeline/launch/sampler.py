"""What a run uses, told through Dagster's event log: every 30 seconds where it changed, and at the end.

A sample is an engine event of the run with the metadata `SAMPLE`: memory, CPU and disk as `Usage` has them, and the free
and total bytes of the volumes that the run's process sees. The exporter reads it in the same tail as every other event,
so nothing listens in a run's process and nobody has to be reached from it. What a killed process told last stays told.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import dagster as dg
import psutil
from dagster._core.events import EngineEventData

from pipeline.cgroup import SAMPLE, Usage, memory_limit, read_usage
from pipeline.settings import Settings

INTERVAL_SECONDS = 30.0
SILENT_SECONDS = 300.0  # a sample comes after this time whatever changed
CHANGE = 0.1  # of the working set

_sampled: set[str] = set()  # runs of this process that have a sampler


class Sampler:
    """Tells what run *run* uses, as *read* finds it. `tell` may be called by any thread."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        run: dg.DagsterRun,
        settings: Settings,
        *,
        read: Callable[[], Usage] = read_usage,
    ) -> None:
        self._instance, self._run, self._settings, self._read = instance, run, settings, read
        self._told_at, self._told = time.monotonic(), 0
        self._peak = 0

    def tell(self) -> None:
        """Report a sample now. A database that is away costs the run nothing."""
        usage = self._usage()
        self._told_at, self._told = time.monotonic(), usage.working_set or 0
        sample = {**asdict(usage), "volumes": free_bytes(self._settings)}
        with suppress(Exception):
            self._instance.report_engine_event(
                f"The run's {usage}; it took {usage.cpu_seconds:.1f} s of CPU.",
                self._run,
                EngineEventData(metadata={SAMPLE: dg.MetadataValue.json(sample)}),
            )

    def tell_if_changed(self) -> None:
        """Report a sample if the working set is another, or the last is old."""
        now = self._usage().working_set or 0
        moved = abs(now - self._told) > CHANGE * max(self._told, 1)
        if moved or time.monotonic() - self._told_at >= SILENT_SECONDS:
            self.tell()

    def _usage(self) -> Usage:
        usage = self._read()
        self._peak = max(self._peak, usage.peak or 0, usage.working_set or 0)
        return replace(usage, peak=self._peak or None, peak_is_sampled=usage.peak is None)


@contextmanager
def sampling(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    settings: Settings,
    *,
    read: Callable[[], Usage] = read_usage,
    interval_seconds: float = INTERVAL_SECONDS,
) -> Iterator[Sampler | None]:
    """Sample *run* meanwhile, and once more at the end; None if something in this process does so already."""
    if run.run_id in _sampled:
        yield None
        return
    sampler, done = Sampler(instance, run, settings, read=read), threading.Event()

    def work() -> None:
        while not done.wait(interval_seconds):
            sampler.tell_if_changed()

    thread = threading.Thread(target=work, name="sampler", daemon=True)
    _sampled.add(run.run_id)
    thread.start()
    try:
        yield sampler
    finally:
        done.set()
        thread.join(timeout=10)
        _sampled.discard(run.run_id)


def read_processes() -> Usage:
    """The same of this process and its children, where a run has no container of its own: on one machine.

    The limit is that of the container around it all, else the machine's memory.
    """
    me = psutil.Process()
    resident = read = written = 0
    cpu = 0.0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):
            with process.oneshot():
                times = process.cpu_times()
                resident += process.memory_info().rss
                cpu += times.user + times.system
            if hasattr(process, "io_counters"):  # not on macOS
                disk = process.io_counters()
                read, written = read + disk.read_bytes, written + disk.write_bytes
    ended = me.cpu_times()  # children that were waited for are in their parent's sums
    cpu += getattr(ended, "children_user", 0.0) + getattr(ended, "children_system", 0.0)
    limit = memory_limit() or psutil.virtual_memory().total
    return Usage(resident, limit, None, cpu, 0.0, read, written)


def free_bytes(settings: Settings) -> dict[str, tuple[int, int]]:
    """Free and total bytes of the volumes that this installation keeps things on; of one file system the first name.

    Scratch is not among them: in a cluster it is an emptyDir, and what the file system tells of that is the node's disk.
    """
    places = {"lake": settings.lake_path, "logs": settings.compute_log_path}
    found: dict[int, tuple[str, Path]] = {}
    for name, place in places.items():
        if not place.startswith("s3:"):
            with suppress(OSError):  # nothing is there yet
                found.setdefault(Path(place).stat().st_dev, (name, Path(place)))
    rooms = {}
    for name, folder in found.values():
        with suppress(OSError):
            usage = shutil.disk_usage(folder)
            rooms[name] = (usage.free, usage.total)
    return rooms
