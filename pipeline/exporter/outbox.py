"""Messages on their way: a thread and a bounded queue for each channel, so that one that is down holds up nothing else.

What is not delivered yet is saved with the exporter's counts and sent after a restart.
"""

import logging
import threading
import time
from collections import deque
from typing import Any

from pydantic import ValidationError

from pipeline.errors import MillraceError
from pipeline.notify import Deferred, Message, configured_channels, deliver
from pipeline.settings import Settings

log = logging.getLogger(__name__)

MAX_WAITING = 100  # messages of a channel
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 300.0
GIVE_UP_SECONDS = 3600.0  # after which nobody needs it any more


class Outbox:
    """Sends what is `put` by every configured channel, in order."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waiting: dict[str, deque[Message]] = {channel: deque() for channel in configured_channels(settings)}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self.delivered = 0  # so far, and what was given up
        self._threads = [
            threading.Thread(target=self._work, args=[channel], name=f"notify-{channel}", daemon=True)
            for channel in self._waiting
        ]
        for thread in self._threads:
            thread.start()

    def put(self, message: Message) -> None:
        """Have *message* sent, soon. It never waits."""
        with self._changed:
            for channel, waiting in self._waiting.items():
                if len(waiting) >= MAX_WAITING:
                    del waiting[1]  # the first is being sent
                    log.error("%s: %d messages wait already: the oldest is dropped.", channel, MAX_WAITING)
                waiting.append(message)
            self._changed.notify_all()

    def dump(self) -> dict[str, Any]:
        with self._changed:
            return {
                channel: [message.model_dump(mode="json", by_alias=True) for message in waiting]
                for channel, waiting in self._waiting.items()
            }

    def load(self, dumped: dict[str, Any]) -> None:
        """Go on with what a process before this one did not get rid of."""
        with self._changed:
            for channel, messages in dumped.items():
                try:
                    self._waiting[channel].extend(map(Message.model_validate, messages))
                except (KeyError, ValidationError):  # a channel that is not configured any more, or another version's
                    log.warning("%d messages for %s are dropped.", len(messages), channel)
            self._changed.notify_all()

    def close(self, *, patience_seconds: float = 5.0) -> None:
        """Send nothing more. What is being sent has *patience_seconds* to come to its end."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        deadline = time.monotonic() + patience_seconds
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _work(self, channel: str) -> None:
        waiting = self._waiting[channel]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: waiting or self._stop.is_set())
                if self._stop.is_set():
                    return
                message = waiting[0]
            if not self._send(message, channel):
                return
            with self._changed:
                waiting.popleft()
                self.delivered += 1

    def _send(self, message: Message, channel: str) -> bool:
        """False if it was told to stop before *message* was delivered or given up."""
        settings, pause, deadline = self._settings, FIRST_PAUSE_SECONDS, time.monotonic() + GIVE_UP_SECONDS
        while True:
            try:
                deliver(settings, message, channel, attempts=1)
                return True
            except MillraceError as error:
                if isinstance(error, Deferred):
                    settings = error.settings
                if not error.is_transient or time.monotonic() + pause > deadline:
                    log.error("%s The message %r is given up.", error, message.subject)
                    return True
                log.warning("%s The message %r is sent again in %.0f s.", error, message.subject, pause)
            except Exception:  # whatever it is, the next message may get through
                log.exception("Notifying by %s", channel)
                return True
            if self._stop.wait(pause):
                return False
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
