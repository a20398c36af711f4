"""The availability catalogue: what can be reached, when it changed, what of it is loaded."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.errors import SourceUnavailable
from pipeline.ingest.health import check_sources, save
from pipeline.ingest.spec import SourceFile, load_source, load_sources
from pipeline.lake.connection import Lake
from tests.ingest.file_sources import Shop, declare, one_lake

TWO = {"id": "BIGINT", "name": "VARCHAR"}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    yield from one_lake(tmp_path_factory.mktemp("lake"))


@pytest.fixture
def shop(lake: Lake, tmp_path: Path) -> Shop:
    shop = Shop.in_empty(lake, tmp_path).declare(path="*.csv", columns=TWO)
    shop.write("a.csv", "id,name\n1,a\n2,b\n")
    return shop


def not_asked(_: SourceFile) -> None:
    raise AssertionError("there is no connector")


def test_a_source_tells_when_it_changed_when_it_was_loaded_and_what_is_there(shop: Shop):
    (before,) = check_sources(shop.lake, [shop.file], shop.settings, probe=not_asked)
    shop.load()
    shop.load(full=True)

    (after,) = check_sources(shop.lake, [shop.file], shop.settings, probe=not_asked)

    now = datetime.now(UTC)
    assert (before.reachable, before.last_load, before.rows) == (True, None, None)
    assert (after.source, after.stream, after.kind, after.reachable, after.error) == (
        "shop",
        "sales",
        "files",
        True,
        None,
    )
    assert after.rows == 2
    assert after.last_change
    assert after.last_load
    assert now - timedelta(minutes=5) < after.last_change < after.last_load < now
    assert 0 <= after.latency_seconds < 60


def test_what_is_wrong_with_one_source_is_told_and_the_others_are_still_asked(shop: Shop):
    declare(shop.project, source="gone", location="nowhere", path="*.csv")
    declare(shop.project, source="bare", path="*.parquet")
    declare(shop.project, source="secret", location="${NOT_SET_ANYWHERE}/x", path="*.csv")

    found = check_sources(shop.lake, load_sources(shop.project / "sources"), shop.settings, probe=not_asked)

    errors = {item.source: item.error for item in found if not item.reachable}
    assert [item.source for item in found if item.reachable] == ["shop"]
    assert errors["bare"] == "no file matches its path"
    assert "there is no folder" in (errors["gone"] or "")
    assert "NOT_SET_ANYWHERE is not set" in (errors["secret"] or "")


def test_a_connector_is_asked_once_for_all_its_streams(shop: Shop, tmp_path: Path):
    (tmp_path / "api.yaml").write_text(
        "name: api\nkind: airbyte\nowner: team:shop\nexecutable: ./x\nstreams: [{name: orders}, {name: items}]\n"
    )
    asked = []

    def probe(file: SourceFile) -> None:
        asked.append(file.source.name)
        raise SourceUnavailable("the API answers 503")

    found = check_sources(shop.lake, [load_source(tmp_path / "api.yaml")], shop.settings, probe=probe)

    assert asked == ["api"]
    assert [(item.stream, item.reachable, item.error) for item in found] == [
        ("orders", False, "the API answers 503"), ("items", False, "the API answers 503")
    ]  # fmt: skip


def test_the_saved_table_says_exactly_what_was_found_last(shop: Shop):
    found = check_sources(shop.lake, [shop.file], shop.settings, probe=not_asked)
    save(shop.lake, [*found, *found], run_id="one")

    save(shop.lake, found, run_id="two")

    assert shop.lake.query("SELECT source, stream, kind, reachable, rows, error FROM health.sources") == [
        ("shop", "sales", "files", True, None, None)
    ]
