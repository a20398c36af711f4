"""What comes of each format, and of what is wrong in it, as seen in the raw table and its rejects."""

import gzip
import io
import zipfile
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from pipeline.lake.connection import Lake
from tests.ingest.file_sources import Shop, json_lines, one_lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    yield from one_lake(tmp_path_factory.mktemp("lake"))


@pytest.fixture
def shop(lake: Lake, tmp_path: Path) -> Shop:
    return Shop.in_empty(lake, tmp_path)


TWO = {"id": "BIGINT", "name": "VARCHAR"}


# Formats


def zipped(name: str, content: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        archive.writestr("__MACOSX/._" + name, "resource fork")
    return buffer.getvalue()


CSV = "id,name\n1,a\n2,b\n"
NDJSON = '{"id": 1, "name": "a"}\n{"id": 2, "name": "b"}\n'
DOCUMENT = '{"data": {"items": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}}'


@pytest.mark.parametrize(
    ("name", "content", "more"),
    [
        ("s.csv", CSV, {}),
        ("s.csv.gz", gzip.compress(CSV.encode()), {}),
        ("s.csv.zip", zipped("s.csv", CSV), {}),
        ("s.CSV", CSV, {}),
        ("s.txt", CSV.replace(",", ";"), {"format": "csv", "delimiter": ";"}),
        ("s.ndjson", NDJSON, {}),
        ("s.jsonl.gz", gzip.compress(NDJSON.encode()), {}),
        ("s.json", DOCUMENT, {"records": "data.items"}),
        ("s.json.gz", gzip.compress(DOCUMENT.encode()), {"records": "data.items"}),
        ("s.json", "\ufeff" + DOCUMENT, {"records": "data.items"}),
        ("s.json", '[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]', {}),
    ],
    ids=[
        "csv",
        "csv.gz",
        "csv.zip",
        "CSV",
        "txt",
        "ndjson",
        "jsonl.gz",
        "json",
        "json.gz",
        "json-with-bom",
        "json-array",
    ],
)
@pytest.mark.parametrize("columns", [TWO, {}], ids=["declared", "undeclared"])
def test_every_format_gives_the_same_rows(shop: Shop, name: str, content: str | bytes, more: dict, columns: dict):
    shop.declare(path=name, columns=columns, **more).write(name, content)

    result = shop.load(run_id="run-7")

    assert (result.rows, result.rejects, result.files_loaded) == (2, 0, (name,))
    assert shop.rows() == [(1, "a"), (2, "b")]
    assert shop.types() == {"id": "BIGINT", "name": "VARCHAR"}
    assert shop.rows("_file, _row, _month") == [(name, 1, None), (name, 2, None)]
    assert shop.loaded_by() == {name: "run-7"}


def test_parquet_gives_its_rows_with_their_place_in_the_file(shop: Shop):
    shop.declare(path="s.parquet", columns=TWO)
    shop.parquet("s.parquet", "SELECT range::INTEGER AS ID, 'n' || range AS name FROM range(5)")

    assert shop.load().rows == 5
    assert shop.rows("id, name, _row") == [(n, f"n{n}", n + 1) for n in range(5)]


def test_names_with_glob_characters_and_quotes_are_read_as_they_are(shop: Shop):
    name = "it's [1] {x}.csv"
    shop.declare(path="it's [1] *.csv", columns=TWO).write(name, CSV)
    shop.write("it's 1 z.csv", CSV)

    assert shop.load().files_loaded == (name,)
    assert shop.rows("_file") == [(name,), (name,)]


# Headers


def test_a_header_is_found_below_a_preamble_by_its_names(shop: Shop):
    shop.declare(path="s.csv", columns={"id": "BIGINT", "temp": {"type": "DOUBLE", "aliases": ["temperature_2m (°C)"]}})
    shop.write("s.csv", "latitude,longitude\n40.7,-74.0\n\nId,temperature_2m (°C)\n1,20.5\n")

    shop.load()

    assert shop.rows() == [(1, 20.5)]


def test_byte_order_mark_and_carriage_returns_are_no_part_of_values(shop: Shop):
    shop.declare(path="s.csv", columns=TWO).write("s.csv", "\ufeffid,name\r\n1,a\r\n2,b\r\n")

    shop.load()

    assert shop.rows() == [(1, "a"), (2, "b")]


def test_quoted_values_keep_line_breaks_delimiters_and_quotes(shop: Shop):
    shop.declare(path="s.csv", columns=TWO).write("s.csv", 'id,name\n1,"a\nb, ""c"""\n2,b\n')

    shop.load()

    assert shop.rows() == [(1, 'a\nb, "c"'), (2, "b")]


def test_empty_values_are_null_and_a_last_line_needs_no_line_break(shop: Shop):
    shop.declare(path="s.csv", columns=TWO).write("s.csv", "id,name\n,a\n2,")

    shop.load()

    assert shop.rows() == [(2, None), (None, "a")]


def test_headers_in_another_script_are_matched_by_alias(shop: Shop):
    shop.declare(path="s.csv", columns={"day": {"aliases": ["日付"]}, "place": {"aliases": ["場所"]}})
    shop.write("s.csv", "日付,場所\n2021-01-01,東京\n")

    shop.load()

    assert shop.rows() == [("2021-01-01", "東京")]


def test_both_generations_of_a_real_header_fill_the_same_columns(shop: Shop):
    columns = {
        "started_at": {"type": "TIMESTAMP", "aliases": ["starttime"]},
        "start_lat": {"type": "DOUBLE", "aliases": ["start station latitude"]},
        "ride_id": {"optional": True},
        "bikeid": {"optional": True},
    }
    shop.declare(path="JC-{yyyymm}.csv", months={"first": "2021-01"}, columns=columns)
    shop.write("JC-202101.csv", '"starttime","start station latitude","bikeid"\n"2021-01-01 00:03:35.5",40.7,42\n')
    shop.write("JC-202102.csv", "ride_id,started_at,start_lat\nX1,2021-02-01 00:04:23,40.8\n")

    shop.load()

    assert shop.rows("_month, started_at::VARCHAR, start_lat, ride_id, bikeid") == [
        ("2021-01", "2021-01-01 00:03:35.5", 40.7, None, "42"),
        ("2021-02", "2021-02-01 00:04:23", 40.8, "X1", None),
    ]


@pytest.mark.parametrize("header", ["id,name,NAME", "id,name,name", "id,name,label"])
def test_two_headers_for_one_column_are_refused(shop: Shop, header: str):
    shop.declare(path="s.csv", columns={"id": "BIGINT", "name": {"aliases": ["label"]}})
    shop.write("s.csv", f"{header}\n1,a,b\n")

    shop.refused("s.csv", "two headers stand for column name", header.replace(",", ", "))


# Columns that come, go and change


def test_a_new_column_is_added_and_recorded(shop: Shop):
    shop.declare(path="{month}.csv", months={"first": "2021-01"}, columns=TWO)
    shop.write("2021-01.csv", CSV)
    shop.load()
    shop.write("2021-02.csv", "id,name,Tip Amount\n3,c,1.5\n")

    result = shop.load()

    assert result.columns_added == ("tip_amount",)
    assert shop.rows() == [(1, "a", None), (2, "b", None), (3, "c", "1.5")]
    assert shop.lake.query("SELECT source, stream, column_name, type, change FROM ingest.schema_changes") == [
        ("shop", "sales", "tip_amount", "VARCHAR", "added")
    ]


def test_a_lost_column_is_refused_by_name_and_an_optional_one_is_null(shop: Shop):
    shop.declare(
        path="{month}.csv", months={"first": "2021-01"}, columns={**TWO, "tip": {"type": "DOUBLE", "optional": True}}
    )
    shop.write("2021-01.csv", CSV)
    shop.write("2021-02.csv", "id,tip\n3,1.5\n")

    with pytest.raises(Exception, match="column name is not in the file, which has id, tip"):
        shop.load()

    assert shop.rows() == [(1, "a", None), (2, "b", None)]


def test_undeclared_columns_take_the_types_of_the_first_file_and_lose_nothing(shop: Shop):
    shop.declare(path="*.csv")
    shop.write(
        "a.csv",
        "id,zip,price,day,sold_at,ok,us day,empty,mixed\n"
        "1,00501,1.5,2021-01-31,2021-01-31 10:00:00,true,01/31/2021,,1\n"
        "2,10001,2,2021-02-01,2021-02-01T11:00:00,False,02/01/2021,,n/a\n",
    )

    shop.load()

    assert shop.types() == {
        "id": "BIGINT", "zip": "VARCHAR", "price": "DOUBLE", "day": "DATE", "sold_at": "TIMESTAMP", "ok": "BOOLEAN",
        "us_day": "VARCHAR", "empty": "VARCHAR", "mixed": "VARCHAR",
    }  # fmt: skip
    assert shop.rows("zip, price, day, sold_at::VARCHAR, ok")[0] == (
        "00501", 1.5, date(2021, 1, 31), "2021-01-31 10:00:00", True
    )  # fmt: skip
    shop.write("b.csv", "id,zip,price,day,sold_at,ok,us day,empty\n1,1,1,2021-01-01,2021-01-01,true,x,\n")
    assert "column mixed is not in the file" in shop.refused("1 of 2 files failed")


def test_columns_of_every_type_take_a_second_file(shop: Shop):
    shop.declare(path="*.parquet")
    select = (
        "SELECT {n}::UBIGINT AS \"2nd id\", TIMESTAMPTZ '2021-01-01 00:00:00+00' AS sold_at, 1.25::DECIMAL(9, 2) AS price, "
        "'{{}}'::JSON AS doc, [1, 2] AS list, {{'a': 1}} AS struct, 'x'::BLOB AS blob, uuid() AS uuid"
    )
    shop.parquet("a.parquet", select.format(n=1))
    shop.load()
    shop.parquet("b.parquet", select.format(n=2))

    assert shop.load().rows == 1
    assert shop.rows('"2nd_id", sold_at, price')[1] == (2, datetime(2021, 1, 1, tzinfo=UTC), Decimal("1.25"))


def test_declared_timestamptz_decimal_and_json_columns_take_a_second_file(shop: Shop):
    columns = {"sold_at": "TIMESTAMPTZ", "price": "DECIMAL(9,2)", "doc": "JSON"}
    shop.declare(path="*.csv", columns=columns)
    shop.write("a.csv", 'sold_at,price,doc\n2021-01-01T02:00:00+02:00,1.25,"{""a"": 1}"\n')
    shop.load()
    shop.write("b.csv", "sold_at,price,doc\n2021-01-02,3,\n")

    assert shop.load().rows == 1
    assert shop.rows("sold_at, price, doc->>'a'") == [
        (datetime(2021, 1, 1, tzinfo=UTC), Decimal("1.25"), "1"),
        (datetime(2021, 1, 2, tzinfo=UTC), Decimal("3.00"), None),
    ]


@pytest.mark.parametrize(
    ("declared", "found"),
    [("BIGINT", "INTEGER"), ("DOUBLE", "BIGINT"), ("DOUBLE", "FLOAT"), ("TIMESTAMP", "DATE"), ("VARCHAR", "BIGINT")],
)
def test_a_file_with_a_narrower_type_is_taken(shop: Shop, declared: str, found: str):
    shop.declare(path="s.parquet", columns={"v": declared})
    value = "DATE '2021-01-01'" if found == "DATE" else "7"
    shop.parquet("s.parquet", f"SELECT {value}::{found} AS v")

    shop.load()

    assert shop.types() == {"v": declared}


def test_the_type_drift_of_real_months_is_taken_both_ways(shop: Shop):
    shop.declare(path="{month}.parquet", months={"first": "2021-01"}, columns={"passengers": "DOUBLE"})
    shop.parquet("2021-01.parquet", "SELECT 1.0::DOUBLE AS passengers")
    shop.parquet("2021-02.parquet", "SELECT 2::BIGINT AS passengers")
    shop.parquet("2021-03.parquet", "SELECT 3::INTEGER AS passengers")

    shop.load()

    assert shop.rows() == [(1.0,), (2.0,), (3.0,)]


@pytest.mark.parametrize(
    ("declared", "found"),
    [("INTEGER", "BIGINT"), ("BIGINT", "DOUBLE"), ("BIGINT", "VARCHAR"), ("DATE", "TIMESTAMP"), ("DOUBLE", "BOOLEAN")],
)
def test_a_file_with_another_type_is_refused_naming_the_column(shop: Shop, declared: str, found: str):
    shop.declare(path="*.parquet", columns={"id": "BIGINT", "v": declared})
    shop.parquet(
        "s.parquet",
        f"SELECT 1::BIGINT AS id, NULL::{found} AS v UNION ALL SELECT 2, {'TIMESTAMP ' if found == 'TIMESTAMP' else ''}'2021-01-01'::{found}"
        if found in ("VARCHAR", "TIMESTAMP")
        else f"SELECT 1::BIGINT AS id, 1::{found} AS v",
    )

    shop.refused("s.parquet", f"type changed: v is {found}, declared {declared}")


def test_an_undeclared_column_that_changes_its_type_is_refused(shop: Shop):
    shop.declare(path="*.parquet").parquet("a.parquet", "SELECT 1::BIGINT AS id, 1::INTEGER AS v")
    shop.load()
    shop.parquet("b.parquet", "SELECT 1::BIGINT AS id, 'x' AS v")

    shop.refused("b.parquet", "v is VARCHAR, declared INTEGER")


def test_a_declared_type_other_than_the_tables_is_refused(shop: Shop):
    shop.declare(path="*.csv", columns=TWO).write("a.csv", CSV)
    shop.load()
    shop.write("b.csv", CSV)

    shop.declare(path="*.csv", columns={"id": "DOUBLE", "name": "VARCHAR"})

    shop.refused("id is DOUBLE, the table has BIGINT")


def test_a_parquet_column_of_the_null_type_is_null_whatever_is_declared(shop: Shop):
    import pyarrow as pa
    import pyarrow.parquet as pq

    shop.declare(path="*.parquet", columns={"id": "BIGINT", "fee": {"type": "DOUBLE", "optional": True}})
    pq.write_table(pa.table({"id": [1, 2], "fee": pa.nulls(2)}), shop.folder / "a.parquet")

    shop.load()

    assert shop.rows() == [(1, None), (2, None)]
    assert shop.types() == {"id": "BIGINT", "fee": "DOUBLE"}


def test_a_parquet_column_that_is_all_null_in_another_type_is_taken(shop: Shop):
    shop.declare(path="*.parquet", columns={"id": "BIGINT", "fee": "DOUBLE"})
    shop.parquet("a.parquet", "SELECT 1::BIGINT AS id, NULL::VARCHAR AS fee")

    shop.load()

    assert shop.rows() == [(1, None)]


# Rejected rows


def test_rows_that_do_not_fit_are_kept_with_file_line_and_reason(shop: Shop):
    shop.declare(path="s.csv", columns=TWO, max_reject_share=0.9)
    shop.write("s.csv", 'id,name\n1,"two\nlines"\n\nabc,x\n2\n3,b,c\n4,ok\n')

    result = shop.load()

    assert (result.rows, result.rejects) == (2, 3)
    assert shop.rows() == [(1, "two\nlines"), (4, "ok")]
    found = shop.rejects()
    assert [(row[0], row[1], row[2], row[4]) for row in found] == [
        ("s.csv", 5, "id", "abc,x"),
        ("s.csv", 6, "name", "2"),
        ("s.csv", 7, None, "3,b,c"),
    ]
    assert [row[3].partition(":")[0] for row in found] == ["CAST", "MISSING COLUMNS", "TOO MANY COLUMNS"]
    assert shop.ledger() == [("s.csv", None, 2, 3, "loaded")]


def test_the_line_of_a_reject_is_right_far_into_a_file_with_line_breaks_in_values(shop: Shop):
    shop.declare(path="s.csv", columns=TWO, max_reject_share=0.01)
    rows = [f'{n},"a\r\nb"\r\n' if n % 1000 == 3 else f"{n},{'x' * 40}\r\n" for n in range(200_000)]
    rows[123_456] = "bad,x\r\n"
    text = "id,name\r\n" + "".join(rows)
    shop.write("s.csv", text)

    shop.load()

    ((line,),) = shop.rejects("_row")
    assert text.split("\r\n")[line - 1] == "bad,x"


def test_a_value_that_is_no_json_is_rejected_with_its_line(shop: Shop):
    shop.declare(path="s.csv", columns={"id": "BIGINT", "data": "JSON"}, max_reject_share=0.9)
    shop.write("s.csv", 'id,data\n1,"{""a"":\n1}"\n2,zz\nx,{}\n3\n4,\n5,[1\n')

    result = shop.load()

    assert (result.rows, result.rejects) == (2, 4)
    assert shop.rows("id") == [(1,), (4,)]
    assert shop.rejects('_row, "column", line') == [
        (4, "data", "2,zz"), (5, "id", "x,{}"), (6, "data", "3"), (8, "data", "5,[1")
    ]  # fmt: skip


def test_more_rejects_than_declared_fail_the_load_with_both_figures_and_the_first(shop: Shop):
    shop.declare(path="s.csv", columns=TWO, max_reject_share=0.1)
    shop.write("s.csv", "id,name\n" + "1,a\n" * 8 + "x,a\ny,b\n")

    shop.refused("shop/sales", "2 of 10 rows do not fit", "max_reject_share 0.1", "s.csv, line 10: CAST", '"x"')
    assert not shop.has_table()

    shop.declare(path="s.csv", columns=TWO, max_reject_share=0.2)
    assert shop.load().rejects == 2


def test_json_lines_that_do_not_fit_are_kept_with_their_line(shop: Shop):
    shop.declare(path="s.ndjson", columns=TWO, max_reject_share=0.9)
    shop.write("s.ndjson", '{"id": 1, "name": "a"}\n\n{"id": "x"}\n{"id": 1.5}\n[1]\n{"id": 2,\n{"id": 3.0}\n')

    result = shop.load()

    assert (result.rows, result.rejects) == (2, 4)
    assert shop.rows() == [(1, "a"), (3, None)]
    assert shop.rejects('_row, "column", reason, line') == [
        (3, "id", "CAST: x is not BIGINT", '{"id": "x"}'),
        (4, "id", "CAST: 1.5 is not BIGINT", '{"id": 1.5}'),
        (5, None, "not a JSON object", "[1]"),
        (6, None, "not a JSON object", '{"id": 2,'),
    ]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("BIGINT", "1.5"),
        ("INTEGER", "2.9"),
        ("BIGINT", "15e-1"),
        ("DECIMAL(10,2)", "1.239"),
        ("DATE", "2021-01-01 10:00:00"),
        ("TIMESTAMP", "2024-01-01T12:00:00+02:00"),
    ],
)
def test_a_value_that_its_type_would_cut_is_refused(shop: Shop, kind: str, value: str):
    shop.declare(path="s.csv", columns={"v": kind}, max_reject_share=1)
    shop.write("s.csv", f"v\n{value}\n")

    shop.refused("s.csv", f"v holds {value}, declared {kind}")


def test_whole_numbers_and_days_written_long_are_taken(shop: Shop):
    shop.declare(path="s.csv", columns={"v": "BIGINT", "d": "DATE"}).write("s.csv", "v,d\n2.0,2021-01-01 00:00:00\n")

    shop.load()

    assert shop.rows() == [(2, date(2021, 1, 1))]


def test_json_keeps_nested_values_and_null_is_null(shop: Shop):
    shop.declare(path="s.ndjson", columns={"id": "BIGINT", "tags": "JSON", "name": {"optional": True}})
    shop.write("s.ndjson", json_lines({"id": 1, "tags": {"a": [1]}, "name": None}, {"id": 2, "tags": None}))

    shop.load()

    assert shop.rows() == [(1, '{"a":[1]}', None), (2, None, None)]


# Files that are not what they should be


BAD_FILES = {
    "empty": ("s.csv", b"", ["the file is empty"]),
    "empty Parquet": ("s.parquet", b"", ["the file is empty"]),
    "header only": ("s.csv", b"id,name\n", ["s.csv has no rows"]),
    "wrong ending": ("s.xlsx", b"PK\x03\x04", ["the ending tells no format", ".parquet, .csv"]),
    "Parquet called CSV": ("s.csv", b"PAR1" + b"\0" * 99 + b"PAR1", ["expected csv, found Parquet"]),
    "CSV called Parquet": ("s.parquet", CSV.encode(), ["not a Parquet file", "b'id,n'"]),
    "gzip without .gz": ("s.csv", gzip.compress(CSV.encode()), ["expected csv, found gzip"]),
    ".gz without gzip": ("s.csv.gz", CSV.encode(), ["Unpacking s.csv.gz", "Not a gzipped file"]),
    "zip without .zip": ("s.csv", zipped("s.csv", CSV), ["expected csv, found zip"]),
    ".zip without zip": ("s.csv.zip", CSV.encode(), ["Unpacking s.csv.zip", "not a zip file"]),
    "gzip cut off": ("s.csv.gz", gzip.compress((CSV * 999).encode())[:-20], ["Unpacking s.csv.gz", "ended before"]),
    "gzip with a wrong checksum": (
        "s.csv.gz", gzip.compress(CSV.encode())[:-8] + b"\0" * 8, ["Unpacking s.csv.gz", "CRC"]
    ),
    "zip cut off": ("s.csv.zip", zipped("s.csv", CSV)[:-30], ["Unpacking s.csv.zip"]),
    "Parquet cut off": ("s.parquet", b"PAR1" + b"\x15\x04" * 99, ["no footer", "cut off"]),
    "Parquet with garbage": ("s.parquet", b"PAR1" + b"\xff" * 200 + b"\x10\0\0\0PAR1", ["Reading s.parquet"]),
    "UTF-16": ("s.csv", CSV.encode("utf-16"), ["expected csv, found binary data"]),
    "Latin-1 in a value": ("s.csv", "id,name\n1,café\n".encode("latin-1"), ["1 of 1 rows do not fit", "line 2", "utf-8"]),
    "Latin-1 in the header": ("s.csv", "id,name,café\n".encode("latin-1"), ["not CSV in UTF-8"]),
    "no header": ("s.csv", b"1,a\n2,b\n", ["column id, name is not in the file, which has 1, a"]),
    "mixed line ends": ("s.csv", b"id,name\r\n1,a\r\n2,b\n3,c\r\n", ["line ends are mixed"]),
    "cut in the last line": ("s.csv", b"id,name\n1,a\n2", ["cut off in its last line (3: '2')"]),
    "cut in a quoted value": ("s.csv", b'id,name\n1,a\n2,"b', ["cut off in its last line (3: "]),
    "conflict at the top": (
        "s.csv", b"<<<<<<< HEAD\nid,name\n1,a\n=======\nid,name\n2,b\n>>>>>>> x\n", ["merge-conflict marks on line 1, 4, 7"]
    ),
    "conflict within": (
        "s.csv", b"id,name\n" + b"1,a\n" * 20 + b"<<<<<<< HEAD\n1,a\n=======\n2,b\n>>>>>>> x\n", ["on line 22, 24, 26"]
    ),
    "JSON cut off": ("s.json", b'[{"id": 1, "name": "a"}, {"id"', ["not a JSON document"]),
    "JSON without the records": ("s.json", b'{"id": 1}', ["`records: ` there is OBJECT, not an array"]),
    "JSON that is HTML": ("s.ndjson", b"<html>\n</html>\n", ["no JSON object in it"]),
    "JSON in Latin-1": ("s.json", '[{"id": 1, "name": "é"}]'.encode("latin-1"), ["not UTF-8"]),
    "JSON lines in Latin-1": ("s.ndjson", '{"id": 1, "name": "é"}\n'.encode("latin-1"), ["Reading s.ndjson"]),
    "huge line": ("s.csv", b"id,name\n1," + b"x" * (33 << 20) + b"\n", ["1 of 1 rows do not fit", "line 2", "LINE SIZE"]),
    "huge header": ("s.csv", b"x" * (33 << 20), ["not CSV", "field larger"]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_one_clear_error_and_the_mended_file_loads(
    shop: Shop, name: str, content: bytes, expected: list[str]
):
    path = shop.declare(path="s.*", columns=TWO).write(name, content)

    message = shop.refused(name, *expected)

    assert len(message) < 700
    assert not shop.has_table()
    path.unlink()
    shop.write("s.csv", CSV)
    assert shop.load().rows == 2
    assert shop.rows() == [(1, "a"), (2, "b")]


def test_a_month_without_rows_is_refused_in_parquet_too(shop: Shop):
    shop.declare(path="*.parquet", columns=TWO).parquet("a.parquet", "SELECT 1::BIGINT AS id, 'a' AS name LIMIT 0")

    shop.refused("a.parquet has no rows")


def test_a_parquet_file_damaged_in_the_middle_is_refused(shop: Shop):
    shop.declare(path="*.parquet", columns=TWO)
    path = shop.parquet("a.parquet", "SELECT range AS id, md5(range::VARCHAR) AS name FROM range(50000)")
    content = bytearray(path.read_bytes())
    content[4:4096] = b"\xff" * 4092
    path.write_bytes(content)

    shop.refused("Reading a.parquet")

    shop.parquet("a.parquet", "SELECT range AS id, md5(range::VARCHAR) AS name FROM range(50000)")
    assert shop.load().rows == 50000


def test_a_bad_file_leaves_the_rows_of_its_former_version(shop: Shop):
    path = shop.declare(path="s.csv", columns=TWO).write("s.csv", CSV)
    shop.load()
    path.write_text("id,name\nx,y\n")

    shop.refused("1 of 1 rows do not fit")

    path.write_text("id,name\n9,z\n")
    shop.load()
    assert shop.rows() == [(9, "z")]


# The provider's own broken files


def test_provider_parquet_without_footer_is_refused(shop: Shop, provider_files: Path):
    shop.declare(path="*.parquet")
    shop.write("y.parquet", (provider_files / "negative/yellow_tripdata_2021-01_truncated.parquet").read_bytes())

    shop.refused("y.parquet", "no footer")


def test_provider_csv_cut_in_its_last_line_is_refused(shop: Shop, provider_files: Path):
    content = (provider_files / "negative/yellow_tripdata_2021-01_truncated_last_line.csv").read_bytes()
    shop.declare(path="*.csv", max_reject_share=0.5).write("y.csv", content)

    shop.refused("y.csv", "cut off in its last line", f"({len(content.splitlines())}: ")


def test_provider_csv_with_conflict_marks_is_refused_naming_its_lines(shop: Shop, provider_files: Path):
    content = (provider_files / "negative/JC-202102-citibike-tripdata_merge_conflict.csv").read_bytes()
    shop.declare(path="*.csv", max_reject_share=0.5).write("c.csv", content)

    shop.refused("c.csv", "marks on line 1, 4884, 9767")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-20"], "BIGINT"),
        (["1.5", "0.25", "1e-05"], "DOUBLE"),
        (["10001", "07030"], "VARCHAR"),
        (["+0020"], "VARCHAR"),
        (["12345678901234567890"], "VARCHAR"),
        (["2024_01"], "VARCHAR"),
        (["12e4"], "VARCHAR"),
        (["1.5", "NaN"], "VARCHAR"),
        (["2024-01-01T12:00:00+02:00", "2024-01-01T10:00:00Z"], "TIMESTAMP WITH TIME ZONE"),
        (["2024-01-01T12:00:00", "2024-01-01 10:00:00.5"], "TIMESTAMP"),
        (["2024-01-01T12:00:00", "2024-01-01T10:00:00+02:00"], "VARCHAR"),
        (["true", "False"], "BOOLEAN"),
        (["yes"], "VARCHAR"),
    ],
)
def test_a_type_is_inferred_only_where_no_value_loses_by_it(shop: Shop, values: list[str], kind: str):
    shop.declare(path="s.csv", columns={})
    shop.write("s.csv", "v\n" + "\n".join(values) + "\n")

    shop.load()

    assert shop.types() == {"v": kind}
    if kind == "VARCHAR":
        assert shop.rows() == sorted((value,) for value in values)


def test_two_times_with_offsets_that_are_one_instant_are_one(shop: Shop):
    shop.declare(path="s.csv", columns={})
    shop.write("s.csv", "v\n2024-01-01T12:00:00+02:00\n2024-01-01T10:00:00Z\n")

    shop.load()

    assert len(shop.rows("DISTINCT v")) == 1


@pytest.mark.parametrize(
    ("first", "later"), [("10001", "07030"), ("1.5", "12e4"), ("true", "yes"), ("2024-01-01T12:00:00", "2024-01-01T12:00:00+02:00")]
)  # fmt: skip
def test_a_later_file_does_not_lose_by_an_inferred_type_either(shop: Shop, first: str, later: str):
    shop.declare(path="*.csv", columns={})
    shop.write("a.csv", f"v\n{first}\n")
    shop.load()
    shop.write("b.csv", f"v\n{later}\n")

    shop.refused("b.csv: type changed: v holds", later)


def test_a_json_value_that_its_type_would_cut_is_rejected(shop: Shop):
    shop.declare(path="s.ndjson", columns={"n": "BIGINT", "d": "DECIMAL(10,2)", "t": "TIMESTAMP"}, max_reject_share=1)
    good = '{"n": 2.0, "d": 1.25, "t": "2024-01-01T10:00:00Z"}'
    shop.write(
        "s.ndjson",
        good + '\n{"n": 1.5, "d": 1, "t": null}\n{"n": 1, "d": 1.239, "t": null}\n'
        '{"n": 1, "d": 1, "t": "2024-01-01T12:00:00+02:00"}\n',
    )

    result = shop.load()

    assert (result.rows, result.rejects) == (1, 3)
    assert [row[0] for row in shop.rejects('"column"')] == ["d", "n", "t"]
