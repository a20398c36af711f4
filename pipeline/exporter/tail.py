"""Every event of Dagster's log, once: by id, with the ids that were not there yet looked for again.

Ids come from a sequence and rows appear when their transactions commit, so a later id may be seen first: who reads
``id > cursor`` alone loses those. Hence the gaps: ids below the cursor that were missing are asked for at each poll,
until they are too old to come. The cursor never waits for one, as an insert that failed leaves its id unused for ever.
"""

import json
import logging
import math
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pipeline.exporter.database import Database, Row

log = logging.getLogger(__name__)

PAGE = 2_000  # events, which are in memory together, some with their text
GIVE_UP_SECONDS = 60.0  # longer than a transaction may be open that could still fill a gap
MAX_GAPS = 100_000  # ids
MAX_PAGES = 100  # at once: who is far behind tells so in between

_COLUMNS = """id, run_id, dagster_event_type, extract(epoch FROM timestamp)::float8, step_key, asset_key,
    CASE WHEN dagster_event_type = ANY(%s) THEN event END"""


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the log. *type* is as stored (``PIPELINE_SUCCESS``), *at* epoch seconds, *body* only where it was asked for."""

    id: int
    run_id: str
    type: str
    at: float
    step: str | None = None
    asset: str | None = None  # raw/shop/users
    body: str | None = None

    @property
    def data(self) -> dict[str, Any]:
        """What the event's type has of its own; nothing where the text is not what Dagster writes."""
        try:
            event = json.loads(self.body or "{}")
            return dict(event["dagster_event"]["event_specific_data"])
        except (ValueError, KeyError, TypeError):
            return {}


@dataclass
class Page:
    """Events that were read and are not counted yet; `cursor`, `newest` and `gaps` are those of after them."""

    events: list[Event]
    cursor: int
    newest: str
    found_gaps: list[int] = field(default_factory=list)
    new_gaps: list[int] = field(default_factory=list)
    abandoned: int = 0  # ids that were missing too, of more than may be looked for


@dataclass
class Tail:
    """How far the log is read. What reads it saves it together with what it counted."""

    cursor: int
    gaps: dict[int, float] = field(default_factory=dict)  # id → when it was missed first
    abandoned: int = 0
    newest_at: float = 0.0  # of all events read
    newest: str = ""  # by what the event at the cursor is known again; empty before the first
    behind: int = 0  # ids handed out since, most of them of events
    is_done: bool = True  # False if there is more to read at once
    _session: int = 0  # of the database in which the event at the cursor was there

    @classmethod
    def at_end(cls, database: Database) -> "Tail":
        """One that reads what is yet to come."""
        ((newest,),) = database.rows("SELECT coalesce(max(id), 0) FROM event_logs")
        return cls(int(newest))

    @classmethod
    def since(cls, database: Database, at: float) -> "Tail":
        """One that reads what happened since *at*, found by bisection: the column has no index."""
        low, high = database.rows("SELECT coalesce(min(id), 1) - 1, coalesce(max(id), 0) FROM event_logs")[0]
        while low < high:
            middle = (low + high + 1) // 2
            found = database.rows(
                "SELECT extract(epoch FROM timestamp)::float8 FROM event_logs WHERE id >= %s ORDER BY id LIMIT 1",
                middle,
            )
            if found and found[0][0] < at:
                low = middle
            else:
                high = middle - 1
        return cls(int(low))

    def pages(
        self, database: Database, now: float, *, bodies_of: Collection[str], latest: float = math.inf
    ) -> Iterator[Page]:
        """What is new. Each page is to be applied by `advance` before the next is asked for.

        *now* is a time that never jumps. No event is later than *latest*: one of a clock that was ahead would for as long
        count as the newest, and hide whatever came after it.
        """
        wanted = list(bodies_of)
        self._start_anew_if_replaced(database)
        if self.gaps:
            late = database.rows(f"SELECT {_COLUMNS} FROM event_logs WHERE id = ANY(%s)", wanted, list(self.gaps))
            if late:
                yield Page(_events(late, latest), self.cursor, self.newest, found_gaps=[row[0] for row in late])
        self.is_done = False
        for _ in range(MAX_PAGES):
            rows = database.rows(
                f"SELECT {_COLUMNS} FROM event_logs WHERE id > %s ORDER BY id LIMIT %s", wanted, self.cursor, PAGE
            )
            if rows:
                there, last = {row[0] for row in rows}, rows[-1][0]
                newest_first = (number for number in range(last - 1, self.cursor, -1) if number not in there)
                missing = list(islice(newest_first, MAX_GAPS - len(self.gaps)))
                given_up = last - self.cursor - len(rows) - len(missing)
                yield Page(_events(rows, latest), last, _known_by(rows[-1]), new_gaps=missing, abandoned=given_up)
            if len(rows) < PAGE:
                self.is_done = True
                break
        self._give_up(now)
        self._start_anew_if_wiped(database)

    def advance(self, page: Page, now: float) -> None:
        """Count *page* as read."""
        self.cursor, self.newest = page.cursor, page.newest
        self.abandoned += page.abandoned
        for number in page.found_gaps:
            del self.gaps[number]
        self.gaps.update(dict.fromkeys(page.new_gaps, now))
        self.newest_at = max([self.newest_at, *(event.at for event in page.events)])

    def dump(self) -> dict[str, Any]:
        return {
            "cursor": self.cursor,
            "gaps": list(self.gaps.items()),
            "abandoned": self.abandoned,
            "newest_at": self.newest_at,
            "newest": self.newest,
        }

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> "Tail":
        gaps = {int(number): seen for number, seen in dumped["gaps"]}
        newest = dumped.get("newest", "")  # an older version did not save it
        return cls(dumped["cursor"], gaps, dumped["abandoned"], dumped["newest_at"], newest)

    def _give_up(self, now: float) -> None:
        for number in [number for number, seen in self.gaps.items() if now - seen > GIVE_UP_SECONDS]:
            del self.gaps[number]
            self.abandoned += 1

    def _start_anew_if_wiped(self, database: Database) -> None:
        """Go on with what is newer than all that was read where the log was emptied or restored: ids come again then."""
        ((last,),) = database.rows("SELECT last_value FROM event_logs_id_seq")
        self.behind = max(last - self.cursor, 0)
        if last < self.cursor:
            self._start_anew(database)

    def _start_anew_if_replaced(self, database: Database) -> None:
        """The same where another event has the id of the newest that was read: a copy that lagged behind took over.

        Asked in each session once, as a server is not replaced within one. An event that was deleted says nothing.
        """
        if self._session == (session := database.session()):
            return
        rows = database.rows(f"SELECT {_COLUMNS} FROM event_logs WHERE id = %s", [], self.cursor)
        if rows and self.newest and _known_by(rows[0]) != self.newest:
            self._start_anew(database)
        self._session = session

    def _start_anew(self, database: Database) -> None:
        log.warning("The event log is another than the one that was read up to %d: going on by time.", self.cursor)
        self.cursor, self.gaps = Tail.since(database, self.newest_at + 1e-6).cursor, {}
        self.newest = ""


def _known_by(row: Row) -> str:
    _, run_id, kind, at, *_ = row
    return f"{run_id} {kind} {at}"


def _events(rows: list[Row], latest: float) -> list[Event]:
    return [
        Event(
            number,
            run_id,
            kind,
            min(at or 0.0, latest),
            step,
            sys.intern("/".join(json.loads(asset))) if asset else None,
            body,
        )
        for number, run_id, kind, at, step, asset, body in rows
        if kind is not None
    ]
