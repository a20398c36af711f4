"""Making, listing and ending silences: in our own table, or in Alertmanager where there is one."""

import getpass
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import ConfigError, ServiceError
from pipeline.exporter.silences import COLUMNS, MAX_SILENCES, Silence
from pipeline.notify import shown_server
from pipeline.operate.database import connect
from pipeline.settings import Settings

if TYPE_CHECKING:
    import psycopg2.extensions

ANSWER_SECONDS = 10.0
KEPT_DAYS = 30  # after their end, for who asks what was silenced
PREFIX = "Millrace"  # of the names of alerts; who silences one may leave it out


class Silences(Protocol):
    """Where silences are kept. Each method raises `ServiceError` if that does not answer."""

    def add(self, alert: str, labels: Mapping[str, str], *, duration: timedelta, comment: str) -> str: ...
    def list(self) -> Sequence[Silence]: ...
    def remove(self, silence_id: str) -> None: ...


def silences(settings: Settings) -> Silences:
    """Those that hold for the alerts of this installation.

    Raises:
        ConfigError: if nothing that this process knows of would heed them.
    """
    if settings.alertmanager_url:
        return InAlertmanager(settings.alertmanager_url, settings.own_labels)
    if settings.alerts_evaluate:
        return InDatabase(settings)
    raise ConfigError(
        "Silences: Alertmanager keeps them here, and its address is not known. Set MILLRACE_ALERTMANAGER_URL, or run the "
        "command where it is set: `kubectl exec deployment/<release>-exporter -- millrace alerts …`. "
        "MILLRACE_ALERTS_EVALUATE=true is for an exporter that evaluates the alerts itself."
    )


class InDatabase:
    """The table ``millrace.alert_silences``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def add(self, alert: str, labels: Mapping[str, str], *, duration: timedelta, comment: str) -> str:
        alert = _evaluated(alert)
        with self._cursor("Adding a silence") as cursor:
            cursor.execute(
                "DELETE FROM millrace.alert_silences WHERE ends_at < now() - make_interval(days => %s)", [KEPT_DAYS]
            )
            cursor.execute("SELECT count(*) FROM millrace.alert_silences WHERE ends_at > now()")
            if (cursor.fetchone() or (0,))[0] >= MAX_SILENCES:
                raise ConfigError(f"Adding a silence: there are {MAX_SILENCES:,} already. Remove some of them.")
            cursor.execute(
                "INSERT INTO millrace.alert_silences (alert, labels, comment, created_by, ends_at) "
                "VALUES (%s, %s, %s, %s, now() + %s) RETURNING id::text",
                [alert, json.dumps(dict(labels)), comment, _user(), duration],
            )
            return str((cursor.fetchone() or ("",))[0])

    def list(self) -> list[Silence]:
        with self._cursor("Listing the silences") as cursor:
            cursor.execute(f"SELECT {COLUMNS} FROM millrace.alert_silences WHERE ends_at > now() ORDER BY ends_at, id")
            return [Silence(*row) for row in cursor.fetchall()]

    def remove(self, silence_id: str) -> None:
        with self._cursor("Removing a silence") as cursor:
            cursor.execute(
                "UPDATE millrace.alert_silences SET ends_at = now() WHERE id::text = %s AND ends_at > now()",
                [silence_id],
            )
            if cursor.rowcount == 0:
                raise _unknown(silence_id)

    @contextmanager
    def _cursor(self, doing: str) -> "Iterator[psycopg2.extensions.cursor]":
        import psycopg2.errors

        try:
            with closing(connect(self._settings)) as connection, connection, connection.cursor() as cursor:
                yield cursor
        except psycopg2.errors.UndefinedTable:
            raise ServiceError(f"{doing}: the table is not there yet. `millrace migrate` makes it.") from None
        except psycopg2.Error as error:
            raise ServiceError(f"{doing}: {str(error).strip()}") from error


class InAlertmanager:
    """Alertmanager's own, by its API v2, as far as they can hold for alerts with the labels *own*."""

    def __init__(self, url: str, own: Mapping[str, str] | None = None) -> None:
        self._url, self._own = url.rstrip("/"), dict(own or {})
        try:
            self._server = shown_server(url)
        except ValueError:
            raise _no_address() from None

    def add(self, alert: str, labels: Mapping[str, str], *, duration: timedelta, comment: str) -> str:
        now = datetime.now(UTC)
        if others := [f"{name}={value}" for name, value in labels.items() if self._own.get(name, value) != value]:
            raise ConfigError(
                f"Adding a silence: no alert of this installation has {', '.join(others)}. Its own labels, by "
                f"MILLRACE_ALERT_LABELS, are {', '.join(f'{name}={value}' for name, value in self._own.items())}."
            )
        # Rules that the installation adds need not begin with that word: either name may be meant.
        named = {"name": "alertname", "value": alert, "isRegex": False, "isEqual": True}
        if not alert.startswith(PREFIX):
            named |= {"value": f"({PREFIX})?{re.escape(alert)}", "isRegex": True}
        answer = self._ask(
            "POST",
            "/api/v2/silences",
            {
                "matchers": [named, *({"name": name, "value": value, "isRegex": False, "isEqual": True}
                                      for name, value in {**labels, **self._own}.items())],
                "startsAt": now.isoformat(),
                "endsAt": (now + duration).isoformat(),
                "createdBy": _user(),
                "comment": comment or "By `millrace alerts silence`.",  # it wants one
            },
        )  # fmt: skip
        return str(answer["silenceID"])

    def list(self) -> list[Silence]:
        found = []
        for each in self._ask("GET", "/api/v2/silences"):
            if each["status"]["state"] == "expired" or self._is_anothers(each["matchers"]):
                continue
            # What a person made elsewhere may say more than ours: `!=`, `=~`, no name at all.
            labels = {
                matcher["name"]: matcher["value"] if _is_plain(matcher) else f"{_operator(matcher)}{matcher['value']}"
                for matcher in each["matchers"]
            }
            alert = labels.pop("alertname", "")
            ends_at = datetime.fromisoformat(each["endsAt"])
            found.append(Silence(each["id"], alert, labels, each["comment"], each["createdBy"], ends_at))
        return sorted(found, key=lambda silence: silence.ends_at)

    def remove(self, silence_id: str) -> None:
        if silence_id not in {silence.id for silence in self.list()}:  # it answers 200, 422 or 500 to those
            raise _unknown(silence_id)
        self._ask("DELETE", f"/api/v2/silence/{silence_id}")

    def _is_anothers(self, matchers: Sequence[dict[str, Any]]) -> bool:
        """True if it asks for another value of an own label; one that asks for none mutes this installation too."""
        return any(
            _is_plain(matcher) and self._own.get(matcher["name"], matcher["value"]) != matcher["value"]
            for matcher in matchers
        )

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        import httpx2

        doing = f"Asking Alertmanager at {self._server} for {method} {path}"
        try:
            answer = httpx2.request(method, f"{self._url}{path}", json=body, timeout=ANSWER_SECONDS)
        except httpx2.InvalidURL:
            raise _no_address() from None
        except httpx2.HTTPError as error:
            raise ServiceError(f"{doing}: {error}. Look whether it runs, and at MILLRACE_ALERTMANAGER_URL.") from error
        if answer.status_code != 200:
            said = f"{doing}: it answered {answer.status_code} {' '.join(answer.text[:200].split())}"
            raise (ConfigError if answer.status_code in (400, 422) else ServiceError)(said)
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise ServiceError(f"{doing}: the answer is not JSON. Look at MILLRACE_ALERTMANAGER_URL.") from error


def _no_address() -> ConfigError:
    """Without the address: it may have a password."""
    return ConfigError(
        "Alertmanager's address is none of http(s). It looks like http://alertmanager:9093. Correct MILLRACE_ALERTMANAGER_URL."
    )


def _unknown(silence_id: str) -> ConfigError:
    return ConfigError(f"There is no silence {silence_id}, or it has ended. `millrace alerts silences` lists them.")


def _evaluated(alert: str) -> str:
    """The whole name of *alert*.

    Raises:
        ConfigError: if it is none of those that the exporter evaluates.
    """
    from pipeline.exporter.alert_rules import RULES

    names = [rule.name for rule in RULES]
    found = alert if alert.startswith(PREFIX) else f"{PREFIX}{alert}"
    if found not in names:
        raise ConfigError(
            f"There is no alert {alert!r} that the exporter evaluates here. There are: {', '.join(names)}."
        )
    return found


def _is_plain(matcher: dict[str, Any]) -> bool:
    return not matcher["isRegex"] and bool(matcher.get("isEqual", True))


def _operator(matcher: dict[str, Any]) -> str:
    return ("=" if matcher.get("isEqual", True) else "!") + ("~" if matcher["isRegex"] else "=")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user need not have a name
        return "unknown"
