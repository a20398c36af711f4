"""What a topic of the exporter is: some metrics, and how they come about from events and tables."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from pipeline.exporter.database import Database
from pipeline.exporter.run_facts import RunFacts
from pipeline.exporter.tail import Event

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Events that are counted together, to be taken once, and what the database says of their runs, by run id."""

    events: Iterator[Event]
    runs: dict[str, RunFacts]


class Topic:
    """Counts in memory. What is not a metric of its own and must outlive a restart goes through `dump` and `load`."""

    name = ""
    bodies_of: frozenset[str] = frozenset()  # event types whose whole text `count` reads
    problems: Mapping[str, str] = {}  # the exporter's, of all its collectors: what was wrong with the last poll of each

    @property
    def is_urgent(self) -> bool:
        """True if what it has to save should not wait for the next time."""
        return False

    def count(self, batch: Batch) -> None:
        """Count events, each of which comes once. It asks nothing. An event on which it fails is lost, the next are not."""

    def poll(self, database: Database, now: float) -> None:
        """Read what is as it is now. All of it or nothing: a failure is told and tried again at the next poll."""

    def adopt(self, database: Database) -> None:
        """Begin without a past."""

    def close(self) -> None:
        """Do nothing more: the last `dump` follows."""

    def dump(self) -> Any:
        return None

    def saved(self) -> None:
        """What the last `dump` gave is written."""

    def load(self, dumped: Any) -> None:
        pass


def restored(kind: type[T], dumped: Mapping[str, Any]) -> T:
    """The dataclass *kind* from what `asdict` gave, without the fields that only another version has."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in dumped.items() if name in known})
