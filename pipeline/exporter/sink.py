"""Where Alertmanager sends alerts that somebody is to find in a log: a line of JSON on stdout each, and the last ones kept.

It takes the body of Alertmanager's webhook, version 4, and trusts nothing in it: sizes are capped, and nothing is run.
"""

import json
import sys
import threading
from collections import OrderedDict
from typing import Any

from pydantic import ValidationError

from pipeline.exporter.alerts import listed
from pipeline.notify import Message

MAX_BYTES = 1 << 20  # of a body
MAX_KEPT, MAX_KEPT_BYTES = 1_000, 8 << 20  # alerts, and all of them as JSON


class Refused(Exception):
    """A body that is not Alertmanager's. The message says where."""


class Sink:
    """The newest state of the last alerts that were posted. Any thread may call it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, str] = OrderedDict()  # labels → as it is listed, JSON
        self._bytes = 0
        self._lock = threading.Lock()

    def take(self, body: bytes) -> int:
        """Print and keep the alerts of *body*; returns how many they are.

        Raises:
            Refused: if it is not what Alertmanager sends; then nothing of it is printed.
        """
        try:
            message = Message.model_validate_json(body)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, item['loc'])) or 'body'}: {item['msg']}" for item in error.errors()[:5]
            )
            raise Refused(f"This is not the body of Alertmanager's webhook, version 4: {wrong}") from None
        with self._lock:
            sys.stdout.write("".join(f"{alert.as_line()}\n" for alert in message.alerts))
            sys.stdout.flush()
            for alert in message.alerts:
                shown = json.dumps(listed(alert, "alertmanager", alert.status))
                self._keep(json.dumps(alert.labels, sort_keys=True), shown)
        return len(message.alerts)

    def listing(self) -> list[dict[str, Any]]:
        """Those that are kept, the newest last."""
        with self._lock:
            kept = list(self._kept.values())
        return [json.loads(each) for each in kept]

    def _keep(self, labels: str, shown: str) -> None:
        self._bytes += len(shown) - len(self._kept.pop(labels, ""))
        self._kept[labels] = shown
        while len(self._kept) > MAX_KEPT or self._bytes > MAX_KEPT_BYTES:
            self._bytes -= len(self._kept.popitem(last=False)[1])
