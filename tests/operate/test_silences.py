"""Silences where there is an Alertmanager: a server that answers as Alertmanager 0.25 was seen to."""

import json
import threading
import traceback
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest

from pipeline.errors import ConfigError, ServiceError
from pipeline.operate.alerts import duration
from pipeline.operate.silences import InAlertmanager, InDatabase, Silences, silences
from pipeline.settings import Settings


class Alertmanager(ThreadingHTTPServer):
    """Its API v2, as far as it is about silences."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.kept: dict[str, Any] = {}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(200, list(cast(Alertmanager, self.server).kept.values()))

    def do_POST(self) -> None:
        posted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not posted["comment"] or not all(matcher["name"].isidentifier() for matcher in posted["matchers"]):
            self._answer(400, "silence invalid: invalid label matcher 0")
            return
        made = str(uuid.uuid4())
        state = {"status": {"state": "active"}, "updatedAt": posted["startsAt"], "id": made}
        cast(Alertmanager, self.server).kept[made] = posted | state
        self._answer(200, {"silenceID": made})

    def do_DELETE(self) -> None:
        found = cast(Alertmanager, self.server).kept.get(self.path.rpartition("/")[2])
        if found:
            found["status"]["state"] = "expired"
        self._answer(200 if found else 500, None if found else "silence not found")

    def _answer(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"" if body is None else json.dumps(body).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def alertmanager() -> Iterator[Alertmanager]:
    with Alertmanager() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def test_where_there_is_an_alertmanager_silences_are_its_own(alertmanager: Alertmanager):
    kept = silences(Settings(alertmanager_url=f"{alertmanager.url}/"))
    assert isinstance(silences(Settings()), InDatabase)
    assert isinstance(silences(Settings(database_url="postgresql://db/", alerts_evaluate=True)), InDatabase)

    made = kept.add("MillraceRunSlow", {"job_name": "load"}, duration=timedelta(hours=2), comment="")
    (silence,) = kept.list()
    assert (silence.id, silence.alert, silence.labels) == (made, "MillraceRunSlow", {"job_name": "load"})
    assert abs(silence.ends_at - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=1)
    assert alertmanager.kept[made]["matchers"] == [
        {"name": "alertname", "value": "MillraceRunSlow", "isRegex": False, "isEqual": True},
        {"name": "job_name", "value": "load", "isRegex": False, "isEqual": True},
    ]

    kept.remove(made)
    assert not kept.list()
    for gone in (made, "../../x"):
        with pytest.raises(ConfigError, match="There is no silence"):
            kept.remove(gone)


def test_where_nothing_would_heed_a_silence_there_is_none():
    with pytest.raises(ConfigError, match=r"Set MILLRACE_ALERTMANAGER_URL.*kubectl exec deployment/<release>-exporter"):
        silences(Settings(database_url="postgresql://db/"))


def matchers(alertmanager: Alertmanager, made: str) -> set[tuple[str, str, bool]]:
    """Name, value and whether it is a pattern."""
    return {(each["name"], each["value"], each["isRegex"]) for each in alertmanager.kept[made]["matchers"]}


def test_releases_that_share_an_alertmanager_silence_and_see_their_own(alertmanager: Alertmanager):
    def of(namespace: str) -> Silences:
        return silences(Settings(alertmanager_url=alertmanager.url, alert_labels=f"namespace={namespace}, release=m"))

    staging, production = of("staging"), of("production")
    made = staging.add("MillraceRunSlow", {"job_name": "load"}, duration=timedelta(hours=2), comment="")
    assert matchers(alertmanager, made) == {
        ("alertname", "MillraceRunSlow", False), ("job_name", "load", False), ("namespace", "staging", False),
        ("release", "m", False),
    }  # fmt: skip
    assert [silence.id for silence in staging.list()] == [made]
    assert not production.list()
    with pytest.raises(ConfigError, match="There is no silence"):
        production.remove(made)
    with pytest.raises(
        ConfigError, match=r"has namespace=production\. Its own labels, by MILLRACE_ALERT_LABELS, are namesp"
    ):
        staging.add("MillraceRunSlow", {"namespace": "production"}, duration=timedelta(hours=2), comment="")

    everywhere = InAlertmanager(alertmanager.url).add("MillraceRunSlow", {}, duration=timedelta(hours=1), comment="")
    assert [silence.id for silence in production.list()] == [everywhere]  # it mutes them too


def test_the_first_word_of_a_name_may_be_left_out(alertmanager: Alertmanager, settings: Settings):
    kept = InDatabase(settings)
    for name in ("RunSlow", "MillraceRunSlow"):
        kept.add(name, {}, duration=timedelta(hours=1), comment="")
    assert [silence.alert for silence in kept.list()] == ["MillraceRunSlow"] * 2

    made = InAlertmanager(alertmanager.url).add("RunSlow", {}, duration=timedelta(hours=1), comment="")
    assert matchers(alertmanager, made) == {("alertname", "(Millrace)?RunSlow", True)}


@pytest.mark.parametrize("name", ["RunSlo", "MillraceRunOutOfMemory", "runslow", ""])
def test_a_silence_of_an_alert_that_cannot_fire_is_refused(settings: Settings, name: str):
    with pytest.raises(ConfigError, match=f"There is no alert '{name}' .*There are: MillraceServiceUnavailable, "):
        InDatabase(settings).add(name, {}, duration=timedelta(hours=1), comment="")


def test_a_password_in_the_address_is_not_shown(alertmanager: Alertmanager):
    address = alertmanager.url.replace("//", "//me:T0p-S3cret@")
    for url in (address.rpartition(":")[0] + ":9", f"{address}/elsewhere", address.replace("http", "ftp")):
        with pytest.raises((ConfigError, ServiceError), match="lertmanager") as failed:
            InAlertmanager(url).add("A", {"no name": "x"}, duration=timedelta(hours=1), comment="")
        assert "T0p-S3cret" not in "".join(traceback.format_exception(failed.value))


def test_a_silence_that_somebody_made_there_is_shown_with_what_it_matches(alertmanager: Alertmanager):
    alertmanager.kept["x"] = {
        "id": "x", "status": {"state": "active"}, "comment": "c", "createdBy": "b", "endsAt": "2026-11-23T09:00:00.000Z",
        "matchers": [{"name": "alertname", "value": "A.*", "isRegex": True, "isEqual": False}],
    }  # fmt: skip

    (silence,) = InAlertmanager(alertmanager.url).list()
    assert silence.alert == "!~A.*"


def test_an_alertmanager_that_refuses_or_is_away_is_named_with_what_it_said(alertmanager: Alertmanager):
    with pytest.raises(ConfigError, match=r"answered 400 .*invalid label matcher"):
        InAlertmanager(alertmanager.url).add("A", {"no name": "x"}, duration=timedelta(hours=1), comment="")
    with pytest.raises(ServiceError, match="MILLRACE_ALERTMANAGER_URL"):
        InAlertmanager("http://127.0.0.1:9").list()
    with pytest.raises(ConfigError, match="Correct MILLRACE_ALERTMANAGER_URL"):
        InAlertmanager("alertmanager:9093").list()


@pytest.mark.parametrize(
    ("text", "hours"), [("90m", 1.5), ("2h", 2), ("1d12h", 36), ("3600s", 1)], ids=lambda value: str(value)
)
def test_times_are_written_short(text: str, hours: float):
    assert duration(text) == timedelta(hours=hours)


@pytest.mark.parametrize(
    "text", ["", "2", "h", "0h", "2 h", "-1h", "400d", "9" * 30 + "d", "9999999999d", "0d0h", "1h and more"]
)
def test_other_times_are_refused(text: str):
    with pytest.raises(ConfigError, match="It looks like 90m, 2h or 1d12h"):
        duration(text)
