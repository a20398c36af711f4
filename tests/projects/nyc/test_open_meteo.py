"""The stand-in answers as Open-Meteo's archive API does."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pipeline.errors import ConfigError
from pipeline.projects.nyc.generate import generate
from pipeline.projects.nyc.open_meteo import serve

QUERY = {
    "latitude": "40.7128",
    "longitude": "-74.006",
    "start_date": "2021-01-31",
    "end_date": "2021-02-01",
    "hourly": "temperature_2m,snowfall",
    "timezone": "GMT",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generate(folder, first_month="2021-01", last_month="2021-01", trips_per_month=10)
    return folder


@pytest.fixture(scope="module")
def address(data: Path) -> Iterator[str]:
    with serve(data) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def ask(address: str, query: dict[str, str], path: str = "/v1/archive") -> tuple[int, dict[str, Any]]:
    response = httpx2.get(f"{address}{path}", params=query, timeout=10)
    return response.status_code, response.json()


def test_it_answers_in_the_shape_of_the_real_api(address: str):
    status, answer = ask(address, QUERY)

    assert status == 200
    assert answer["latitude"] == 40.7128
    assert answer["utc_offset_seconds"] == 0
    assert answer["timezone"] == "GMT"
    assert answer["hourly_units"] == {"time": "iso8601", "temperature_2m": "°C", "snowfall": "cm"}
    assert answer["hourly"]["time"][0] == "2021-01-31T00:00"
    assert answer["hourly"]["time"][-1] == "2021-02-01T23:00"
    assert [len(values) for values in answer["hourly"].values()] == [48, 48, 48]
    assert all(-30 < value < 45 for value in answer["hourly"]["temperature_2m"])


def test_hours_not_measured_are_null(address: str):
    _, answer = ask(address, QUERY | {"start_date": "2021-02-01", "end_date": "2021-02-02"})

    assert answer["hourly"]["temperature_2m"][23] is not None
    assert answer["hourly"]["temperature_2m"][24:] == [None] * 24


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"start_date": "2021-13-01"}, "Invalid date format. Make sure to use 'YYYY-MM-DD'"),
        ({"start_date": "1939-12-31"}, "Parameter 'start_date' is out of allowed range from 1940-01-01 to "),
        ({"end_date": "2999-01-01"}, "Parameter 'end_date' is out of allowed range from 1940-01-01 to "),
        ({"end_date": "2021-01-30"}, "End-date must be larger or equals than start-date"),
        ({"start_date": "1950-01-01"}, "At most 4000 days at once from this stand-in"),
        ({"hourly": "temperature_2m,mood"}, "invalid String value mood"),
        ({"latitude": "91"}, "Latitude must be in range of -90 to 90°. Given: 91.0."),
        ({"longitude": "west"}, "Value of type 'Float' required for key 'longitude'."),
        ({"timezone": "America/New_York"}, "this stand-in knows GMT only"),
    ],
)
def test_a_wrong_parameter_is_refused_with_the_reason(address: str, change: dict[str, str], reason: str):
    status, answer = ask(address, QUERY | change)

    assert status == 400
    assert answer["error"] is True
    assert reason in answer["reason"]


@pytest.mark.parametrize("missing", ["latitude", "start_date"])
def test_a_missing_parameter_is_refused(address: str, missing: str):
    status, answer = ask(address, {name: value for name, value in QUERY.items() if name != missing})

    assert status == 400
    assert missing in answer["reason"]


def test_any_other_path_is_not_found(address: str):
    assert ask(address, {}, path="/v1/forecast") == (404, {"error": True, "reason": "Not Found"})


def test_as_a_program_it_prints_its_address_and_serves(data: Path):
    command = [sys.executable, "-m", "pipeline.projects.nyc.open_meteo", "--data", data]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        status, _ = ask(address, QUERY)
        process.terminate()
        assert process.stdout.read() == ""

    assert status == 200


def test_without_generated_weather_it_says_how_to_make_it(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"open_meteo_api_hourly.csv: No such file or directory.*millrace generate-data"
    ):
        serve(tmp_path)


def test_a_taken_port_is_named(data: Path, address: str):
    with pytest.raises(ConfigError, match=r"port [0-9]+ cannot be used"):
        serve(data, int(address.rsplit(":", 1)[1]))
