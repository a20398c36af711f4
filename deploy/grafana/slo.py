"""Whether what was promised is kept: the error budget of runs, and how fast it is used up."""

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from deploy.grafana.pages import page
from deploy.grafana.panels import BAD, GOOD, INFO, LEAST, WARN, About, Column, Label, lines, number, ranking, rows, to

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
ERRORS = "max(slo:dagster_runs_errors:ratio_rate%s{RECORDED})"
BUDGET = "(1 - max(millrace_slo_success_ratio{HERE}))"


def dashboard() -> models.Dashboard:
    """Of two weeks."""
    return page(
        "slo",
        "Service levels",
        "The error budget of runs and how fast it is used up; freshness, checks and schedules beside it.",
        {
            "Runs": [
                number(
                    About("Promised", "Share of the runs that are to succeed.", units.PercentUnit, width=4, height=5),
                    "max(millrace_slo_success_ratio{HERE})",
                    decimals=2,
                ),
                number(
                    About(
                        "Kept",
                        "Share of the runs of three days that succeeded.",
                        units.PercentUnit,
                        ["MillraceFailureRateHigh"],
                        width=4,
                        height=5,
                    ),
                    f"1 - {ERRORS % '3d'}",
                    decimals=2,
                ),
                number(
                    About(
                        "Budget left",
                        "Of the failures that three days admit. Below 0 more failed than was promised.",
                        units.PercentUnit,
                        width=4,
                        height=5,
                    ),
                    f"1 - {ERRORS % '3d'} / {BUDGET}",
                    steps=[(LEAST, BAD), (0, WARN), (0.5, GOOD)],
                ),
                number(
                    About(
                        "Burn rate",
                        "How many times as fast as promised the budget is used: at 1 it lasts to the end of its time.",
                        units.Short,
                        ["MillraceErrorBudgetBurn"],
                        width=12,
                        height=5,
                    ),
                    {window: f"{ERRORS % window} / {BUDGET}" for window in WINDOWS},
                    steps=[(1, WARN), (14.4, BAD)],
                    decimals=1,
                ),
                lines(
                    About(
                        "Share of failed runs",
                        "By the time that it is taken of, and the share that the promise admits.",
                        units.PercentUnit,
                    ),
                    {window: ERRORS % window for window in WINDOWS},
                    limits={"admitted": BUDGET},
                ),
                lines(
                    About(
                        "Burn rate",
                        "Alerts fire where two of these are above 14.4 (an hour), 6 (six hours), 3 (a day) or 1 (three days).",
                        units.Short,
                        ["MillraceErrorBudgetBurn"],
                    ),
                    {window: f"{ERRORS % window} / {BUDGET}" for window in ("1h", "6h", "1d", "3d")},
                    marks=[(1, INFO), (3, WARN), (6, WARN), (14.4, BAD)],
                ),
                ranking(
                    About("What used the budget", "Failed runs by job, in the time chosen.", units.Short),
                    {
                        "{{code_location}} {{job_name}}": """topk(15, sum by (code_location, job_name)
                        (increase(dagster_runs_completed_total{HERE, status="failure"}[$__range])) > 0)"""
                    },
                ),
                ranking(
                    About(
                        "Why they failed",
                        "Failed runs by reason, in the time chosen.",
                        units.Short,
                        ["MillraceRunLaunchFailing"],
                    ),
                    {
                        "{{reason}}": "topk(15, sum by (reason) (increase(dagster_run_failures_total{HERE}[$__range])) > 0)"
                    },
                ),
            ],
            "Beside the runs": [
                lines(
                    About(
                        "Fresh assets",
                        "Share of the assets that are no older than they declare to be at most.",
                        units.PercentUnit,
                        ["MillraceAssetLate"],
                        width=8,
                    ),
                    {"fresh": "max(slo:dagster_assets_fresh:ratio{RECORDED})"},
                    top=1,
                ),
                lines(
                    About(
                        "Checks that passed",
                        "Of those of severity error, as each ended last.",
                        units.PercentUnit,
                        ["MillraceCheckFailed"],
                        width=8,
                    ),
                    {"passed": 'avg(dagster_asset_check_last_passed{HERE, severity="error"})'},
                    top=1,
                ),
                lines(
                    About(
                        "Ticks that did not fail",
                        "Of schedules and sensors, within a day.",
                        units.PercentUnit,
                        ["MillraceScheduleMissed", "MillraceTicksFailing"],
                        width=8,
                    ),
                    {
                        "{{type}}": """sum by (type) (increase(dagster_ticks_total{HERE, status!="failure"}[1d]))
                        / sum by (type) (increase(dagster_ticks_total{HERE}[1d]))"""
                    },
                    top=1,
                ),
                rows(
                    About(
                        "Availability",
                        "Share of the time chosen for which the definitions of a code location loaded.",
                        units.PercentUnit,
                        ["MillraceCodeLocationBroken"],
                        width=24,
                        height=6,
                    ),
                    [Label("code_location", "Code location", to("services"))],
                    [
                        Column(
                            "Available",
                            "min by (code_location) (avg_over_time(dagster_code_location_loaded{HERE}[$__range]))",
                            units.PercentUnit,
                            steps=[(LEAST, BAD), (0.99, WARN), (0.999, GOOD)],
                        )
                    ],
                    sort="Available",
                ),
            ],
        },
        time="now-14d",
    )
