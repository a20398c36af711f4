"""What a source file may say, and what a person is told who got it wrong."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.ingest.locations import template_expression
from pipeline.ingest.spec import MONTH, load_source, load_sources, month_range, month_values, resolved
from pipeline.settings import BUNDLED_PROJECT

GOOD = """name: shop
kind: files
owner: team:shop
location: files
streams:
  - name: sales
    path: "{month}.csv"
    months: {first: 2021-01}
    columns:
      - {name: id, type: BIGINT}
"""


def problems(tmp_path: Path, text: str, name: str = "shop.yaml") -> list[str]:
    """What is said of a source file with *text*, without the path."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_source(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}:") for line in lines)
    return [line.removeprefix(f"{path}:") for line in lines]


def test_the_bundled_sources_are_valid():
    assert "tlc" in {file.source.name for file in load_sources(BUNDLED_PROJECT / "sources")}


def test_an_unknown_key_is_refused_with_file_and_line(tmp_path: Path):
    (found,) = problems(tmp_path, GOOD.replace("    months:", "    colour: red\n    months:"))

    assert found == "8: streams.0.colour: unknown key; remove it or correct its spelling"


def test_every_mistake_of_a_file_is_named_and_nothing_that_only_follows(tmp_path: Path):
    text = GOOD.replace("BIGINT}", "NUMBER, typo: 1}").replace("team:shop", "nobody").replace("location", "loction")

    found = problems(tmp_path, text)

    assert sorted(line.rsplit(": ", 1)[0] if "missing" in line else ": ".join(line.split(": ")[:2]) for line in found) == [
        "10: streams.0.columns.0.type", "10: streams.0.columns.0.typo", "1: location", "3: owner", "4: loction"
    ]  # fmt: skip


def test_a_source_without_streams_is_told_so(tmp_path: Path):
    (found,) = problems(tmp_path, "name: shop\nkind: files\nowner: team:shop\nlocation: files\nstreams: []\n")

    assert found.startswith("5: streams: ")
    assert "at least 1 item" in found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("kind: files", "kind: filles"), "2: kind: 'filles' is neither `files` nor `airbyte`"),
        (("kind: files\n", ""), "1: kind: missing; it is `files` or `airbyte`"),
        (("name: shop", "name: Shop"), "1: name: String should match pattern"),
        (('path: "{month}.csv"', "path: [1]"), "7: streams.0.path.0: Input should be a valid string"),
        (('path: "{month}.csv"', 'path: "{year}.csv"'), "{year} is unknown; there are {month}"),
        (('path: "{month}.csv"', "path: /etc/passwd"), "'/etc/passwd': give it relative to the location"),
        (('path: "{month}.csv"', 'path: "{month_end}.csv"'), "{month_end} does not stand alone"),
        (('path: "{month}.csv"', 'path: "a**/{month}.csv"'), "`**` stands for folders"),
        (("kind: files", "kind: files\nkind: files"), "3: kind: given twice"),
        (("{first: 2021-01}", "{first: 2021-01, last: 2020-12}"), "`last` 2020-12 is before `first` 2021-01"),
        (('path: "{month}.csv"', 'path: "{month}.csv"\n    rows: {min: 5, max: 2}'), "`max` 2 is less than `min` 5"),
        (('path: "{month}.csv"', 'path: "{month}.csv"\n    delimiter: \'"\''), "delimiter"),
        (('path: "{month}.csv"', "path: a.csv"), "`months` needs a path with {month}"),
        (("    months: {first: 2021-01}\n", ""), "a path with a month needs `months"),
        (("2021-01", "2021-13"), "8: streams.0.months.first: "),
        (("    months", "    local_path: a.csv\n    months"), "either all of `path` and `local_path` carry a month"),
        (
            ("    months", "    primary_key: [nr]\n    months"),
            "`primary_key` names a column that `columns` lacks: ['nr']",
        ),
        (("    months", "    max_reject_share: 2\n    months"), "8: streams.0.max_reject_share: "),
        (("BIGINT}", "BIGINT}\n      - {name: id}"), "two of `columns` have the name or alias 'id'"),
        (("BIGINT}", "BIGINT}\n      - {name: nr, aliases: [ID]}"), "two of `columns` have the name or alias 'id'"),
        (("BIGINT}", "BIGINT}\n  - {name: sales, path: a.csv}"), "two streams are called 'sales'"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line(tmp_path: Path, change: tuple[str, str], expected: str):
    assert change[0] in GOOD

    assert expected in "\n".join(problems(tmp_path, GOOD.replace(*change)))


@pytest.mark.parametrize("text", ["- a\n", "", "name: [", "name: \tx", "name: 2021-13-45\n"])
def test_what_is_no_source_file_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "shop.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=str(path)):
        load_source(path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path):
    path = tmp_path / "shop.yaml"
    path.write_bytes(b"name: caf\xe9\n")

    with pytest.raises(ConfigError, match="not YAML"):
        load_source(path)


def test_two_sources_of_one_name_are_refused_naming_both_files(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yml").write_text(GOOD)

    with pytest.raises(ConfigError) as caught:
        load_sources(tmp_path)

    assert str(caught.value) == f"{tmp_path}/b.yml: source 'shop' is declared in a.yaml already; rename one."


def test_the_mistakes_of_all_files_are_told_at_once(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("name: a\n")
    (tmp_path / "b.yaml").write_text("name: b\n")
    (tmp_path / "c.manifest.yaml").write_text("version: 1\n")

    with pytest.raises(ConfigError) as caught:
        load_sources(tmp_path)

    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == [
        f"{tmp_path}/a.yaml:1", f"{tmp_path}/b.yaml:1"
    ]  # fmt: skip


# References to the environment


def test_references_are_replaced_at_any_depth(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHOP_KEY", "s3cret")
    monkeypatch.setenv("EMPTY", "")

    value = {"a": ["x${SHOP_KEY}y", {"b": "${NOT_SET:-default}"}], "n": 1, "e": "${EMPTY:-used}${NOT_SET:-}"}

    assert resolved(value, where="shop") == {"a": ["xs3crety", {"b": "default"}], "n": 1, "e": "used"}


@pytest.mark.parametrize("value", ["", None])
def test_a_missing_variable_is_named_with_the_place_that_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, value: str | None
):
    monkeypatch.delenv("SHOP_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SHOP_KEY", value)

    with pytest.raises(ConfigError, match=r"shop\.config\.key: the environment variable SHOP_KEY is not set"):
        resolved({"config": {"key": "${SHOP_KEY}"}}, where="shop")


# Months


unhurried = settings(deadline=None, database=None)
months = st.dates().map(lambda day: f"{day.year:04}-{day.month:02}")


@unhurried
@given(months)
def test_the_values_of_a_month_agree_with_each_other(month: str):
    if month == "9999-12":
        return
    values = month_values(month)

    assert values["yyyymm"] == values["month"].replace("-", "") == month.replace("-", "")
    assert values["month_start"] == f"{month}-01" < values["month_end"] <= f"{month}-31"


@unhurried
@given(months, st.integers(min_value=0, max_value=400))
def test_a_range_of_months_is_each_month_once_in_order(first: str, length: int):
    year, month = divmod(int(first[:4]) * 12 + int(first[5:]) - 1 + length, 12)
    if year > 9999:
        return
    last = f"{year:04}-{month + 1:02}"

    found = list(month_range(first, last))

    assert (found[0], found[-1], len(found)) == (first, last, length + 1)
    assert found == sorted(set(found))


pieces = st.one_of(
    st.sampled_from(["{month}", "{yyyymm}", "{month_start}", "{month_end}"]),
    st.text(st.characters(codec="utf-8", exclude_characters="*?{}\0\n", exclude_categories=["Cs"]), min_size=1),
)


@unhurried
@given(st.lists(pieces, min_size=1, max_size=6), months)
def test_a_name_made_from_a_template_tells_its_month(parts: list[str], month: str):
    template = "".join(parts)
    if set(MONTH.findall(template)) <= {"month_end"} or month == "9999-12":
        return
    values = month_values(month)
    name = MONTH.sub(lambda match: values[match[1]], template)

    match = template_expression(template).match(name)

    assert match
    groups = match.groupdict()
    assert groups.get("month", month) == month
    assert groups.get("yyyymm", values["yyyymm"]) == values["yyyymm"]
