"""Alerts of an installation without Prometheus: after each poll the rules are looked at, and people are told.

As with Prometheus an alert is pending until its rule has found it for long enough, and then fires; as with Alertmanager
those of one name are told together, once when they fire and once when they are over, and again every four hours.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import ServiceError
from pipeline.exporter.alert_rules import (
    DATABASE,
    RULES,
    UNAVAILABLE,
    Figures,
    Found,
    Labels,
    RecentRuns,
    Rule,
    filled,
)
from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.outbox import Outbox
from pipeline.exporter.silences import Silence, read_active
from pipeline.exporter.topic import Topic
from pipeline.notify import NEVER, Alert, Message, shown_time

log = logging.getLogger(__name__)

WAIT_SECONDS = 30.0  # before the first message of a name, for those that come with it
INTERVAL_SECONDS = 300.0  # between two messages of a name, where something changed
REPEAT_SECONDS = 4 * 3600.0  # between two where nothing did
OUTAGE_SECONDS = 3600.0  # after which what was pending has to be found anew
MAX_OF_A_RULE = 1_000  # alerts
RUNBOOKS = "deploy/runbooks"


@dataclass
class Active:
    """One alert; epoch seconds. It is kept until people are told that it is over, if they were told of it."""

    labels: Labels
    since: float
    value: float
    fired_at: float | None = None
    over_at: float | None = None
    is_told: bool = False
    muted_by: str = ""  # "silence 3", or the alert that stands for it

    @property
    def is_firing(self) -> bool:
        return self.fired_at is not None and self.over_at is None

    @property
    def state(self) -> str:
        """As people see it."""
        if self.over_at is not None:
            return "resolved"
        if self.fired_at is None:
            return "pending"
        return "silenced" if self.muted_by else "firing"


@dataclass
class Group:
    """When to look next whether people are to be told of the alerts of a name, and when they were."""

    due: float
    told_at: float | None = None


@dataclass
class Book:
    """The alerts of one rule."""

    rule: Rule
    active: dict[Labels, Active] = field(default_factory=dict)
    group: Group | None = None
    is_full: bool = False


class Alerts(Topic):
    """The last of the topics: it reads what the others counted. `listing` may be read by other threads."""

    name = "alerts"

    def __init__(self, registry: Registry, outbox: Outbox, *, rules: Sequence[Rule] = RULES) -> None:
        self.listing: Sequence[dict[str, Any]] = ()
        self._registry, self._outbox = registry, outbox
        self._books = {rule.name: Book(rule) for rule in rules}
        self._recent = RecentRuns()
        self._silences: list[Silence] = []
        self._polled_at = 0.0
        self._told = 0  # messages
        self._dumped = self._saved = (0, 0)  # of these: told, and delivered

    @property
    def is_urgent(self) -> bool:
        """People were told something that is not saved: who starts again must not tell it again."""
        return (self._told, self._outbox.delivered) != self._saved

    def poll(self, database: Database, now: float) -> None:
        problem = None
        try:
            self._silences = read_active(database)
        except ServiceError as error:  # one of the alerts is that it does not answer
            problem = error
        self._recent.observe(self._registry, now)
        if not 0 <= now - self._polled_at <= OUTAGE_SECONDS:
            self._forget_pending()
        figures = Figures(self._registry, self._recent, now)
        for book in self._books.values():
            follow(book, book.rule.find(figures), now)
        self._mute(now)
        for book in self._books.values():
            self._tell(book, now)
        self._polled_at = now
        self.listing = [
            listed(_alert(book.rule, active), "exporter", active.state, value=active.value, muted_by=active.muted_by)
            for book in self._books.values()
            for active in book.active.values()
        ]
        if problem:
            raise problem

    def close(self) -> None:
        self._outbox.close()

    def dump(self) -> Any:
        self._dumped = (self._told, self._outbox.delivered)
        return {
            "polled_at": self._polled_at,
            "recent": self._recent.dump(),
            "active": {name: [asdict(active) for active in book.active.values()] for name, book in self._books.items()},
            "groups": {name: asdict(book.group) for name, book in self._books.items() if book.group},
            "outbox": self._outbox.dump(),
        }

    def saved(self) -> None:
        self._saved = self._dumped

    def load(self, dumped: Any) -> None:
        self._polled_at = dumped["polled_at"]
        self._recent.load(dumped["recent"])
        for name, book in self._books.items():
            loaded = [
                Active(**{**fields, "labels": tuple(map(tuple, fields["labels"]))})
                for fields in dumped["active"].get(name, ())
            ]
            book.active = {active.labels: active for active in loaded}
            book.group = Group(**dumped["groups"][name]) if name in dumped["groups"] else None
        self._outbox.load(dumped["outbox"])

    def _forget_pending(self) -> None:
        """Nobody looked for long: "for five minutes" would be five minutes and the pause."""
        for book in self._books.values():
            book.active = {labels: active for labels, active in book.active.items() if active.fired_at is not None}

    def _mute(self, now: float) -> None:
        """Find out of which firing alerts nobody is to be told."""
        unavailable = self._books[UNAVAILABLE].active.values() if UNAVAILABLE in self._books else ()
        away = next((active for active in unavailable if active.is_firing and DATABASE in active.labels), None)
        for book in self._books.values():
            for active in book.active.values():
                labels = _labels(book.rule, active)
                silence = next((silence for silence in self._silences if silence.covers(labels, now)), None)
                active.muted_by = f"silence {silence.id}" if silence else ""
                if away and active is not away and not silence:
                    active.muted_by = UNAVAILABLE

    def _tell(self, book: Book, now: float) -> None:
        firing = [active for active in book.active.values() if active.is_firing and not active.muted_by]
        over = [active for active in book.active.values() if active.over_at is not None]  # whoever was told hears it
        if not any(active.fired_at is not None for active in book.active.values()):
            book.group = None
            return
        group = book.group = book.group or Group(due=now + WAIT_SECONDS)
        group.due = min(group.due, now + INTERVAL_SECONDS)  # a clock that was set back would hold it up for long
        if now < group.due:
            return
        is_news = bool(over) or not all(active.is_told for active in firing)
        is_old = bool(firing) and group.told_at is not None and now - group.told_at >= REPEAT_SECONDS
        if not (is_news or is_old):
            group.due = now + WAIT_SECONDS
            return
        alerts = [_alert(book.rule, active) for active in (*firing, *over)]
        for message in Message.parts(alerts, {"alertname": book.rule.name}):
            self._outbox.put(message)
            self._told += 1
        group.told_at, group.due = now, now + INTERVAL_SECONDS
        for active in firing:
            active.is_told = True
        for active in over:
            del book.active[active.labels]


def follow(book: Book, found: Found, now: float) -> None:
    """Bring the alerts of *book* to what its rule finds now."""
    was_full, book.is_full = book.is_full, False
    for labels, value in found.items():
        active = book.active.get(labels)
        if active is None:
            if len(book.active) >= MAX_OF_A_RULE:
                if not (was_full or book.is_full):
                    log.warning("%s: more than %d alerts; the others are not told.", book.rule.name, MAX_OF_A_RULE)
                book.is_full = True
                continue
            active = book.active[labels] = Active(labels, now, value)
        active.value, active.over_at = value, None
        if active.fired_at is None and now - active.since >= book.rule.for_seconds:
            active.fired_at = now
    for labels, active in list(book.active.items()):
        if labels not in found and active.over_at is None:
            if active.is_told:
                active.over_at = now
            else:
                del book.active[labels]


def _labels(rule: Rule, active: Active) -> dict[str, str]:
    return {**dict(active.labels), "alertname": rule.name, "severity": rule.severity}


def _alert(rule: Rule, active: Active) -> Alert:
    """As Alertmanager tells it; one that is pending is told of nobody, and only listed."""
    labels = _labels(rule, active)
    return Alert(
        status="firing" if active.over_at is None else "resolved",
        labels=labels,
        annotations={
            "summary": rule.summary,
            "description": filled(rule.description, active.labels, active.value),
            "runbook": f"{RUNBOOKS}/{rule.name}.md",
        },
        starts_at=datetime.fromtimestamp(active.since if active.fired_at is None else active.fired_at, UTC),
        ends_at=NEVER if active.over_at is None else datetime.fromtimestamp(active.over_at, UTC),
        fingerprint=hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()[:16],
    )


def listed(alert: Alert, by: str, state: str, *, value: float | None = None, muted_by: str = "") -> dict[str, Any]:
    """*alert* as ``/alerts`` shows it, for JSON. *by* is who evaluates it."""
    name = alert.labels.get("alertname", "")
    return {
        "alert": name,
        "state": state,
        "severity": alert.labels.get("severity", ""),
        "since": shown_time(alert.starts_at),
        "value": value,
        "labels": {label: of for label, of in alert.labels.items() if label not in ("alertname", "severity")},
        "muted_by": muted_by,
        "summary": alert.annotations.get("summary", ""),
        "description": alert.annotations.get("description", ""),
        "runbook": alert.annotations.get("runbook_url") or f"{RUNBOOKS}/{name}.md",
        "from": by,
    }
