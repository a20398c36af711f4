"""Alerts as people ask for them: `millrace alerts`."""

import http.client
import json
import re
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.errors import ConfigError, ServiceError
from pipeline.notify import MESSAGE, Alert, Message, send
from pipeline.settings import Settings

ANSWER_SECONDS = 10.0
UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
LONGEST = timedelta(days=365)


def list_alerts(settings: Settings, *, host: str = "127.0.0.1") -> list[dict[str, Any]]:
    """Every alert that the exporter knows of, as its ``/alerts`` has them.

    Raises:
        ServiceError: if it does not answer.
    """
    doing = f"Asking the exporter at {host}:{settings.metrics_port} for its alerts"
    with closing(http.client.HTTPConnection(host, settings.metrics_port, timeout=ANSWER_SECONDS)) as connection:
        try:
            connection.request("GET", "/alerts")
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(
                f"{doing}: {error}. `millrace up` starts it; MILLRACE_METRICS_PORT is its port."
            ) from error
    try:
        found = json.loads(body) if response.status == 200 else None
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ServiceError(f"{doing}: it answered {response.status} and no list. Is that the exporter's port?")
    return found


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
    parts = re.findall(r"(\d+)([dhms])", text)
    if "".join(number + unit for number, unit in parts) == text and len(text) < 20:
        found = sum((timedelta(**{UNITS[unit]: int(number)}) for number, unit in parts), timedelta())
        if timedelta() < found <= LONGEST:
            return found
    raise ConfigError(f"{text!r} is no time of up to a year. It looks like 90m, 2h or 1d12h.")
