"""Room on the volumes, as the runs that mount them tell it: the exporter mounts none."""

from pipeline.exporter.metrics import Registry
from pipeline.exporter.resources import sample_of
from pipeline.exporter.topic import Batch, Topic


class Volumes(Topic):
    """Told with the resources of each run, so as new as the last run."""

    name = "volumes"
    bodies_of = frozenset({"ENGINE_EVENT"})

    def __init__(self, registry: Registry) -> None:
        self.free = registry.last_value(
            "millrace_volume_free_bytes", "Room that is left on the volume, when a run looked last.", ["volume"]
        )
        self.size = registry.last_value("millrace_volume_size_bytes", "Size of the volume.", ["volume"])

    def count(self, batch: Batch) -> None:
        for event in batch.events:
            for volume, (free, size) in ((sample_of(event) or {}).get("volumes") or {}).items():
                self.free.set(free, volume)
                self.size.set(size, volume)
