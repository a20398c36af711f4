"""Backups: when the last one succeeded, and how old it may be."""

from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.topic import Topic
from pipeline.exporter.volumes import Volumes
from pipeline.settings import Settings

EVERY_SECONDS = 60.0


class Backups(Topic):
    """Read every minute. Where none was ever made, its age is told from when one was first expected."""

    name = "backups"

    def __init__(self, registry: Registry, settings: Settings, volumes: Volumes) -> None:
        self.last = registry.gauge(
            "millrace_backup_last_success_timestamp_seconds", "When the last backup that succeeded had been written."
        )
        self.bytes = registry.gauge("millrace_backup_last_bytes", "Size of that backup.")
        self.expected = registry.last_value(
            "millrace_backup_expected_since_timestamp_seconds", "Since when backups are expected, if they are."
        )
        self.max_age = registry.gauge(
            "millrace_threshold_backup_age_seconds",
            "An alert fires if the last backup is older; none if none is expected.",
        )
        self._max_age, self._volumes = settings.backup_max_age_seconds, volumes
        self._read_at = 0.0

    def poll(self, database: Database, now: float) -> None:
        if 0 <= now - self._read_at < EVERY_SECONDS:
            return
        rows = database.rows(
            "SELECT extract(epoch FROM finished_at)::float8, coalesce(bytes, 0)::float8, volume_free_bytes, volume_bytes "
            "FROM millrace.backups WHERE finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT 1"
        )
        at, size, free, room = rows[0] if rows else (None, None, None, None)
        if room:  # as long as there is a backup: the next may be a week away
            self._volumes.tell("backup", free, room, now)
        self.last.replace({(): at} if rows else {})
        self.bytes.replace({(): size} if rows else {})
        self.expected.replace({(): self.expected.series.get((), now)} if self._max_age else {})
        self.max_age.replace({(): self._max_age} if self._max_age else {})
        self._read_at = now
