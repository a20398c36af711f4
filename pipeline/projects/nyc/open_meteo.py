"""A stand-in on this machine for Open-Meteo's archive API, over the generated weather.

``python -m pipeline.projects.nyc.open_meteo --data DIR`` prints its address and serves until it is ended. It
answers what the real one answers (https://open-meteo.com/en/docs/historical-weather-api, read 2026-11-20) for
one place, in UTC; hours that were not generated are null, as hours not yet measured are there.
"""

import argparse
import csv
import json
import sys
from datetime import UTC, date, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pipeline.errors import ConfigError
from pipeline.projects.nyc.weather import API_FILE

UNITS = {
    "temperature_2m": "°C", "precipitation": "mm", "rain": "mm", "snowfall": "cm", "cloud_cover": "%",
    "wind_speed_10m": "km/h", "wind_direction_10m": "°",
}  # fmt: skip
MAX_DAYS = 4000

Series = dict[str, dict[str, float]]  # hour as YYYY-MM-DDTHH:MM -> variable -> value


class _Refused(Exception):
    """The request is wrong; the text is the API's reason."""


def serve(data: Path, port: int = 0, host: str = "127.0.0.1") -> ThreadingHTTPServer:
    """A server bound to *port* (0: a free one) of *host*; call its ``serve_forever``.

    Raises:
        ConfigError: if *data* holds no generated weather, or the port is taken.
    """
    series = _read(data / API_FILE)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60  # seconds that an idle connection may hold its thread

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            if address.path != "/v1/archive":
                self._answer(HTTPStatus.NOT_FOUND, {"error": True, "reason": "Not Found"})
                return
            try:
                self._answer(HTTPStatus.OK, _archive(series, parse_qs(address.query, keep_blank_values=True)))
            except _Refused as refused:
                self._answer(HTTPStatus.BAD_REQUEST, {"error": True, "reason": str(refused)})

        def _answer(self, status: HTTPStatus, document: dict[str, Any]) -> None:
            body = json.dumps(document, ensure_ascii=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Quiet: its output is the address and nothing else."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(
            f"Serving the weather: port {port} cannot be used ({error.strerror}). Choose another."
        ) from error


def _read(path: Path) -> Series:
    try:
        with path.open(newline="") as handle:
            return {
                row.pop("time"): {name: float(value) for name, value in row.items()} for row in csv.DictReader(handle)
            }
    except OSError as error:
        raise ConfigError(
            f"Serving the weather: {path}: {error.strerror}. Make it with `millrace generate-data`."
        ) from error


def _archive(series: Series, query: dict[str, list[str]]) -> dict[str, Any]:
    first, last = _day(query, "start_date"), _day(query, "end_date")
    today = datetime.now(UTC).date()
    for name, day in (("start_date", first), ("end_date", last)):
        if not date(1940, 1, 1) <= day <= today:
            raise _Refused(f"Parameter '{name}' is out of allowed range from 1940-01-01 to {today}")
    if last < first:
        raise _Refused("End-date must be larger or equals than start-date")
    if (last - first).days > MAX_DAYS:
        raise _Refused(f"At most {MAX_DAYS} days at once from this stand-in")
    variables = [name for value in query.get("hourly", []) for name in value.split(",") if name]
    unknown = [name for name in variables if name not in UNITS]
    if unknown:
        raise _Refused(
            f"Data corrupted at path ''. Cannot initialize VariableAndPreviousDay from invalid String value {unknown[0]}."
        )
    if query.get("timezone", ["GMT"])[0] not in ("GMT", "UTC"):
        raise _Refused("Invalid timezone: this stand-in knows GMT only")
    start = datetime(first.year, first.month, first.day, tzinfo=UTC)
    hours = [f"{start + timedelta(hours=n):%Y-%m-%dT%H:%M}" for n in range(24 * ((last - first).days + 1))]
    return {
        "latitude": _number(query, "latitude", 90),
        "longitude": _number(query, "longitude", 180),
        "generationtime_ms": 0.1,
        "utc_offset_seconds": 0,
        "timezone": "GMT",
        "timezone_abbreviation": "GMT",
        "elevation": 32.0,
        "hourly_units": {"time": "iso8601", **{name: UNITS[name] for name in variables}},
        "hourly": {"time": hours, **{name: [series.get(hour, {}).get(name) for hour in hours] for name in variables}},
    }


def _day(query: dict[str, list[str]], name: str) -> date:
    try:
        return date.fromisoformat(query[name][0])
    except KeyError:
        raise _Refused(f"Parameter '{name}' is required") from None
    except ValueError:
        raise _Refused("Invalid date format. Make sure to use 'YYYY-MM-DD'") from None


def _number(query: dict[str, list[str]], name: str, limit: float) -> float:
    try:
        value = float(query[name][0])
    except KeyError:
        raise _Refused("Parameter 'latitude' and 'longitude' must have the same number of elements") from None
    except ValueError:
        raise _Refused(f"Value of type 'Float' required for key '{name}'.") from None
    if not -limit <= value <= limit:
        raise _Refused(f"{name.capitalize()} must be in range of -{limit} to {limit}°. Given: {value}.")
    return value


def main() -> None:
    """Print the server's address on one line, then serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of generated data")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for other machines too")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    arguments = parser.parse_args()
    try:
        server = serve(arguments.data, arguments.port, host=arguments.host)
    except ConfigError as error:
        parser.exit(1, f"{error}\n")
    with server:
        sys.stdout.write(f"http://{arguments.host}:{server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    main()
