"""Is a service alive? One cheap question to each, none of which imports dagster."""

import http.client
import json
from contextlib import closing
from dataclasses import dataclass

from pipeline.operate.database import connect
from pipeline.settings import Settings

ANSWER_SECONDS = 5.0
DO_NOT_LOAD = "the definitions do not load"


@dataclass(frozen=True)
class Answer:
    """What a service said. Alive with a problem: it runs, and starting it again would not help."""

    is_alive: bool
    problem: str = ""


def probe_code_server(host: str, port: int) -> Answer:
    """Ask for gRPC health, then through to the process that holds the definitions."""
    import grpc  # type: ignore[import-untyped]

    # Raw bytes: both requests are empty messages, and Dagster's own stubs cost an import of dagster.
    with grpc.insecure_channel(f"{host}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            health = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=ANSWER_SECONDS)
            if health != b"\x08\x01":
                return Answer(False, "not serving")
            reply = channel.unary_unary("/api.DagsterApi/ListRepositories")(b"", timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            return Answer(False, f"{error.code().name.lower()}: {error.details()}")
    content = json.loads(reply[reply.index(b"{") :])
    if content["__class__"] == "ListRepositoriesResponse":
        return Answer(True)
    while content.get("cause"):
        content = content["cause"]
    return Answer(True, f"{DO_NOT_LOAD}: {content.get('message', '').strip()}")


def probe_webserver(host: str, port: int) -> Answer:
    """Ask for /server_info, which needs no database."""
    with closing(http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)) as connection:
        try:
            connection.request("GET", "/server_info")
            response = connection.getresponse()
            if response.status == 200 and "dagster_webserver_version" in json.loads(response.read()):
                return Answer(True)
            return Answer(False, f"HTTP {response.status} on port {port}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            return Answer(False, str(error))


def probe_exporter(host: str, port: int) -> Answer:
    """Ask whether its loop is alive, then whether its figures are fresh."""
    said = ""
    for path in ("/healthz", "/readyz"):
        with closing(http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)) as connection:
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                said = response.read(200).decode(errors="replace").strip()
            except (OSError, http.client.HTTPException) as error:
                return Answer(False, str(error))
        if response.status != 200:
            return Answer(path == "/readyz", said)
    return Answer(True)


def probe_daemon(settings: Settings, *, since: float) -> Answer:
    """Read the heartbeats in the database; only those after *since* (Unix time) are of the present process."""
    import psycopg2

    statement = """SELECT extract(epoch FROM max(timestamp)::timestamptz), extract(epoch FROM now() - min(timestamp)::timestamptz)
        FROM daemon_heartbeats
        WHERE daemon_id = (SELECT daemon_id FROM daemon_heartbeats ORDER BY timestamp DESC LIMIT 1)"""
    try:
        with closing(connect(settings)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            newest, oldest_age = cursor.fetchone() or (None, None)
    except psycopg2.Error as error:
        return Answer(False, f"its heartbeats cannot be read: {error}".strip())
    if newest is None or float(newest) < since:
        return Answer(False, "no heartbeat yet")
    if float(oldest_age) > settings.alert_daemon_silent_seconds:
        return Answer(False, f"a part of it has been silent for {float(oldest_age):.0f} s")
    return Answer(True)


def probe_database(settings: Settings) -> Answer:
    """Open a connection."""
    import psycopg2

    try:
        connect(settings).close()
    except psycopg2.Error as error:
        return Answer(False, str(error).strip())
    return Answer(True)
