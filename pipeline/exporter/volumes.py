"""Room on the volumes, as those who mount them tell it, runs, backups and the database's pod: the exporter mounts none."""

from typing import Any

from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.resources import sample_of
from pipeline.exporter.topic import Batch, Topic

FORGET_SECONDS = 86_400.0  # after it was told last: the volume is gone, or nobody mounts it any more


class Volumes(Topic):
    """Told with the resources of each run, so as new as the last run; that of the bundled database each minute."""

    name = "volumes"
    bodies_of = frozenset({"ENGINE_EVENT"})

    def __init__(self, registry: Registry) -> None:
        self.free = registry.last_value(
            "millrace_volume_free_bytes",
            "Room that is left on the volume, when one that mounts it looked last.",
            ["volume"],
        )
        self.size = registry.last_value("millrace_volume_size_bytes", "Size of the volume.", ["volume"])
        self._told_at: dict[str, float] = {}

    def count(self, batch: Batch) -> None:
        for event in batch.events:
            for volume, (free, size) in ((sample_of(event) or {}).get("volumes") or {}).items():
                self.tell(volume, free, size, event.at)

    def tell(self, volume: str, free: float, size: float, at: float) -> None:
        """Take what one that mounts *volume* saw, bytes, at *at*."""
        self.free.set(free, volume)
        self.size.set(size, volume)
        self._told_at[volume] = at

    def poll(self, database: Database, now: float) -> None:
        told = "SELECT volume, free_bytes, size_bytes, extract(epoch FROM told_at)::float8 FROM millrace.volumes"
        for row in database.rows(told):
            self.tell(*row)
        for (volume,) in list(self.free.series):
            if now - self._told_at.setdefault(volume, now) > FORGET_SECONDS:
                self.free.remove(volume)
                self.size.remove(volume)
        self._told_at = {volume: at for volume, at in self._told_at.items() if (volume,) in self.free.series}

    def dump(self) -> Any:
        return self._told_at

    def load(self, dumped: Any) -> None:
        self._told_at = dumped
