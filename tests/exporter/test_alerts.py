"""Who is told of what, when, and how often: over real runs, a real database, real webhooks, and a clock that jumps."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr

from pipeline.errors import ConfigError, ServiceError
from pipeline.exporter import exporter as exporter_module
from pipeline.exporter import outbox as outbox_module
from pipeline.exporter.alert_rules import RULES, UNAVAILABLE, Found, Rule
from pipeline.exporter.alerts import INTERVAL_SECONDS, MAX_OF_A_RULE, WAIT_SECONDS, Alerts
from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.outbox import MAX_WAITING, Outbox
from pipeline.exporter.silences import read_active
from pipeline.exporter.topics import build_topics
from pipeline.notify import Message
from pipeline.operate.silences import InDatabase
from pipeline.settings import Settings
from tests.exporter.conftest import Watched
from tests.exporter.test_runs import _job, _started
from tests.receivers import Webhook, mail_server, wait_until, webhook


@dg.asset
def bad() -> None:
    raise ValueError("on purpose")


class Clock:
    """The real time, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead

    def pass_by(self, seconds: float) -> None:
        self.ahead += seconds


@pytest.fixture
def receiver() -> Iterator[Webhook]:
    with webhook() as server:
        yield server


def told(receiver: Webhook) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of each message its status, and status and job of its alerts."""
    return [
        (body["status"], [(each["status"], each["labels"].get("job_name", "")) for each in body["alerts"]])
        for body in receiver.bodies
    ]


def to(settings: Settings, receiver: Webhook) -> Settings:
    return settings.model_copy(update={"notify_webhook_url": SecretStr(receiver.url)})


# End to end


def test_runs_that_fail_are_told_once_and_once_that_it_is_over_whatever_restarts_in_between(
    settings: Settings, receiver: Webhook, instance: dg.DagsterInstance
):
    settings, clock = to(settings, receiver), Clock()

    def started() -> Watched:
        return Watched(settings, clock=clock, outbox=Outbox(settings)).start()

    def restarted(before: Watched) -> Watched:
        before.alerts.close()
        before.exporter.save()
        before.database.close()
        return started()

    watched = started()
    for _ in range(5):
        dg.materialize([bad], instance=instance, raise_on_error=False)
    watched.poll()
    assert [(item["alert"], item["state"]) for item in watched.alerts.listing] == [
        ("MillraceFailureRateHigh", "pending")
    ]
    clock.pass_by(200)
    watched.poll()
    assert watched.alerts.listing[0]["state"] == "pending"
    watched = restarted(watched)
    clock.pass_by(101)
    watched.poll()
    assert watched.alerts.listing[0]["state"] == "firing"
    watched = restarted(watched)
    clock.pass_by(WAIT_SECONDS + 1)
    watched.poll()
    wait_until(lambda: receiver.posts)
    for _ in range(3):
        watched = restarted(watched)
        clock.pass_by(INTERVAL_SECONDS + 1)
        watched.poll()
    assert told(receiver) == [("firing", [("firing", "__ephemeral_asset_job__")])]
    (alert,) = receiver.bodies[0]["alerts"]
    assert alert["labels"] == {
        "alertname": "MillraceFailureRateHigh", "severity": "warning", "code_location": "unknown",
        "job_name": "__ephemeral_asset_job__",
    }  # fmt: skip
    assert alert["annotations"]["description"] == "100% of the runs of __ephemeral_asset_job__ (unknown) failed."

    clock.pass_by(25 * 3600)
    watched = restarted(watched)
    watched.poll()
    watched = restarted(watched)
    clock.pass_by(INTERVAL_SECONDS + 1)
    watched.poll()
    wait_until(lambda: len(receiver.posts) == 2)
    watched = restarted(watched)
    clock.pass_by(INTERVAL_SECONDS + 1)
    watched.poll()
    time.sleep(0.2)
    assert told(receiver)[1:] == [("resolved", [("resolved", "__ephemeral_asset_job__")])]
    assert receiver.bodies[1]["alerts"][0]["startsAt"] == alert["startsAt"]
    assert receiver.bodies[1]["groupKey"] == receiver.bodies[0]["groupKey"]
    assert not watched.alerts.listing
    watched.alerts.close()


def test_what_a_webhook_that_is_down_did_not_get_it_gets_after_a_restart(
    settings: Settings, receiver: Webhook, instance: dg.DagsterInstance
):
    settings, clock = to(settings, receiver), Clock()
    receiver.answers = [(503, "")] * 1_000
    watched = Watched(settings, clock=clock, outbox=Outbox(settings)).start()
    instance.handle_new_event(_started(instance.create_run_for_job(_job())))
    for seconds in (400, 61, WAIT_SECONDS + 1):
        clock.pass_by(seconds)
        watched.poll()
    wait_until(lambda: receiver.posts)
    watched.alerts.close()
    watched.exporter.save()
    watched.database.close()

    receiver.posts, receiver.answers = [], []
    watched = Watched(settings, clock=clock, outbox=Outbox(settings)).start()
    wait_until(lambda: receiver.posts)
    time.sleep(0.2)
    assert told(receiver) == [("firing", [("firing", "nothing")])]
    assert receiver.bodies[0]["commonLabels"]["alertname"] == "MillraceRunSlow"
    watched.alerts.close()


def test_a_database_that_does_not_answer_is_told_though_nothing_can_be_read(
    settings: Settings, receiver: Webhook, end_session: Callable[[], None]
):
    settings, clock = to(settings, receiver), Clock()
    watched = Watched(settings, clock=clock, outbox=Outbox(settings)).start()
    watched.exporter._database = unreachable(settings)

    for seconds in (121, 61, WAIT_SECONDS + 1):
        clock.pass_by(seconds)
        assert not watched.exporter.poll()
    wait_until(lambda: receiver.posts)
    assert receiver.bodies[0]["commonLabels"]["alertname"] == "MillraceServiceUnavailable"
    assert receiver.bodies[0]["alerts"][0]["labels"]["service"] == "database"

    watched.exporter._database = watched.database
    clock.pass_by(INTERVAL_SECONDS + 1)
    watched.poll()
    wait_until(lambda: len(receiver.posts) == 2)
    assert receiver.bodies[1]["status"] == "resolved"
    watched.alerts.close()


def saved_messages(watched: Watched) -> list[list[str]]:
    """Of each channel the messages that an exporter which starts now would send."""
    ((state,),) = Database(watched.settings).rows("SELECT state FROM millrace.exporter_state")
    (alerts,) = [dumped for _, name, dumped in exporter_module._unpacked(state) if name == "alerts"]
    return list(alerts["outbox"].values())


def test_that_a_message_was_delivered_is_saved_long_before_the_next_poll(
    settings: Settings, receiver: Webhook, instance: dg.DagsterInstance
):
    settings, clock, stop = to(settings, receiver), Clock(), threading.Event()
    receiver.answers = [(503, "")]
    watched = Watched(settings, clock=clock, outbox=Outbox(settings)).start()
    instance.handle_new_event(_started(instance.create_run_for_job(_job())))
    for seconds in (400, 61, WAIT_SECONDS + 1):
        clock.pass_by(seconds)
        watched.poll()
    watched.exporter.save()
    assert any(saved_messages(watched))
    running = threading.Thread(target=watched.exporter.run, args=[stop], kwargs={"interval_seconds": 3600})
    running.start()
    try:
        wait_until(lambda: len(receiver.posts) == 2)
        wait_until(lambda: not any(saved_messages(watched)), 3)
    finally:
        stop.set()
        running.join()


def test_what_could_not_be_saved_is_saved_later(settings: Settings, receiver: Webhook, monkeypatch: pytest.MonkeyPatch):
    settings = to(settings, receiver)
    watched = Watched(settings, outbox=Outbox(settings)).start()
    watched.alerts._outbox.put(message("first"))
    wait_until(lambda: watched.alerts._outbox.delivered == 2)
    with monkeypatch.context() as patched:
        patched.setattr(watched.exporter, "_database", unreachable(settings))
        with pytest.raises(ServiceError):
            watched.exporter.save()
    assert watched.alerts.is_urgent
    watched.exporter.save()
    assert not watched.alerts.is_urgent
    watched.alerts.close()


def unreachable(settings: Settings) -> Database:
    return Database(settings.model_copy(update={"database_url": SecretStr("postgresql://millrace@127.0.0.1:9/")}))


# When people are told: one rule that finds what a test says


class Kept(Outbox):
    """An outbox that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.delivered = 0

    def put(self, message: Message) -> None:
        self.messages.append(message)
        self.delivered += 1

    def dump(self) -> dict[str, Any]:
        return {}

    def load(self, dumped: dict[str, Any]) -> None: ...

    def close(self, *, patience_seconds: float = 0) -> None: ...


class Bench:
    """Alerts over rules that find what the test says, at times that the test says."""

    def __init__(self, settings: Settings, *others: str) -> None:
        self.found: dict[str, Sequence[str]] = {}
        rules = [self._rule(name) for name in ("MillraceRunSlow", *others)]
        self.settings, self.kept, self.now = settings, Kept(), 0.0
        self.database = Database(settings)
        registry = Registry()
        build_topics(registry, settings, lambda _: {})
        self._make: Callable[[], Alerts] = lambda: Alerts(registry, self.kept, rules=rules)
        self.alerts = self._make()

    def _rule(self, name: str) -> Rule:
        def find(_: object) -> Found:
            label = "service" if name == UNAVAILABLE else "job_name"
            return {((label, job),): 1.0 for job in self.found.get(name, ())}

        return Rule(name, "warning", 60, "Too much.", "Job {{ $labels.job_name }}.", find)

    def at(self, now: float, *jobs: str, **others: Sequence[str]) -> None:
        """Poll at *now*, when these jobs are too much for the rule, and those of *others* for other rules."""
        self.now, self.found = now, {"MillraceRunSlow": jobs, **others}
        self.alerts.poll(self.database, now)

    def restart(self) -> None:
        dumped = json.loads(json.dumps(self.alerts.dump()))
        self.alerts = self._make()
        self.alerts.load(dumped)

    def told(self) -> list[tuple[str, str]]:
        """Status and jobs of the messages since the last call."""
        found = [
            (message.status, " ".join(f"{subject(each.labels)}{'' if each.status == 'firing' else '-'}"
             for each in message.alerts))
            for message in self.kept.messages
        ]  # fmt: skip
        self.kept.messages.clear()
        return found

    def states(self) -> dict[str, str]:
        return {subject(item["labels"]): item["state"] for item in self.alerts.listing}


def subject(labels: Mapping[str, str]) -> str:
    return labels.get("job_name") or labels["service"]


@pytest.fixture
def bench(settings: Settings) -> Bench:
    return Bench(settings)


def test_what_comes_within_half_a_minute_is_one_message(bench: Bench):
    bench.at(0, "a")
    bench.at(15, "a", "b")
    bench.at(59, "a", "b")
    assert bench.states() == {"a": "pending", "b": "pending"}
    bench.at(60, "a", "b")
    assert bench.states() == {"a": "firing", "b": "pending"}
    bench.at(75, "a", "b")
    assert bench.told() == []
    bench.at(90, "a", "b")
    assert bench.told() == [("firing", "a b")]
    bench.at(5000, "a", "b")
    assert bench.told() == []


def test_what_passes_before_its_time_is_never_told(bench: Bench):
    bench.at(0, "a")
    bench.at(45, "a")
    bench.at(59)
    bench.at(60, "a")
    bench.at(119, "a")
    assert bench.states() == {"a": "pending"}
    bench.at(120, "a")
    bench.at(135)
    bench.at(500)
    assert bench.told() == []
    assert bench.states() == {}


def test_what_ends_is_told_with_what_goes_on_and_a_flap_is_not(bench: Bench):
    for now in (0, 60, 90):
        bench.at(now, "a", "b")
    assert bench.told() == [("firing", "a b")]
    bench.at(120, "b")
    assert bench.states() == {"a": "resolved", "b": "firing"}
    bench.at(135, "a", "b")
    bench.at(390, "a", "b")
    assert bench.told() == []
    bench.at(400, "b")
    assert bench.told() == []  # looked at half a minute ago
    bench.at(420, "b")
    assert bench.told() == [("firing", "b a-")]
    bench.at(435)
    bench.at(720)
    assert bench.told() == [("resolved", "b-")]
    bench.at(10_000)
    assert bench.told() == []


def test_a_further_alert_of_the_name_is_told_after_the_interval_with_those_that_fire(bench: Bench):
    for now in (0, 60, 90):
        bench.at(now, "a")
    bench.told()
    bench.at(100, "a", "c")
    bench.at(160, "a", "c")
    bench.at(389, "a", "c")
    assert bench.told() == []
    bench.at(390, "a", "c")
    assert bench.told() == [("firing", "a c")]


def test_what_goes_on_is_told_again_every_four_hours(bench: Bench):
    for now in (0, 60, 90):
        bench.at(now, "a")
    assert len(bench.told()) == 1
    for now in range(100, 90 + 4 * 3600, 15):
        bench.at(now, "a")
    assert bench.told() == []
    bench.restart()
    for now in range(90 + 4 * 3600, 90 + 8 * 3600, 15):
        bench.at(now, "a")
    assert bench.told() == [("firing", "a")]


def test_a_restart_at_any_moment_tells_the_same(settings: Settings):
    script = [
        (0, "a"),
        (15, "a b"),
        (60, "a b"),
        (75, "a b"),
        (90, "a b"),
        (120, "b"),
        (390, "b"),
        (450, ""),
        (700, ""),
    ]
    plain, interrupted = Bench(settings), Bench(settings)
    for now, jobs in script:
        plain.at(now, *jobs.split())
        interrupted.restart()
        interrupted.at(now, *jobs.split())
        interrupted.restart()

    assert plain.told() == interrupted.told() == [("firing", "a b"), ("firing", "b a-"), ("resolved", "b-")]


def test_after_a_long_pause_what_was_pending_begins_anew_and_what_fired_goes_on(bench: Bench):
    for now in (0, 60, 90):
        bench.at(now, "a")
    bench.at(100, "a", "b")
    bench.told()
    bench.restart()
    bench.at(2 * 3600, "a", "b")
    assert bench.states() == {"a": "firing", "b": "pending"}
    bench.at(2 * 3600 + 60, "a", "b")
    assert bench.states() == {"a": "firing", "b": "firing"}


def test_a_clock_that_is_set_back_delays_and_breaks_nothing(bench: Bench):
    bench.at(100_000, "a")
    bench.at(50_000, "a")
    bench.at(50_060, "a")
    bench.at(50_090, "a")
    bench.at(50_120, "a")
    assert bench.told() == [("firing", "a")]
    bench.at(10_000)
    bench.at(10_000 + INTERVAL_SECONDS)
    assert bench.told() == [("resolved", "a-")]


def test_while_the_database_is_away_nobody_is_told_of_the_rest_and_of_the_webserver(settings: Settings):
    bench = Bench(settings, UNAVAILABLE)
    for now in (0, 60):
        bench.at(now, "a", MillraceServiceUnavailable=["webserver", "database"])
    assert bench.states() == {"database": "firing", "webserver": "silenced", "a": "silenced"}
    assert [item["muted_by"] for item in bench.alerts.listing] == [UNAVAILABLE, UNAVAILABLE, ""]
    bench.at(90, "a", MillraceServiceUnavailable=["webserver", "database"])
    bench.at(1000, "a", MillraceServiceUnavailable=["database"])
    assert bench.told() == [("firing", "database")]
    bench.at(1015, "a")
    bench.at(1030, "a")
    assert sorted(bench.told()) == [("firing", "a"), ("resolved", "database-")]


def test_a_webserver_that_is_away_mutes_nothing(settings: Settings):
    bench = Bench(settings, UNAVAILABLE)
    for now in (0, 60, 90):
        bench.at(now, "a", MillraceServiceUnavailable=["webserver"])
    assert bench.told() == [("firing", "a"), ("firing", "webserver")]


def test_a_silence_ends_in_time_though_the_database_is_away(bench: Bench):
    began = time.time()
    InDatabase(bench.settings).add("RunSlow", {}, duration=timedelta(hours=1), comment="")
    for seconds in (0, 60, 90):
        bench.at(began + seconds, "a")
    bench.database = unreachable(bench.settings)
    for seconds, state, told in ((3590, "silenced", []), (3700, "firing", [("firing", "a")])):
        with pytest.raises(ServiceError):
            bench.at(began + seconds, "a")
        assert bench.states() == {"a": state}
        assert bench.told() == told


def test_a_silence_holds_for_what_it_names_until_it_ends_and_an_end_is_told_all_the_same(bench: Bench):
    silences = InDatabase(bench.settings)
    for now in (0, 60, 90):
        bench.at(now, "a")
    assert bench.told() == [("firing", "a")]
    made = silences.add("MillraceRunSlow", {"job_name": "b"}, duration=timedelta(hours=2), comment="known")
    silences.add("MillraceRunSlow", {"job_name": "a", "severity": "critical"}, duration=timedelta(hours=2), comment="")
    silences.add("MillraceRunMemoryHigh", {}, duration=timedelta(hours=2), comment="")
    bench.at(400, "a", "b")
    bench.at(460, "a", "b")
    bench.at(800, "a", "b")
    assert bench.states() == {"a": "firing", "b": "silenced"}
    assert bench.alerts.listing[1]["muted_by"] == f"silence {made}"
    assert bench.told() == []

    silences.add("MillraceRunSlow", {}, duration=timedelta(hours=2), comment="all of them")
    bench.at(815, "b")
    bench.at(860, "b")
    assert bench.told() == [("resolved", "a-")]
    for silence in silences.list():
        silences.remove(silence.id)
    bench.at(2000, "b")
    assert bench.told() == [("firing", "b")]


def test_a_silence_that_is_over_or_was_never_there_cannot_be_ended(settings: Settings):
    silences = InDatabase(settings)
    made = silences.add("MillraceRunSlow", {}, duration=timedelta(hours=1), comment="known")
    (silence,) = silences.list()
    assert (silence.id, silence.alert, silence.comment) == (made, "MillraceRunSlow", "known")
    assert read_active(Database(settings)) == [silence]

    silences.remove(made)
    assert silences.list() == read_active(Database(settings)) == []
    for each in (made, "99", "x'; --"):
        with pytest.raises(ConfigError, match="`millrace alerts silences` lists them"):
            silences.remove(each)


def test_alerts_of_a_rule_are_capped_and_those_that_are_known_go_on(bench: Bench, caplog: pytest.LogCaptureFixture):
    jobs = [str(number) for number in range(MAX_OF_A_RULE + 500)]
    bench.at(0, *jobs)
    for now in (60, 90):
        bench.at(now, *reversed(jobs))  # the new ones first

    assert set(bench.states().values()) == {"firing"}
    assert len(bench.alerts.listing) == MAX_OF_A_RULE
    assert {len(message.alerts) for message in bench.kept.messages} == {100}
    assert len(bench.kept.messages) == MAX_OF_A_RULE / 100
    assert caplog.text.count(f"MillraceRunSlow: more than {MAX_OF_A_RULE} alerts") == 1


def test_of_more_than_a_message_takes_each_is_told_and_that_it_is_over(bench: Bench):
    jobs = [str(number) for number in range(150)]
    for now in (0, 60, 90):
        bench.at(now, *jobs)
    assert sum(len(alerts.split()) for _, alerts in bench.told()) == 150
    bench.at(400, *jobs[:100])
    subjects = [message.subject for message in bench.kept.messages]
    assert subjects == ["[RESOLVED:50] Too much.", "[FIRING:100] Too much."]
    assert " ".join(alerts for _, alerts in bench.told()).count("-") == 50


def test_a_save_is_asked_for_when_people_were_told_and_not_otherwise(bench: Bench):
    bench.alerts.dump()
    bench.alerts.saved()
    for now in (0, 60, 75):
        bench.at(now, "a")
        assert not bench.alerts.is_urgent
    bench.at(90, "a")
    assert bench.alerts.is_urgent
    bench.alerts.dump()
    assert bench.alerts.is_urgent
    bench.alerts.saved()
    assert not bench.alerts.is_urgent


def test_the_rules_read_metrics_that_there_are(settings: Settings):
    registry = Registry()
    build_topics(registry, settings, lambda _: {})
    Watched(settings, outbox=Kept()).start().poll()

    assert {rule.name for rule in RULES} >= {"MillraceFailureRateHigh", "MillraceRunSlow", "MillraceRunMemoryHigh"}


# The outbox


@pytest.fixture
def make(settings: Settings) -> Iterator[Callable[[str], Outbox]]:
    """An outbox that posts to a URL; it is closed with the test."""
    made: list[Outbox] = []

    def to_url(url: str) -> Outbox:
        made.append(Outbox(settings.model_copy(update={"notify_webhook_url": SecretStr(url)})))
        return made[-1]

    yield to_url
    for outbox in made:
        outbox.close(patience_seconds=0.1)


def message(text: str) -> Message:
    return Message.model_validate(
        {
            "status": "firing",
            "alerts": [{"status": "firing", "labels": {"alertname": text}, "startsAt": "2026-11-22T08:00:00Z"}],
        }
    )


def names(server: Webhook) -> list[str]:
    return [body["alerts"][0]["labels"]["alertname"] for body in server.bodies]


def test_a_webhook_that_is_down_gets_all_in_order_once_it_is_up_and_the_console_does_not_wait(
    make: Callable[[str], Outbox], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    outbox = make(f"http://127.0.0.1:{port}/")

    started = time.monotonic()
    outbox.put(message("first"))
    outbox.put(message("second"))
    assert time.monotonic() - started < 0.1
    wait_until(lambda: outbox.delivered == 2)
    assert [json.loads(line)["alert"] for line in capsys.readouterr().out.splitlines()] == ["first", "second"]
    wait_until(lambda: "Connection refused" in caplog.text)
    with webhook(port) as server:
        wait_until(lambda: len(server.posts) == 2)
        assert names(server) == ["first", "second"]
    assert "is sent again in 1 s" in caplog.text


def test_what_was_not_delivered_is_sent_after_a_restart_and_what_was_is_not(make: Callable[[str], Outbox]):
    with webhook() as server:
        server.answers = [(200, ""), *[(503, "")] * 1000]
        before = make(server.url)
        before.put(message("first"))
        wait_until(lambda: before.delivered == 2)
        before.put(message("second"))
        wait_until(lambda: before.delivered == 3)
        before.close()
        dumped = json.loads(json.dumps(before.dump()))
    with webhook() as server:
        after = make(server.url)
        after.load({**dumped, "pigeon": dumped["webhook"]})
        wait_until(lambda: after.delivered == 1)

        assert names(server) == ["second"]


def test_messages_that_wait_are_bounded(make: Callable[[str], Outbox]):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        outbox = make(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        for number in range(MAX_WAITING + 50):
            outbox.put(message(str(number)))

        waiting = [each["alerts"][0]["labels"]["alertname"] for each in outbox.dump()["webhook"]]
        assert waiting == ["0", *(str(number) for number in range(51, MAX_WAITING + 50))]


def test_what_a_channel_refuses_is_given_up_and_the_next_is_sent(
    make: Callable[[str], Outbox], caplog: pytest.LogCaptureFixture
):
    with webhook() as server:
        server.answers = [(404, "no")]
        outbox = make(server.url)
        outbox.put(message("first"))
        outbox.put(message("second"))
        wait_until(lambda: len(server.posts) == 2)

    assert "it answered 404 no" in caplog.text
    assert "is given up" in caplog.text


def test_a_recipient_who_is_refused_for_now_gets_the_mail_later_and_the_others_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outbox_module, "FIRST_PAUSE_SECONDS", 0.01)
    with mail_server() as server:
        server.answers = {"RCPT": ["", "450 greylisted"]}
        outbox = Outbox(
            settings.model_copy(
                update={"smtp_host": "localhost", "smtp_port": server.port, "smtp_security": "none",
                        "notify_email_to": "a@example.test, b@example.test"}
            )
        )  # fmt: skip
        for name in ("first", "second"):
            outbox.put(message(name))
        wait_until(lambda: outbox.delivered == 4)
        outbox.close()

    assert [mail.recipients for mail in server.mails] == [
        ["a@example.test"], ["b@example.test"], ["a@example.test", "b@example.test"],
    ]  # fmt: skip


def test_what_nobody_took_for_an_hour_is_given_up(
    make: Callable[[str], Outbox], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outbox_module, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(outbox_module, "GIVE_UP_SECONDS", 0.2)
    with webhook() as server:
        server.answers = [(503, "")] * 1000
        outbox = make(server.url)
        outbox.put(message("first"))
        wait_until(lambda: outbox.delivered == 2)
        server.answers.clear()
        outbox.put(message("second"))
        wait_until(lambda: outbox.delivered == 4)

    assert names(server)[-1] == "second"
    assert set(names(server)[:-1]) == {"first"}
    assert caplog.text.count("is given up") == 1
