"""What metrics hold, how they are capped, saved and printed."""

import itertools
import json
import math
import random
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as plain_text_to_metric_families

from pipeline.exporter import baseline as baseline_module
from pipeline.exporter import metrics
from pipeline.exporter.baseline import LAG, USUAL, Baseline
from pipeline.exporter.database import Database
from pipeline.exporter.exporter import Exporter
from pipeline.exporter.metrics import OTHER, Counter, Registry
from pipeline.exporter.reference import page
from pipeline.exporter.topics import build_topics
from pipeline.settings import Settings


def filled() -> Registry:
    registry = Registry()
    registry.counter("c_total", "Counts.", ["job"]).add('a "quoted"\nname', by=3)
    registry.gauge("g", "Is.", ["job"]).set(1.5, "b")
    registry.last_value("l", "Was.").set(2)
    histogram = registry.histogram("h_seconds", "Takes.", ["job"], buckets=(1, 10))
    for value in (0.5, 1, 5, 100):
        histogram.observe(value, "b")
    return registry


def test_both_formats_say_the_same():
    registry = filled()
    samples = {
        (sample.name, sample.labels.get("job"), sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(b"".join(registry.pages().openmetrics).decode())
        for sample in family.samples
    }

    assert samples[("c_total", 'a "quoted"\nname', None)] == 3
    assert samples[("h_seconds_bucket", "b", "1.0")] == 2
    assert samples[("h_seconds_bucket", "b", "+Inf")] == samples[("h_seconds_count", "b", None)] == 4
    assert samples[("h_seconds_sum", "b", None)] == 106.5
    assert 'h_seconds_bucket{job="b",le="10.0"} 3.0' in b"".join(registry.pages().text).decode()


def test_text_is_escaped_as_each_format_wants_it_and_what_is_no_number_is_said():
    registry = Registry()
    registry.gauge("g", 'Says "a\\b"\nand more.', ["name"]).set(float("inf"), 'back\\slash, "quote",\nline')
    registry.gauge("n", "Is none.").set(float("nan"))
    registry.histogram("h_seconds", "Takes.", buckets=(1,)).observe(2)

    for found in (
        text_string_to_metric_families(b"".join(registry.pages().openmetrics).decode()),
        plain_text_to_metric_families(b"".join(registry.pages().text).decode()),
    ):
        families = {family.name: family for family in found}
        assert families["g"].documentation == 'Says "a\\b"\nand more.'
        assert families["g"].samples[0].labels == {"name": 'back\\slash, "quote",\nline'}
        assert families["g"].samples[0].value == float("inf")
        assert math.isnan(families["n"].samples[0].value)
        assert [(sample.name, sample.value) for sample in families["h_seconds"].samples] == [
            ("h_seconds_bucket", 0), ("h_seconds_bucket", 1), ("h_seconds_count", 1), ("h_seconds_sum", 2),
        ]  # fmt: skip


def dumped(registry: Registry) -> dict[str, list[Any]]:
    """What is saved of it."""
    return {metric.name: metric.dump() for metric in registry if metric.is_saved}


def test_sums_and_last_values_outlive_a_restart_and_what_is_read_anew_does_not():
    saved = json.loads(json.dumps(dumped(filled())))
    restarted = filled()
    for metric in restarted:
        metric.series.clear()
    restarted.load(saved)

    assert restarted["c_total"].series == {('a "quoted"\nname',): 3}
    assert restarted["h_seconds"].series == {("b",): [2, 1, 1, 106.5]}
    assert restarted["l"].series == {(): 2}
    assert restarted["g"].series == {}


def test_what_another_version_saved_otherwise_is_left_out():
    restarted = Registry()
    counter = restarted.counter("c_total", "Counts.", ["job", "status"])
    histogram = restarted.histogram("h_seconds", "Takes.", ["job"], buckets=(1, 10, 100))
    restarted.load(dumped(filled()))

    assert not counter.series
    assert not histogram.series


def test_a_hundred_thousand_values_of_a_label_are_one_series_past_the_cap():
    counter = Counter("c_total", "Counts.", ["job"], max_series=1_000)
    for number in range(100_000):
        counter.add(f"job-{number}")

    assert len(counter.series) == 1_001
    assert sum(counter.series.values()) == 100_000
    assert counter.series[(OTHER,)] == counter.dropped == 99_000
    counter.add("job-5")  # those that were first keep theirs
    assert counter.series[("job-5",)] == 2


def test_many_series_are_forgotten_as_fast_as_few():
    counter = Counter("c_total", "Counts.", ["job", "status"])
    for number in range(9_000):
        counter.add(f"job-{number}", "success")
        counter.add(f"job-{number}", "failure")
    started = time.process_time()
    counter.forget_all(("job",), {(f"job-{number}",) for number in range(1, 9_000)})

    assert list(counter.series) == [("job-0", "success"), ("job-0", "failure")]
    assert time.process_time() - started < 1  # one look at the series for each of them would be 160 million


def test_a_label_is_no_longer_than_it_may_be():
    counter = Counter("c_total", "Counts.", ["job"])
    counter.add("x" * 10_000)

    assert [len(key) for (key,) in counter.series] == [metrics.MAX_LABEL_CHARACTERS]


def durations(seed: int, *, shift: float, spread: float = 0.2, after: int = 60, runs: int = 90) -> list[float]:
    """Of a job with a few outliers that takes *shift* times as long from run *after* on."""
    draw = random.Random(seed)
    usual = [
        120 * draw.lognormvariate(0, spread) * (draw.uniform(2, 5) if draw.random() < 0.03 else 1) for _ in range(runs)
    ]
    return [value * (shift if number >= after else 1) for number, value in enumerate(usual)]


def firing(values: list[float]) -> list[bool]:
    """After each run, whether its job counts as slower than usual: by ratio and in spreads."""
    registry, found = Registry(), []
    baseline = Baseline(registry, "d", "runs", ("job",))
    for value in values:
        baseline.observe(("a",), value)
        ratio, zscore = (
            registry[name].series.get(("a",), 0.0) for name in ("d_regression_ratio", "d_regression_zscore")
        )
        found.append(ratio > 1.15 and zscore > 4)
    return found


@pytest.mark.parametrize(("shift", "least"), [(1.5, 0.9), (2.0, 1.0)])
def test_a_job_that_takes_longer_is_found_within_ten_runs(shift: float, least: float):
    found = [any(firing(durations(seed, shift=shift))[60:70]) for seed in range(60)]

    assert statistics.mean(found) >= least


def test_a_job_as_usual_seldom_alarms():
    alarms = [firing(durations(seed, shift=1.0, runs=120)) for seed in range(60)]
    begun = sum(now and not before for found in alarms for before, now in itertools.pairwise(found))

    assert begun / (60 * (120 - USUAL)) < 0.01


def test_a_very_regular_job_that_takes_a_third_longer_is_found_and_jitter_is_not():
    assert any(firing([100.0] * 50 + [133.0] * 10)[50:])
    assert not any(firing([100.0, 101.0] * 30 + [106.0] * 20))


def test_there_are_no_more_baselines_than_series(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(baseline_module, "MAX_SERIES", 2)
    registry = Registry()
    baseline = Baseline(registry, "d", "runs", ("job",))
    for job in ("a", "b", "c", "a"):
        baseline.observe((job,), 1.0)

    assert [(key, len(history)) for key, history in baseline.dump()] == [(["a"], 2), (["b"], 1)]


def test_there_is_no_verdict_before_there_is_a_baseline():
    assert not any(firing([10.0] * 10 + [100.0] * (LAG + 5)))


def test_the_page_of_metrics_is_what_the_exporter_declares():
    committed = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"

    assert committed.read_text() == page(), "python -m pipeline.exporter.reference > docs/reference/metrics.md"


def test_names_have_units_and_only_counters_end_in_total():
    registry = Registry()
    settings = Settings()
    Exporter(registry, Database(settings), build_topics(registry, settings, lambda _: {}))

    for metric in registry:
        assert metric.name.startswith(("dagster_", "millrace_"))
        assert metric.name.endswith("_total") is (metric.kind == "counter"), metric.name
        assert metric.text.endswith("."), metric.name
        assert not {"job", "instance", "namespace", "pod", "run_id", "partition", "step"} & set(metric.labels), (
            metric.name
        )
