"""Assets and their checks: how fresh, how often, how many rows, what failed."""

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from deploy.grafana.pages import choice, page
from deploy.grafana.panels import BAD, GOOD, LEAST, WARN, About, Column, Label, lines, number, ranking, rows, to

KEYS = "label_values(dagster_asset_materializations_total{HERE%s}, asset_key)"
LAST = "dagster_asset_last_materialization_timestamp_seconds{ASSET}"
AGE_OF_LIMIT = f"(time() - {LAST}) / on (asset_key) dagster_asset_max_age_seconds{{ASSET}}"
ASSET = Label("asset_key", "Asset", to("assets", asset_key="${__value.raw}"))


def dashboard() -> models.Dashboard:
    """By layer, which is the first part of an asset's key, and asset."""
    return page(
        "assets",
        "Assets and checks",
        "How fresh assets are, how often they are made and fail, their rows, and their checks.",
        {
            "Now": [
                number(
                    About("Assets", "Assets that there are.", units.Short),
                    "count(count by (asset_key) (dagster_asset_materializations_total{ASSET}))",
                ),
                number(
                    About("Late", "Assets older than they declare to be at most.", units.Short, ["MillraceAssetLate"]),
                    f"sum({AGE_OF_LIMIT} > bool 1)",
                    steps=[(1, WARN)],
                ),
                number(
                    About("Made", "Materialisations in the time chosen.", units.Short),
                    "sum(increase(dagster_asset_materializations_total{ASSET}[$__range]))",
                    decimals=0,
                ),
                number(
                    About(
                        "Not made",
                        "Times that a failed run meant to make an asset and did not, in the time chosen.",
                        units.Short,
                        ["MillraceAssetFailing"],
                    ),
                    "sum(increase(dagster_asset_failures_total{ASSET}[$__range]))",
                    steps=[(0.5, BAD)],
                    decimals=0,
                ),
                number(
                    About(
                        "Failed checks",
                        "Checks of severity error that failed when they were made last.",
                        units.Short,
                        ["MillraceCheckFailed"],
                    ),
                    'sum(dagster_asset_check_last_passed{ASSET, severity="error"} == bool 0)',
                    steps=[(1, BAD)],
                ),
                number(
                    About("Checks that passed", "Share of the evaluations in the time chosen.", units.PercentUnit),
                    """sum(increase(dagster_asset_check_evaluations_total{ASSET, result="passed"}[$__range]))
                         / sum(increase(dagster_asset_check_evaluations_total{ASSET}[$__range]))""",
                    steps=[(LEAST, BAD), (0.9, WARN), (0.99, GOOD)],
                ),
            ],
            "Freshness": [
                rows(
                    About(
                        "Freshness and rows",
                        "When assets were made last, how much of their greatest age that is, and their rows.",
                        units.Seconds,
                        ["MillraceAssetLate", "MillraceVolumeUnusual"],
                        width=16,
                        height=12,
                    ),
                    [ASSET, Label("group", "Group"), Label("owner", "Owner")],
                    [
                        Column(
                            "Age",
                            f"""time() - max by (asset_key) ({LAST})
                              * on (asset_key) group_left (group, owner) max by (asset_key, group, owner) (dagster_asset_info{{ASSET}})""",
                            units.Seconds,
                        ),
                        Column(
                            "Of its greatest age",
                            f"max by (asset_key) ({AGE_OF_LIMIT})",
                            units.PercentUnit,
                            steps=[(0.8, WARN), (1, BAD)],
                        ),
                        Column("Rows", "max by (asset_key) (dagster_asset_last_row_count{ASSET})"),
                        Column(
                            "Rows against the usual",
                            """max by (asset_key) (
                              dagster_asset_last_row_count{ASSET} / dagster_asset_row_count_baseline{ASSET})""",
                            units.PercentUnit,
                        ),
                    ],
                    sort="Of its greatest age",
                    none="No asset was made yet",
                ),
                ranking(
                    About(
                        "Closest to being late",
                        "Age as a share of the greatest age that the asset declares.",
                        units.PercentUnit,
                        ["MillraceAssetLate"],
                        width=8,
                        height=12,
                    ),
                    {"{{asset_key}}": f"topk(15, max by (asset_key) ({AGE_OF_LIMIT}))"},
                    steps=[(0.8, WARN), (1, BAD)],
                    top=1,
                ),
            ],
            "Made and not made": [
                lines(
                    About(
                        "Materialisations",
                        "In each step of the graph, by the first part of the asset's key.",
                        units.Short,
                    ),
                    {
                        "{{layer}}": """sum by (layer) (label_replace(
                                       increase(dagster_asset_materializations_total{ASSET}[$__rate_interval]),
                                       "layer", "$1", "asset_key", "([^/]+).*"))"""
                    },
                    bars=True,
                ),
                lines(
                    About(
                        "Assets that were not made",
                        "Failed runs that meant to make the asset, in each step of the graph.",
                        units.Short,
                        ["MillraceAssetFailing"],
                    ),
                    {
                        "{{asset_key}}": "sum by (asset_key) (increase(dagster_asset_failures_total{ASSET}[$__rate_interval])) > 0"
                    },
                    bars=True,
                ),
                lines(
                    About("Rows", "Of the ten largest assets, when they were made last.", units.Short),
                    {"{{asset_key}}": "topk(10, max by (asset_key) (dagster_asset_last_row_count{ASSET}))"},
                ),
                rows(
                    About(
                        "Unusual numbers of rows",
                        "Distance of the last row count from the ones before, in their spread.",
                        units.Short,
                        ["MillraceVolumeUnusual"],
                    ),
                    [ASSET],
                    [
                        Column(
                            "Spreads",
                            "max by (asset_key) (abs(dagster_asset_row_count_zscore{ASSET}))",
                            steps=[(6, BAD)],
                        ),
                        Column(
                            "Rows",
                            "max by (asset_key) (dagster_asset_last_row_count{ASSET} and dagster_asset_row_count_zscore{ASSET})",
                        ),
                        Column("Usual", "max by (asset_key) (dagster_asset_row_count_baseline{ASSET})"),
                    ],
                    sort="Spreads",
                    none="No asset has told its rows ten times",
                ),
                rows(
                    About(
                        "Time against the usual",
                        """The smoothed level of the asset's newest successful steps beside the median of 30 before.""",
                        units.Seconds,
                        ["MillraceAssetSlower"],
                    ),
                    [ASSET],
                    [
                        Column(
                            "Times the usual",
                            "max by (asset_key) (dagster_asset_duration_regression_ratio{ASSET})",
                            steps=[(1.15, WARN), (1.5, BAD)],
                        ),
                        Column("Spreads", "max by (asset_key) (dagster_asset_duration_regression_zscore{ASSET})"),
                        Column(
                            "Usual",
                            "max by (asset_key) (dagster_asset_duration_baseline_seconds{ASSET})",
                            units.Seconds,
                        ),
                        Column(
                            "Runs",
                            """max by (asset_key) (dagster_asset_duration_baseline_runs{ASSET}
                              and dagster_asset_duration_regression_ratio{ASSET})""",
                        ),
                    ],
                    sort="Times the usual",
                    none="No asset was made 30 times",
                ),
                lines(
                    About(
                        "Observations",
                        "Times that assets were observed, in each step of the graph.",
                        units.Short,
                        width=6,
                    ),
                    {
                        "{{asset_key}}": "sum by (asset_key) (increase(dagster_asset_observations_total{ASSET}[$__rate_interval])) > 0"
                    },
                    bars=True,
                ),
                lines(
                    About(
                        "Freshness policies",
                        "Assets by the state in which their policy found them last.",
                        units.Short,
                        width=6,
                    ),
                    {"{{state}}": "sum by (state) (dagster_asset_freshness_state{ASSET})"},
                    stack=True,
                ),
            ],
            "Checks": [
                rows(
                    About(
                        "Checks",
                        "How each ended when it was made last, and when that was.",
                        units.Seconds,
                        ["MillraceCheckFailed"],
                        width=14,
                        height=10,
                    ),
                    [Label("check", "Check"), ASSET, Label("severity", "Severity")],
                    [
                        Column(
                            "Result",
                            "min by (asset_key, check, severity) (dagster_asset_check_last_passed{ASSET})",
                            mappings={"0": ("failed", BAD), "1": ("passed", GOOD)},
                        ),
                        Column(
                            "Age",
                            "time() - max by (asset_key, check, severity) (dagster_asset_check_last_timestamp_seconds{ASSET})",
                            units.Seconds,
                        ),
                    ],
                    none="No check was made yet",
                ),
                lines(
                    About("Evaluations", "In each step of the graph, by result.", units.Short, width=10, height=10),
                    {
                        "{{result}}": "sum by (result) (increase(dagster_asset_check_evaluations_total{ASSET}[$__rate_interval]))"
                    },
                    bars=True,
                ),
            ],
        },
        variables=[
            choice("layer", "Layer", KEYS % "", regex="/^([^/]+)/", multi=True),
            choice("asset_key", "Asset", KEYS % ', asset_key=~"$layer(/.*)?"', multi=True),
        ],
    )
