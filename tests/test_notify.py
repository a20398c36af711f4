"""What people get by each channel, and what is said when they do not; from real servers."""

import json
import logging
import socket
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from pipeline import notify as module
from pipeline import settings as settings_module
from pipeline.errors import ConfigError, MillraceError, NotifyRejected, NotifyUnavailable
from pipeline.notify import Alert, Message, deliver, notify, send
from pipeline.settings import EMBEDDED_WEBHOOK_URL, Settings, process_environment
from tests.receivers import certificate, mail_server, webhook

SECRET = "T0p-S3cret"


def made(**values: Any) -> Settings:
    """Settings with these and nothing else to notify."""
    return Settings(**{"notify_webhook_url": SecretStr(""), **values})


def alert(status: str = "firing", **labels: str) -> Alert:
    return Alert.model_validate(
        {
            "status": status,
            "labels": {"alertname": "MillraceRunSlow", "severity": "warning", **labels},
            "annotations": {"summary": "A run is slow.", "description": f"A run of {labels} is slow."},
            "startsAt": "2026-11-22T08:00:00Z",
            **({"endsAt": "2026-11-22T09:00:00Z"} if status == "resolved" else {}),
        }
    )


def group(*alerts: Alert) -> Message:
    return Message.of(alerts, {"alertname": "MillraceRunSlow"})


# webhook


def test_a_webhook_gets_what_alertmanager_would_send_it():
    with webhook() as server:
        settings = made(notify_webhook_url=f"{server.url}/hook/{SECRET}", notify_webhook_token=SECRET)
        send(settings, group(alert("resolved", job_name="a"), alert(job_name="b")), "webhook")

    (post,) = server.posts
    assert post.path == f"/hook/{SECRET}"
    assert post.headers["Authorization"] == f"Bearer {SECRET}"
    assert post.headers["Content-Type"] == "application/json"
    assert post.body.keys() == {
        "version", "groupKey", "truncatedAlerts", "status", "receiver", "groupLabels", "commonLabels",
        "commonAnnotations", "externalURL", "alerts",
    }  # fmt: skip
    assert (post.body["version"], post.body["status"]) == ("4", "firing")
    assert post.body["commonLabels"] == {"alertname": "MillraceRunSlow", "severity": "warning"}
    assert post.body["commonAnnotations"] == {"summary": "A run is slow."}
    first, second = post.body["alerts"]
    assert first["labels"]["job_name"] == "b"
    assert (first["startsAt"], first["endsAt"]) == ("2026-11-22T08:00:00Z", "0001-01-01T00:00:00Z")
    assert (second["status"], second["endsAt"]) == ("resolved", "2026-11-22T09:00:00Z")


def test_a_webhook_that_fails_for_a_moment_is_tried_again_and_one_that_refuses_is_not():
    with webhook() as server:
        server.answers = [(503, "busy"), (429, "slower")]
        notify(made(notify_webhook_url=server.url), "Hello", channel="webhook")
        assert len(server.posts) == 3

        server.answers = [(400, f"no such hook: /{SECRET}"), (302, "elsewhere")]
        for status in (400, 302):
            with pytest.raises(NotifyRejected) as refused:
                notify(made(notify_webhook_url=f"{server.url}/{SECRET}"), "Hello", channel="webhook")
            assert f"webhook at {server.url}: it answered {status} " in str(refused.value)
            assert "MILLRACE_NOTIFY_WEBHOOK_URL" in str(refused.value)
        assert len(server.posts) == 5


def test_a_redirect_is_not_followed_with_the_token():
    with webhook() as server, webhook() as elsewhere:
        server.answers, server.headers = [(302, "")], {"Location": elsewhere.url}
        with pytest.raises(NotifyRejected, match="302"):
            notify(made(notify_webhook_url=server.url, notify_webhook_token=SECRET), "Hello", channel="webhook")

    assert not elsewhere.posts


def test_a_webhook_that_never_answers_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = made(notify_webhook_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(NotifyUnavailable, match="timed out"):
            send(settings, group(alert()), "webhook", patience_seconds=1)
        assert time.monotonic() - started < 5


def test_no_secret_is_in_a_log_an_error_or_a_traceback(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with webhook() as server, socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
        taken.close()
        for url in (f"{server.url}/{SECRET}", f"http://127.0.0.1:{closed}/{SECRET}", f"ftp://x/{SECRET}"):
            for channel in ("webhook", "slack", "teams"):
                server.answers = [(404, f"nothing at {SECRET}")]
                settings = made(**{f"notify_{channel}_url": url, "notify_webhook_token": f"{SECRET}-token"})
                with pytest.raises(MillraceError, match=f"Notifying by {channel}") as failed:
                    send(settings, group(alert()), channel, attempts=2)
                told = "".join(traceback.format_exception(failed.value))
                assert SECRET not in told
                assert SECRET not in repr(settings)
    assert "Again in" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "url", [f"http://[{SECRET}", f"http://x:y/{SECRET}", f"http://x/{SECRET}\x7f", f"http://x/{SECRET}é", f"//{SECRET}"]
)
def test_an_address_that_is_none_is_a_setting_to_correct_and_is_not_shown(url: str):
    with pytest.raises(ConfigError, match="Correct MILLRACE_NOTIFY_SLACK_URL") as refused:
        notify(made(notify_slack_url=url), "Hello", channel="slack")
    assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_a_token_that_cannot_be_sent_is_not_shown():
    with webhook() as server, pytest.raises(ConfigError, match="or of a token") as refused:
        notify(made(notify_webhook_url=server.url, notify_webhook_token=f"{SECRET}\nx"), "Hello", channel="webhook")
    assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_a_server_whose_certificate_nobody_trusts_is_refused_with_the_remedy(tmp_path: Path):
    with mail_server(file=certificate(tmp_path), is_implicit=True) as server:
        with pytest.raises(NotifyRejected, match="SSL_CERT_FILE"):
            notify(made(notify_slack_url=f"https://localhost:{server.port}/x"), "Hello", channel="slack")
        email = {"smtp_host": "localhost", "smtp_port": server.port, "notify_email_to": "a@example.test"}
        with pytest.raises(NotifyRejected, match="SSL_CERT_FILE"):
            notify(made(**email, smtp_security="tls"), "Hello", channel="email")
    assert not server.mails


@pytest.fixture
def guessed(monkeypatch: pytest.MonkeyPatch) -> int:
    """The port of the webhook that is there by default; nobody listens on it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    monkeypatch.setattr(settings_module, "EMBEDDED_WEBHOOK_URL", f"http://127.0.0.1:{port}/api/v1/alerts")
    monkeypatch.setattr(module, "_guess", module._Guess())
    return port


def test_nobody_at_the_embedded_default_is_told_once_and_is_no_error(
    guessed: int, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    for _ in range(3):
        notify(Settings(), "Hello")

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "an empty MILLRACE_NOTIFY_WEBHOOK_URL turns the webhook off" in caplog.text
    assert capsys.readouterr().out.count("Hello") == 3
    with pytest.raises(NotifyUnavailable):  # asked for by hand it is one
        send(Settings(), group(alert()), "webhook")


def test_an_answer_at_the_embedded_default_is_taken_seriously(guessed: int):
    with webhook(guessed) as server:
        server.answers = [(503, "busy")]
        with pytest.raises(NotifyUnavailable, match="503"):
            deliver(Settings(), group(alert()), "webhook", attempts=1)
        server.answers = [(503, "busy")]
        deliver(Settings(), group(alert()), "webhook")
        assert len(server.posts) == 3
    with pytest.raises(NotifyUnavailable, match="refused"):  # it was there
        deliver(Settings(), group(alert()), "webhook", attempts=1)


def test_the_embedded_default_that_somebody_set_is_a_webhook_like_any_other(guessed: int):
    configured = Settings(notify_webhook_url=SecretStr(settings_module.EMBEDDED_WEBHOOK_URL))
    with pytest.raises(NotifyUnavailable, match="refused"):
        deliver(configured, group(alert()), "webhook", attempts=1)


def test_to_a_child_the_embedded_default_is_a_guess_too(guessed: int):
    parent = Settings().model_copy(update={"database_url": SecretStr("postgresql://millrace@/?host=/tmp")})
    with process_environment(parent.child_environment()):
        child = Settings.load()
    assert child.notify_webhook_url == Settings().notify_webhook_url
    assert child.alerts_evaluate
    deliver(child, group(alert()), "webhook")


def test_the_default_is_there_with_the_embedded_database_only():
    assert Settings().notify_webhook_url.get_secret_value() == EMBEDDED_WEBHOOK_URL
    assert Settings().alerts_evaluate
    assert not Settings(alertmanager_url="http://alertmanager:9093").alerts_evaluate
    elsewhere = Settings(database_url="postgresql://db/")
    assert not elsewhere.notify_webhook_url.get_secret_value()
    assert not elsewhere.alerts_evaluate
    assert Settings(database_url="postgresql://db/", alerts_evaluate=True).alerts_evaluate


@pytest.mark.parametrize("labels", ["namespace", "namespace=", "=x", "a b=c", "a=b,a=c"])
def test_labels_of_alerts_that_are_none_are_refused(labels: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MILLRACE_ALERT_LABELS", labels)
    with pytest.raises(ConfigError, match=r"MILLRACE_ALERT_LABELS: .*is no NAME=VALUE"):
        Settings.load()


def test_a_secret_can_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "password").write_text(f"{SECRET}\n")
    monkeypatch.setenv("MILLRACE_SMTP_PASSWORD_FILE", str(tmp_path / "password"))
    found = Settings.load().smtp_password
    assert found
    assert found.get_secret_value() == SECRET

    monkeypatch.setenv("MILLRACE_SMTP_PASSWORD", "other")
    with pytest.raises(ConfigError, match="MILLRACE_SMTP_PASSWORD and MILLRACE_SMTP_PASSWORD_FILE are both set"):
        Settings.load()
    monkeypatch.delenv("MILLRACE_SMTP_PASSWORD")
    monkeypatch.setenv("MILLRACE_SMTP_PASSWORD_FILE", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"MILLRACE_SMTP_PASSWORD_FILE: .*gone cannot be read"):
        Settings.load()


# chat


def test_slack_and_teams_get_text_that_is_no_markup():
    with webhook() as server:
        settings = made(notify_slack_url=f"{server.url}/slack", notify_teams_url=f"{server.url}/teams")
        for channel in ("slack", "teams"):
            notify(settings, "Late & <!channel>", "first\nsecond", channel=channel)

    slack, teams = server.bodies
    assert slack == {"text": "*Late &amp; &lt;!channel&gt;*\nfirst\nsecond"}
    (attachment,) = teams["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert [block["text"] for block in attachment["content"]["body"]] == ["Late & <!channel>", "first", "second"]


# e-mail


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate that is trusted."""
    made = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    return made


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_a_mail_arrives_encrypted_after_a_login(file: Path, security: str):
    with mail_server(file=file, is_implicit=security == "tls", logins={"me@example.test": SECRET}) as server:
        settings = made(
            smtp_host="localhost", smtp_port=server.port, smtp_security=security, smtp_user="me@example.test",
            smtp_password=SECRET, notify_email_to="a@example.test, B <b@example.test>",
        )  # fmt: skip
        notify(settings, "Größe\nis late", "Since Monday — nothing.", channel="email")

    (mail,) = server.mails
    assert mail.is_encrypted
    assert (mail.user, mail.sender) == ("me@example.test", "me@example.test")
    assert mail.recipients == ["a@example.test", "b@example.test"]
    assert mail.message["Subject"] == "Größe is late"
    assert mail.message["Auto-Submitted"] == "auto-generated"
    assert mail.message.get_content().strip() == "Since Monday — nothing."


def test_a_mail_of_alerts_says_of_each_what_since_when_and_of_whom():
    with mail_server() as server:
        settings = made(
            smtp_host="localhost", smtp_port=server.port, smtp_security="none", notify_email_to="a@example.test"
        )
        send(settings, group(alert(job_name="a"), alert("resolved", job_name="b")), "email")

    (mail,) = server.mails
    assert not mail.is_encrypted
    assert mail.message["Subject"] == "[FIRING:1] A run is slow."
    text = mail.message.get_content()
    assert "firing since 2026-11-22T08:00:00Z: alertname=MillraceRunSlow, job_name=a, severity=warning" in text
    assert "resolved since 2026-11-22T08:00:00Z until 2026-11-22T09:00:00Z: " in text


@pytest.mark.parametrize(
    ("answers", "tries"),
    [
        ({"RCPT": ["451 greylisted"]}, 2),
        ({".": ["421 shutting down"]}, 2),
        ({"EHLO": ["hang up"]}, 2),
        ({"QUIT": ["500 what?"]}, 1),
    ],
    ids=["greylisted", "busy", "cut off", "bad goodbye"],
)
def test_a_mail_server_that_fails_for_a_moment_gets_the_mail_once(answers: dict[str, list[str]], tries: int):
    with mail_server() as server:
        server.answers = answers
        settings = made(
            smtp_host="localhost", smtp_port=server.port, smtp_security="none", notify_email_to="a@example.test"
        )
        send(settings, group(alert()), "email")
        time.sleep(0.1)
        assert len(server.mails) == 1


def test_who_is_refused_for_now_is_asked_again_alone_and_who_is_refused_for_good_is_told(
    caplog: pytest.LogCaptureFixture,
):
    with mail_server() as server:
        server.answers = {"RCPT": ["", "450 greylisted", "550 no such user"]}
        settings = made(
            smtp_host="localhost", smtp_port=server.port, smtp_security="none",
            notify_email_to="a@example.test, B <b@example.test>, c@example.test",
        )  # fmt: skip
        send(settings, group(alert()), "email")

    assert [mail.recipients for mail in server.mails] == [["a@example.test"], ["b@example.test"]]
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "it refused c@example.test (550 no such user). Look at MILLRACE_NOTIFY_EMAIL_TO" in record.getMessage()


def test_a_mail_server_that_hangs_up_at_a_recipient_gets_the_mail_for_all_again():
    with mail_server() as server:
        server.answers = {"RCPT": ["", "421 shutting down"]}
        settings = made(
            smtp_host="localhost", smtp_port=server.port, smtp_security="none", notify_email_to="a@a.test,b@a.test"
        )
        send(settings, group(alert()), "email")

    assert [mail.recipients for mail in server.mails] == [["a@a.test", "b@a.test"]]


def test_half_a_character_is_told_as_a_question_mark(capsys: pytest.CaptureFixture[str]):
    with mail_server() as mails, webhook() as posts:
        settings = made(
            smtp_host="localhost", smtp_port=mails.port, smtp_security="none", notify_email_to="a@example.test",
            notify_webhook_url=posts.url,
        )  # fmt: skip
        notify(settings, "late: \udce9", "no \ud800", labels={"file": "\udcff"})

    assert mails.mails[0].message["Subject"] == "late: ?"
    assert mails.mails[0].message.get_content().strip() == "no ?"
    assert posts.bodies[0]["commonLabels"]["file"] == "?"
    assert json.loads(capsys.readouterr().out)["annotations"]["summary"] == "late: ?"


@pytest.mark.parametrize(
    ("answers", "changes", "said"),
    [
        ({"RCPT": ["550 no such user"]}, {}, r"refused a@example.test \(550 no such user\). Look at MILLRACE_NOTIFY_EMAIL_TO"),
        ({"MAIL": ["553 not yours"]}, {}, "Look at MILLRACE_NOTIFY_EMAIL_FROM"),
        ({}, {"smtp_password": "wrong"}, "refused the login of me: 535 .*bad credentials.*MILLRACE_SMTP_PASSWORD"),
        ({}, {"smtp_security": "tls"}, "MILLRACE_SMTP_SECURITY and MILLRACE_SMTP_PORT"),
        ({"RCPT": ["250 ok", "550 no"]}, {"notify_email_to": "a@example.test,b@example.test"}, "the others got it"),
    ],
    ids=["recipient", "sender", "password", "no tls", "one of two"],
)  # fmt: skip
def test_what_a_mail_server_refuses_is_not_tried_again_and_names_the_setting(
    file: Path, answers: dict[str, list[str]], changes: dict[str, str], said: str
):
    with mail_server(file=file, logins={"me": SECRET}) as server:
        server.answers = answers
        values = {
            "smtp_host": "localhost", "smtp_port": server.port, "smtp_user": "me", "smtp_password": SECRET,
            "notify_email_to": "a@example.test",
        }  # fmt: skip
        with pytest.raises(NotifyRejected, match=said) as refused:
            notify(made(**(values | changes)), "Hello", channel="email")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"smtp_host": "localhost"}, "set both MILLRACE_SMTP_HOST and MILLRACE_NOTIFY_EMAIL_TO"),
        ({"smtp_host": "x", "notify_email_to": "nobody"}, "nobody is no address"),
        ({"smtp_host": "x", "notify_email_to": "a@b.test", "notify_email_from": "a@b\nBcc: c@d"}, "Correct MILLRACE_NOTIFY_EMAIL_FROM"),
        ({"smtp_host": "x" * 70, "notify_email_to": "a@b.test"}, "character that cannot be sent"),
        ({"smtp_host": "x", "notify_email_to": "a@b.test", "smtp_security": "none", "smtp_user": "u"}, "send the password"),
    ],
)  # fmt: skip
def test_mail_that_cannot_be_sent_as_it_is_configured_is_not_tried(values: dict[str, str], said: str):
    with pytest.raises(ConfigError, match=said):
        notify(made(**values), "Hello", channel="email")


# all of them


def test_a_channel_that_fails_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]):
    with webhook() as server:
        server.answers = [(404, "gone")]
        settings = made(notify_webhook_url=server.url, notify_slack_url=f"{server.url}/slack", smtp_host="localhost")
        with pytest.raises(NotifyRejected) as failed:
            notify(settings, "Prices are late", severity="critical", labels={"source": "prices"})

    assert "Notifying by webhook" in str(failed.value)
    assert "Notifying by email" in str(failed.value)
    assert server.bodies[1] == {"text": "*Prices are late*\n"}
    (line,) = capsys.readouterr().out.splitlines()
    shown = json.loads(line)
    assert shown["severity"] == "critical"
    assert shown["annotations"]["summary"] == "Prices are late"
    assert shown["labels"] == {"source": "prices"}


def test_a_line_of_the_console_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]):
    notify(made(), "two\nlines", "a\rb\x1b[31m", channel="console")

    (line,) = capsys.readouterr().out.splitlines()
    assert "\x1b" not in line
    assert json.loads(line)["annotations"] == {"summary": "two\nlines", "description": "a\rb\x1b[31m"}


def test_a_channel_that_there_is_not_is_named_with_those_that_there_are():
    with pytest.raises(
        ConfigError, match=r"no channel 'pigeon' to notify. There are: console, email, webhook, slack, teams"
    ):
        notify(made(), "Hello", channel="pigeon")


def test_many_alerts_are_messages_of_a_hundred_and_the_last_says_what_fires():
    over = [alert("resolved", job_name=str(number)) for number in range(130)]
    messages = Message.parts([*over, *(alert(job_name=str(number)) for number in range(120))], {"alertname": "A"})

    assert [message.subject.split()[0] for message in messages] == ["[RESOLVED:50]", "[FIRING:20]", "[FIRING:100]"]
    assert sum(len(message.alerts) for message in messages) == 250
    assert len({message.group_key for message in messages}) == 1
    assert all(len(message.text) <= module.MAX_CHARACTERS + 1 for message in messages)


def test_deliver_is_as_send_where_a_webhook_is_configured():
    with socket.create_server(("127.0.0.1", 0)) as free:
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(NotifyUnavailable, match="refused"):
        deliver(made(notify_webhook_url=nowhere), group(alert()), "webhook", attempts=2)


def test_times_are_told_in_utc():
    assert module.shown_time(datetime(2026, 11, 22, 8, tzinfo=UTC)) == "2026-11-22T08:00:00Z"
    assert module.shown_time(module.NEVER) == ""
    assert module.shown_time(datetime.fromisoformat("9999-12-31T23:59:59-12:00")) == ""
