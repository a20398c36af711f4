"""A small stand-in of Open-Meteo's archive API: GET /v1/archive, as many hours as days were asked for."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class WeatherApi(ThreadingHTTPServer):
    """`requests` are the intervals it was asked for; the first `failures` of them it answers with 503."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, str]] = []
        self.failures = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: WeatherApi

    def do_GET(self) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        if self.server.failures:
            self.server.failures -= 1
            return self._answer(503, {"error": True, "reason": "overloaded"})
        first, last = query["start_date"], query["end_date"]
        self.server.requests.append((first, last))
        if float(query["latitude"]) == 0:
            return self._answer(400, {"error": True, "reason": "nobody lives there"})
        days = (date.fromisoformat(last) - date.fromisoformat(first)).days + 1
        hours = [
            f"{date.fromisoformat(first) + timedelta(days=day)}T{hour:02}:00"
            for day in range(days)
            for hour in range(24)
        ]
        names = query["hourly"].split(",")
        return self._answer(
            200,
            {
                "latitude": 40.738136,
                "longitude": -74.04254,
                "generationtime_ms": 0.1,
                "utc_offset_seconds": 0,
                "timezone": "GMT",
                "timezone_abbreviation": "GMT",
                "elevation": 7.0,
                "hourly_units": {"time": "iso8601", **dict.fromkeys(names, "°C")},
                "hourly": {"time": hours, **{name: [float(len(name))] * len(hours) for name in names}},
            },
        )

    def _answer(self, status: int, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests read no access log."""


@contextmanager
def serving() -> Iterator[WeatherApi]:
    """A running server."""
    with WeatherApi() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
