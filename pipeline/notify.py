"""A message to people: by e-mail, webhook, Slack, Teams or as a line on stdout. For assets too:

    notify(settings, "Prices are late", "The provider has sent nothing since Monday.")
    notify(settings, "Prices are late", channel="email")

A webhook gets what Alertmanager sends (version 4 of its body), so that one receiver serves both. Which alerts there are
and when they fire is not here: `exporter` has those. Addresses and passwords are in no log and no error.
"""

import errno
import json
import logging
import re
import smtplib
import socket
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import formatdate, getaddresses, make_msgid
from http.client import HTTPException, InvalidURL
from typing import Any, Literal, NoReturn, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from pipeline.errors import ConfigError, MillraceError, NotifyRejected, NotifyUnavailable
from pipeline.retries import retry_context
from pipeline.settings import Settings

log = logging.getLogger(__name__)

Status = Literal["firing", "resolved"]

MESSAGE = "MillraceMessage"  # the alertname of a message that is no alert
NEVER = datetime(1, 1, 1, tzinfo=UTC)  # as Alertmanager writes it
ANSWER_SECONDS = 10.0  # of silence
ATTEMPTS, PATIENCE_SECONDS = 5, 30.0
MAX_ALERTS = 100  # of one message
MAX_CHARACTERS = 8_000  # of its text: Teams takes 28 kB in all
LATER = (408, 425, 429)  # and 5xx: trying again may work
NOBODY = (errno.ECONNREFUSED, errno.EADDRNOTAVAIL)  # the second where localhost is ::1 too, and there is no IPv6
PORTS = {"starttls": 587, "tls": 465, "none": 25}


class Alert(BaseModel):
    """One alert, as Alertmanager tells it."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    status: Status
    labels: dict[str, str]
    annotations: dict[str, str] = {}
    starts_at: datetime = Field(alias="startsAt")
    ends_at: datetime = Field(NEVER, alias="endsAt")
    generator_url: str = Field("", alias="generatorURL")
    fingerprint: str = ""

    def as_line(self) -> str:
        """One line of JSON, whatever is in the alert."""
        shown = {
            "alert": self.labels.get("alertname", ""),
            "status": self.status,
            "severity": self.labels.get("severity", ""),
            "annotations": self.annotations,
            "labels": {name: value for name, value in self.labels.items() if name not in ("alertname", "severity")},
            "since": shown_time(self.starts_at),
            **({"until": shown_time(self.ends_at)} if self.status == "resolved" else {}),
        }
        return json.dumps(shown)


class Message(BaseModel):
    """Alerts that are told together: the body of Alertmanager's webhook, version 4."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    version: Literal["4"] = "4"
    group_key: str = Field("", alias="groupKey")
    truncated_alerts: int = Field(0, alias="truncatedAlerts")
    status: Status
    receiver: str = "millrace"
    group_labels: dict[str, str] = Field({}, alias="groupLabels")
    common_labels: dict[str, str] = Field({}, alias="commonLabels")
    common_annotations: dict[str, str] = Field({}, alias="commonAnnotations")
    external_url: str = Field("", alias="externalURL")
    alerts: tuple[Alert, ...]

    @classmethod
    def of(cls, alerts: Iterable[Alert], group_labels: Mapping[str, str]) -> Self:
        """One message of *alerts*, which have *group_labels* in common; those that fire come first."""
        told = tuple(sorted(alerts, key=lambda alert: alert.status))
        return cls(
            group_key=json.dumps(group_labels, sort_keys=True),
            status=told[0].status,
            group_labels=dict(group_labels),
            common_labels=_common(alert.labels for alert in told),
            common_annotations=_common(alert.annotations for alert in told),
            alerts=told,
        )

    @classmethod
    def parts(cls, alerts: Iterable[Alert], group_labels: Mapping[str, str]) -> list[Self]:
        """The same as messages of `MAX_ALERTS` at most. Those that fire come last: the newest of a group says how it is."""
        told = sorted(alerts, key=lambda alert: alert.status)
        starts = range(0, len(told), MAX_ALERTS)
        return [cls.of(told[start : start + MAX_ALERTS], group_labels) for start in reversed(starts)]

    @property
    def subject(self) -> str:
        """One line."""
        alert = self.alerts[0]
        summary = " ".join(alert.annotations.get("summary", alert.labels.get("alertname", "")).split())
        if alert.labels.get("alertname") == MESSAGE:
            return summary
        count = sum(each.status == self.status for each in self.alerts)
        return f"[{self.status.upper()}:{count}] {summary}"

    @property
    def text(self) -> str:
        """What a person reads."""
        if self.alerts[0].labels.get("alertname") == MESSAGE:
            text = self.alerts[0].annotations.get("description", "")
        else:
            text = "\n\n".join(_paragraph(alert) for alert in self.alerts)
        return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"


def notify(
    settings: Settings,
    subject: str,
    text: str = "",
    *,
    channel: str | None = None,
    severity: str = "info",
    labels: Mapping[str, str] | None = None,
) -> None:
    """Tell *subject* and *text* by *channel*, else by every channel that is configured, half a minute each at most.

    A channel that fails does not stop the others.

    Raises:
        ConfigError: if there is no such channel, or it is not configured.
        NotifyUnavailable: if a channel did not take it, and each that did not may do so later.
        NotifyRejected: if a channel will not take it until someone changes something.
    """
    now = datetime.now(UTC)
    alert = Alert(
        status="firing",
        labels={
            **{name: _sendable(value) for name, value in (labels or {}).items()},
            "alertname": MESSAGE,
            "severity": severity,
        },
        annotations={"summary": _sendable(subject), "description": _sendable(text)},
        starts_at=now,
    )
    message = Message.of([alert], {"alertname": MESSAGE})
    failures: list[MillraceError] = []
    for each in configured_channels(settings) if channel is None else [channel]:
        try:
            deliver(settings, message, each)
        except MillraceError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        kind = NotifyUnavailable if all(error.is_transient for error in failures) else NotifyRejected
        raise kind(" ".join(map(str, failures)))


def deliver(
    settings: Settings,
    message: Message,
    channel: str,
    *,
    attempts: int = ATTEMPTS,
) -> None:
    """As `send`, but that nobody listens where a webhook is only guessed is no error until it answered: it is logged, once."""
    try:
        send(settings, message, channel, attempts=attempts)
    except NobodyListens as error:
        if not _is_guess(settings, channel):
            raise
        if not _guess.is_told:
            _guess.is_told = True
            log.warning("%s This is told once; an empty MILLRACE_NOTIFY_WEBHOOK_URL turns the webhook off.", error)


class NobodyListens(NotifyUnavailable):
    """The connection was refused."""


class Deferred(NotifyUnavailable):
    """A mail server wants to be asked again for some recipients. The others are done with: `settings` have those alone."""

    def __init__(self, text: str, settings: Settings) -> None:
        super().__init__(text)
        self.settings = settings


@dataclass
class _Guess:
    """What this process knows of the webhook that nobody configured."""

    is_right: bool = False  # it took a message
    is_told: bool = False


_guess = _Guess()


def _is_guess(settings: Settings, channel: str) -> bool:
    """True if *channel* is a webhook that nobody configured, and that has taken nothing so far."""
    return channel == "webhook" and "notify_webhook_url" not in settings.model_fields_set and not _guess.is_right


def send(
    settings: Settings,
    message: Message,
    channel: str,
    *,
    attempts: int = ATTEMPTS,
    patience_seconds: float = PATIENCE_SECONDS,
) -> None:
    """Send *message* by *channel*, again with backoff while a later attempt may get through.

    Raises:
        ConfigError, NotifyUnavailable, NotifyRejected: as `notify`.
    """
    if channel not in CHANNELS:
        raise ConfigError(f"There is no channel {channel!r} to notify. There are: {', '.join(CHANNELS)}.")

    def may_get_through(error: Exception) -> bool:
        is_wrong_guess = isinstance(error, NobodyListens) and _is_guess(settings, channel)
        return isinstance(error, NotifyUnavailable) and not is_wrong_guess

    for attempt in retry_context(
        on=may_get_through, attempts=attempts, timeout=patience_seconds, wait_initial=0.5, wait_max=5.0
    ):
        with attempt:
            try:
                CHANNELS[channel](settings, message)
            except Deferred as error:
                settings = error.settings
                raise
    if _is_guess(settings, channel):
        _guess.is_right = True


def configured_channels(settings: Settings) -> tuple[str, ...]:
    """Those that get what is for all: the console, and each that has a setting."""
    wanted = {
        "email": settings.smtp_host or settings.notify_email_to,
        "webhook": _revealed(settings.notify_webhook_url),
        "slack": _revealed(settings.notify_slack_url),
        "teams": _revealed(settings.notify_teams_url),
    }
    return ("console", *(channel for channel, setting in wanted.items() if setting))


def _console(_: Settings, message: Message) -> None:
    try:
        sys.stdout.write("".join(f"{alert.as_line()}\n" for alert in message.alerts))
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        raise NotifyRejected(f"Notifying by console: stdout cannot be written: {error}.") from error


def _webhook(settings: Settings, message: Message) -> None:
    token = _revealed(settings.notify_webhook_token)
    body = message.model_dump(mode="json", by_alias=True)
    _post("webhook", settings.notify_webhook_url, body, {"Authorization": f"Bearer {token}"} if token else {})


def _slack(settings: Settings, message: Message) -> None:
    text = f"*{message.subject}*\n{message.text}"
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):  # else it is markup, or calls a person
        text = text.replace(character, entity)
    _post("slack", settings.notify_slack_url, {"text": text})


def _teams(settings: Settings, message: Message) -> None:
    blocks: list[dict[str, Any]] = [{"type": "TextBlock", "text": message.subject, "weight": "bolder", "wrap": True}]
    blocks += [{"type": "TextBlock", "text": line, "wrap": True} for line in message.text.splitlines() if line]
    card = {"$schema": "http://adaptivecards.io/schemas/adaptive-card.json", "type": "AdaptiveCard", "version": "1.4"}
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "content": {**card, "body": blocks}}
    _post("teams", settings.notify_teams_url, {"type": "message", "attachments": [attachment]})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None: a POST that is sent on would become a GET, and would give the token to somebody else."""


def _post(channel: str, url: SecretStr | None, body: Any, headers: Mapping[str, str] | None = None) -> None:
    """Send *body* as JSON. Not by httpx2, which logs every address whole: here the address is the secret."""
    address, variable = _revealed(url), f"MILLRACE_NOTIFY_{channel.upper()}_URL"
    if not address:
        raise ConfigError(f"Notifying by {channel}: it has no address. Set {variable}.")
    doing = f"Notifying by {channel}"
    try:
        doing += f" at {shown_server(address)}"
        request = urllib.request.Request(  # noqa: S310  (`shown_server` looked at the scheme)
            address,
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "User-Agent": "millrace", **(headers or {})},
            method="POST",
        )
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=ANSWER_SECONDS):
            return
    except urllib.error.HTTPError as error:
        answered = f"{doing}: it answered {error.code} {_without(_body(error), address, *(headers or {}).values())}"
        if error.code in LATER or error.code >= 500:
            raise NotifyUnavailable(f"{answered}.") from None
        raise NotifyRejected(f"{answered}. Correct {variable}, or what it wants of who sends.") from None
    except (ValueError, InvalidURL):  # their texts show what is wrong, and that is the secret
        raise ConfigError(
            f"{doing}: its address is none of http(s), or a character of it or of a token cannot be sent. Correct {variable}."
        ) from None
    except (OSError, HTTPException) as error:
        problem = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(problem, ssl.SSLCertVerificationError):
            raise NotifyRejected(f"{doing}: {_distrust(problem)}") from None
        said = _without(f"{problem}" or type(problem).__name__, address)
        is_refused = isinstance(problem, OSError) and problem.errno in NOBODY
        kind = NobodyListens if is_refused else NotifyUnavailable
        raise kind(f"{doing}: {said}. Look whether it runs, and at {variable}.") from None


def shown_server(address: str) -> str:
    """The part of *address* that may be shown: no user, password or path. Raises ValueError if it is not one of http(s)."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is not an address of http or https")  # without it: a part of it may be a secret
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port}" if parts.port else f"{parts.scheme}://{host}"


def _body(error: urllib.error.HTTPError) -> str:
    with error, suppress(OSError, HTTPException):
        return _said(error.read(200))
    return ""


def _email(settings: Settings, message: Message) -> None:
    port = settings.smtp_port or PORTS[settings.smtp_security]
    doing = f"Notifying by email through {settings.smtp_host}:{port}"
    try:
        refused = _hand_over(settings, _mail(settings, message), port)
    except smtplib.SMTPRecipientsRefused as error:  # also where it hangs up at one, and no other has the mail either
        refused = dict.fromkeys(_recipients(settings), (450, b"cut off")) | error.recipients
    except smtplib.SMTPAuthenticationError as error:
        later = 400 <= error.smtp_code < 500
        said = f"{error.smtp_code} {_said(error.smtp_error)}"
        raise _smtp_error(
            f"{doing}: it refused the login of {settings.smtp_user}: {said}", "MILLRACE_SMTP_PASSWORD", later=later
        ) from None
    except smtplib.SMTPResponseException as error:
        later = 400 <= error.smtp_code < 500
        said = f"{doing}: it answered {error.smtp_code} {_said(error.smtp_error)}"
        raise _smtp_error(said, "MILLRACE_NOTIFY_EMAIL_FROM and what the server allows", later=later) from None
    except smtplib.SMTPNotSupportedError as error:
        raise _smtp_error(
            f"{doing}: {error}", "MILLRACE_SMTP_SECURITY, MILLRACE_SMTP_PORT and MILLRACE_SMTP_USER", later=False
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise NotifyRejected(f"{doing}: {_distrust(error)}") from None
    except ssl.SSLError as error:
        raise _smtp_error(f"{doing}: {error}", "MILLRACE_SMTP_SECURITY and MILLRACE_SMTP_PORT", later=False) from None
    except UnicodeError:  # its text shows a part of the password
        raise ConfigError(
            f"{doing}: the host, the user, the password or an address has a character that cannot be sent."
        ) from None
    except OSError as error:  # no answer, or one that is cut off; or else a login that is none of those we know
        later = not isinstance(error, smtplib.SMTPException) or isinstance(error, smtplib.SMTPServerDisconnected)
        said = f"{doing}: {f'{error}' or type(error).__name__}"
        raise _smtp_error(said, "MILLRACE_SMTP_HOST, MILLRACE_SMTP_PORT and MILLRACE_SMTP_USER", later=later) from None
    if refused:
        _raise_refused(doing, settings, refused)


def _raise_refused(doing: str, settings: Settings, refused: Mapping[str, tuple[int, bytes]]) -> NoReturn:
    later = {who: answer for who, answer in refused.items() if 400 <= answer[0] < 500}
    never = {who: answer for who, answer in refused.items() if who not in later}
    got_it = "; the others got it" if refused.keys() < set(_recipients(settings)) else ""
    if not later:
        raise NotifyRejected(f"{doing}: {_refusals(never)}{got_it}. Look at MILLRACE_NOTIFY_EMAIL_TO.")
    if never:  # nobody is told when the others have it
        log.error("%s: %s. Look at MILLRACE_NOTIFY_EMAIL_TO.", doing, _refusals(never))
    rest = settings.model_copy(update={"notify_email_to": ", ".join(later)})
    raise Deferred(f"{doing}: {_refusals(refused)}{got_it}.", rest)


def _mail(settings: Settings, message: Message) -> EmailMessage:
    if not settings.smtp_host or not settings.notify_email_to:
        raise ConfigError("Notifying by email: set both MILLRACE_SMTP_HOST and MILLRACE_NOTIFY_EMAIL_TO.")
    if settings.smtp_user and settings.smtp_security == "none":
        raise ConfigError(
            "Notifying by email: MILLRACE_SMTP_SECURITY=none would send the password as it is. Set starttls or tls, "
            "or unset MILLRACE_SMTP_USER."
        )
    recipients = _recipients(settings)
    if wrong := [address for address in recipients if "@" not in address]:
        raise ConfigError(f"Notifying by email: {', '.join(wrong)} is no address. Correct MILLRACE_NOTIFY_EMAIL_TO.")
    sender = settings.notify_email_from or (settings.smtp_user if "@" in settings.smtp_user else "")
    mail = EmailMessage()
    mail["Subject"] = message.subject
    try:
        mail["From"] = sender or f"millrace@{socket.gethostname()}"
        mail["To"] = ", ".join(recipients)
    except ValueError as error:
        raise ConfigError(
            f"Notifying by email: {error}. Correct MILLRACE_NOTIFY_EMAIL_FROM and MILLRACE_NOTIFY_EMAIL_TO."
        ) from None
    mail["Date"] = formatdate()
    mail["Message-ID"] = make_msgid(domain="millrace")
    mail["Auto-Submitted"] = "auto-generated"  # or an absent reader's program answers it
    mail.set_content(message.text or message.subject)
    return mail


def _recipients(settings: Settings) -> list[str]:
    return [address for _, address in getaddresses([settings.notify_email_to]) if address]


def _hand_over(settings: Settings, mail: EmailMessage, port: int) -> dict[str, tuple[int, bytes]]:
    """Give *mail* to the server; returns what it says to the recipients that it refuses."""
    context = ssl.create_default_context()
    if settings.smtp_security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(settings.smtp_host, port, timeout=ANSWER_SECONDS, context=context)
    else:
        server = smtplib.SMTP(settings.smtp_host, port, timeout=ANSWER_SECONDS)
    try:
        if settings.smtp_security == "starttls":
            server.starttls(context=context)
        if settings.smtp_user:
            server.login(settings.smtp_user, _revealed(settings.smtp_password))
        refused = server.send_message(mail)
        with suppress(OSError, smtplib.SMTPException):  # it has the mail: a bad goodbye must not send it twice
            server.quit()
        return refused
    finally:
        server.close()


def _smtp_error(what: str, names: str, *, later: bool) -> NotifyUnavailable | NotifyRejected:
    return NotifyUnavailable(f"{what}.") if later else NotifyRejected(f"{what}. Look at {names}.")


def _refusals(recipients: Mapping[str, tuple[int, bytes]]) -> str:
    return "it refused " + ", ".join(f"{who} ({code} {_said(said)})" for who, (code, said) in recipients.items())


def _said(answer: bytes | str) -> str:
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else answer
    return " ".join(text.split())[:200]


def _distrust(error: ssl.SSLCertVerificationError) -> str:
    return (
        f"its certificate is not trusted: {error.verify_message}. SSL_CERT_FILE names the file of your own authority."
    )


def _paragraph(alert: Alert) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in sorted(alert.labels.items()))
    until = f" until {shown_time(alert.ends_at)}" if alert.status == "resolved" else ""
    lines = [alert.annotations.get("description") or alert.annotations.get("summary", "")]
    lines += [f"{alert.status} since {shown_time(alert.starts_at)}{until}: {labels}"]
    lines += [alert.annotations[name] for name in ("runbook_url", "runbook") if name in alert.annotations]
    return "\n".join(lines)


def _sendable(text: str) -> str:
    """*text* without the halves of characters that a broken file name or answer leaves, which no channel can send."""
    return text.encode(errors="replace").decode()


def _common(each: Iterable[dict[str, str]]) -> dict[str, str]:
    first, *others = each
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def shown_time(at: datetime) -> str:
    """In UTC, to the second; empty for `NEVER`, and for what is past the calendar in UTC."""
    try:
        return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if at.year > 1 else ""
    except OverflowError:
        return ""


def _revealed(secret: SecretStr | None) -> str:
    return secret.get_secret_value().strip() if secret else ""


def _without(text: str, *secrets: str) -> str:
    """*text*, which a server made, without *secrets* and without the long parts of those that are addresses."""
    for secret in secrets:
        for part in (secret, *re.split(r"[ /?&=@]", secret)):
            text = text.replace(part, "***") if len(part) >= 8 else text
    return text


CHANNELS: dict[str, Callable[[Settings, Message], None]] = {
    "console": _console,
    "email": _email,
    "webhook": _webhook,
    "slack": _slack,
    "teams": _teams,
}
