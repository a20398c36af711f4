"""What a load of files does to the table: only what is new or changed, each file whole or not at all."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import SourceRejected
from pipeline.ingest.files import load_files
from pipeline.ingest.spec import load_source
from pipeline.lake.connection import Lake
from pipeline.progress import Progress
from pipeline.settings import BUNDLED_PROJECT
from tests.ingest.file_sources import Shop, one_lake

TWO = {"id": "BIGINT", "name": "VARCHAR"}
CSV = "id,name\n1,a\n2,b\n"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    yield from one_lake(tmp_path_factory.mktemp("lake"))


@pytest.fixture
def shop(lake: Lake, tmp_path: Path) -> Shop:
    return Shop.in_empty(lake, tmp_path)


@pytest.fixture
def monthly(shop: Shop) -> Shop:
    """Three months of two rows."""
    shop.declare(path="{month}*.csv", months={"first": "2021-01"}, columns=TWO, max_reject_share=0.5)
    for month in ("2021-01", "2021-02", "2021-03"):
        shop.write(f"{month}.csv", f"id,name\n1,{month}\n2,{month}\n")
    return shop


def hide_change(path: Path, content: str) -> None:
    """Change what is in the file so that only who opens it can tell."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_text(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_unchanged_file_is_not_opened(shop: Shop):
    path = shop.declare(path="*.csv", columns=TWO).write("a.csv", CSV)
    shop.load()
    hide_change(path, CSV.replace("a\n", "X\n"))

    result = shop.load()

    assert (result.rows, result.files_loaded, result.files_unchanged) == (0, (), 1)
    assert shop.rows() == [(1, "a"), (2, "b")]
    assert shop.pending() == []


def test_a_load_without_changes_makes_no_snapshot(monthly: Shop):
    monthly.load()
    count = "SELECT count(*) FROM lake.snapshots()"
    before = monthly.lake.scalar(count)

    monthly.load()

    assert monthly.lake.scalar(count) == before


def test_a_touched_file_is_read_once_and_changes_no_row(shop: Shop):
    path = shop.declare(path="*.csv", columns=TWO).write("a.csv", CSV)
    shop.load()
    before = shop.state()
    os.utime(path, (1_600_000_000, 1_600_000_000))
    assert shop.pending() == ["a.csv"]

    result = shop.load(run_id="second")

    assert (result.rows, result.files_unchanged) == (0, 1)
    assert shop.state() == before
    assert shop.ledger() == [("a.csv", None, 2, 0, "loaded")]
    assert shop.pending() == []


def test_a_changed_file_replaces_exactly_its_rows_and_its_rejects(shop: Shop):
    shop.declare(path="*.csv", columns=TWO, max_reject_share=0.5)
    shop.write("a.csv", CSV + "x,bad\n")
    shop.write("b.csv", "id,name\n3,c\ny,bad\n")
    shop.load(run_id="first")
    shop.write("a.csv", "id,name\n9,z\nw,worse\n")

    result = shop.load(run_id="second")

    assert (result.rows, result.rejects, result.files_loaded, result.files_unchanged) == (1, 1, ("a.csv",), 1)
    assert shop.rows("id, name, _file") == [(3, "c", "b.csv"), (9, "z", "a.csv")]
    assert shop.loaded_by() == {"a.csv": "second", "b.csv": "first"}
    assert shop.rejects("_file, line") == [("a.csv", "w,worse"), ("b.csv", "y,bad")]
    assert shop.ledger() == [("a.csv", None, 1, 1, "loaded"), ("b.csv", None, 1, 1, "loaded")]


def test_full_loads_everything_again_and_doubles_nothing(monthly: Shop):
    monthly.load(run_id="first")

    result = monthly.load(full=True, run_id="second")

    assert (result.rows, len(result.files_loaded)) == (6, 3)
    assert set(monthly.loaded_by().values()) == {"second"}
    assert len(monthly.rows()) == 6


def test_a_renamed_file_of_the_same_month_replaces_it(monthly: Shop):
    monthly.load()
    (monthly.folder / "2021-02.csv").rename(monthly.folder / "2021-02-final.csv")

    result = monthly.load()

    assert (result.rows, result.files_vanished) == (2, ())
    assert len(monthly.rows()) == 6
    assert [row for row in monthly.ledger() if row[1] == "2021-02"] == [
        ("2021-02-final.csv", "2021-02", 2, 0, "loaded"),
        ("2021-02.csv", "2021-02", 0, 0, "replaced"),
    ]
    (monthly.folder / "2021-02-final.csv").rename(monthly.folder / "2021-02.csv")
    assert monthly.load().rows == 2
    assert len(monthly.rows()) == 6


def test_a_vanished_file_keeps_its_rows_and_is_reported_until_it_is_back(monthly: Shop):
    monthly.load()
    content = (monthly.folder / "2021-02.csv").read_text()
    (monthly.folder / "2021-02.csv").unlink()

    assert monthly.load().files_vanished == ("2021-02.csv",)
    assert monthly.load().files_vanished == ("2021-02.csv",)
    assert len(monthly.rows()) == 6
    assert ("2021-02.csv", "2021-02", 2, 0, "vanished") in monthly.ledger()

    monthly.write("2021-02.csv", content)
    back = monthly.load()
    assert (back.rows, back.files_vanished, back.files_unchanged) == (0, (), 3)
    assert ("2021-02.csv", "2021-02", 2, 0, "loaded") in monthly.ledger()

    monthly.write("2021-02.csv", "id,name\n7,new\n")
    assert monthly.load().rows == 1
    assert len(monthly.rows()) == 5


def test_only_the_asked_months_are_loaded(monthly: Shop):
    result = monthly.load(months=frozenset({"2021-01", "2021-03"}))

    assert result.rows_by_month == (("2021-01", 2), ("2021-03", 2))
    assert monthly.rows("DISTINCT _month") == [("2021-01",), ("2021-03",)]
    assert monthly.pending() == ["2021-02.csv"]


def test_a_month_that_is_not_published_is_refused_naming_month_path_and_place(monthly: Shop):
    monthly.refused("no file matches {month}*.csv for 2020-12", str(monthly.folder), months=frozenset({"2020-12"}))


def test_files_before_the_first_and_after_the_last_month_are_left_alone(shop: Shop):
    shop.declare(path="{yyyymm}.csv", months={"first": "2021-02", "last": "2021-03"}, columns=TWO)
    for month in ("202101", "202102", "202103", "202104", "202113"):
        shop.write(f"{month}.csv", CSV)

    assert shop.load().rows_by_month == (("2021-02", 2), ("2021-03", 2))


def test_two_files_that_claim_one_month_are_refused_and_named(monthly: Shop):
    monthly.write("2021-02-copy.csv", CSV)

    monthly.refused("two files claim 2021-02", "2021-02-copy.csv", "2021-02.csv", "Nothing was loaded")
    assert not monthly.has_table()

    (monthly.folder / "2021-02-copy.csv").unlink()
    assert monthly.load().rows == 6


def test_a_bad_month_does_not_stop_the_good_ones_and_is_named(monthly: Shop):
    monthly.write("2021-02.csv", "id,name\nx,1\ny,2\n")

    with pytest.raises(SourceRejected) as caught:
        monthly.load()

    assert "1 of 3 files failed; the others are in the table" in str(caught.value)
    assert "2021-02.csv, line 2" in str(caught.value)
    assert monthly.rows("DISTINCT _month") == [("2021-01",), ("2021-03",)]
    monthly.write("2021-02.csv", CSV)
    assert monthly.load().rows == 2


def test_when_every_file_is_bad_nobody_claims_that_others_are_loaded(monthly: Shop):
    for month in ("2021-01", "2021-02", "2021-03"):
        monthly.write(f"{month}.csv", "")

    message = monthly.refused("3 of 3 files failed.")

    assert message.count("the file is empty") == 3
    assert "others" not in message


def test_a_bad_version_of_a_month_keeps_the_rows_of_the_good_one(monthly: Shop):
    monthly.load()
    monthly.write("2021-02.csv", "id,other\n1,2\n")

    monthly.refused("column name is not in the file")

    assert len(monthly.rows()) == 6


def test_a_file_whose_rows_cannot_all_be_taken_commits_nothing_at_all(shop: Shop):
    shop.declare(path="*.csv", columns=TWO).write("a.csv", CSV)
    shop.load()
    shop.write("b.csv", "id,name,new\n3,c,1\nx,d,2\n")

    shop.refused("1 of 2 rows do not fit")

    assert shop.types() == {"id": "BIGINT", "name": "VARCHAR"}
    assert shop.lake.query("SELECT * FROM ingest.schema_changes") == []


def test_no_file_at_all_is_refused(shop: Shop):
    shop.declare(path="*.csv", columns=TWO)

    shop.refused("no file matches *.csv", str(shop.folder))


def test_the_snapshot_of_a_file_names_asset_and_run(shop: Shop):
    shop.declare(path="*.csv", columns=TWO).write("a.csv", CSV)

    shop.load(run_id="run-42")

    last = "SELECT commit_message FROM lake.snapshots() ORDER BY snapshot_id DESC LIMIT 1"
    assert shop.lake.scalar(last) == "raw/shop/sales by run-42"
    assert shop.lake.query("SELECT source, stream, month, rows, rejects, run_id FROM ingest.loads") == [
        ("shop", "sales", None, 2, 0, "run-42")
    ]


def test_progress_is_told_before_each_file_and_at_the_end(monthly: Shop):
    told: list[Progress] = []

    monthly.load(report=told.append)

    assert [(step.items_done, step.items_total, step.rows) for step in told] == [
        (0, 3, 0), (1, 3, 2), (2, 3, 4), (3, 3, 6)
    ]  # fmt: skip
    assert told[-1].bytes_done == told[-1].bytes_total
    assert {step.task for step in told} == {"shop/sales"}


def test_a_big_file_tells_its_progress_while_it_is_read(shop: Shop):
    shop.declare(path="*.csv", columns={"v": "VARCHAR"}).write("a.csv", "v\n" + ("x" * 99 + "\n") * 400_000)
    told: list[Progress] = []

    shop.load(report=told.append)

    assert told[-1].rows == 400_000
    assert all(step.bytes_done <= (step.bytes_total or 0) for step in told)


def test_rows_of_other_sources_are_left_alone(shop: Shop, tmp_path: Path):
    shop.declare(path="*.csv", columns=TWO).write("a.csv", CSV)
    shop.load()
    other = Shop(shop.lake, shop.settings, tmp_path / "other")
    other.declare(source="other", path="*.csv", columns=TWO).write("a.csv", "id,name\n7,o\n")

    other.load()

    assert shop.rows() == [(1, "a"), (2, "b")]
    assert shop.lake.query("SELECT id FROM raw.other__sales") == [(7,)]
    assert shop.load().files_unchanged == 1


# Real files of the providers


@pytest.mark.parametrize(
    ("source", "stream", "rows"),
    [
        ("citibike", "trips", {"2021-01": 11_624, "2021-02": 4_881, "2021-03": 17_123}),
        ("tlc", "green_taxi", {"2021-01": 76_518}),
        ("tlc", "zones", {None: 265}),
        ("weather", "hourly", {None: 59_760}),
    ],
)
def test_provider_files_load_whole_and_only_once(
    shop: Shop, provider_files: Path, source: str, stream: str, rows: dict[str | None, int]
):
    file = load_source(BUNDLED_PROJECT / "sources" / f"{source}.yaml")
    (declared,) = [item for item in file.source.streams if item.name == stream]
    settings = shop.settings.model_copy(update={"data_dir": provider_files})

    first = load_files(shop.lake, file, declared, settings=settings, run_id="1")
    second = load_files(shop.lake, file, declared, settings=settings, run_id="2")

    assert dict(shop.lake.query(f"SELECT _month, count(*) FROM raw.{source}__{stream} GROUP BY 1")) == rows
    assert (first.rejects, second.rows, second.files_unchanged) == (0, 0, len(rows))


def test_a_renamed_file_replaces_itself_where_there_are_no_months(shop: Shop):
    shop.declare(path="*.csv", columns=TWO)
    shop.write("a.csv", CSV).rename(shop.folder / "b.csv")
    shop.write("a.csv", "id,name\n3,c\n")
    shop.load()
    (shop.folder / "b.csv").rename(shop.folder / "c.csv")

    result = shop.load()

    assert (result.files_loaded, result.files_vanished) == (("c.csv",), ())
    assert shop.rows("id, _file") == [(1, "c.csv"), (2, "c.csv"), (3, "a.csv")]
    assert ("b.csv", None, 0, 0, "replaced") in shop.ledger()
    assert shop.load().files_loaded == ()


def test_a_file_older_than_an_added_column_loads_again(shop: Shop):
    shop.declare(path="*.csv", columns={})
    shop.write("a.csv", CSV)
    shop.load()
    shop.write("b.csv", "id,name,more\n3,c,x\n")
    shop.load()

    shop.load(full=True)

    assert shop.rows() == [(1, "a", None), (2, "b", None), (3, "c", "x")]


def test_a_full_load_makes_the_table_anew_with_other_declared_types(shop: Shop):
    shop.declare(path="*.csv", columns={"id": "BIGINT", "name": "VARCHAR"})
    shop.write("a.csv", "id,name\n7,a\n")
    shop.write("b.csv", "id,name\n8,b\n")
    shop.load()
    shop.write("b.csv", "id,name\n07030,b\n")
    shop.declare(path="*.csv", columns={"id": "VARCHAR", "name": "VARCHAR"})
    shop.refused("id is VARCHAR, the table has BIGINT", "--full")

    result = shop.load(full=True)

    assert result.rows == 2
    assert shop.types() == {"id": "VARCHAR", "name": "VARCHAR"}
    assert shop.rows() == [("07030", "b"), ("7", "a")]
    assert shop.load().files_loaded == ()


def test_a_full_load_keeps_a_table_that_has_rows_of_files_that_are_gone(shop: Shop):
    shop.declare(path="*.csv", columns=TWO)
    shop.write("a.csv", CSV)
    shop.write("b.csv", "id,name\n3,c\n")
    shop.load()
    (shop.folder / "a.csv").unlink()
    shop.declare(path="*.csv", columns={"id": "VARCHAR", "name": "VARCHAR"})

    shop.refused("rows of files that are gone (a.csv)", full=True)

    assert len(shop.rows()) == 3
