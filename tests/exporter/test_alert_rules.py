"""The rules in Python find what those of deploy/rules find: every case of the YAML's own tests runs on both."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.exporter.alert_rules import RULES, Figures, RecentRuns, filled, silent_services
from pipeline.exporter.alerts import Book, follow
from pipeline.exporter.database import Database
from pipeline.exporter.exporter import Exporter
from pipeline.exporter.metrics import Counter, Registry
from pipeline.exporter.topics import build_topics
from pipeline.settings import Settings


def read(file: Path) -> Any:
    """All as text: `0x20` of promtool's is a number to YAML, and 32."""
    return yaml.load(file.read_text(), yaml.BaseLoader)  # noqa: S506  (which makes nothing but text)


FOLDER = Path(__file__).parents[2] / "deploy" / "rules"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if not path.name.endswith(".test.yaml"))
YAML = {
    rule["alert"]: (rule, file.with_name(f"{file.stem}.test.yaml"))
    for file in FILES
    for group in read(file)["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
BY_NAME = {rule.name: rule for rule in RULES}
CASES = [
    pytest.param(name, test, id=f"{name}: {test['name']}")
    for name in BY_NAME
    for test in read(YAML[name][1])["tests"]
    if any(case["alertname"] == name for case in test["alert_rule_test"])
    and not any("stale" in each["values"] for each in test["input_series"])  # an exporter that is away looks at nothing
]


def seconds(text: str) -> float:
    return sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in re.findall(r"(\d+)([hms])", text))


def samples(text: str) -> list[float | None]:
    """The values of a series as promtool writes them: ``0x10 1+2x5 _x3``; a count is of repetitions."""
    found: list[float | None] = []
    for token in text.split():
        number, _, times = token.partition("x")
        if number == "_":
            found += [None] * int(times or 1)
            continue
        start, sign, step = re.fullmatch(r"(-?[\d.]+)(?:([+-])([\d.]+))?", number).groups()  # type: ignore[union-attr]
        by = float(f"{sign or '+'}{step or 0}")
        found += [float(start) + by * count for count in range(int(times or 0) + 1)]
    return found


def registry_of(test: dict[str, Any]) -> Iterator[tuple[float, Registry]]:
    """The exporter's registry at each evaluation, as the test's series say."""
    registry = Registry()
    settings = Settings()
    Exporter(registry, Database(settings), build_topics(registry, settings, lambda _: {}))
    for metric in registry:
        metric.series.clear()
    there = {metric.name: metric for metric in registry}
    series = []
    for each in test["input_series"]:
        name, _, labels = str(each["series"]).partition("{")
        if name in there:
            values = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            key = tuple(values[label] for label in there[name].labels)
            series.append((there[name], key, samples(str(each["values"]))))
    step = seconds(test["interval"])
    last = max(seconds(case["eval_time"]) for case in test["alert_rule_test"])
    for number in range(int(last / step) + 1):
        for metric, key, values in series:
            value = values[number] if number < len(values) else None
            if value is None:
                metric.series.pop(key, None)
            else:
                metric.series[key] = value
        yield number * step, registry


@pytest.mark.parametrize(("name", "test"), CASES)
def test_a_rule_fires_where_promtool_says_that_the_yaml_does(name: str, test: dict[str, Any]):
    book, recent = Book(BY_NAME[name]), RecentRuns()
    expected = {seconds(case["eval_time"]): case for case in test["alert_rule_test"] if case["alertname"] == name}

    for now, registry in registry_of(test):
        recent.observe(registry, now)
        follow(book, book.rule.find(Figures(registry, recent, now)), now)
        if case := expected.pop(now, None):
            found = [
                {
                    "exp_labels": {**dict(active.labels), "severity": book.rule.severity},
                    "exp_annotations": {
                        "summary": book.rule.summary,
                        "description": filled(book.rule.description, active.labels, active.value),
                    },
                }
                for active in book.active.values()
                if active.is_firing
            ]
            # That the exporter itself is away it cannot say.
            wanted = [each for each in case.get("exp_alerts") or () if each["exp_labels"].get("service") != "exporter"]
            assert sorted(found, key=str) == sorted(wanted, key=str), case["eval_time"]
    assert not expected


@pytest.mark.parametrize("name", BY_NAME)
def test_name_severity_time_and_texts_are_those_of_the_yaml(name: str):
    rule, (written, _) = BY_NAME[name], YAML[name]

    assert rule.for_seconds == seconds(written["for"])
    assert {"severity": rule.severity} == written["labels"]
    assert {"summary": rule.summary, "description": rule.description} == written["annotations"]


def test_all_the_required_alerts_are_tested_loud():
    loud = {
        case["alertname"]
        for parameters in CASES
        for case in parameters.values[1]["alert_rule_test"]  # type: ignore[index,union-attr]
        if case.get("exp_alerts")
    }
    assert BY_NAME.keys() <= loud
    assert len(CASES) >= 12


def test_a_text_with_a_placeholder_that_nobody_fills_is_refused():
    with pytest.raises(ValueError, match="not understood"):
        filled("{{ $value | humanize }}", (), 1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(7.25, "7.25s"), (60, "1m 0s"), (3600, "1h 0m 0s"), (129960, "1d 12h 6m 0s")],
)
def test_durations_are_shown_as_prometheus_shows_them(value: float, shown: str):
    assert filled("{{ $value | humanizeDuration }}", (), value) == shown


def test_a_webserver_that_never_answered_is_away_since_the_start():
    registry = Registry()
    last_success = registry.gauge("dagster_exporter_last_success_timestamp_seconds", "When.", ["collector"])
    registry.gauge("millrace_threshold_unavailable_seconds", "Limit.").set(120)
    for collector in ("events", "workspace"):
        last_success.set(1_000, collector)
    last_success.set(1_180, "events")

    services = [
        {dict(labels)["service"] for labels in silent_services(Figures(registry, RecentRuns(), now))}
        for now in (1_180, 1_181)
    ]
    assert services == [set(), {"webserver"}]


# runs within the hour


def counters() -> tuple[Registry, Counter]:
    registry = Registry()
    return registry, registry.counter("dagster_runs_completed_total", "Runs.", ["code_location", "job_name", "status"])


JOB = ("here", "load")


def test_runs_count_for_an_hour():
    registry, ended = counters()
    recent = RecentRuns()
    recent.observe(registry, 0)
    ended.add(*JOB, "success", by=3)
    ended.add(*JOB, "failure", by=2)
    ended.add(*JOB, "canceled", by=7)
    recent.observe(registry, 60)
    assert recent.sums() == {JOB: (5, 2)}

    recent.observe(registry, 3600)
    assert recent.sums() == {JOB: (5, 2)}
    recent.observe(registry, 3660)
    assert recent.sums() == {}


def test_what_was_counted_before_the_start_or_a_long_pause_is_of_no_known_time():
    registry, ended = counters()
    ended.add(*JOB, "failure", by=100)
    recent = RecentRuns()
    recent.observe(registry, 0)
    ended.add(*JOB, "failure", by=100)
    recent.observe(registry, 3 * 3600)
    assert recent.sums() == {}

    ended.add(*JOB, "failure")
    recent.observe(registry, 3 * 3600 + 15)
    assert recent.sums() == {JOB: (1, 1)}
    recent.observe(registry, 3600)  # the clock was set back
    assert recent.sums() == {}


def test_a_job_that_went_and_came_again_counts_from_nothing():
    registry, ended = counters()
    ended.add(*JOB, "failure", by=100)
    recent = RecentRuns()
    recent.observe(registry, 0)
    ended.forget_all(("job_name",), {("load",)})
    ended.add(*JOB, "failure", by=2)
    recent.observe(registry, 60)
    assert recent.sums() == {JOB: (2, 2)}


def test_what_is_kept_is_bounded_by_the_runs_and_the_window():
    registry, ended = counters()
    recent = RecentRuns()
    for number in range(4 * 24 * 60):  # a day, every fifteen seconds
        if number % 40 == 0:
            ended.add(*JOB, "success")
        recent.observe(registry, number * 15)

    assert recent.sums() == {JOB: (6, 0)}
    assert len(recent.dump()["minutes"]) == 6
