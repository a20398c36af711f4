"""The embedded platform's services as people start, end and see them: `millrace up`, `down`, `status`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from pipeline.errors import ServiceError
from pipeline.locks import file_lock
from pipeline.operate.database import embedded_url, stop_embedded, with_database
from pipeline.operate.instance import HOST, ensure_instance
from pipeline.operate.probes import DO_NOT_LOAD
from pipeline.operate.processes import GRACE_SECONDS, await_exit, end_processes
from pipeline.operate.supervisor import (
    DATABASE,
    SERVICES,
    ServiceStatus,
    Supervisor,
    log_file,
    record_file,
    supervisor_lock,
)
from pipeline.settings import Settings

DEFINITIONS = "pipeline.definitions"
UP_SECONDS = 180.0

Echo = Callable[[str], object]


def up(
    settings: Settings, *, foreground: bool = False, echo: Echo = lambda _: None, module: str = DEFINITIONS
) -> list[ServiceStatus]:
    """Start database, code server, daemon, webserver and exporter, and return when all are healthy.

    Running already, they are left as they are. In the *foreground* this process is their supervisor: it returns when
    interrupted or terminated, with everything but the database ended. *module* holds the Dagster definitions.

    Raises:
        ServiceError: if a port is taken, or a service does not become healthy; then all are ended again.
    """
    settings = _as_configured(settings)
    if foreground:
        with supervisor_lock(settings, patience_seconds=1) as alone:
            if alone:
                _make_ready(settings)
                return _stay(settings, module, echo)
    with file_lock(settings.state_dir / "up.lock"):
        if _is_supervised(settings):
            echo("Already running.")
        else:
            _make_ready(settings)
            _start_supervisor(settings, module)
        found = _wait_until_healthy(settings)
    echo(f"The UI is at {ui_address(settings)}; `millrace down` ends it.")
    return found


def down(settings: Settings, *, echo: Echo = lambda _: None) -> None:
    """End the services and the embedded database, and what a killed supervisor left; nothing to end is fine.

    Runs under way are told to stop and are marked as failed.
    """
    settings = _as_configured(settings)
    ended = _end_supervisor(settings)
    ended = end_processes(settings) > 0 or ended
    record_file(settings).unlink(missing_ok=True)
    ended = stop_embedded(settings) or ended
    echo("Stopped." if ended else "Nothing was running.")


def status(settings: Settings) -> list[ServiceStatus]:
    """The database and each service, as the supervisor last saw them (it looks every five seconds)."""
    settings = _as_configured(settings)
    record = _record(settings) if _is_supervised(settings) else {}
    if record:
        return [ServiceStatus(**fields) for fields in record["services"]]
    running = settings.is_embedded and embedded_url(settings) is not None
    database = ServiceStatus(DATABASE, "healthy") if running else ServiceStatus(DATABASE)
    return [database, *(ServiceStatus(name) for name in SERVICES)]


def ui_address(settings: Settings) -> str:
    """Where a browser on this machine finds the UI."""
    return f"http://localhost:{settings.ui_port}"


def _as_configured(settings: Settings) -> Settings:
    """*settings* from before `with_database`: the supervisor must know that the database is its own to restart."""
    url = settings.database_url
    if url and url.get_secret_value() == embedded_url(settings):
        return settings.model_copy(update={"database_url": None})
    return settings


def _make_ready(settings: Settings) -> None:
    ensure_instance(with_database(settings))
    end_processes(settings)  # of a supervisor that was killed, as is the record
    record_file(settings).unlink(missing_ok=True)
    _require_free_ports(settings)
    settings.log_path.mkdir(parents=True, exist_ok=True)


def _start_supervisor(settings: Settings, module: str) -> None:
    configured = {
        f"MILLRACE_{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in settings
        if value is not None
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    with log_file(settings, "supervisor").open("ab") as output:
        started = subprocess.run(
            [sys.executable, "-m", "pipeline.operate.supervisor", module],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=inherited | configured,
            check=False,
        )
    if started.returncode != 0:
        raise ServiceError(f"The supervisor did not start: {_tail(log_file(settings, 'supervisor'))}")


def _stay(settings: Settings, module: str, echo: Echo) -> list[ServiceStatus]:
    supervisor = Supervisor(settings, module, until_failure=True)
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    for number, _ in before:
        signal.signal(number, lambda *_: supervisor.stop.set())
    echo(f"The UI will be at {ui_address(settings)}; Ctrl-C ends it.")
    try:
        supervisor.run()
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    return status(settings)


def _wait_until_healthy(settings: Settings) -> list[ServiceStatus]:
    deadline = time.monotonic() + UP_SECONDS
    while True:
        supervised, found = _is_supervised(settings), status(settings)
        states = {service.state for service in found}
        if states == {"healthy"}:
            return found
        gone = not supervised or "failed" in states or time.monotonic() > deadline
        broken = [service for service in found if service.detail.startswith(DO_NOT_LOAD)]
        if broken:
            raise ServiceError(
                f"The services run, but {broken[0].detail}. Correct that, then reload the definitions in the UI at "
                f"{ui_address(settings)}; the whole traceback is in {log_file(settings, broken[0].name)}."
            )
        if gone:
            down(settings)
            sick = next((service for service in found if service.state not in ("healthy", "stopped")), None)
            log = log_file(settings, sick.name if sick and sick.name != DATABASE else "supervisor")
            what = f"{sick.name} is {sick.state}: {sick.detail}" if sick else "the supervisor ended"
            raise ServiceError(f"Starting the services: {what}. All are stopped again. {log} ends: {_tail(log)}")
        time.sleep(0.2)


def _end_supervisor(settings: Settings) -> bool:
    pid = _record(settings).get("supervisor")
    if pid is None or not _is_supervised(settings):
        return False
    for how, seconds in ((signal.SIGTERM, GRACE_SECONDS + 15), (signal.SIGKILL, 5)):
        with suppress(ProcessLookupError):
            os.kill(pid, how)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not _is_supervised(settings):
                await_exit(pid, seconds=5)  # it freed its lock and is on its way out
                return True
            time.sleep(0.1)
    return True


def _is_supervised(settings: Settings) -> bool:
    with supervisor_lock(settings) as free:
        return not free


def _record(settings: Settings) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(record_file(settings).read_text())
    except FileNotFoundError:
        return {}
    return record


def _require_free_ports(settings: Settings) -> None:
    for port, use, variable in (
        (settings.ui_port, "the UI", "MILLRACE_UI_PORT"),
        (settings.code_server_port, "the code server", "MILLRACE_CODE_SERVER_PORT"),
        (settings.metrics_port, "the exporter", "MILLRACE_METRICS_PORT"),
    ):
        holder = _listener(port)
        if holder:
            raise ServiceError(
                f"Port {port}, which {use} needs, is taken by {holder}. End that, or set {variable} to a free port."
            )


def _listener(port: int) -> str:
    """What listens on *port* of this machine, as far as this user may know; empty if nothing does."""
    import socket

    import psutil

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            with suppress(psutil.Error):
                for found in psutil.net_connections("tcp"):
                    if found.status == psutil.CONN_LISTEN and tuple(found.laddr)[1:] == (port,) and found.pid:
                        return f"process {found.pid} ({' '.join(psutil.Process(found.pid).cmdline())[:120]})"
            return "another process"
    return ""


def _tail(log: Path, characters: int = 1500) -> str:
    return log.read_text(errors="replace")[-characters:].strip() if log.exists() else "(nothing)"
