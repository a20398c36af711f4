"""How far long work is: said by who does it, shown by who has a terminal or a log."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A moment of one task. What is not known is None; counts only grow."""

    task: str
    rows: int = 0
    bytes_done: int = 0
    bytes_total: int | None = None
    items_done: int = 0
    items_total: int | None = None
    item: str = "files"

    @property
    def share(self) -> float | None:
        """Part done, 0 to 1; None if there is nothing to tell it by."""
        if self.bytes_total:
            return min(self.bytes_done / self.bytes_total, 1.0)
        if self.items_total:
            return min(self.items_done / self.items_total, 1.0)
        return None


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """A `Report` that nobody reads."""


_listener: ContextVar[Report] = ContextVar("listener", default=silent)


@contextmanager
def heard_by(listener: Report) -> Iterator[None]:
    """Send what `report` is told in this block to *listener*: assets have no parameter for it."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(step: Progress) -> None:
    """Tell whoever listens."""
    _listener.get()(step)
