"""What the kernel says of this container's memory, CPU and disk: cgroup v2, else v1."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MIB = 1 << 20
SAMPLE = "millrace/resources"  # label of the metadata of an event by which a run tells its `Usage`


@dataclass(frozen=True)
class Usage:
    """Bytes, seconds, and processes that the kernel killed for want of memory; None or 0 where it does not tell.

    *working_set* is the memory that the kernel cannot take back at once, as Kubernetes counts it. Sums are since the start.
    *peak_is_sampled* says that the kernel tells no *peak* (cgroup v2 before Linux 5.19), and it is the highest that was seen.
    """

    working_set: int | None = None
    limit: int | None = None
    peak: int | None = None
    cpu_seconds: float = 0.0
    throttled_seconds: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    oom_kills: int = 0
    peak_is_sampled: bool = False

    def __str__(self) -> str:
        peak = f"{self.peak / MIB:.0f} MiB" if self.peak is not None else "an unknown amount"
        return f"memory peaked at {peak} of {f'{self.limit / MIB:.0f} MiB' if self.limit else 'no limit'}"


def read_usage(root: Path = ROOT) -> Usage:
    """The figures of the container that this process runs in."""
    return _usage_v2(root) if (root / "cgroup.controllers").exists() else _usage_v1(root)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes this container may use (cgroup v2, else v1); None where there is no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _number(root / name)
        if limit is not None and limit < 1 << 60:  # v1 writes "no limit" as a huge number
            return limit
    return None


def _usage_v2(root: Path) -> Usage:
    cpu, disks = _fields(root / "cpu.stat"), _lines(root / "io.stat")
    return Usage(
        working_set=_less(_number(root / "memory.current"), _fields(root / "memory.stat").get("inactive_file")),
        limit=memory_limit(root),
        peak=_number(root / "memory.peak"),
        cpu_seconds=cpu.get("usage_usec", 0) / 1e6,
        throttled_seconds=cpu.get("throttled_usec", 0) / 1e6,
        read_bytes=_sum(disks, "rbytes="),
        written_bytes=_sum(disks, "wbytes="),
        oom_kills=_fields(root / "memory.events").get("oom_kill", 0),
    )


def _usage_v1(root: Path) -> Usage:
    memory, disks = root / "memory", _lines(root / "blkio" / "blkio.throttle.io_service_bytes")
    return Usage(
        working_set=_less(
            _number(memory / "memory.usage_in_bytes"), _fields(memory / "memory.stat").get("total_inactive_file")
        ),
        limit=memory_limit(root),
        peak=_number(memory / "memory.max_usage_in_bytes"),
        cpu_seconds=(_number(root / "cpuacct" / "cpuacct.usage") or 0) / 1e9,
        throttled_seconds=_fields(root / "cpu" / "cpu.stat").get("throttled_time", 0) / 1e9,
        read_bytes=_sum(disks, "Read "),
        written_bytes=_sum(disks, "Write "),
        oom_kills=_fields(memory / "memory.oom_control").get("oom_kill", 0),
    )


def _less(used: int | None, reclaimable: int | None) -> int | None:
    return None if used is None else max(used - (reclaimable or 0), 0)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):
        return []


def _number(file: Path) -> int | None:
    text = "".join(_lines(file)).strip()
    return int(text) if text.isdigit() else None


def _fields(file: Path) -> dict[str, int]:
    """Of lines ``name number``."""
    found = (line.split() for line in _lines(file))
    return {words[0]: int(words[1]) for words in found if len(words) == 2 and words[1].isdigit()}


def _sum(lines: list[str], before: str) -> int:
    """Of the numbers that follow *before*, one line a disk."""
    numbers = (line.partition(before)[2].partition(" ")[0] for line in lines if before in line)
    return sum(int(number) for number in numbers if number.isdigit())
