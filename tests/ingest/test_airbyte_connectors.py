"""Connectors through PyAirbyte, for real: a manifest against a local API, a package from the index, an executable."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.errors import ConfigError, SourceRejected, SourceUnavailable
from pipeline.ingest import airbyte_connectors
from pipeline.ingest.airbyte import check, discover, preview, sync
from pipeline.ingest.airbyte_connectors import DRIVER, Connector, install
from pipeline.ingest.airbyte_environments import LOCK_FILE
from pipeline.ingest.spec import SourceFile, load_source
from pipeline.lake.connection import Lake
from pipeline.settings import BUNDLED_PROJECT, Settings

HERE = Path(__file__).parent
Shop = Callable[..., SourceFile]


@pytest.fixture
def weather() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("weather_api", HERE / "connectors" / "weather_api.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.serving() as server:
        os.environ |= {
            "OPEN_METEO_URL": server.url,
            "OPEN_METEO_START_DATE": "2021-01-01",
            "OPEN_METEO_END_DATE": "2021-03-15",
        }
        yield server


def test_the_weather_manifest_continues_with_its_last_month_and_loses_and_doubles_nothing(
    lake: Lake, connected: Settings, weather: ModuleType
) -> None:
    file = load_source(BUNDLED_PROJECT / "sources" / "open_meteo.yaml")
    days = (
        "SELECT date::VARCHAR, latitude, len((hourly->'time')::JSON[]) / 24 FROM raw.open_meteo__hourly ORDER BY date"
    )
    weather.failures = 1  # 503: the connector waits and asks again

    sync(lake, file, None, settings=connected, run_id="r1")
    assert lake.query(days) == [
        ("2021-01-01", 40.738136, 31.0),
        ("2021-02-01", 40.738136, 28.0),
        ("2021-03-01", 40.738136, 15.0),
    ]
    assert lake.scalar("SELECT hourly->'snowfall'->0 FROM raw.open_meteo__hourly WHERE date = '2021-01-01'") == "8.0"

    weather.requests.clear()
    os.environ["OPEN_METEO_END_DATE"] = "2021-04-02"
    (result,) = sync(lake, file, None, settings=connected, run_id="r2")
    assert sorted(weather.requests) == [("2021-03-01", "2021-03-31"), ("2021-04-01", "2021-04-02")]
    assert [row[2] for row in lake.query(days)] == [31.0, 28.0, 31.0, 2.0]
    assert result.rows == 2


def test_a_refused_request_of_the_manifest_is_one_clear_error(
    lake: Lake, connected: Settings, weather: ModuleType, tmp_path: Path
) -> None:
    for name in ("open_meteo.yaml", "open_meteo.manifest.yaml"):
        text = (BUNDLED_PROJECT / "sources" / name).read_text()
        (tmp_path / name).write_text(text.replace("latitude: 40.7128", "latitude: 0"))

    with pytest.raises(SourceRejected, match="Open-Meteo refuses the request: nobody lives there"):
        sync(lake, load_source(tmp_path / "open_meteo.yaml"), None, settings=connected, run_id="r")


def test_check_says_whether_the_source_is_reached(connected: Settings, shop: Shop) -> None:
    good = check(shop(), connected)
    os.environ["STAND_IN_TOKEN"] = "wrong-token"
    bad = check(shop(), connected)

    assert (good.source, good.succeeded) == ("shop", True)
    assert not bad.succeeded
    assert "401: the token is not known" in bad.message
    assert "wrong-token" not in bad.message


def test_a_configuration_that_breaks_its_specification_is_named(connected: Settings, shop: Shop) -> None:
    wrong = check(shop(config='{token: "${STAND_IN_TOKEN}", region: 7}'), connected)

    assert not wrong.succeeded
    assert "7 is not of type 'string'" in wrong.message


def test_discover_lists_streams_with_fields_keys_and_modes(connected: Settings, shop: Shop) -> None:
    items, other, plain = discover(shop(), connected)

    assert (items.name, items.primary_key, items.cursor_field) == ("items", ("id",), "id")
    assert items.fields["created_at"] == "TIMESTAMP WITH TIME ZONE"
    assert (other.name, other.connector_name) == ("other_items", "Other Items")
    assert plain.sync_modes == ("full_refresh",)


def test_preview_shows_the_first_records_and_ends_the_connector(connected: Settings, shop: Shop) -> None:
    records = preview(
        shop(plan={"count": 10, "at": {"8": "hang"}, "layout": "keys reversed"}), "items", connected, limit=3
    )

    assert [record["Name"] for record in records] == ["item 1", "item 2", "item 3"]


def test_a_warm_sync_does_not_start_pyairbyte_and_a_changed_configuration_does(
    connected: Settings, shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Connector(shop(), connected).describe()
    monkeypatch.setattr(airbyte_connectors, "DRIVER", tmp_path / "no-driver.py")

    assert len(Connector(shop(), connected).describe().streams) == 3
    with pytest.raises(SourceUnavailable, match="PyAirbyte ended with code 2"):
        Connector(shop(config='{token: "${STAND_IN_TOKEN}", region: north}'), connected).describe()


def test_the_kept_catalogue_holds_no_secret(connected: Settings, shop: Shop) -> None:
    Connector(shop(), connected).describe()

    kept = list((connected.connectors_path / "catalogues").glob("shop-*.json"))
    assert kept
    assert not [path for path in kept if "s3cret-token" in path.read_text()]


def test_a_secret_in_the_source_file_is_refused(lake: Lake, connected: Settings, shop: Shop) -> None:
    file = shop(config="{token: abc-literal}")

    for action in (lambda: discover(file, connected), lambda: sync(lake, file, None, settings=connected, run_id="r")):
        with pytest.raises(ConfigError, match=r"shop.yaml: config.token: the connector calls this a secret") as caught:
            action()
        assert "abc-literal" not in str(caught.value)


def test_a_missing_secret_is_named(
    lake: Lake, connected: Settings, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shop()
    monkeypatch.delenv("STAND_IN_TOKEN")

    with pytest.raises(ConfigError, match=r"config.token: the environment variable STAND_IN_TOKEN is not set"):
        sync(lake, file, None, settings=connected, run_id="r")


@pytest.mark.parametrize(
    ("connector", "says"),
    [
        ("executable: ./nowhere", "'./nowhere' is not an executable file"),
        ("manifest: nowhere.yaml", "No such file"),
        (
            "package: airbyte-source-x==1.0",
            r"connector airbyte-source-x==1.0 is not installed in .* Run `millrace sources install`",
        ),
    ],
)
def test_a_connector_that_is_not_there_is_a_clear_error(
    lake: Lake, connected: Settings, tmp_path: Path, connector: str, says: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"name: x\nowner: team:data\nkind: airbyte\n{connector}\nstreams: [{{name: items}}]\n")

    with pytest.raises(ConfigError, match=says):
        sync(lake, load_source(path), None, settings=connected, run_id="r")


def test_nothing_but_install_makes_an_environment(lake: Lake, settings: Settings, shop: Shop) -> None:
    os.environ["STAND_IN_TOKEN"] = "s3cret-token"

    with pytest.raises(ConfigError, match=r"PyAirbyte is not installed .* Run `millrace sources install`"):
        sync(lake, shop(), None, settings=settings, run_id="r")
    assert not (settings.connectors_path / "pyairbyte").exists()


def test_an_installed_environment_is_left_alone_and_the_rest_of_a_killed_install_is_not_used(
    connected: Settings, settings: Settings, shop: Shop, tmp_path: Path
) -> None:
    said: list[str] = []
    install(connected, [shop()], said.append)
    killed = settings.model_copy(update={"connectors_dir": tmp_path / "killed"})
    (tmp_path / "killed" / "pyairbyte" / "bin").mkdir(parents=True)
    (tmp_path / "killed" / "pyairbyte" / "bin" / "python").touch()

    assert said == ["PyAirbyte: installed"]
    with pytest.raises(ConfigError, match="PyAirbyte is not installed"):
        discover(shop(), killed)


def test_a_package_from_the_index_is_installed_checked_and_read(
    lake: Lake, connected: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "faker.yaml"
    path.write_text(
        "name: faker\nowner: team:data\nkind: airbyte\npackage: airbyte-source-faker==7.2.1\n"
        "config: {count: 50, seed: 7, records_per_slice: 50, parallelism: 1}\n"
        "streams:\n- {name: users, sync: incremental_deduped, primary_key: [id]}\n"
    )
    file = load_source(path)

    install(connected, [file])
    assert check(file, connected).succeeded
    (first,) = sync(lake, file, None, settings=connected, run_id="r1")
    sync(lake, file, None, settings=connected, run_id="r2")

    assert first.rows == 50
    assert lake.query("SELECT count(*), count(DISTINCT id) FROM raw.faker__users") == [(50, 50)]
    assert (
        lake.scalar("SELECT data_type FROM duckdb_columns() WHERE table_name = 'faker__users' AND column_name = 'id'")
        == "BIGINT"
    )


def test_the_driver_imports_nothing_of_the_platform_and_the_lock_is_where_a_wheel_has_it() -> None:
    assert not re.search(r"^(from|import) pipeline", DRIVER.read_text(), re.MULTILINE)
    assert "airbyte==0.71.3" in LOCK_FILE.read_text()


def test_the_files_that_the_image_builds_pyairbyte_from_are_enough(tmp_path: Path) -> None:
    root = HERE.parents[1]
    stage = (root / "docker" / "Dockerfile").read_text().split(" AS pyairbyte\n")[1].split("\nFROM ")[0]
    for line in re.findall(r"^COPY (.+)$", stage, re.MULTILINE):
        *files, target = line.split()
        for file in files:
            made = tmp_path / target.removeprefix("/")
            made = made / Path(file).name if target.endswith("/") else made
            made.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / file, made)

    program = "import pipeline.ingest.airbyte_environments as found; print(found.__file__)"
    done = subprocess.run([sys.executable, "-P", "-c", program], env={"PYTHONPATH": str(tmp_path / "build")}, capture_output=True, text=True, check=False)  # fmt: skip

    assert done.stdout.startswith(str(tmp_path)), done.stderr
