"""How large pods and runs should be, on histories with a known answer, each beside one that needs no change."""

from dataclasses import replace

import pytest

from pipeline.exporter.run_facts import ASSET_JOB
from pipeline.launch.pods import KILLED_AT_TAG
from pipeline.operate.asset_use import Asset
from pipeline.operate.history import DAY, Made, Run
from pipeline.operate.sizing import cpu, memory, partitions, sizes
from tests.operate.constructed import GIB, MIB, NOW, PRICES, job, one, pod, run

MONTH = {"dagster/partition": "2026-01"}
MONTHLY = {"raw/a": Asset("raw/a", is_partitioned=True)}
NOTHING_NEW = (("load", 1800.0, Made("raw/a", rows_loaded=0)), ("dbt", 60.0, "marts/m"))
KILLED = {KILLED_AT_TAG: str(2 * GIB)}


def test_memory_that_is_never_used_is_saved_down_to_the_highest_peak_with_headroom():
    runs = [pod(peak=peak * MIB) for peak in (600, 700, 1000, 800, 650, 600, 600, 600, 600, 600)]

    advice = one([*memory(job(*runs, name="daily_dbt_build"), PRICES)])

    assert advice.setting == 'millrace.yaml: limits: - {job: daily_dbt_build, memory: "1536Mi"}'  # 1,000 MiB × 1.4
    assert advice.gain == pytest.approx(37.5)  # 2.5 GiB less for 15 hours a month
    assert advice.unit == "GiB-hours a month"
    assert advice.money_per_month == pytest.approx(3.75)
    assert advice.figures["runs"] == 10
    assert "peak 1000Mi at most, median 600Mi" in advice.evidence
    assert "10 runs" in advice.evidence
    assert float(advice.figures["recommended_bytes"]) >= 1.25 * 1000 * MIB


@pytest.mark.parametrize(
    "runs",
    [
        [pod(peak=600 * MIB)] * 4,  # too few
        [pod(peak=2.1 * GIB)] * 10,  # what fits is no less than 70 % of what is asked for
        [pod()] * 10,  # no samples
        [pod(request=512 * MIB, limit=4 * GIB, peak=600 * MIB)] * 10,  # the limit is high, but nothing is kept for it
        [run(("load", 1800, "raw/a"))] * 10,  # no pods
        [pod(peak=250 * MIB, status="failure")] * 14 + [pod(peak=250 * MIB)] * 4,
        [pod(peak=250 * MIB, steps=NOTHING_NEW)] * 14 + [pod(peak=250 * MIB)] * 4,
        [pod(peak=300 * MIB, peak_is_kernels=False)] * 14 + [pod(peak=300 * MIB)] * 4,
    ],
    ids=[
        "four runs",
        "no gain",
        "unreported",
        "small request",
        "one machine",
        "failed",
        "loaded nothing",
        "a peak of samples",
    ],
)
def test_memory_is_left_as_it_is_without_evidence_or_gain(runs: list[Run]):
    assert [*memory(job(*runs), PRICES)] == []


def test_runs_that_loaded_nothing_or_failed_take_nothing_from_what_those_that_worked_tell():
    loaded = (("load", 1800.0, Made("raw/a", rows_loaded=5)),)
    idle = [pod(peak=250 * MIB, steps=NOTHING_NEW)] * 5 + [pod(peak=1100 * MIB, status="failure")]

    advice = one([*memory(job(*idle, *[pod(peak=1000 * MIB, steps=loaded)] * 5), PRICES)])

    assert advice.figures["recommended_bytes"] == 1792 * MIB  # 1,100 MiB × 1.4


def test_a_job_whose_runs_are_killed_gets_more_than_its_limit():
    killed = [pod(request=2 * GIB, status="failure", tags=KILLED, working_set=1.5 * GIB, peak=2 * GIB)] * 2
    good = [pod(request=2 * GIB, working_set=1.2 * GIB, peak=1.3 * GIB)] * 8

    advice = one([*memory(job(*good, *killed, name="hungry"), PRICES)])

    assert advice.setting == "the tag millrace/memory: 3Gi of the job or run"
    assert advice.figures["killed_runs"] == 2
    # 5 hours in ten days, 1 GiB more; and what the two killed runs cost: half an hour each of 1 core and 2 GiB.
    assert advice.money_per_month == pytest.approx(-0.1 * 1 * 15 + 2 * 0.5 * (1.0 + 2 * 0.1) * 3)


def test_a_child_that_was_killed_counts_too():
    runs = [pod(request=2 * GIB, working_set=1 * GIB, peak=2 * GIB, oom_kills=1)] * 5

    assert one([*memory(job(*runs), PRICES)]).figures["recommended_bytes"] == 3 * GIB


def test_a_retry_that_succeeded_with_more_memory_is_neither_killed_nor_what_the_limits_are():
    retry = pod(request=3 * GIB, tags={**KILLED, "dagster/retry_number": "1"}, working_set=2.9 * GIB, peak=2.9 * GIB)
    fitting = [pod(request=2 * GIB, working_set=1.2 * GIB, peak=1.4 * GIB)] * 5
    large = [pod(request=2 * GIB, working_set=0.2 * GIB, peak=0.5 * GIB)] * 5

    same = pod(request=2 * GIB, tags={**KILLED, "dagster/retry_number": "1"}, working_set=1.2 * GIB, peak=1.4 * GIB)

    assert [*memory(job(retry, *fitting), PRICES)] == []
    assert [*memory(job(same, *fitting), PRICES)] == []
    assert one([*memory(job(retry, *large), PRICES)]).figures["recommended_bytes"] == 768 * MIB


@pytest.mark.parametrize(("working_set", "wanted"), [(1.6, None), (1.7, 2560 * MIB)], ids=["80 %", "85 %"])
def test_a_working_set_above_the_alerts_share_of_the_limit_gets_more(working_set: float, wanted: float | None):
    runs = [pod(request=2 * GIB, working_set=working_set * GIB, peak=1.8 * GIB)] * 5

    found = [*memory(job(*runs), PRICES)]

    assert [advice.figures["recommended_bytes"] for advice in found] == ([wanted] if wanted else [])


def test_a_peak_of_files_that_the_kernel_could_give_back_asks_for_nothing():
    runs = [pod(request=2 * GIB, working_set=0.5 * GIB, peak=2 * GIB)] * 10

    assert [*memory(job(*runs), PRICES)] == []


def test_runs_under_earlier_limits_do_not_count():
    before = [pod(request=2 * GIB, oom_kills=1, working_set=1.9 * GIB, peak=2 * GIB)] * 10
    since = [pod(request=3 * GIB, working_set=1.9 * GIB, peak=2 * GIB)] * 5

    assert [*memory(job(*since, *before), PRICES)] == []
    assert [*memory(job(*before), PRICES)] != []


def test_runs_that_people_chose_assets_for_are_sized_by_asset():
    small = [pod(peak=500 * MIB)] * 5
    large = [pod(peak=3 * GIB, steps=(("load_b", 1800, "raw/b"),))] * 5

    advice = one([*memory(job(*small, *large, name=ASSET_JOB), PRICES)])

    assert advice.subject == "raw/a"
    assert advice.setting == 'millrace.yaml: limits: - {assets: "raw/a", memory: "768Mi"}'


def test_cpu_that_is_asked_for_and_not_used_is_saved():
    runs = [pod(3600, cpu=2.0, cpu_seconds=1440.0)] * 10

    advice = one([*cpu(job(*runs, name="maintain_lake"), PRICES)])

    assert advice.setting == 'millrace.yaml: limits: - {job: maintain_lake, cpu: "400m"}'
    assert advice.gain == pytest.approx(1.6 * 30)  # 10 hours in 10 days
    assert advice.money_per_month == pytest.approx(48.0)


def test_cpu_that_is_used_beyond_the_request_is_asked_for():
    advice = one([*cpu(job(*[pod(3600, cpu=0.25, cpu_seconds=3600.0)] * 5), PRICES)])

    assert advice.setting == "the tag millrace/cpu: 1 of the job or run"
    assert advice.money_per_month < 0


def test_a_run_that_waits_for_its_cpu_limit_gets_more_though_it_uses_no_more_than_that():
    advice = one([*cpu(job(*[pod(1000, cpu=1.0, cpu_seconds=1000.0, throttled_seconds=200.0)] * 5), PRICES)])

    assert advice.figures["recommended_cores"] == 1.5


@pytest.mark.parametrize(
    "runs",
    [
        [pod(3600, cpu=2.0, cpu_seconds=1.5 * 3600)] * 10,
        [pod(3600, cpu=0.25, cpu_seconds=100.0)] * 10,  # nothing to save below a quarter of a core
        [pod(3600, cpu=2.0, cpu_seconds=1440.0)] * 4,
        [pod(3600, cpu_seconds=1440.0)] * 10,
        [pod(3600, cpu=2.0, cpu_seconds=40.0, status="failure")] * 10,
        [pod(cpu=2.0, cpu_seconds=40.0, steps=NOTHING_NEW)] * 10,
        [replace(pod(150, cpu=1.0, cpu_seconds=30.0), started_at=NOW - DAY + 120)] * 10,
    ],
    ids=["fits", "small", "four runs", "no request known", "failed", "loaded nothing", "a pod that was long pending"],
)
def test_cpu_is_left_as_it_is_without_evidence_or_gain(runs: list[Run]):
    assert [*cpu(job(*runs), PRICES)] == []


def month(seconds: float, *, start: float, size: int = 1, peak: float = 0.1 * GIB, **more: float) -> Run:
    steps = (("load", seconds, Made("raw/a", partitions=size)),)
    return pod(steps=steps, start=start, tags=MONTH, request=2 * GIB, peak=peak, **more)


def test_a_month_a_run_that_is_mostly_start_becomes_several_months_a_run():
    runs = [month(40, start=60)] * 24

    advice = one([*partitions(job(*runs, name=ASSET_JOB), MONTHLY, PRICES)])

    # Nine months are 360 s, with 60 s of start 14 %: the least number that is below 15 %.
    assert advice.setting == "MILLRACE_PARTITIONS_PER_RUN=9, which is of all streams by month"
    assert advice.figures["share"] == pytest.approx(0.6)
    assert advice.gain == pytest.approx(24 * 60 * (1 - 1 / 9) / 10 / 3600)
    assert advice.money_per_month == pytest.approx(advice.gain * 30 * (1.0 + 2 * 0.1))


def test_no_more_months_are_advised_than_fit_the_memory():
    runs = [month(40, start=60, peak=0.5 * GIB)] * 24

    advice = one([*partitions(job(*runs, name=ASSET_JOB), MONTHLY, PRICES)])

    assert advice.figures["recommended"] == 3  # of 512 MiB each in 80 % of 2 GiB
    assert "all that the memory allows" in advice.evidence


def test_memory_that_more_months_a_run_will_need_is_not_saved_at_the_same_time():
    months = job(*[month(40, start=60, peak=0.5 * GIB)] * 24, name=ASSET_JOB)
    others = job(*[month(40, start=1, peak=0.5 * GIB, size=3)] * 24, name="by_month")
    daily = job(*[pod(request=2 * GIB, peak=0.5 * GIB)] * 10)

    assert [(advice.kind, advice.subject) for advice in sizes([months, others, daily], MONTHLY, PRICES)] == [
        ("partitions", "raw/a"),
        ("memory", "daily"),
    ]
    assert [advice.subject for advice in sizes([others], MONTHLY, PRICES)] == ["by_month"]


@pytest.mark.parametrize(
    ("runs", "assets"),
    [
        ([month(200, start=60)] * 24, MONTHLY),  # 23 %
        ([month(40, start=60)] * 4, MONTHLY),
        ([month(40, start=60, peak=1.5 * GIB)] * 24, MONTHLY),  # a second month would not fit
        ([month(40, start=60, peak_is_kernels=False)] * 24, MONTHLY),
        ([month(40, start=60)] * 24, {"raw/a": Asset("raw/a")}),
        ([pod(40, start=60)] * 24, MONTHLY),  # of whatever is new
        ([month(40, start=60, size=0)] * 24, MONTHLY),
    ],
    ids=[
        "long enough",
        "four runs",
        "memory",
        "a peak of samples",
        "no partitions",
        "not for partitions",
        "not known how many",
    ],
)
def test_months_a_run_stay_without_evidence_or_gain(runs: list[Run], assets: dict[str, Asset]):
    assert [*partitions(job(*runs, name=ASSET_JOB), assets, PRICES)] == []


@pytest.mark.parametrize(
    ("used", "wanted"),
    [({"working_set": 1.9 * GIB}, 7), ({"working_set": 1.5 * GIB, "oom_kills": 1}, 6), ({"working_set": 1.6 * GIB}, None)],
    ids=["nearly full", "killed", "80 %"],
)  # fmt: skip
def test_a_year_a_run_that_fills_the_memory_becomes_fewer_months(used: dict[str, float], wanted: int | None):
    runs = [month(600, start=6, size=12, **used)] * 5

    found = [*partitions(job(*runs, name=ASSET_JOB), MONTHLY, PRICES)]

    assert [advice.setting for advice in found] == ([f"MILLRACE_PARTITIONS_PER_RUN={wanted}"] if wanted else [])


def test_runs_that_were_killed_before_they_made_anything_do_not_tell_how_many_they_were_for():
    killed = [month(600, start=6, size=0, working_set=1.5 * GIB, oom_kills=1)] * 7
    made = [month(600, start=6, size=12)] * 5

    advice = one([*partitions(job(*made, *killed, name=ASSET_JOB), MONTHLY, PRICES)])

    assert advice.setting == "MILLRACE_PARTITIONS_PER_RUN=6"
