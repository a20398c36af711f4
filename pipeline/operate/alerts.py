"""Alerts as people ask for them: `millrace alerts`."""

import re
from datetime import UTC, datetime, timedelta

from pipeline.errors import ConfigError
from pipeline.notify import MESSAGE, Alert, Message, send
from pipeline.settings import Settings

SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
LONGEST = timedelta(days=365)


def send_test(settings: Settings, channel: str) -> None:
    """Send a test message by *channel*; raises as `notify.send`, also where a webhook is only guessed."""
    labels = {"alertname": MESSAGE, "severity": "info"}
    annotations = {"summary": "Test of Millrace", "description": f"Whoever reads this is told by {channel}."}
    alert = Alert(status="firing", labels=labels, annotations=annotations, starts_at=datetime.now(UTC))
    send(settings, Message.of([alert], {"alertname": MESSAGE}), channel, attempts=2)


def duration(text: str) -> timedelta:
    """``90m``, ``2h``, ``1d12h``.

    Raises:
        ConfigError: if it is none, or not more than nothing and at most a year.
    """
    parts = re.findall(r"([0-9]+)([dhms])", text)
    if "".join(number + unit for number, unit in parts) == text and len(text) < 20:
        found = sum(int(number) * SECONDS[unit] for number, unit in parts)
        if 0 < found <= LONGEST.total_seconds():
            return timedelta(seconds=found)
    raise ConfigError(f"{text!r} is no time of up to a year. It looks like 90m, 2h or 1d12h.")
