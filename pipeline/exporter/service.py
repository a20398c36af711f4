"""``millrace serve metrics``: the exporter behind HTTP, from memory alone.

``/metrics`` (OpenMetrics for who asks for it), ``/monitor?hours=24`` (JSON), ``/healthz`` (the loop is alive), ``/readyz`` (the
figures are fresh), ``/alerts`` (JSON: those that the exporter finds itself, and those that Alertmanager posts to the same path).
"""

import json
import logging
import signal
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS

from pipeline.errors import ConfigError, ServiceError
from pipeline.exporter.alerts import Alerts
from pipeline.exporter.exporter import Exporter
from pipeline.exporter.monitor import Monitor
from pipeline.exporter.sink import MAX_BYTES, Refused, Sink

log = logging.getLogger(__name__)

ALIVE_SECONDS = 120.0  # a poll whose every statement takes as long as it may is longer than an interval
REQUEST_SECONDS = 10.0
NOTHING_YET = "Nothing is counted yet: the database does not answer, or another exporter is at work."
MAX_BODIES = 4  # at once

Answer = tuple[int, str, Sequence[bytes]]  # status, content type, body in pieces


class Service:
    """Serves *exporter* while a thread polls. Before its turn it is alive and not ready."""

    def __init__(
        self,
        exporter: Exporter,
        monitor: Monitor,
        alerts: Alerts | None = None,
        *,
        host: str,
        port: int,
        interval_seconds: float,
    ) -> None:
        self._exporter, self._monitor, self._alerts, self._interval = exporter, monitor, alerts, interval_seconds
        self.sink = Sink()
        self.bodies = threading.BoundedSemaphore(MAX_BODIES)
        self.stop = threading.Event()
        self._beat = time.monotonic()
        self._server = _Server((host, port), _handler(self))

    def run(self, *, since: float | None = None) -> None:
        """Serve until `stop` is set, then save and return."""
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()
        try:
            self._work(since)
        finally:
            self._server.shutdown()
            self._server.server_close()

    def answer(self, path: str, query: str, accept: str) -> Answer:
        """What a request gets."""
        pages = self._exporter.pages
        if path == "/monitor":
            return self._monitored(query)
        if path == "/metrics" and pages:
            if "application/openmetrics-text" in accept:
                return 200, OPENMETRICS, pages.openmetrics
            return 200, CONTENT_TYPE_LATEST, pages.text
        if path == "/healthz":
            idle = time.monotonic() - self._beat
            return _told(200 if idle < ALIVE_SECONDS else 503, f"The last poll began {idle:.0f} s ago.")
        if path in ("/readyz", "/metrics"):
            if not pages:
                return _told(503, NOTHING_YET)
            age = time.time() - self._exporter.polled_at
            return _told(200 if age < 3 * self._interval else 503, f"The last whole poll ended {age:.0f} s ago.")
        if path == "/alerts":
            return 200, "application/json", [json.dumps(self._alerting()).encode()]
        return _told(404, "There are /metrics, /monitor, /alerts, /healthz and /readyz.")

    def take(self, path: str, body: bytes) -> Answer:
        """The same of a request that brings *body*."""
        if path != "/alerts":
            return _told(404, "There is /alerts to post to.")
        try:
            count = self.sink.take(body)
        except Refused as error:
            return _told(400, str(error))
        return _told(200, f"Took {count} alerts.")

    def _alerting(self) -> list[dict[str, Any]]:
        return [*(self._alerts.listing if self._alerts else ()), *self.sink.listing()]

    def _monitored(self, query: str) -> Answer:
        try:
            document = self._monitor.answer(query, self._alerting())
        except ConfigError as error:
            return _told(400, str(error))
        if document is None:
            return _told(503, NOTHING_YET)
        return 200, "application/json", [json.dumps(document).encode()]

    def _work(self, since: float | None) -> None:
        beating = threading.Thread(target=self._beat_while_waiting, daemon=True)
        beating.start()
        while not self.stop.is_set():
            if not self._exporter.wait_for_turn(self.stop):
                return
            try:
                self._exporter.start(since=since)
            except ServiceError as error:
                log.warning("%s", error)
                self.stop.wait(self._interval)
                continue
            self._exporter.run(self.stop, interval_seconds=self._interval, beat=self._beaten)
            return

    def _beaten(self) -> None:
        self._beat = time.monotonic()

    def _beat_while_waiting(self) -> None:
        while not self.stop.wait(5) and not self._exporter.pages:
            self._beaten()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 32


def _told(status: int, text: str) -> Answer:
    return status, "text/plain; charset=utf-8", [f"{text}\n".encode()]


def _handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_SECONDS
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # else each piece of a page is a packet

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            self._answer(*service.answer(path, query, self.headers.get("Accept", "")))

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isascii() or not length.isdigit() or int(length) > MAX_BYTES:
                self.close_connection = True  # what is not read would be the next request
                self._answer(*_told(413 if length.isdigit() else 411, f"Content-Length: 0 to {MAX_BYTES:,} is taken."))
            elif not service.bodies.acquire(blocking=False):
                self.close_connection = True
                self._answer(*_told(503, "Others post just now. Try again."))
            else:
                try:
                    self._answer(*service.take(self.path.partition("?")[0], self.rfile.read(int(length))))
                finally:
                    service.bodies.release()

        def _answer(self, status: int, kind: str, body: Sequence[bytes]) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(sum(map(len, body))))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.writelines(body)

        def log_message(self, *_: object) -> None:
            """Nothing: a line a scrape is noise."""

    return Handler


def end_on_signals(service: Service) -> None:
    """SIGTERM and SIGINT end the service after a last save."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop.set())
