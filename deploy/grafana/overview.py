"""The first page: what fails now, what is late, what waits, and whether that is new."""

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from deploy.grafana.pages import page
from deploy.grafana.panels import BAD, WARN, About, Column, Label, lines, number, rows, to
from deploy.grafana.services import availability

# Only the watchdog has no severity, and it always fires: nothing fires is 0, and without rules there is no number.
FIRING = """count(ALERTS{ALERT, alertstate="firing", severity=~"%s|none"})
  - count(ALERTS{ALERT, alertstate="firing", severity="none"})"""
ABOUT = (
    "service",
    "daemon_type",
    "collector",
    "code_location",
    "job_name",
    "asset_key",
    "check",
    "name",
    "status",
    "source",
    "stream",
    "volume",
    "host",
    "metric",
)
LAST_FAILED = """max by (code_location, job_name) (dagster_run_last_completed_timestamp_seconds{HERE, status="failure"})
  >= max by (code_location, job_name) (dagster_run_last_completed_timestamp_seconds{HERE, status=~"success|failure"})"""
LATE = """time() - max by (asset_key) (dagster_asset_last_materialization_timestamp_seconds{HERE})
  > max by (asset_key) (dagster_asset_max_age_seconds{HERE})"""


def dashboard() -> models.Dashboard:
    """Of a day."""
    return page(
        "overview",
        "Overview",
        "What fails, is late or waits now, and the last day.",
        {
            "Now": [
                number(
                    About(
                        "Critical alerts",
                        "Alerts that want someone now. Empty: Prometheus has no rules of ours.",
                        units.Short,
                        ["MillraceWatchdog"],
                        width=3,
                    ),
                    FIRING % "critical",
                    steps=[(1, BAD)],
                ),
                number(
                    About("Warnings", "Alerts that want someone today.", units.Short, width=3),
                    FIRING % "warning",
                    steps=[(1, WARN)],
                ),
                number(
                    About(
                        "Jobs that fail too often",
                        "Jobs of whose last 20 runs more failed than the threshold admits.",
                        units.Short,
                        ["MillraceFailureRateHigh"],
                        width=3,
                    ),
                    """sum(dagster_job_recent_failure_ratio{HERE}
                           > bool on () group_left () max(millrace_threshold_failure_ratio{HERE}))""",
                    steps=[(1, BAD)],
                    link=to("runs"),
                ),
                number(
                    About(
                        "Late assets",
                        "Assets older than they declare to be at most.",
                        units.Short,
                        ["MillraceAssetLate"],
                        width=3,
                    ),
                    """sum(time() - dagster_asset_last_materialization_timestamp_seconds{HERE}
                           > bool on (asset_key) dagster_asset_max_age_seconds{HERE})""",
                    steps=[(1, WARN)],
                    link=to("assets"),
                ),
                number(
                    About(
                        "Failed checks",
                        "Asset checks of severity error that failed when they were made last.",
                        units.Short,
                        ["MillraceCheckFailed"],
                        width=3,
                    ),
                    'sum(dagster_asset_check_last_passed{HERE, severity="error"} == bool 0)',
                    steps=[(1, BAD)],
                    link=to("assets"),
                ),
                number(
                    About(
                        "Broken code locations",
                        "Code locations whose definitions do not load: nothing of them runs.",
                        units.Short,
                        ["MillraceCodeLocationBroken"],
                        width=3,
                    ),
                    "sum(dagster_code_location_loaded{HERE} == bool 0)",
                    steps=[(1, BAD)],
                    link=to("services"),
                ),
                number(
                    About("Runs at work", "Runs that are starting or at work.", units.Short, width=3),
                    'sum(dagster_runs_in_progress{HERE, status=~"not_started|starting|started"})',
                    link=to("runs"),
                ),
                number(
                    About(
                        "Runs in the queue",
                        "Runs that wait for a place under the run limit, or for their pool.",
                        units.Short,
                        ["MillraceRunStuckQueued"],
                        width=3,
                    ),
                    'sum(dagster_runs_in_progress{HERE, status="queued"})',
                    link=to("runs"),
                ),
            ],
            "What is wrong": [
                rows(
                    About(
                        "Firing alerts", "What fires now, and for how long it has.", units.Seconds, width=24, height=7
                    ),
                    [
                        Label("alertname", "Alert", "${runbooks}/${__value.raw}.md"),
                        Label("severity", "Severity"),
                        Label("about", "About"),
                    ],
                    [
                        Column(
                            "For",
                            f"""max by (severity, alertname, about) (label_join(
                              time() - ALERTS_FOR_STATE{{ALERT, severity!="none"}}
                                and ignoring (alertstate) ALERTS{{ALERT, severity!="none", alertstate="firing"}},
                              "about", " ", {", ".join(f'"{label}"' for label in ABOUT)}))""",
                            units.Seconds,
                        )
                    ],
                    none="No alert fires",
                ),
                rows(
                    About(
                        "Jobs whose last run failed",
                        "The newest failure, and how many of the job's last 20 runs failed.",
                        units.Seconds,
                        ["MillraceFailureRateHigh"],
                        height=7,
                    ),
                    [
                        Label("job_name", "Job", to("runs", job_name="${__value.raw}")),
                        Label("code_location", "Code location"),
                    ],
                    [
                        Column("Failed ago", f"time() - ({LAST_FAILED})", units.Seconds),
                        Column(
                            "Of its last runs",
                            f"""max by (code_location, job_name) (dagster_job_recent_failure_ratio{{HERE}})
                              and ({LAST_FAILED})""",
                            units.PercentUnit,
                        ),
                    ],
                ),
                rows(
                    About(
                        "Late assets",
                        "By when they were made last, and how old they may be.",
                        units.Seconds,
                        ["MillraceAssetLate"],
                        height=7,
                    ),
                    [Label("asset_key", "Asset", to("assets", asset_key="${__value.raw}"))],
                    [
                        Column("Age", LATE, units.Seconds),
                        Column(
                            "May be",
                            f"max by (asset_key) (dagster_asset_max_age_seconds{{HERE}}) and ({LATE})",
                            units.Seconds,
                        ),
                    ],
                    sort="Age",
                ),
            ],
            "The last day": [
                lines(
                    About("Runs that ended", "In each step of the graph, by how.", units.Short),
                    {"{{status}}": "sum by (status) (increase(dagster_runs_completed_total{HERE}[$__rate_interval]))"},
                    bars=True,
                    link=to("runs"),
                ),
                lines(
                    About(
                        "Share of failed runs",
                        "Of the runs that ended by themselves within an hour.",
                        units.PercentUnit,
                        ["MillraceFailureRateHigh"],
                    ),
                    {
                        "failed": """sum(increase(dagster_runs_completed_total{HERE, status="failure"}[1h]))
                                    / sum(increase(dagster_runs_completed_total{HERE, status=~"success|failure"}[1h]))"""
                    },
                    limits={"threshold": "max(millrace_threshold_failure_ratio{HERE})"},
                    top=0.2,
                ),
                lines(
                    About(
                        "Runs under way",
                        "By status, and how many may be at once.",
                        units.Short,
                        ["MillraceRunStuckStarting"],
                    ),
                    {"{{status}}": "sum by (status) (dagster_runs_in_progress{HERE})"},
                    limits={"run limit": "max(dagster_run_queue_limit_runs{HERE})"},
                    stack=True,
                ),
                availability(width=12),
                lines(
                    About("Size of the lake", "Files of the tables as they are now, by schema.", units.BytesIEC),
                    {"{{schema}}": "sum by (schema) (millrace_lake_table_bytes{HERE})"},
                    stack=True,
                    link=to("lake"),
                ),
                lines(
                    About("Free space of volumes", "Share of the volume that is free.", units.PercentUnit),
                    {
                        "{{volume}}": """min by (volume) (millrace_volume_free_bytes{HERE} / millrace_volume_size_bytes{HERE})"""
                    },
                    top=1,
                    link=to("services"),
                ),
            ],
        },
    )
