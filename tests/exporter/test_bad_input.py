"""A database that is away, a role that may not write, clocks that are set, labels without end: what is served then, and told."""

import socket
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote_plus

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from pipeline.errors import ServiceError
from pipeline.exporter import exporter as exporter_module
from pipeline.exporter.database import Database
from pipeline.exporter.metrics import MAX_SERIES, OTHER
from pipeline.operate.database import connect
from pipeline.settings import Settings
from tests.exporter.conftest import Watched
from tests.exporter.test_workspace import at
from tests.tools import tool

RULES = Path(__file__).parents[2] / "deploy" / "rules"
DAY = 86_400.0


@pytest.fixture
def promtool() -> str:
    return tool("promtool")


class Door:
    """The database behind a socket that can be taken away."""

    def __init__(self, settings: Settings, folder: Path, end_session: Callable[[], None]) -> None:
        assert settings.database_url
        behind = settings.libpq("dagster")["host"]
        (self._socket,) = Path(behind).glob(".s.PGSQL.*[0-9]")
        self._link, self._end_session = folder / self._socket.name, end_session
        address = settings.database_url.get_secret_value()
        assert quote_plus(behind) in address
        self.settings = Settings(
            state_dir=settings.state_dir, database_url=address.replace(quote_plus(behind), quote_plus(str(folder)))
        )
        self.open()

    def open(self) -> None:
        self._link.symlink_to(self._socket)

    def shut(self) -> None:
        self._link.unlink()
        self._end_session()


@pytest.fixture
def door(settings: Settings, tmp_path: Path, end_session: Callable[[], None]) -> Door:
    return Door(settings, tmp_path, end_session)


BLIND = [
    "backfills", "backups", "daemons", "lake", "monitor", "pools", "postgres", "runs", "services", "ticks", "volumes",
]  # fmt: skip


@pytest.mark.tools
def test_while_the_database_is_away_the_last_figures_stay_with_their_age_and_the_alerts_say_so(
    door: Door, event: Callable[..., None], tmp_path: Path, promtool: str
):
    now = [0.0]
    watched = Watched(door.settings, clock=lambda: now[0]).start()
    event("PIPELINE_SUCCESS", "before")
    scrapes = Scrapes()
    for minute in range(31):
        now[0] = 60.0 * minute
        if minute == 6:
            door.shut()
        if minute == 25:
            event("PIPELINE_SUCCESS", "while away")
            door.open()
        assert watched.exporter.poll() != (6 <= minute < 25)
        scrapes.add(watched)
        assert watched.value("dagster_runs_completed_total", status="success") == (1 if minute < 25 else 2)
        seen_at = watched.value("dagster_exporter_last_success_timestamp_seconds", collector="events")
        assert seen_at == (300 if 6 <= minute < 25 else now[0])

    blind = sorted(
        collector
        for collector in BLIND
        if (watched.value("dagster_exporter_poll_errors_total", collector=collector) or 0) > 0
    )
    assert blind == BLIND
    alerts = [
        ("7m", "MillraceServiceUnavailable", []),
        ("9m", "MillraceServiceUnavailable", [{"severity": "critical", "service": "database", "collector": "events"}]),
        ("15m", "MillraceExporterBlind", []),
        ("20m", "MillraceExporterBlind", [{"severity": "warning", "collector": each} for each in blind]),
        ("28m", "MillraceServiceUnavailable", []),
        ("28m", "MillraceExporterBlind", []),
    ]
    scrapes.judge(promtool, tmp_path, alerts)


DESCRIBED: dict[str, Callable[[dict[str, str]], dict[str, str]]] = {
    "MillraceServiceUnavailable": lambda labels: {
        "summary": "A service does not answer.",
        "description": f"The {labels['service']} does not answer.",
    },
    "MillraceExporterBlind": lambda labels: {
        "summary": "A part of the figures is old.",
        "description": f"Collector {labels['collector']} has failed for 15m 0s: its figures, and alerts on them, are as they were then.",
    },
}


class Scrapes:
    """What an exporter served, minute by minute, for promtool to judge by the rules that ship."""

    def __init__(self) -> None:
        self._series: dict[str, dict[int, float]] = defaultdict(dict)
        self._minutes = 0

    def add(self, watched: Watched) -> None:
        for family in text_string_to_metric_families(b"".join(watched.exporter.pages.text).decode()):
            for sample in family.samples:
                if sample.name.startswith(("dagster_exporter_", "millrace_threshold_")):
                    labels = ", ".join(f'{name}="{value}"' for name, value in sample.labels.items())
                    self._series[f"{sample.name}{{{labels}}}"][self._minutes] = sample.value
        self._minutes += 1

    def judge(self, promtool: str, folder: Path, alerts: list[tuple[str, str, list[dict[str, str]]]]) -> None:
        """Fail unless at each time exactly these alerts fire."""
        test = {
            "interval": "1m",
            "input_series": [
                {"series": name, "values": " ".join(str(values.get(at, "_")) for at in range(self._minutes))}
                for name, values in self._series.items()
            ],
            "alert_rule_test": [
                {
                    "eval_time": at,
                    "alertname": name,
                    "exp_alerts": [
                        {"exp_labels": labels, "exp_annotations": DESCRIBED[name](labels)} for labels in expected
                    ],
                }
                for at, name, expected in alerts
            ],
        }
        files = [str(RULES / f"{name}.yaml") for name in ("services", "exporter")]
        file = folder / "judged.test.yaml"
        file.write_text(yaml.safe_dump({"rule_files": files, "evaluation_interval": "1m", "tests": [test]}))
        done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_role_that_may_not_save_counts_on_and_tells_that_it_does_not(
    settings: Settings, sql: Callable[..., None], event: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporter_module, "SAVE_SECONDS", 0.0)
    watched = Watched(settings).start()
    watched.exporter.save()
    saved_at = watched.exporter.saved.series[()]
    sql("REVOKE INSERT, UPDATE ON millrace.exporter_state FROM exporter")
    event("PIPELINE_SUCCESS")
    run(watched, polls=3)

    assert watched.value("dagster_runs_completed_total", status="success") == 1
    assert watched.value("dagster_exporter_poll_errors_total", collector="snapshot") == 2
    assert watched.value("dagster_exporter_snapshot_timestamp_seconds") == saved_at

    sql("GRANT INSERT, UPDATE ON millrace.exporter_state TO exporter")
    run(watched, polls=2)
    assert (watched.value("dagster_exporter_snapshot_timestamp_seconds") or 0) > saved_at
    assert watched.again().start().value("dagster_runs_completed_total", status="success") == 1


def test_a_role_that_may_not_read_what_was_counted_does_not_start_from_nothing(
    settings: Settings, sql: Callable[..., None]
):
    sql("REVOKE ALL ON millrace.exporter_state FROM exporter")

    with pytest.raises(ServiceError, match="permission denied for table exporter_state"):
        Watched(settings).start()


def run(watched: Watched, *, polls: int) -> list[float]:
    """Let the exporter's own loop poll so many times; gives when it had saved last before each. It saves at its end too."""
    stop, saved = threading.Event(), []

    def beat() -> None:
        saved.append(watched.exporter.saved.series[()])
        if len(saved) == polls:
            stop.set()

    watched.exporter.run(stop, interval_seconds=0.01, beat=beat)
    return saved


def test_a_clock_that_is_set_forward_gives_up_no_event_that_is_still_to_come(
    settings: Settings, event: Callable[..., None]
):
    wall, steady = [1e9], [5.0]
    watched = Watched(settings, clock=lambda: wall[0], steady=lambda: steady[0]).start()
    with connect(settings) as late:
        with late.cursor() as cursor:
            cursor.execute(
                "INSERT INTO event_logs (run_id, event, dagster_event_type) VALUES ('late', '{}', 'PIPELINE_SUCCESS')"
            )
        event("PIPELINE_SUCCESS", "early")
        watched.poll()
        wall[0] += DAY
        steady[0] += 15
        watched.poll()
        late.commit()
    late.close()
    watched.poll()

    assert watched.value("dagster_runs_completed_total", status="success") == 2
    assert watched.value("dagster_exporter_gaps_abandoned_total") == 0


@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["forward", "back"])
def test_after_a_clock_was_set_everything_is_read_and_saved_as_often_as_before(
    settings: Settings, sql: Callable[..., None], event: Callable[..., None], jump: float
):
    wall, steady = [1e9], [5.0]
    watched = Watched(settings, clock=lambda: wall[0], steady=lambda: steady[0]).start()
    event("PIPELINE_SUCCESS")
    sql(
        "INSERT INTO millrace.backups (name, target, started_at, finished_at, bytes) VALUES ('a', 't', now(), now(), 7)"
    )
    wall[0] += jump
    steady[0] += exporter_module.SAVE_SECONDS
    saved = run(watched, polls=2)

    assert watched.value("dagster_runs_completed_total", status="success") == 1
    assert watched.value("millrace_backup_last_bytes") == 7
    assert saved == [1e9, wall[0]]
    sql("UPDATE millrace.backups SET bytes = 8")
    wall[0] += 61
    watched.poll()
    assert watched.value("millrace_backup_last_bytes") == 8


def test_an_event_of_a_clock_that_was_ahead_does_not_pass_for_the_newest_until_then(
    settings: Settings, sql: Callable[..., None], event: Callable[..., None]
):
    now = time.time()
    watched = Watched(settings).start()
    for number in range(5):
        event("ENGINE_EVENT", at=now - number)
    sql(
        "INSERT INTO event_logs (run_id, event, dagster_event_type, asset_key, timestamp) "
        "VALUES ('r', '{}', 'ASSET_MATERIALIZATION', '[\"a\"]', now() AT TIME ZONE 'UTC' + INTERVAL '1 year')"
    )
    watched.poll()
    made_at = watched.value("dagster_asset_last_materialization_timestamp_seconds", asset_key="a")
    assert made_at == pytest.approx(now + exporter_module.SKEW_SECONDS, abs=60)

    sql("TRUNCATE event_logs RESTART IDENTITY")  # what is newer than all before is looked for then
    event("PIPELINE_SUCCESS", at=now + 2 * exporter_module.SKEW_SECONDS)
    watched.poll()
    watched.poll()
    assert watched.value("dagster_runs_completed_total", status="success") == 1


def test_what_a_metric_dropped_begins_at_zero_before_it_is_full(watched: Watched):
    for metric in ("dagster_runs_completed_total", "dagster_asset_last_row_count", "dagster_run_duration_seconds"):
        assert watched.value("dagster_exporter_series_dropped_total", metric=metric) == 0


def test_a_hundred_thousand_assets_are_as_many_series_as_there_may_be_and_the_rest_is_told(
    watched: Watched, sql: Callable[..., None]
):
    body = (
        '{"dagster_event": {"event_specific_data": {"materialization": {"metadata_entries": '
        '[{"label": "dagster/row_count", "entry_data": {"value": 5}}]}}}}'
    )

    def materialise(first: int, last: int) -> None:
        sql(
            "INSERT INTO event_logs (run_id, event, dagster_event_type, step_key, asset_key, timestamp) "
            "SELECT 'r', CASE kind WHEN 'STEP_START' THEN '{}' ELSE %s END, kind, 's' || n, "
            "  CASE kind WHEN 'ASSET_MATERIALIZATION' THEN '[\"asset-' || n || '\"]' END, now() AT TIME ZONE 'UTC' "
            "FROM generate_series(%s, %s) n, unnest(ARRAY['STEP_START', 'ASSET_MATERIALIZATION', 'STEP_SUCCESS']) "
            "  WITH ORDINALITY line(kind, place) ORDER BY n, place",
            body,
            first,
            last,
        )

    materialise(1, 100_000)
    watched.poll()
    watched.poll()  # what is more than one reads at once
    registry = watched.registry
    made = registry["dagster_asset_materializations_total"].series
    assert sum(made.values()) == 100_000
    assert made[(OTHER, OTHER)] == 100_000 - MAX_SERIES
    assert max(len(metric.series) for metric in registry) == MAX_SERIES + 1
    for metric in ("dagster_asset_materializations_total", "dagster_asset_last_row_count"):
        assert registry["dagster_exporter_series_dropped_total"].series[(metric,)] >= 100_000 - MAX_SERIES

    materialise(100_001, 100_100)
    at(watched, 1e12)  # with the roster, which knows none of them
    assert sum(made.values()) == 100_100

    (assets,) = (topic.dump() for topic in watched.exporter.topics if topic.name == "assets")
    assert len(assets["rows"]) == len(assets["duration"]) == MAX_SERIES  # nor is more remembered of them
    watched.exporter.save()
    ((saved,),) = watched.database.rows("SELECT octet_length(state::text) FROM millrace.exporter_state")
    assert saved < 16 << 20, f"{saved:,} bytes"


def test_who_waited_in_vain_for_a_session_is_refused_at_once_for_as_long(settings: Settings):
    accepted: list[socket.socket] = []

    def take_and_say_nothing() -> None:
        with suppress(OSError):
            while True:
                accepted.append(server.accept()[0])
                time.sleep(0.4)
                accepted[-1].close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=take_and_say_nothing, daemon=True).start()
        url = f"postgresql://millrace@127.0.0.1:{server.getsockname()[1]}/?sslmode=disable&gssencmode=disable"
        database = Database(Settings(state_dir=settings.state_dir, database_url=SecretStr(url)))
        messages = set()
        for _ in range(5):
            with pytest.raises(ServiceError) as error:
                database.rows("SELECT 1")
            messages.add(str(error.value))
        server.shutdown(socket.SHUT_RDWR)

    assert len(accepted) == len(messages) == 1
