"""The lake and what comes into it: tables, files, snapshots; rows, rejects and lateness of sources."""

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from deploy.grafana.pages import choice, page
from deploy.grafana.panels import BAD, WARN, About, Column, Label, lines, number, ranking, rows

STREAM = [Label("source", "Source"), Label("stream", "Stream")]
LOADED_AGO = "time() - max by (source, stream) (millrace_source_last_load_timestamp_seconds{SOURCE})"
REJECTED = """sum by (source, stream) (increase(millrace_source_rejected_rows_total{SOURCE}[%s]))
  / (sum by (source, stream) (increase(millrace_source_rows_total{SOURCE}[%s]))
    + sum by (source, stream) (increase(millrace_source_rejected_rows_total{SOURCE}[%s]))) >= 0"""


def dashboard() -> models.Dashboard:
    """Of a week, as the lake changes by the day."""
    return page(
        "lake",
        "Lake and sources",
        "Size, files and snapshots of the lake, and what sources brought, refused and owe.",
        {
            "The lake": [
                number(About("Tables", "Tables of the lake.", units.Short), "max(millrace_lake_tables{HERE})"),
                number(About("Rows", "Of all tables.", units.Short), "sum(millrace_lake_table_rows{HERE})"),
                number(
                    About("Size", "Of the files of all tables as they are now.", units.BytesIEC),
                    "sum(millrace_lake_table_bytes{HERE})",
                    trend=True,
                ),
                number(
                    About("Last change", "Age of the newest snapshot.", units.Seconds),
                    "time() - max(millrace_lake_last_snapshot_timestamp_seconds{HERE})",
                ),
                number(
                    About("Snapshots", "That are kept: each keeps the files that it knows.", units.Short),
                    "max(millrace_lake_snapshots{HERE})",
                    trend=True,
                ),
                number(
                    About(
                        "Files to delete",
                        "That nothing needs any more; `millrace lake maintain` deletes them.",
                        units.Short,
                    ),
                    "max(millrace_lake_files_scheduled_for_deletion{HERE})",
                    trend=True,
                ),
                lines(
                    About("Size by schema", "Files of the tables as they are now.", units.BytesIEC),
                    {"{{schema}}": "sum by (schema) (millrace_lake_table_bytes{HERE})"},
                    stack=True,
                ),
                lines(
                    About("Rows of the largest tables", "Ten tables.", units.Short),
                    {"{{schema}}.{{table}}": "topk(10, max by (schema, table) (millrace_lake_table_rows{HERE}))"},
                ),
                rows(
                    About(
                        "Tables",
                        "Rows, size and files; growth is within the time chosen.",
                        units.Short,
                        width=16,
                        height=12,
                    ),
                    [Label("schema", "Schema"), Label("table", "Table")],
                    [
                        Column("Rows", "max by (schema, table) (millrace_lake_table_rows{HERE})"),
                        Column("Size", "max by (schema, table) (millrace_lake_table_bytes{HERE})", units.BytesIEC),
                        Column(
                            "Growth",
                            "max by (schema, table) (delta(millrace_lake_table_bytes{HERE}[$__range]))",
                            units.BytesIEC,
                        ),
                        Column("Files", "max by (schema, table) (millrace_lake_table_files{HERE})"),
                        Column(
                            "Size of a file",
                            """max by (schema, table)
                              (millrace_lake_table_bytes{HERE} / (millrace_lake_table_files{HERE} > 0))""",
                            units.BytesIEC,
                        ),
                    ],
                    sort="Size",
                    none="The lake is empty",
                ),
                ranking(
                    About(
                        "Most files",
                        "Many small files make every query slow: `millrace lake maintain` merges them.",
                        units.Short,
                        width=8,
                        height=12,
                    ),
                    {"{{schema}}.{{table}}": "topk(15, max by (schema, table) (millrace_lake_table_files{HERE}))"},
                ),
            ],
            "Sources": [
                rows(
                    About(
                        "Streams",
                        """When a load last brought rows, how much of the greatest age that is, up to when the data reach, and what came in the
                          time chosen.""",
                        units.Short,
                        ["MillraceSourceLate"],
                        width=24,
                        height=9,
                    ),
                    STREAM,
                    [
                        Column("Loaded ago", LOADED_AGO, units.Seconds),
                        Column(
                            "Of its greatest age",
                            f"({LOADED_AGO}) / max by (source, stream) (millrace_source_max_age_seconds{{SOURCE}})",
                            units.PercentUnit,
                            steps=[(0.8, WARN), (1, BAD)],
                        ),
                        Column(
                            "Data until ago",
                            "time() - max by (source, stream) (millrace_source_data_timestamp_seconds{SOURCE})",
                            units.Seconds,
                        ),
                        Column(
                            "Rows", "sum by (source, stream) (increase(millrace_source_rows_total{SOURCE}[$__range]))"
                        ),
                        Column(
                            "Rejected",
                            "sum by (source, stream) (increase(millrace_source_rejected_rows_total{SOURCE}[$__range]))",
                            steps=[(0.5, WARN)],
                        ),
                        Column("Share rejected", REJECTED % (("$__range",) * 3), units.PercentUnit),
                    ],
                    sort="Of its greatest age",
                    none="Nothing was loaded yet",
                ),
                lines(
                    About("Rows loaded", "In each step of the graph.", units.Short),
                    {
                        "{{source}} {{stream}}": "sum by (source, stream) (increase(millrace_source_rows_total{SOURCE}[$__rate_interval])) > 0"
                    },
                    bars=True,
                    step="1h",
                ),
                lines(
                    About(
                        "Share of rows rejected",
                        "Of what came within six hours.",
                        units.PercentUnit,
                        ["MillraceIngestionRejectsRising"],
                    ),
                    {"{{source}} {{stream}}": REJECTED % (("6h",) * 3)},
                    top=0.01,
                ),
            ],
        },
        variables=[
            choice("source", "Source", "label_values(millrace_source_rows_total{HERE}, source)", multi=True),
        ],
        time="now-7d",
    )
