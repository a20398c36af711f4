"""What the monitor saw, for who is not the exporter: from the table of its samples, or from its port.

A run's pod reaches the database and not the exporter (the chart's network policies), so the assets ``health/<service>`` read the
table. A person at a terminal asks the port. How a sample and an answer look is the exporter's to say: `pipeline.exporter.monitor`.
"""

import http.client
import json
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlencode

from pipeline.errors import ConfigError, ServiceError
from pipeline.operate.database import connect
from pipeline.operate.instance import HOST
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.exporter.service_health import State

T = TypeVar("T")
SERVICES = ("database", "lake", "webserver", "daemon", "code_location", "exporter")
PROCESSES = {"code-server": "code_location"}  # as its process is called
FRESH_INTERVALS = 3  # a sample older than this many is no news
ANSWER_SECONDS = 20.0


@dataclass(frozen=True)
class Health:
    """One service by the newest sample; `unknown` where that is too old, or there is none. `since` is a Unix time."""

    service: str
    state: 'Literal["unknown"] | State'
    since: float | None = None
    reason: str = ""
    parts: tuple[str, ...] = ()  # of a service that has several: those that are not up, with their reasons
    sample_age_seconds: float | None = None
    memory_bytes: float | None = None


def read_health(settings: Settings) -> dict[str, Health]:
    """Every service, from one row of the table.

    Raises:
        ServiceError: if the database does not answer.
    """
    import psycopg2

    from pipeline.exporter.samples import load

    try:
        with closing(connect(settings)) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT sample, extract(epoch FROM now() - at)::float8 FROM millrace.monitor_samples ORDER BY at DESC LIMIT 1"
            )
            row = cursor.fetchone()
    except psycopg2.Error as error:
        raise ServiceError(f"Reading the monitor's samples: {str(error).strip()}") from error
    sample = load(row[0]) if row else None
    if row is None or sample is None:
        none = "the exporter has not stored a sample yet"
        return {service: _unknown(service, none, None) for service in SERVICES}
    age = float(row[1])
    if age > FRESH_INTERVALS * sample.present.get("interval_seconds", settings.monitor_interval_seconds):
        old = f"the newest sample of the exporter is {timedelta(seconds=round(age))} old"
        return {service: _unknown(service, old, age) for service in SERVICES}
    memory = {
        PROCESSES.get(each["service"], each["service"]): each["memory_working_set_bytes"]
        for each in sample.present["service_memory"]
    }
    return {service: _health(service, sample.present["services"], age, memory.get(service)) for service in SERVICES}


def _unknown(service: str, reason: str, age: float | None) -> Health:
    """Without news the exporter is down, and of the others nothing is known."""
    return Health(service, "down" if service == "exporter" else "unknown", reason=reason, sample_age_seconds=age)


def _health(service: str, found: Sequence[dict[str, Any]], age: float, memory: float | None) -> Health:
    """The worst of its parts; that of each service comes first in a sample, so that a cut list has it."""
    from pipeline.exporter.service_health import worst

    parts = [each for each in found if each["service"] == service]
    if not parts:
        return Health(service, "unknown", reason="the sample does not tell of it", sample_age_seconds=age)
    state = worst([each["state"] for each in parts])
    those = [each for each in parts if each["state"] == state]
    since = max(each["since"] for each in those) if state == "up" else min(each["since"] for each in those)
    bad = tuple(
        f"{each['name']} is {each['state']}: {each['reason']}"
        for each in parts
        if each["state"] != "up" and each["name"]
    )
    return Health(service, state, since, those[0]["reason"], bad, age, memory)


def ask_exporter(settings: Settings, path: str, kind: type[T], **query: float) -> T:
    """What the exporter on this machine answers to ``GET path?query``: JSON that is a *kind*.

    Raises:
        ServiceError: if nothing answers on the exporter's port, or it has nothing to tell yet.
        ConfigError: if it does not accept the query.
    """
    port = settings.metrics_port
    doing = f"Asking the exporter at http://{HOST}:{port}{path}"
    with closing(http.client.HTTPConnection(HOST, port, timeout=ANSWER_SECONDS)) as connection:
        try:
            connection.request("GET", f"{path}?{urlencode({name: f'{value:g}' for name, value in query.items()})}")
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(
                f"{doing}: {error}. `millrace up` starts it, MILLRACE_METRICS_PORT is its port; that of a cluster comes to "
                f"this port with `kubectl port-forward deployment/<release>-exporter {port}`."
            ) from error
    text = body.decode(errors="replace").strip()
    if response.status == 400:
        raise ConfigError(f"{doing}: {text}")
    if response.status == 200:
        with suppress(ValueError):
            answer = json.loads(text)
            if isinstance(answer, kind):
                return answer
    hint = "" if response.status == 503 else " Is that the exporter's port? MILLRACE_METRICS_PORT sets it."
    raise ServiceError(f"{doing}: HTTP {response.status}: {text[:300]}{hint}")
