"""What the kernel says of this container's memory: cgroup v2, else v1."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MIB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """Bytes, and processes that the kernel killed for want of them; None where the kernel does not tell."""

    limit: int | None
    peak: int | None
    kills: int

    def __str__(self) -> str:
        peak = f"{self.peak / MIB:.0f} MiB" if self.peak is not None else "an unknown amount"
        return f"memory peaked at {peak} of {f'{self.limit / MIB:.0f} MiB' if self.limit else 'no limit'}"


def read_memory(root: Path = ROOT) -> Memory:
    """The figures of the container that this process runs in."""
    return Memory(
        limit=memory_limit(root),
        peak=_number(root / "memory.peak") or _number(root / "memory/memory.max_usage_in_bytes"),
        kills=_field(root / "memory.events", "oom_kill") or _field(root / "memory/memory.oom_control", "oom_kill") or 0,
    )


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes this container may use (cgroup v2, else v1); None where there is no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:  # v1 writes "no limit" as a huge number
            return int(text)
    return None


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _field(file: Path, name: str) -> int | None:
    try:
        fields = dict(line.split(maxsplit=1) for line in file.read_text().splitlines())
        return int(fields[name])
    except (OSError, ValueError, KeyError):
        return None
