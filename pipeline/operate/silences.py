"""Making, listing and ending silences: in our own table, or in Alertmanager where there is one."""

import getpass
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import ConfigError, ServiceError
from pipeline.exporter.silences import COLUMNS, MAX_SILENCES, Silence
from pipeline.operate.database import connect
from pipeline.settings import Settings

if TYPE_CHECKING:
    import psycopg2.extensions

ANSWER_SECONDS = 10.0
KEPT_DAYS = 30  # after their end, for who asks what was silenced


class Silences(Protocol):
    """Where silences are kept. Each method raises `ServiceError` if that does not answer."""

    def add(self, alert: str, labels: Mapping[str, str], *, duration: timedelta, comment: str) -> str: ...
    def list(self) -> Sequence[Silence]: ...
    def remove(self, silence_id: str) -> None: ...


def silences(settings: Settings) -> Silences:
    """Those that hold for the alerts of this installation."""
    return InAlertmanager(settings.alertmanager_url) if settings.alertmanager_url else InDatabase(settings)


class InDatabase:
    """The table ``millrace.alert_silences``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def add(self, alert: str, labels: Mapping[str, str], *, duration: timedelta, comment: str) -> str:
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
    """Alertmanager's own, by its API v2."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def add(self, alert: str, labels: Mapping[str, str], *, duration: timedelta, comment: str) -> str:
        now = datetime.now(UTC)
        matchers = {"alertname": alert, **labels}
        answer = self._ask(
            "POST",
            "/api/v2/silences",
            {
                "matchers": [{"name": name, "value": value, "isRegex": False, "isEqual": True}
                             for name, value in matchers.items()],
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
            if each["status"]["state"] == "expired":
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

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        import httpx2

        doing = f"Asking Alertmanager at {self._url} for {method} {path}"
        try:
            answer = httpx2.request(method, f"{self._url}{path}", json=body, timeout=ANSWER_SECONDS)
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise ConfigError(f"{doing}: {error} Correct MILLRACE_ALERTMANAGER_URL.") from error
        except httpx2.HTTPError as error:
            raise ServiceError(f"{doing}: {error}. Look whether it runs, and at MILLRACE_ALERTMANAGER_URL.") from error
        if answer.status_code != 200:
            said = f"{doing}: it answered {answer.status_code} {' '.join(answer.text[:200].split())}"
            raise (ConfigError if answer.status_code in (400, 422) else ServiceError)(said)
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise ServiceError(f"{doing}: the answer is not JSON. Look at MILLRACE_ALERTMANAGER_URL.") from error


def _unknown(silence_id: str) -> ConfigError:
    return ConfigError(f"There is no silence {silence_id}, or it has ended. `millrace alerts silences` lists them.")


def _is_plain(matcher: dict[str, Any]) -> bool:
    return not matcher["isRegex"] and bool(matcher.get("isEqual", True))


def _operator(matcher: dict[str, Any]) -> str:
    return ("=" if matcher.get("isEqual", True) else "!") + ("~" if matcher["isRegex"] else "=")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user need not have a name
        return "unknown"
