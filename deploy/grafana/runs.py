"""Runs: how they end and why, how long they take, what they use."""

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from deploy.grafana.pages import location_and_job, page
from deploy.grafana.panels import BAD, GOOD, LEAST, WARN, About, Column, Label, lines, number, rows, spread, to

ENDED = 'sum(increase(dagster_runs_completed_total{JOB, status=~"success|failure"}[$__range]))'
BY_JOB = "{{code_location}} {{job_name}}"
JOB_LABELS = [Label("job_name", "Job", to("runs", job_name="${__value.raw}")), Label("code_location", "Code location")]


def dashboard() -> models.Dashboard:
    """By code location and job."""
    return page(
        "runs",
        "Runs",
        "How runs end and why, how long they take and wait, what memory and CPU they use.",
        {
            "In the time chosen": [
                number(About("Runs", "Runs that succeeded or failed.", units.Short), ENDED, decimals=0),
                number(
                    About("Success", "Share of them that succeeded.", units.PercentUnit, ["MillraceFailureRateHigh"]),
                    f'sum(increase(dagster_runs_completed_total{{JOB, status="success"}}[$__range])) / {ENDED}',
                    steps=[(LEAST, BAD), (0.9, WARN), (0.99, GOOD)],
                ),
                number(
                    About("Retries", "Runs that repeated a failed one.", units.Short),
                    "sum(increase(dagster_run_retries_total{JOB}[$__range]))",
                    decimals=0,
                ),
                number(
                    About("Median duration", "Half of the successful runs took less.", units.Seconds),
                    "histogram_quantile(0.5, sum by (le) (increase(dagster_run_duration_seconds_bucket{JOB}[$__range])))",
                ),
                number(
                    About("95th percentile", "One successful run of twenty took longer.", units.Seconds),
                    "histogram_quantile(0.95, sum by (le) (increase(dagster_run_duration_seconds_bucket{JOB}[$__range])))",
                ),
                number(
                    About(
                        "Out of memory", "Runs that failed for want of memory.", units.Short, ["MillraceRunOutOfMemory"]
                    ),
                    'sum(increase(dagster_run_failures_total{JOB, reason="out_of_memory"}[$__range]))',
                    steps=[(0.5, BAD)],
                    decimals=0,
                ),
            ],
            "Under way": [
                rows(
                    About(
                        "Runs under way",
                        "How many, and since when the oldest has been in its status.",
                        units.Seconds,
                        ["MillraceRunStuckQueued", "MillraceRunStuckStarting"],
                        width=8,
                    ),
                    [*JOB_LABELS, Label("status", "Status")],
                    [
                        Column("Runs", "max by (code_location, job_name, status) (dagster_runs_in_progress{JOB}) > 0"),
                        Column(
                            "Oldest",
                            """time() - min by (code_location, job_name, status)
                              (dagster_run_oldest_status_timestamp_seconds{JOB})""",
                            units.Seconds,
                        ),
                    ],
                    sort="Oldest",
                    none="No run is under way",
                ),
                lines(
                    About(
                        "Runs that a limit keeps waiting",
                        "Queued runs that a limit of a tag or a pool keeps from starting, by limit.",
                        units.Short,
                        ["MillraceRunStuckQueued"],
                        width=8,
                    ),
                    {"{{concurrency_key}}": "max by (concurrency_key) (dagster_run_queue_blocked_runs{HERE})"},
                ),
                lines(
                    About(
                        "Longest run against its limit",
                        "How long the oldest run has been at work; at 100 % its job is slow.",
                        units.PercentUnit,
                        ["MillraceRunSlow"],
                        width=8,
                    ),
                    {
                        BY_JOB: """(time() - dagster_run_oldest_status_timestamp_seconds{JOB, status="started"})
                                  / on (code_location, job_name) dagster_job_slow_threshold_seconds{JOB}"""
                    },
                    top=1.1,
                ),
            ],
            "How they end": [
                lines(
                    About("Runs that ended", "In each step of the graph, by how.", units.Short),
                    {"{{status}}": "sum by (status) (increase(dagster_runs_completed_total{JOB}[$__rate_interval]))"},
                    bars=True,
                ),
                lines(
                    About(
                        "Failures by reason",
                        "In each step of the graph.",
                        units.Short,
                        ["MillraceRunLaunchFailing", "MillraceRunOutOfMemory"],
                    ),
                    {"{{reason}}": "sum by (reason) (increase(dagster_run_failures_total{JOB}[$__rate_interval])) > 0"},
                    bars=True,
                ),
                lines(
                    About("What started them", "Runs created in each step of the graph.", units.Short),
                    {"{{trigger}}": "sum by (trigger) (increase(dagster_runs_created_total{JOB}[$__rate_interval]))"},
                    bars=True,
                ),
                lines(
                    About(
                        "Share of failed runs by job",
                        "Of the job's last 20 runs.",
                        units.PercentUnit,
                        ["MillraceFailureRateHigh"],
                    ),
                    {BY_JOB: "max by (code_location, job_name) (dagster_job_recent_failure_ratio{JOB})"},
                    limits={"threshold": "max(millrace_threshold_failure_ratio{HERE})"},
                    top=0.2,
                ),
            ],
            "How long they take": [
                spread(
                    About("Durations", "Successful runs, by how long they took.", units.Seconds),
                    "sum by (le) (increase(dagster_run_duration_seconds_bucket{JOB}[$__rate_interval]))",
                ),
                lines(
                    About("Duration by job", "95th percentile of the successful runs.", units.Seconds),
                    {
                        BY_JOB: """histogram_quantile(0.95,
                                  sum by (le, code_location, job_name) (rate(dagster_run_duration_seconds_bucket{JOB}[$__rate_interval])))"""
                    },
                    step="1h",
                ),
                lines(
                    About(
                        "Before the first step",
                        """95th percentile of waiting in the queue, of pod, container and imports, and from the moment of a
                          schedule to the start of its run.""",
                        units.Seconds,
                        ["MillraceRunStuckStarting", "MillraceRunStuckQueued", "MillraceScheduleDelayed"],
                    ),
                    {
                        "queue": """histogram_quantile(0.95,
                                      sum by (le) (rate(dagster_run_queue_wait_seconds_bucket{JOB}[$__rate_interval])))""",
                        "start": """histogram_quantile(0.95,
                                      sum by (le) (rate(dagster_run_startup_seconds_bucket{JOB}[$__rate_interval])))""",
                        "after its schedule": """histogram_quantile(0.95,
                                      sum by (le) (rate(dagster_schedule_run_delay_seconds_bucket{JOB}[$__rate_interval])))""",
                    },
                    step="1h",
                ),
                rows(
                    About(
                        "Against the usual",
                        """The smoothed level of the job's newest runs beside the median of 30 before. More than 1.15 times
                          and 4 spreads away is no chance.""",
                        units.Seconds,
                        ["MillraceJobSlower"],
                    ),
                    JOB_LABELS,
                    [
                        Column(
                            "Times the usual",
                            "max by (code_location, job_name) (dagster_job_duration_regression_ratio{JOB})",
                            steps=[(1.15, WARN), (1.5, BAD)],
                        ),
                        Column(
                            "Spreads", "max by (code_location, job_name) (dagster_job_duration_regression_zscore{JOB})"
                        ),
                        Column(
                            "Usual",
                            "max by (code_location, job_name) (dagster_job_duration_baseline_seconds{JOB})",
                            units.Seconds,
                        ),
                        Column(
                            "Last",
                            """max by (code_location, job_name) (dagster_run_last_duration_seconds{JOB, status="success"})
                              and max by (code_location, job_name) (dagster_job_duration_baseline_seconds{JOB})""",
                            units.Seconds,
                        ),
                    ],
                    sort="Times the usual",
                    none="No job has had 30 successful runs",
                ),
            ],
            "Memory, CPU and disk": [
                lines(
                    About(
                        "Memory against the limit",
                        "Of the job's hungriest run under way.",
                        units.PercentUnit,
                        ["MillraceRunMemoryHigh"],
                    ),
                    {
                        BY_JOB: """max by (code_location, job_name)
                                  (dagster_run_memory_working_set_bytes{JOB} / dagster_run_memory_limit_bytes{JOB})"""
                    },
                    limits={"threshold": "max(millrace_threshold_memory_ratio{HERE})"},
                    top=1,
                ),
                spread(
                    About(
                        "Memory peaks", "Runs that ended, by their peak as a share of their limit.", units.PercentUnit
                    ),
                    "sum by (le) (increase(dagster_run_peak_memory_ratio_bucket{JOB}[$__rate_interval]))",
                ),
                lines(
                    About("CPU", "Cores in use.", units.Short),
                    {
                        BY_JOB: "sum by (code_location, job_name) (rate(dagster_run_cpu_seconds_total{JOB}[$__rate_interval]))"
                    },
                    stack=True,
                    step="2m",
                ),
                lines(
                    About(
                        "Held back by the CPU limit", "Cores that runs were ready to use and did not get.", units.Short
                    ),
                    {
                        BY_JOB: """sum by (code_location, job_name)
                                  (rate(dagster_run_cpu_throttled_seconds_total{JOB}[$__rate_interval]))"""
                    },
                    stack=True,
                    step="2m",
                ),
                lines(
                    About("Disk", "Bytes that runs read and wrote.", units.BytesPerSecondIEC),
                    {
                        "read": "sum(rate(dagster_run_disk_read_bytes_total{JOB}[$__rate_interval]))",
                        "written": "sum(rate(dagster_run_disk_written_bytes_total{JOB}[$__rate_interval]))",
                    },
                    step="2m",
                ),
                lines(
                    About(
                        "Killed for want of memory",
                        "Processes of runs that the kernel killed.",
                        units.Short,
                        ["MillraceRunOutOfMemory"],
                    ),
                    {
                        BY_JOB: """sum by (code_location, job_name) (increase(dagster_run_oom_kills_total{JOB}[$__rate_interval]))"""
                    },
                    bars=True,
                ),
            ],
            "Steps": [
                lines(
                    About("Steps that ended", "In each step of the graph, by how.", units.Short, width=8),
                    {"{{status}}": "sum by (status) (increase(dagster_steps_completed_total{JOB}[$__rate_interval]))"},
                    bars=True,
                ),
                lines(
                    About("Steps tried once more", "In each step of the graph.", units.Short, width=8),
                    {
                        BY_JOB: "sum by (code_location, job_name) (increase(dagster_step_retries_total{JOB}[$__rate_interval]))"
                    },
                    bars=True,
                ),
                spread(
                    About("Step durations", "Successful steps, by how long they took.", units.Seconds, width=8),
                    "sum by (le) (increase(dagster_step_duration_seconds_bucket{JOB}[$__rate_interval]))",
                ),
            ],
        },
        variables=location_and_job(),
    )
