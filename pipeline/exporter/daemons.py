"""The daemon's threads: when each was alive last."""

import json
from collections.abc import Collection
from typing import Any

from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.topic import Topic


class Daemons(Topic):
    """One series for each kind of daemon. One that is required and never told anything is as old as the requirement."""

    name = "daemons"

    def __init__(self, registry: Registry) -> None:
        labels = ("daemon_type", "required")
        self.heartbeat = registry.gauge(
            "dagster_daemon_last_heartbeat_timestamp_seconds",
            "When the daemon was alive last; since when it is required if it never was.",
            labels,
        )
        self.errors = registry.gauge(
            "dagster_daemon_heartbeat_errors", "Errors that the last heartbeat tells of.", labels
        )
        self._required: dict[str, float] | None = None  # kind → since when; None until the webserver said which

    def require(self, kinds: Collection[str], now: float) -> None:
        """Take *kinds*, and no others, as those that the instance runs."""
        self._required = {kind: (self._required or {}).get(kind, now) for kind in kinds}

    def poll(self, database: Database, now: float) -> None:
        rows = database.rows(
            "SELECT daemon_type, extract(epoch FROM timestamp)::float8, coalesce(body, '{}') FROM daemon_heartbeats"
        )
        beats = {(kind, "true"): since for kind, since in (self._required or {}).items()}
        errors = {}
        for kind, at, body in rows:
            key = (kind, str(self._required is None or kind in self._required).lower())
            beats[key] = at
            errors[key] = float(len(json.loads(body).get("errors") or ()))
        self.heartbeat.replace(beats)
        self.errors.replace(errors)

    def dump(self) -> Any:
        return self._required

    def load(self, dumped: Any) -> None:
        self._required = dumped
