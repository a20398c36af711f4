"""Which services are up, as the exporter can tell from what it reads anyway: nothing is asked for this alone.

*up*: what it was asked last was answered. *degraded*: it was not, or not well, or it cannot be known. *down*: so for longer than
the setting MILLRACE_ALERT_UNAVAILABLE_SECONDS; a daemon without a heartbeat for MILLRACE_ALERT_DAEMON_SILENT_SECONDS;
definitions that do not load.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.exporter.metrics import Registry

State = Literal["up", "degraded", "down"]
STATES: tuple[State, ...] = ("up", "degraded", "down")  # from good to bad

REASON_CHARACTERS = 200
COLLECTORS = {"database": "events", "lake": "lake", "webserver": "workspace"}  # service → who reads it


@dataclass(frozen=True)
class ServiceHealth:
    """One service, or one part of it. `since` is a Unix time: when it got into this state, or was well for the last time."""

    service: str  # database, lake, webserver, code_location, daemon, exporter
    name: str  # of the location or of the daemon's thread; empty for the others
    state: State
    since: float
    reason: str


class Watch:
    """Remembers since when each service has been in its state."""

    def __init__(self, *, unavailable_seconds: float, daemon_silent_seconds: float) -> None:
        self._unavailable, self._silent = unavailable_seconds, daemon_silent_seconds
        self._since: dict[tuple[str, str], tuple[State, float]] = {}
        self._began = 0.0

    def look(self, registry: Registry, problems: Mapping[str, str], now: float) -> list[ServiceHealth]:
        """All services. *problems* are of the collectors whose last poll failed, with what was wrong."""
        self._began = self._began or now
        values = {metric.name: metric.series for metric in registry}
        succeeded = values["dagster_exporter_last_success_timestamp_seconds"]
        asked = {
            service: self._answer(service, problems.get(collector), succeeded.get((collector,)), now)
            for service, collector in COLLECTORS.items()
        }
        found = [
            *asked.values(),
            *self._locations(values["dagster_code_location_loaded"], asked["webserver"], now),
            *self._daemons(values, asked["database"], now),
            self._exporter(problems, asked["database"], now),
        ]
        self._since = {(each.service, each.name): (each.state, each.since) for each in found}
        return found

    def dump(self) -> Any:
        return [[*key, state, since] for key, (state, since) in self._since.items()]

    def load(self, dumped: Any) -> None:
        self._since = {(service, name): (state, since) for service, name, state, since in dumped}

    def _answer(self, service: str, problem: str | None, succeeded: float | None, now: float) -> ServiceHealth:
        if problem is None:
            return self._is(service, "up", now)
        away = now - (succeeded or self._began)
        state: State = "down" if away > self._unavailable else "degraded"
        return self._is(service, state, now, reason=problem, since=succeeded)

    def _locations(
        self, loaded: Mapping[tuple[str, ...], float], webserver: ServiceHealth, now: float
    ) -> list[ServiceHealth]:
        if webserver.state != "up":
            reason, names = "it is seen through the webserver, which does not answer", [name for (name,) in loaded]
            return [
                self._is("code_location", "degraded", now, name=name, reason=reason, since=webserver.since)
                for name in names or [""]
            ]
        return [
            self._is("code_location", "up", now, name=name)
            if is_loaded
            else self._is("code_location", "down", now, name=name, reason="its definitions do not load")
            for (name,), is_loaded in loaded.items()
        ] or [self._is("code_location", "down", now, reason="the webserver knows of none")]

    def _daemons(
        self, values: Mapping[str, Mapping[tuple[str, ...], float]], database: ServiceHealth, now: float
    ) -> list[ServiceHealth]:
        beats = {
            kind: at
            for (kind, required), at in values["dagster_daemon_last_heartbeat_timestamp_seconds"].items()
            if required == "true"
        }
        errors = values["dagster_daemon_heartbeat_errors"]
        if not beats:
            return [self._is("daemon", "down", now, reason="it has never reported")]
        found = []
        for kind, at in sorted(beats.items()):
            count = errors.get((kind, "true"))
            if database.state != "up":
                reason = "its heartbeats are in the database, which does not answer"
                health = self._is("daemon", "degraded", now, name=kind, reason=reason, since=database.since)
            elif (kind, "true") not in errors:  # it told nothing yet: *at* is since when it is required
                health = self._is("daemon", "down", now, name=kind, reason="it has never reported", since=at)
            elif now - at > self._silent:
                health = self._is("daemon", "down", now, name=kind, reason=f"silent for {now - at:.0f} s", since=at)
            elif count:
                reason = f"its last heartbeat tells of {count:.0f} errors"
                health = self._is("daemon", "degraded", now, name=kind, reason=reason)
            else:
                health = self._is("daemon", "up", now, name=kind)
            found.append(health)
        return found

    def _exporter(self, problems: Mapping[str, str], database: ServiceHealth, now: float) -> ServiceHealth:
        """What it cannot read for another reason than a service's that is named already."""
        own = {name: text for name, text in problems.items() if name not in COLLECTORS.values()}
        if database.state != "up" or not own:
            return self._is("exporter", "up", now)
        name, text = next(iter(own.items()))
        return self._is("exporter", "degraded", now, reason=f"collector {name}: {text}")

    def _is(
        self, service: str, state: State, now: float, *, name: str = "", reason: str = "", since: float | None = None
    ) -> ServiceHealth:
        before, began = self._since.get((service, name), (None, now))
        if since is None:
            since = began if before == state else now
        return ServiceHealth(service, name, state, since, " ".join(reason.split())[:REASON_CHARACTERS])


def worst(states: Collection[State]) -> State:
    """Of the parts of one service."""
    return max(states, key=STATES.index)
