"""Silences, as the exporter heeds them: alerts of which nobody is told for a while. `operate.silences` makes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pipeline.exporter.database import Database

MAX_SILENCES = 1_000  # at a time
COLUMNS = "id::text, alert, labels, comment, created_by, ends_at"


@dataclass(frozen=True)
class Silence:
    """Alerts with the name *alert* and at least these *labels* are not told of before *ends_at*."""

    id: str
    alert: str
    labels: Mapping[str, str]
    comment: str
    created_by: str
    ends_at: datetime

    def covers(self, labels: Mapping[str, str], now: float) -> bool:
        """True if it silences the alert with *labels*, its name being one, at *now* (epoch seconds)."""
        return (
            now < self.ends_at.timestamp()
            and labels.get("alertname") == self.alert
            and self.labels.items() <= labels.items()
        )


def read_active(database: Database) -> list[Silence]:
    """What the exporter has to heed now."""
    return [
        Silence(*row)
        for row in database.rows(
            f"SELECT {COLUMNS} FROM millrace.alert_silences WHERE ends_at > now() ORDER BY ends_at LIMIT {MAX_SILENCES}"
        )
    ]
