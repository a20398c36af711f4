"""What it costs, and where that could be less."""

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from deploy.grafana.pages import location_and_job, page
from deploy.grafana.panels import BAD, INFO, LEAST, WARN, About, Column, Label, lines, number, ranking, rows, to

BY_JOB = "by (code_location, job_name)"
CPU_PRICE = "scalar(max(millrace_price_cpu_hour{HERE}))"
GIB_PRICE = "scalar(max(millrace_price_gib_hour{HERE}))"
ASSET_HOURS = "increase(dagster_asset_compute_seconds_total{LOCATION}[%s]) / 3600"
CPU_HOURS = "increase(dagster_run_cpu_seconds_total{JOB}[$__range]) / 3600"
# A sample a minute; of several runs of a job at once it is the hungriest that is sampled.
GIB_HOURS = "sum_over_time(dagster_run_memory_limit_bytes{JOB}[$__range:1m]) / 60 / 2 ^ 30"
# Of no runs it is not a number, which >= 0 leaves out.
PEAK = """histogram_quantile(0.95,
  sum by (le, code_location, job_name) (increase(dagster_run_peak_memory_ratio_bucket{JOB}[$__range]))) >= 0"""
JOB = [Label("job_name", "Job", to("runs", job_name="${__value.raw}")), Label("code_location", "Code location")]
CURRENCY = "In the currency of the prices that are set."


def dashboard() -> models.Dashboard:
    """Of a week."""
    return page(
        "cost",
        "Cost and advice",
        "What assets and jobs cost, and where that could be less. `millrace advise` says the same in sentences, with evidence.",
        {
            "In the time chosen": [
                number(
                    About("Cost of assets", f"Time of their steps, as if each kept one core. {CURRENCY}", units.Short),
                    f"sum({ASSET_HOURS % '$__range'}) * {CPU_PRICE}",
                    decimals=2,
                ),
                number(
                    About("Compute hours", "Time of the steps that make assets.", units.Hours),
                    f"sum({ASSET_HOURS % '$__range'})",
                ),
                number(About("CPU hours", "CPU time that runs used.", units.Hours), f"sum({CPU_HOURS})"),
                number(
                    About("Memory", "GiB hours that the limits of runs kept.", units.Short),
                    f"sum({GIB_HOURS})",
                    decimals=2,
                ),
                number(
                    About(
                        "Runs that failed",
                        "Share of the runs that ended: what they used was for nothing.",
                        units.PercentUnit,
                    ),
                    """sum(increase(dagster_runs_completed_total{JOB, status="failure"}[$__range]))
                         / sum(increase(dagster_runs_completed_total{JOB}[$__range]))""",
                    steps=[(0.05, WARN), (0.1, BAD)],
                ),
                number(
                    About("Retries", "Share of the runs that repeat a failed one.", units.PercentUnit),
                    """sum(increase(dagster_run_retries_total{JOB}[$__range]))
                         / sum(increase(dagster_runs_created_total{JOB}[$__range]))""",
                    steps=[(0.05, WARN)],
                ),
            ],
            "Cost": [
                ranking(
                    About(
                        "Dearest assets",
                        f"Time of their steps, as if each kept one core. {CURRENCY}",
                        units.Short,
                        height=10,
                    ),
                    {"{{asset_key}}": f"topk(15, sum by (asset_key) ({ASSET_HOURS % '$__range'})) * {CPU_PRICE}"},
                ),
                lines(
                    About(
                        "Cost a day",
                        f"Of assets by code location, over the day before each point. {CURRENCY}",
                        units.Short,
                        height=10,
                    ),
                    {"{{code_location}}": f"sum by (code_location) ({ASSET_HOURS % '1d'}) * {CPU_PRICE}"},
                    stack=True,
                ),
                rows(
                    About(
                        "Cost of jobs",
                        f"CPU that their runs used, and memory that their limits kept. {CURRENCY}",
                        units.Short,
                        width=24,
                    ),
                    JOB,
                    [
                        Column("CPU", f"sum {BY_JOB} ({CPU_HOURS}) * {CPU_PRICE}"),
                        Column("Memory", f"sum {BY_JOB} ({GIB_HOURS}) * {GIB_PRICE}"),
                        Column("CPU time", f"sum {BY_JOB} ({CPU_HOURS})", units.Hours),
                        Column("GiB hours", f"sum {BY_JOB} ({GIB_HOURS})"),
                        Column("Runs", f"sum {BY_JOB} (increase(dagster_runs_completed_total{{JOB}}[$__range]))"),
                    ],
                    sort="CPU",
                ),
            ],
            "The right size": [
                rows(
                    About(
                        "Memory",
                        "Of 19 of 20 runs the peak is below this share of the limit. Below 30 % a lower limit does, above 80 % it is short.",
                        units.PercentUnit,
                        ["MillraceRunOutOfMemory"],
                    ),
                    JOB,
                    [
                        Column(
                            "Peak of limit", PEAK, units.PercentUnit, steps=[(LEAST, INFO), (0.3, "text"), (0.8, BAD)]
                        ),
                        Column(
                            "Last peak", f"max {BY_JOB} (dagster_run_last_peak_memory_bytes{{JOB}})", units.BytesIEC
                        ),
                        Column(
                            "Killed",
                            f"sum {BY_JOB} (increase(dagster_run_oom_kills_total{{JOB}}[$__range]))",
                            steps=[(0.5, BAD)],
                        ),
                    ],
                    sort="Peak of limit",
                    none="No run has told of its memory",
                ),
                ranking(
                    About(
                        "Held back by the CPU limit",
                        "Time that runs were ready to work and waited, beside the time they worked.",
                        units.PercentUnit,
                    ),
                    {
                        "{{code_location}} {{job_name}}": f"""topk(10, sum {BY_JOB} (increase(dagster_run_cpu_throttled_seconds_total{{JOB}}[$__range]))
                        / (sum {BY_JOB} (increase(dagster_run_cpu_seconds_total{{JOB}}[$__range])) > 0))"""
                    },
                    steps=[(0.1, WARN), (0.5, BAD)],
                    top=1,
                ),
            ],
            "Time for nothing": [
                ranking(
                    About(
                        "Starting",
                        """Time before the first step as a share of the time of a run. Above 30 %: a smaller image, or fewer and larger
                          runs.""",
                        units.PercentUnit,
                    ),
                    {
                        "{{code_location}} {{job_name}}": f"""topk(10, sum {BY_JOB} (increase(dagster_run_startup_seconds_sum{{JOB}}[$__range]))
                        / (sum {BY_JOB} (increase(dagster_run_startup_seconds_sum{{JOB}}[$__range]))
                          + sum {BY_JOB} (increase(dagster_run_duration_seconds_sum{{JOB}}[$__range]))) >= 0)"""
                    },
                    steps=[(0.3, WARN)],
                    top=1,
                ),
                ranking(
                    About(
                        "Waiting in the queue",
                        "Mean time. If CPU is free meanwhile, raise the run limit.",
                        units.Seconds,
                        ["MillraceRunStuckQueued"],
                    ),
                    {
                        "{{code_location}} {{job_name}}": f"""topk(10, sum {BY_JOB} (increase(dagster_run_queue_wait_seconds_sum{{JOB}}[$__range]))
                        / sum {BY_JOB} (increase(dagster_run_queue_wait_seconds_count{{JOB}}[$__range])) >= 0)"""
                    },
                    steps=[(60, WARN)],
                ),
                ranking(
                    About(
                        "Idle schedules and sensors",
                        "Share of ticks that did nothing. At 99 % a longer interval would do.",
                        units.PercentUnit,
                    ),
                    {
                        "{{type}} {{name}}": """topk(15, sum by (type, name) (increase(dagster_ticks_total{LOCATION, status="skipped"}[$__range]))
                        / sum by (type, name) (increase(dagster_ticks_total{LOCATION}[$__range])) >= 0)"""
                    },
                    steps=[(0.99, WARN)],
                    top=1,
                ),
                ranking(
                    About(
                        "Slower than usual",
                        "Assets by how many times the usual their newest steps take.",
                        units.Short,
                        ["MillraceAssetSlower"],
                    ),
                    {"{{asset_key}}": "topk(15, max by (asset_key) (dagster_asset_duration_regression_ratio{HERE}))"},
                    steps=[(1.15, WARN), (1.5, BAD)],
                ),
            ],
        },
        variables=location_and_job(),
        time="now-7d",
    )
