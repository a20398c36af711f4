"""Alerts over HTTP and on the command line, of an exporter that is a process, killed and all."""

import dataclasses
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import httpx2
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.exporter.alert_rules import RULES
from pipeline.exporter.sink import MAX_BYTES, MAX_KEPT, MAX_KEPT_BYTES, Refused, Sink
from pipeline.settings import Settings
from tests.exporter.conftest import Watched
from tests.exporter.test_runs import _job, _started
from tests.exporter.test_service import Process, status_of
from tests.receivers import Webhook, wait_until, webhook

# Fires at once, and tells soon.
PROGRAM = """import dataclasses, sys
from pipeline.exporter import alert_rules, alerts
alerts.WAIT_SECONDS = alerts.INTERVAL_SECONDS = 0.3
alerts.Alerts.__init__.__kwdefaults__["rules"] = [dataclasses.replace(rule, for_seconds=0) for rule in alert_rules.RULES]
from pipeline.cli import main; sys.argv[1:] = ["serve", "metrics"]; main()"""


@dataclasses.dataclass
class Alerting:
    process: Process
    receiver: Webhook
    output: Path
    settings: Settings

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text().splitlines()]

    def listed(self) -> Any:
        return self.process.get("/alerts").json()

    def post(self, body: Any, **options: Any) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx2.post(f"{self.process.address}/alerts", content=content, timeout=5, **options)

    def millrace(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """What the command prints."""
        assert self.settings.database_url
        environment = {
            "MILLRACE_DATABASE_URL": self.settings.database_url.get_secret_value(),
            "MILLRACE_METRICS_PORT": self.process.address.rpartition(":")[2],
            "MILLRACE_ALERTS_EVALUATE": "true",
            **environment,
        }
        done = CliRunner().invoke(main, arguments, env=environment)
        assert done.exit_code == code, done.output
        return str(done.output)


@pytest.fixture
def alerting(settings: Settings, watched: Watched, tmp_path: Path) -> Iterator[Alerting]:
    """It takes every run at work for a slow one."""
    watched.exporter.save()
    watched.database.close()
    output = tmp_path / "stdout"
    with webhook() as receiver:
        process = Process(
            settings, program=PROGRAM, output=output, MILLRACE_ALERTS_EVALUATE="true",
            MILLRACE_NOTIFY_WEBHOOK_URL=receiver.url, MILLRACE_ALERT_SLOW_RUN_SECONDS="0.001",
        )  # fmt: skip
        process.until(lambda: status_of(process, "/metrics") == 200)
        yield Alerting(process, receiver, output, settings)
        process.end(signal.SIGKILL)


def statuses(receiver: Webhook) -> list[str]:
    return [body["status"] for body in receiver.bodies]


def test_a_slow_run_is_told_once_and_once_that_it_ended_though_the_exporter_is_killed_in_between(
    alerting: Alerting, instance: dg.DagsterInstance
):
    run = instance.create_run_for_job(_job())
    instance.handle_new_event(_started(run))
    wait_until(lambda: alerting.receiver.posts)
    (listed,) = alerting.listed()
    assert (listed["alert"], listed["state"], listed["from"]) == ("MillraceRunSlow", "firing", "exporter")
    assert listed["labels"] == {"code_location": "unknown", "job_name": "nothing", "status": "started"}
    assert listed["runbook"] == "deploy/runbooks/MillraceRunSlow.md"
    assert listed["value"] > 0
    time.sleep(1)  # a few polls: it has saved what it told
    for how in (signal.SIGKILL, signal.SIGTERM):
        alerting.process.end(how)
        alerting.process.start()
        alerting.process.until(lambda: status_of(alerting.process, "/metrics") == 200)
        time.sleep(1)
    assert statuses(alerting.receiver) == ["firing"]

    instance.report_run_canceled(run)
    wait_until(lambda: len(alerting.receiver.posts) == 2)
    time.sleep(1)
    assert statuses(alerting.receiver) == ["firing", "resolved"]
    assert alerting.listed() == []
    assert [(line["alert"], line["status"]) for line in alerting.lines()] == [
        ("MillraceRunSlow", "firing"),
        ("MillraceRunSlow", "resolved"),
    ]


def test_alerts_can_be_listed_and_silenced_by_command(alerting: Alerting, instance: dg.DagsterInstance):
    made = alerting.millrace(
        "alerts", "silence", "MillraceRunSlow", "--for", "1h30m", "--label", "job_name=nothing", "--comment", "known"
    )
    number = made.split()[1]
    assert made == f"Silence {number} for 1h30m; `millrace alerts unsilence {number}` ends it.\n"
    assert "known" in alerting.millrace("alerts", "silences")

    instance.handle_new_event(_started(instance.create_run_for_job(_job())))
    wait_until(lambda: [each["state"] for each in alerting.listed()] == ["silenced"])
    time.sleep(1)
    assert not alerting.receiver.posts
    table = alerting.millrace("alerts", "list")
    assert "MillraceRunSlow" in table
    assert f"silence {number}" in table
    (listed,) = json.loads(alerting.millrace("alerts", "list", "--json"))
    assert listed["labels"]["job_name"] == "nothing"

    assert alerting.millrace("alerts", "unsilence", number) == f"Silence {number} has ended.\n"
    wait_until(lambda: alerting.receiver.posts)
    assert "There is no silence" in alerting.millrace("alerts", "unsilence", number, code=1)


# As Alertmanager 0.25 sent it to a receiver, nanoseconds and all.
POSTED: dict[str, Any] = {
    "receiver": "console",
    "status": "firing",
    "alerts": [
        {
            "status": "firing",
            "labels": {"alertname": "MillraceRunSlow", "job_name": "load", "severity": "warning"},
            "annotations": {"description": "A run of load.", "summary": "A run takes longer than its job may."},
            "startsAt": "2026-11-22T08:00:00.123456789Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://prometheus:9090/graph?g0.expr=up&g0.tab=1",
            "fingerprint": "d5a1a8a2c1f2b3e4",
        }
    ],
    "groupLabels": {"alertname": "MillraceRunSlow"},
    "commonLabels": {"alertname": "MillraceRunSlow", "job_name": "load", "severity": "warning"},
    "commonAnnotations": {"summary": "A run takes longer than its job may."},
    "externalURL": "http://alertmanager:9093",
    "version": "4",
    "groupKey": '{}:{alertname="MillraceRunSlow"}',
    "truncatedAlerts": 0,
}


def test_what_alertmanager_posts_is_printed_and_listed_with_its_newest_state(alerting: Alerting):
    assert alerting.post(POSTED).status_code == 200
    over = {
        **POSTED,
        "status": "resolved",
        "alerts": [{**POSTED["alerts"][0], "status": "resolved", "endsAt": "2026-11-22T09:00:00Z"}],
    }
    (listed,) = alerting.listed()
    assert (listed["state"], listed["from"], listed["since"]) == ("firing", "alertmanager", "2026-11-22T08:00:00Z")
    assert alerting.post(over).status_code == 200

    (listed,) = alerting.listed()
    assert listed["state"] == "resolved"
    assert [(line["alert"], line["status"], line.get("until")) for line in alerting.lines()] == [
        ("MillraceRunSlow", "firing", None),
        ("MillraceRunSlow", "resolved", "2026-11-22T09:00:00Z"),
    ]
    assert not alerting.receiver.posts  # it was told already


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "body: Invalid JSON"),
        (b"\xff\xfe", "body: Invalid JSON"),
        ([], "body: Input should be an object"),
        ({**POSTED, "version": "3"}, "version: Input should be '4'"),
        ({**POSTED, "alerts": None}, "alerts: Input should be a valid array"),
        ({**POSTED, "alerts": [{"status": "odd"}]}, "alerts.0.status: Input should be 'firing' or 'resolved'"),
        ({**POSTED, "alerts": [{**POSTED["alerts"][0], "labels": {"a": 1}}]}, "alerts.0.labels.a: Input should be a valid string"),
    ],
)  # fmt: skip
def test_a_body_that_is_none_of_alertmanagers_is_refused_with_the_reason(body: Any, reason: str):
    with pytest.raises(Refused, match="not the body of Alertmanager's webhook, version 4") as refused:
        Sink().take(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert reason in str(refused.value)


def test_requests_that_are_too_large_or_nameless_are_refused_over_http(alerting: Alerting):
    bad = alerting.post(b"{")
    assert (bad.status_code, "Invalid JSON" in bad.text) == (400, True)
    assert alerting.post(b" " * (MAX_BYTES + 1)).status_code == 413
    assert httpx2.post(f"{alerting.process.address}/metrics", content=b"{}").status_code == 404
    host, port = alerting.process.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"POST /alerts HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 411 ")
    assert alerting.post(POSTED).status_code == 200
    assert len(alerting.lines()) == 1


def test_what_is_kept_of_posted_alerts_is_bounded(capsys: pytest.CaptureFixture[str]):
    sink = Sink()
    for number in range(3 * MAX_KEPT):
        labels = {"alertname": "A", "number": str(number)}
        sink.take(json.dumps({**POSTED, "alerts": [{**POSTED["alerts"][0], "labels": labels}]}).encode())
    assert [each["labels"]["number"] for each in sink.listing()] == [str(n) for n in range(2 * MAX_KEPT, 3 * MAX_KEPT)]

    for number in range(20):
        labels = {"alertname": "A", "number": str(number), "large": "x" * (MAX_BYTES - 2000)}
        sink.take(json.dumps({**POSTED, "alerts": [{**POSTED["alerts"][0], "labels": labels}]}).encode())
    assert len(json.dumps(sink.listing())) < MAX_KEPT_BYTES + MAX_BYTES
    assert sink.listing()[-1]["labels"]["number"] == "19"
    capsys.readouterr()


# Commands


def test_a_channel_can_be_tried(alerting: Alerting):
    said = alerting.millrace("alerts", "test", "webhook", MILLRACE_NOTIFY_WEBHOOK_URL=alerting.receiver.url)
    assert said == "Sent by webhook.\n"
    assert alerting.receiver.bodies[0]["commonAnnotations"]["summary"] == "Test of Millrace"
    said = alerting.millrace("alerts", "test", "console")
    assert json.loads(said.splitlines()[0])["alert"] == "MillraceMessage"

    assert "answered 500" in _failed(alerting, "webhook", [(500, "")] * 5)
    assert "no channel 'fax'" in _failed(alerting, "fax", [])
    assert "Set MILLRACE_NOTIFY_SLACK_URL" in _failed(alerting, "slack", [])
    assert "set both MILLRACE_SMTP_HOST" in _failed(alerting, "email", [])


def _failed(alerting: Alerting, channel: str, answers: list[tuple[int, str]]) -> str:
    alerting.receiver.answers = answers
    return alerting.millrace(
        "alerts", "test", channel, code=1, MILLRACE_NOTIFY_WEBHOOK_URL=alerting.receiver.url
    )  # fmt: skip


def test_what_cannot_be_asked_for_says_why(alerting: Alerting):
    assert "It looks like 90m, 2h or 1d12h" in alerting.millrace("alerts", "silence", "X", "--for", "2 weeks", code=1)
    assert "There is no alert 'X'" in alerting.millrace("alerts", "silence", "X", code=1)
    elsewhere = alerting.millrace("alerts", "silence", "RunSlow", code=1, MILLRACE_ALERTS_EVALUATE="false")
    assert "Set MILLRACE_ALERTMANAGER_URL" in elsewhere
    assert "each is NAME=VALUE" in alerting.millrace("alerts", "silence", "X", "--label", "job", code=2)
    nobody = alerting.millrace("alerts", "list", code=1, MILLRACE_METRICS_PORT="9")
    assert "Asking the exporter at http://127.0.0.1:9/alerts" in nobody
    assert "`millrace up` starts it" in nobody
    wrong = alerting.millrace("alerts", "list", code=1, MILLRACE_METRICS_PORT=alerting.receiver.url.rpartition(":")[2])
    assert "Is that the exporter's port?" in wrong


def test_every_required_alert_has_a_runbook_where_it_says():
    root = Path(__file__).parents[2]
    for rule in RULES:
        assert (root / "deploy" / "runbooks" / f"{rule.name}.md").is_file()
