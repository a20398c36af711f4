"""Services and what they need: availability, schedules and sensors, memory, volumes, the database, the exporter itself."""

from grafana_foundation_sdk.builders import statetimeline
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from deploy.grafana.pages import page
from deploy.grafana.panels import (
    BAD,
    GOOD,
    LEAST,
    NEUTRAL,
    WARN,
    About,
    Column,
    Label,
    lines,
    number,
    ranking,
    rows,
    spread,
    states,
)

LOCATION = Label("code_location", "Code location")
INSTIGATOR = [Label("name", "Name"), Label("type", "Type"), LOCATION]
BY_INSTIGATOR = "by (type, name, code_location)"
FREE = "min by (volume) (millrace_volume_free_bytes{HERE})"


def availability(*, width: int) -> statetimeline.Panel:
    """A band for everything that must answer."""
    late = "< bool on () group_left () max(millrace_threshold_unavailable_seconds{HERE})"
    read = "time() - max(dagster_exporter_last_success_timestamp_seconds{HERE, collector="
    return states(
        About(
            "Services",
            "Code locations load; daemons, database and webserver have answered within the threshold.",
            units.Short,
            ["MillraceServiceUnavailable", "MillraceDaemonStale", "MillraceCodeLocationBroken"],
            width=width,
        ),
        {
            "{{code_location}}": "max by (code_location) (dagster_code_location_loaded{HERE})",
            # Daemons report every 30 seconds and the webserver is asked every minute: a minute more than for the database.
            "{{daemon_type}}": f"""time() - 60 - max by (daemon_type)
                (dagster_daemon_last_heartbeat_timestamp_seconds{{HERE, required="true"}}) {late}""",
            "database": f'{read}"events"}}) {late}',
            "webserver": f'{read}"workspace"}}) - 60 {late}',
        },
        words=("up", "down"),
    )


def dashboard() -> models.Dashboard:
    """Of one installation."""
    return page(
        "services",
        "Services and resources",
        "Whether everything answers, ticks and is saved, and whether memory, space and sessions suffice.",
        {
            "Availability": [
                availability(width=16),
                rows(
                    About("Daemons", "When each was alive last.", units.Seconds, ["MillraceDaemonStale"], width=8),
                    [Label("daemon_type", "Daemon"), Label("required", "Required")],
                    [
                        Column(
                            "Alive ago",
                            "time() - max by (daemon_type, required) (dagster_daemon_last_heartbeat_timestamp_seconds{HERE})",
                            units.Seconds,
                            steps=[(120, WARN), (180, BAD)],
                        ),
                        Column(
                            "Errors",
                            "max by (daemon_type, required) (dagster_daemon_heartbeat_errors{HERE})",
                            steps=[(1, BAD)],
                        ),
                    ],
                    sort="Alive ago",
                    none="No daemon has reported",
                ),
                rows(
                    About(
                        "Code locations",
                        "Whether their definitions load, since when, and what they define.",
                        units.Short,
                        ["MillraceCodeLocationBroken"],
                        width=24,
                        height=6,
                    ),
                    [LOCATION],
                    [
                        Column(
                            "State",
                            "min by (code_location) (dagster_code_location_loaded{HERE})",
                            mappings={"0": ("broken", BAD), "1": ("loaded", GOOD)},
                        ),
                        Column(
                            "Loaded ago",
                            "time() - max by (code_location) (dagster_code_location_last_update_timestamp_seconds{HERE})",
                            units.Seconds,
                        ),
                        *(
                            Column(
                                kind.capitalize(),
                                f'max by (code_location) (dagster_code_location_definitions{{HERE, kind="{kind}"}})',
                            )
                            for kind in ("jobs", "assets", "schedules", "sensors")
                        ),
                    ],
                    none="The webserver has told of none",
                ),
            ],
            "Schedules and sensors": [
                rows(
                    About(
                        "Schedules and sensors",
                        "Whether they are on, when they ticked, and failures since the last tick that did not fail.",
                        units.Short,
                        ["MillraceScheduleMissed", "MillraceTicksFailing"],
                        width=12,
                    ),
                    INSTIGATOR,
                    [
                        Column(
                            "State",
                            f"max {BY_INSTIGATOR} (dagster_instigator_running{{HERE}})",
                            mappings={"0": ("off", NEUTRAL), "1": ("on", GOOD)},
                        ),
                        Column(
                            "Ticked ago",
                            f"time() - max {BY_INSTIGATOR} (dagster_tick_last_timestamp_seconds{{HERE}})",
                            units.Seconds,
                        ),
                        Column(
                            "Was to tick ago",
                            """label_replace(
                              time() - max by (name, code_location) (dagster_schedule_expected_tick_timestamp_seconds{HERE}),
                              "type", "schedule", "", "")""",
                            units.Seconds,
                        ),
                        Column(
                            "Failures",
                            f"max {BY_INSTIGATOR} (dagster_tick_consecutive_failures{{HERE}})",
                            steps=[(1, WARN), (3, BAD)],
                        ),
                    ],
                    sort="Failures",
                ),
                lines(
                    About(
                        "Ticks",
                        "In each step of the graph, by how they ended.",
                        units.Short,
                        ["MillraceTicksFailing"],
                        width=6,
                    ),
                    {"{{status}}": "sum by (status) (increase(dagster_ticks_total{HERE}[$__rate_interval]))"},
                    bars=True,
                ),
                spread(
                    About("Duration of ticks", "By how long they took.", units.Seconds, width=6),
                    "sum by (le) (increase(dagster_tick_duration_seconds_bucket{HERE}[$__rate_interval]))",
                ),
            ],
            "Memory and space": [
                lines(
                    About(
                        "Memory of services",
                        "Working set as a share of the limit.",
                        units.PercentUnit,
                        ["MillraceServiceMemoryHigh"],
                    ),
                    {
                        "{{service}}": """max by (service)
                        (millrace_service_memory_working_set_bytes{HERE} / millrace_service_memory_limit_bytes{HERE})"""
                    },
                    limits={"threshold": "max(millrace_threshold_memory_ratio{HERE})"},
                    top=1,
                ),
                lines(
                    About("Memory of services in bytes", "Working set: what cannot be given back.", units.BytesIEC),
                    {"{{service}}": "max by (service) (millrace_service_memory_working_set_bytes{HERE})"},
                ),
                rows(
                    About(
                        "Volumes",
                        "Free space, as processes see it that mount them, and when it ends if it shrinks as in the last six hours.",
                        units.BytesIEC,
                        ["MillraceVolumeFilling"],
                        width=12,
                    ),
                    [Label("volume", "Volume")],
                    [
                        Column("Free", FREE, units.BytesIEC),
                        Column("Size", "max by (volume) (millrace_volume_size_bytes{HERE})", units.BytesIEC),
                        Column(
                            "Share free",
                            f"{FREE} / max by (volume) (millrace_volume_size_bytes{{HERE}})",
                            units.PercentUnit,
                            steps=[(LEAST, BAD), (0.1, WARN), (0.2, GOOD)],
                        ),
                        Column(
                            "Full in",
                            "min by (volume) (millrace_volume_free_bytes{HERE} / (-deriv(millrace_volume_free_bytes{HERE}[6h]) > 0))",
                            units.Seconds,
                        ),
                    ],
                    none="No process has told of a volume",
                ),
                lines(
                    About("Free space", "Share of the volume that is free.", units.PercentUnit),
                    {
                        "{{volume}}": "min by (volume) (millrace_volume_free_bytes{HERE} / millrace_volume_size_bytes{HERE})"
                    },
                    top=1,
                ),
            ],
            "Database and backups": [
                lines(
                    About(
                        "Sessions",
                        "Of the server: dagster, lake, all its other databases; and how many it admits.",
                        units.Short,
                        ["MillracePostgresConnectionsHigh"],
                        width=8,
                    ),
                    {"{{database}}": "max by (database) (millrace_postgres_connections{HERE})"},
                    limits={"admitted": "max(millrace_postgres_max_connections{HERE})"},
                    stack=True,
                ),
                lines(
                    About(
                        "Tables of Dagster",
                        "The ten largest, with their indices.",
                        units.BytesIEC,
                        ["MillraceDatabaseGrowing"],
                        width=8,
                    ),
                    {"{{relation}}": "topk(10, max by (relation) (dagster_storage_relation_bytes{HERE}))"},
                    stack=True,
                ),
                ranking(
                    About("Rows of Dagster", "The ten longest tables, as the planner guesses.", units.Short, width=8),
                    {"{{relation}}": "topk(10, max by (relation) (dagster_storage_rows_estimate{HERE}))"},
                ),
                number(
                    About(
                        "Last backup",
                        "Age of the last backup that succeeded. Empty: none was ever made.",
                        units.Seconds,
                        ["MillraceBackupOld"],
                        width=6,
                    ),
                    "time() - max(millrace_backup_last_success_timestamp_seconds{HERE})",
                    steps=[(108_000, WARN), (129_600, BAD)],
                    none="none",
                ),
                number(
                    About(
                        "Size of the last backup",
                        "Dumps of both databases, and files if they are copied.",
                        units.BytesIEC,
                        width=6,
                    ),
                    "max(millrace_backup_last_bytes{HERE})",
                    none="none",
                ),
                rows(
                    About(
                        "Certificates",
                        "How long they hold, whether clients take them, and whether the host shows one.",
                        units.Seconds,
                        ["MillraceCertificateExpiring", "MillraceCertificateInvalid", "MillraceCertificateUnchecked"],
                        width=12,
                        height=4,
                    ),
                    [Label("host", "Host")],
                    [
                        Column(
                            "Holds for",
                            "min by (host) (millrace_certificate_expiry_timestamp_seconds{HERE}) - time()",
                            units.Seconds,
                            steps=[(LEAST, BAD), (3 * 86_400, WARN), (21 * 86_400, GOOD)],
                        ),
                        Column(
                            "Valid",
                            "min by (host) (millrace_certificate_valid{HERE})",
                            mappings={"0": ("no", BAD), "1": ("yes", GOOD)},
                        ),
                        Column(
                            "Answers",
                            "min by (host) (millrace_certificate_reachable{HERE})",
                            mappings={"0": ("no", BAD), "1": ("yes", GOOD)},
                        ),
                    ],
                    none="No host is configured",
                ),
            ],
            "Pools and backfills": [
                lines(
                    About(
                        "Slots of pools that are taken", "As a share of the pool's slots.", units.PercentUnit, width=6
                    ),
                    {"{{pool}}": "max by (pool) (dagster_pool_slots_claimed{HERE} / dagster_pool_slots_limit{HERE})"},
                    top=1,
                ),
                rows(
                    About(
                        "Pools",
                        "Slots, steps or runs that wait for one, and for how long the first has waited.",
                        units.Short,
                        width=6,
                    ),
                    [Label("pool", "Pool")],
                    [
                        Column("Slots", "max by (pool) (dagster_pool_slots_limit{HERE})"),
                        Column("Taken", "max by (pool) (dagster_pool_slots_claimed{HERE})"),
                        Column("Waiting", "max by (pool) (dagster_pool_steps_pending{HERE})"),
                        Column(
                            "For",
                            "time() - min by (pool) (dagster_pool_oldest_pending_timestamp_seconds{HERE})",
                            units.Seconds,
                        ),
                    ],
                    sort="Waiting",
                    none="No pool has a limit",
                ),
                lines(
                    About("Backfills under way", "By status.", units.Short, width=6),
                    {"{{status}}": "max by (status) (dagster_backfills_in_progress{HERE})"},
                    stack=True,
                ),
                lines(
                    About("Backfills that ended", "In each step of the graph, by how.", units.Short, width=6),
                    {
                        "{{status}}": "sum by (status) (increase(dagster_backfills_completed_total{HERE}[$__rate_interval]))"
                    },
                    bars=True,
                ),
            ],
            "The exporter": [
                rows(
                    About(
                        "Collectors",
                        "When the figures of each were read last, and how often that failed within an hour.",
                        units.Seconds,
                        ["MillraceExporterBlind"],
                        width=8,
                    ),
                    [Label("collector", "Collector")],
                    [
                        Column(
                            "Read ago",
                            "time() - max by (collector) (dagster_exporter_last_success_timestamp_seconds{HERE})",
                            units.Seconds,
                            steps=[(300, WARN), (600, BAD)],
                        ),
                        Column(
                            "Failed",
                            "sum by (collector) (increase(dagster_exporter_poll_errors_total{HERE}[1h]))",
                            steps=[(0.5, WARN)],
                        ),
                    ],
                    sort="Failed",
                ),
                lines(
                    About("Duration of a poll", "Reading and counting what is new.", units.Seconds, width=8),
                    {"poll": "max(dagster_exporter_poll_duration_seconds{HERE})"},
                ),
                lines(
                    About(
                        "Events",
                        "Counted in a second, and ids handed out after the newest one counted.",
                        units.Short,
                        ["MillraceExporterLagging"],
                        width=8,
                    ),
                    {
                        "counted a second": "sum(rate(dagster_exporter_events_total{HERE}[$__rate_interval]))",
                        "behind": "max(dagster_exporter_event_cursor_lag{HERE})",
                    },
                ),
                lines(
                    About(
                        "Gaps",
                        "Ids of events that are missing and still looked for, and those given up.",
                        units.Short,
                        ["MillraceExporterLosesEvents"],
                        width=8,
                    ),
                    {
                        "looked for": "max(dagster_exporter_gaps_pending{HERE})",
                        "given up": "sum(increase(dagster_exporter_gaps_abandoned_total{HERE}[$__rate_interval]))",
                    },
                ),
                number(
                    About(
                        "Saved",
                        "How long ago cursor and counts were saved: a restart reads the log from there.",
                        units.Seconds,
                        ["MillraceExporterNotSaving"],
                        width=4,
                    ),
                    "time() - max(dagster_exporter_snapshot_timestamp_seconds{HERE})",
                    steps=[(120, WARN), (600, BAD)],
                ),
                lines(
                    About(
                        "Full metrics",
                        "Observations that went to __other__, as their metric has as many series as it may.",
                        units.Short,
                        ["MillraceExporterFull"],
                        width=8,
                    ),
                    {
                        "{{metric}}": "sum by (metric) (increase(dagster_exporter_series_dropped_total{HERE}[$__rate_interval])) > 0"
                    },
                    bars=True,
                ),
                rows(
                    About("Version", "Of the exporter.", units.Short, width=4),
                    [Label("version", "Version"), Label("instance", "Instance")],
                    [Column("Running", "max by (version, instance) (dagster_exporter_build_info{HERE})")],
                ),
            ],
        },
    )
