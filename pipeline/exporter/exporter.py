"""The loop: read what is new, count it, print the page; now and then save cursor and counts in one row.

What is saved together is a pure function of the events up to the cursor, so after a kill the events since are read again
and counted to the same figures: no counter ever shows less than it did, and none counts twice.
"""

import base64
import binascii
import json
import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import length_hint
from typing import Any

from pipeline.errors import ServiceError
from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Pages, Registry
from pipeline.exporter.run_facts import RunCache
from pipeline.exporter.tail import Page, Tail
from pipeline.exporter.topic import Batch, Topic

log = logging.getLogger(__name__)

FORMAT = 2  # of the saved state
SAVE_SECONDS = 60.0
URGENT_SECONDS = 0.5  # within which what should not wait is saved
SKEW_SECONDS = 300.0  # by which the clocks of those who write events may be ahead
LOCK = "millrace exporter"
Saved = tuple[str, str, Any]  # what it is of, its name, and its values for JSON


class Exporter:
    """All figures. One thread calls `poll`; others may read `pages` and the times."""

    def __init__(
        self,
        registry: Registry,
        database: Database,
        topics: Sequence[Topic],
        *,
        version: str = "",
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry, self.topics = registry, topics
        self.pages = Pages()
        self.polled_at = 0.0  # when the last whole poll ended
        self.problems: dict[str, str] = {}  # collector → what was wrong with its last poll
        self._database, self._clock, self._steady = database, clock, steady
        self._offset = clock() - steady()  # what was saved by another process is in its clock's time
        self._runs = RunCache()
        self._tail: Tail | None = None
        self._saved_at = 0.0
        self._locked_in = 0
        self._miscounted: set[str] = set()  # topics that failed on an event since the last poll
        self._bodies = frozenset().union(*(topic.bodies_of for topic in topics))
        for topic in topics:
            topic.problems = self.problems
        own = "dagster_exporter_"
        registry.gauge(f"{own}build_info", "Always 1.", ["version"]).set(1, version)
        self.poll_seconds = registry.gauge(f"{own}poll_duration_seconds", "How long the last poll took.")
        self.errors = registry.counter(f"{own}poll_errors_total", "Polls of a collector that failed.", ["collector"])
        self.succeeded = registry.last_value(
            f"{own}last_success_timestamp_seconds", "When the collector's figures were read last.", ["collector"]
        )
        self.lag = registry.gauge(
            f"{own}event_cursor_lag", "Ids of events that were handed out after the newest event counted."
        )
        self.events = registry.counter(f"{own}events_total", "Events counted.")
        self.gaps = registry.gauge(f"{own}gaps_pending", "Ids of events that were missing and are still looked for.")
        self.abandoned = registry.counter(
            f"{own}gaps_abandoned_total",
            "Ids that never came: of inserts that failed, or of transactions open for too long.",
        )
        self.dropped = registry.counter(
            f"{own}series_dropped_total", "Observations that went to __other__, as their metric is full.", ["metric"]
        )
        self.saved = registry.gauge(f"{own}snapshot_timestamp_seconds", "When cursor and counts were saved last.")
        for collector in ("events", "snapshot", *(topic.name for topic in topics)):
            self.errors.start(collector)
        self.abandoned.start()
        self.events.start()
        for metric in registry:
            if metric.labels:
                self.dropped.start(metric.name)

    def start(self, *, since: float | None = None) -> None:
        """Load what was saved, or begin now (*since*, epoch seconds, instead), and count up to the present.

        Raises:
            ServiceError: if the database does not answer.
        """
        if self._tail is None:  # else an attempt before this one came so far, and goes on from there
            self._tail = self._load(since)
        self._count_new()
        while not self._tail.is_done:
            self._count_new()
        self._saved_at = self._steady()
        self.saved.set(self._clock())  # else a first save that never succeeds would not be told
        known = self.succeeded.series  # from before a restart: what has failed since then is as old as it was
        collectors = ("events", *(topic.name for topic in self.topics))
        self.succeeded.replace({(name,): known.get((name,), self._clock()) for name in collectors})
        self.poll()

    def poll(self) -> bool:
        """Read all that is new, topic by topic; False if something failed, whose figures stay as they were."""
        started = self._clock()
        whole = self._attempt("events", self._count_new)
        for topic in self.topics:
            whole = self._attempt(topic.name, partial(topic.poll, self._database, started)) and whole
        self._miscounted.clear()
        self._show_self()
        self.poll_seconds.set(self._clock() - started)
        if whole:
            self.polled_at = self._clock()
        self.pages = self.registry.pages()
        return whole

    def save(self) -> None:
        """Cursor, gaps and counts, in one statement.

        Raises:
            ServiceError: if it could not be written; what was saved before is still there.
        """
        assert self._tail
        self._database.write(
            "INSERT INTO millrace.exporter_state (name, state, saved_at) VALUES ('exporter', %s, now()) "
            "ON CONFLICT (name) DO UPDATE SET state = excluded.state, saved_at = excluded.saved_at",
            _packed(self._dump()),
        )
        for topic in self.topics:
            topic.saved()
        self._saved_at = self._steady()
        self.saved.set(self._clock())

    def _dump(self) -> Iterator[Saved]:
        assert self._tail
        yield "format", "", FORMAT
        yield "tail", "", self._tail.dump()
        for metric in self.registry:
            if metric.is_saved and metric.series:
                yield "metric", metric.name, metric.dump()
        for topic in self.topics:
            if (dumped := topic.dump()) is not None:
                yield "topic", topic.name, dumped

    def run(self, stop: threading.Event, *, interval_seconds: float, beat: Callable[[], object] = lambda: None) -> None:
        """Poll until *stop*, and save at the end. Returns early if the lock of the only writer was lost."""
        poll_at = time.monotonic() + interval_seconds
        while not stop.wait(max(min(poll_at - time.monotonic(), URGENT_SECONDS), 0)):
            is_due = time.monotonic() >= poll_at
            if is_due:
                beat()
                self.poll()
                poll_at = time.monotonic() + interval_seconds
            elif "snapshot" in self.problems or not any(topic.is_urgent for topic in self.topics):
                continue  # what could not be saved is tried again after the next poll
            if self._database.sessions != self._locked_in and not self._try_lock():
                log.error("Another exporter took over while the database was away from this one.")
                return
            is_time = self._steady() - self._saved_at >= SAVE_SECONDS
            if is_time or any(topic.is_urgent for topic in self.topics):
                self._attempt("snapshot", self.save)
        for topic in self.topics:
            topic.close()
        self._attempt("snapshot", self.save)

    def wait_for_turn(self, stop: threading.Event, *, interval_seconds: float = 5.0) -> bool:
        """Return True once no other exporter is at work on this database, False if *stop* came first."""
        while not self._try_lock():
            if stop.wait(interval_seconds):
                return False
        return True

    def _try_lock(self) -> bool:
        """Be the only one. The lock is the session's, so each new session asks again."""
        try:
            held = self._database.try_lock(LOCK)
        except ServiceError as error:
            log.warning("%s", error)
            return False
        self._locked_in = self._database.sessions
        return held

    def _load(self, since: float | None) -> Tail:
        saved = self._database.rows("SELECT state FROM millrace.exporter_state WHERE name = 'exporter'")
        state = {(what, name): dumped for what, name, dumped in _unpacked(saved[0][0])} if saved else {}
        if state.get(("format", "")) != FORMAT:
            tail = Tail.at_end(self._database) if since is None else Tail.since(self._database, since)
            for topic in self.topics:
                topic.adopt(self._database)
            return tail
        self.registry.load({name: series for (what, name), series in state.items() if what == "metric"})
        for topic in self.topics:
            if ("topic", topic.name) in state:
                topic.load(state[("topic", topic.name)])
        return Tail.load(state[("tail", "")])

    def _count_new(self) -> None:
        assert self._tail
        now = self._steady() + self._offset  # a clock that is set must not make a gap old
        latest = self._clock() + SKEW_SECONDS
        for page in self._tail.pages(self._database, now, bodies_of=self._bodies, latest=latest):
            self._count(page, now)

    def _count(self, page: Page, now: float) -> None:
        facts = self._runs.of(self._database, {event.run_id for event in page.events})
        assert self._tail
        for topic in self.topics:  # from here on nothing asks the database: a page is counted once, and whole
            left = iter(page.events)
            while length_hint(left):
                try:
                    topic.count(Batch(left, facts))
                except Exception:  # an event that nobody foresaw: those after it, and the other topics, are worth more
                    self.errors.add(topic.name)
                    if topic.name not in self._miscounted:
                        number = page.events[-1 - length_hint(left)].id
                        log.exception("Counting event %d for %s", number, topic.name)
                    self._miscounted.add(topic.name)
                else:
                    break
        self._tail.advance(page, now)
        self.events.add(by=len(page.events))

    def _attempt(self, collector: str, work: Callable[[], object]) -> bool:
        try:
            work()
        except ServiceError as error:
            self.errors.add(collector)
            self.problems[collector] = str(error)
            log.warning("%s: %s", collector, error)
            return False
        except Exception as error:  # an answer of a shape that nobody foresaw: the other collectors are worth more
            self.errors.add(collector)
            self.problems[collector] = f"{type(error).__name__}, see the exporter's log"
            log.exception("Collector %s", collector)
            return False
        if collector in self._miscounted:
            self.problems[collector] = "could not count an event, see the exporter's log"
            return False
        self.problems.pop(collector, None)
        self.succeeded.set(self._clock(), collector)
        return True

    def _show_self(self) -> None:
        assert self._tail
        self.gaps.set(len(self._tail.gaps))
        self.lag.set(self._tail.behind)
        self.abandoned.series[()] = float(self._tail.abandoned)
        for metric in self.registry:
            if metric.dropped:
                self.dropped.series[(metric.name,)] = self.dropped.series.get((metric.name,), 0.0) + metric.dropped
                metric.dropped = 0


def _packed(items: Iterable[Saved]) -> str:
    """A line of JSON for each, squeezed to a tenth. One at a time: together they are as large as a page."""
    squeezer = zlib.compressobj(1)
    parts = [squeezer.compress(json.dumps(item).encode() + b"\n") for item in items]
    return base64.b64encode(b"".join([*parts, squeezer.flush()])).decode()


def _unpacked(text: str) -> Iterator[Saved]:
    """The reverse; nothing if another version saved it otherwise."""
    try:
        lines = zlib.decompress(base64.b64decode(text)).splitlines()
    except (binascii.Error, zlib.error) as error:
        log.warning("What was saved is of a version that saved it otherwise, and counting begins anew: %s", error)
        return
    for line in lines:
        what, name, dumped = json.loads(line)
        yield what, name, dumped
