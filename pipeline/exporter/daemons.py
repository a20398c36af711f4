"""The daemon's threads: when each was alive last."""

import json

from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.topic import Topic


class Daemons(Topic):
    """One series for each kind of daemon. `required` are those that the instance runs, as the webserver says."""

    name = "daemons"

    def __init__(self, registry: Registry) -> None:
        labels = ("daemon_type", "required")
        self.heartbeat = registry.gauge(
            "dagster_daemon_last_heartbeat_timestamp_seconds", "When the daemon was alive last.", labels
        )
        self.errors = registry.gauge(
            "dagster_daemon_heartbeat_errors", "Errors that the last heartbeat tells of.", labels
        )
        self.required: dict[str, bool] = {}

    def poll(self, database: Database, now: float) -> None:
        rows = database.rows(
            "SELECT daemon_type, extract(epoch FROM timestamp)::float8, coalesce(body, '{}') FROM daemon_heartbeats"
        )
        beats, errors = {}, {}
        for kind, at, body in rows:
            key = (kind, str(self.required.get(kind, True)).lower())
            beats[key] = at
            errors[key] = float(len(json.loads(body).get("errors") or ()))
        self.heartbeat.replace(beats)
        self.errors.replace(errors)
