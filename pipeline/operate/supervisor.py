"""The parent of code server, daemon, webserver and exporter: starts them, watches them, starts them again, ends them.

Runs as a process of its own (``python -m pipeline.operate.supervisor``) or in the foreground; `services` is how
people reach it. It holds a file lock while it lives and keeps `record_file` true, and nothing else knows its state.

A service's memory is that of its process and its direct children. Run processes are the code server's grandchildren,
so they do not count: a run is bounded by DuckDB's limit. They do end with it: a code server that is started again
first ends its runs, which run retries then start anew.
"""

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import psycopg2

from pipeline.cgroup import Usage
from pipeline.errors import MillraceError, ServiceError
from pipeline.operate import service_memory
from pipeline.operate.database import connect, embedded_url, with_database
from pipeline.operate.instance import HOST, LOCATION, fail_runs, launched_runs
from pipeline.operate.probes import (
    Answer,
    probe_code_server,
    probe_daemon,
    probe_database,
    probe_exporter,
    probe_webserver,
)
from pipeline.operate.processes import end_processes, memory_bytes
from pipeline.operate.retention import LOG_BYTES, rotate_log
from pipeline.settings import GIB, Settings

log = logging.getLogger(__name__)

CODE_SERVER, DAEMON, WEBSERVER, EXPORTER = SERVICES = ("code-server", "daemon", "webserver", "exporter")
NOT_YET = ("stopped", "starting", "waiting")
DATABASE = "database"
SILENT_SECONDS = 180.0  # without an answer a service is started again
RESTARTS, RESTART_WINDOW_SECONDS = 5, 600.0

# The kernel ends a service with its supervisor. Not by preexec_fn: that runs Python between fork and exec.
# Where there is no prctl (macOS), a killed supervisor's services are ended by the next `up` or `down`.
WITH_PARENT = "import ctypes,os,sys; getattr(ctypes.CDLL(None), 'prctl', max)(1, 15); os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"


@dataclass(frozen=True)
class ServiceStatus:
    """How one service is. `since` is when `state` began, ISO 8601 in UTC."""

    name: str
    state: str = "stopped"  # starting, healthy, unhealthy, waiting (to be started again), failed (given up)
    detail: str = ""
    pid: int | None = None
    restarts: int = 0
    memory_bytes: int = 0
    since: str = ""


@dataclass
class Child:
    """What the supervisor knows about one service."""

    name: str
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0  # Unix time
    answered: float = 0  # Unix time of the last good answer, or of the start
    start_at: float = 0  # not before, Unix time
    restarts: list[float] = field(default_factory=list)
    status: ServiceStatus = field(init=False)

    def __post_init__(self) -> None:
        self.status = ServiceStatus(self.name)

    def become(self, state: str, detail: str = "", memory_bytes: int = 0) -> None:
        """Set the status; a new state is logged."""
        old = self.status
        changed = (state, detail) != (old.state, old.detail)
        since = datetime.now(UTC).isoformat(timespec="seconds") if state != old.state else old.since
        pid = self.process.pid if self.process else None
        self.status = ServiceStatus(self.name, state, detail, pid, len(self.restarts), memory_bytes, since)
        if changed:
            log.info("%s is %s%s", self.name, state, f": {detail}" if detail else "")


class Supervisor:
    """Keeps the services of *settings* (as configured, before `with_database`) running until `stop` is set."""

    def __init__(self, settings: Settings, module: str, *, until_failure: bool = False) -> None:
        self.settings, self.module, self.until_failure = settings, module, until_failure
        self.stop = threading.Event()
        self.connected = with_database(settings)
        self.database = Child(DATABASE)
        self.children = {name: Child(name) for name in SERVICES}
        self._lost_runs: list[str] = []
        self._memory_told_at = 0.0
        self._log_day: date | None = None
        self._rotate_logs()

    def run(self) -> None:
        """Supervise until told to stop; ends every service before it returns.

        Raises:
            ServiceError: if a service was given up and this was asked for with *until_failure*.
        """
        next_watch = 0.0
        try:
            while not self.stop.is_set():
                for child in self.children.values():
                    self._keep_running(child)
                if time.time() >= next_watch:
                    self._watch()
                    starting = any(child.status.state == "starting" for child in self.children.values())
                    next_watch = time.time() + (0.5 if starting else 5)
                self._write_record()
                failed = [child.status for child in self.children.values() if child.status.state == "failed"]
                if failed and self.until_failure:
                    raise ServiceError(f"{failed[0].name}: {failed[0].detail}")
                self.stop.wait(0.25)
        finally:
            end_processes(self.settings)
            for child in self.children.values():
                if child.process:
                    child.process.wait()
            record_file(self.settings).unlink(missing_ok=True)

    def _keep_running(self, child: Child) -> None:
        if child.process and child.process.poll() is not None:
            code = child.process.returncode
            self._restart(child, f"signal {-code}" if code < 0 else f"exit code {code}")
        if child.process or child.status.state == "failed" or time.time() < child.start_at:
            return
        # The daemon reads the definitions once a minute: started too early it would be blind for one.
        if child.name != CODE_SERVER and self.children[CODE_SERVER].status.state in NOT_YET:
            return
        if child.name == EXPORTER and self.children[WEBSERVER].status.state in NOT_YET:  # which it asks first
            return
        if child.name == CODE_SERVER:
            try:
                self._lost_runs = launched_runs(self.connected)
            except psycopg2.Error:  # the database's own watch says what is wrong
                return
        command = commands(self.settings, self.module)[child.name]
        with log_file(self.settings, child.name).open("ab") as output:
            child.process = subprocess.Popen(
                [sys.executable, "-c", WITH_PARENT, str(os.getpid()), sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.settings.log_path,  # `code-server start` makes it the first place to import from
                env={
                    **os.environ,
                    **self.connected.child_environment(),
                    "MILLRACE_SERVICE": child.name,
                    "MILLRACE_UI_PORT": str(self.settings.ui_port),
                    "MILLRACE_METRICS_PORT": str(self.settings.metrics_port),
                    "PYTHONUNBUFFERED": "1",
                    "no_grpc_proxy": HOST,
                },
            )
        child.started = child.answered = time.time()
        child.become("starting")

    def _restart(self, child: Child, why: str) -> None:
        end_processes(self.settings, child.name, grace_seconds=0)  # its runs are failed when they can be retried
        if child.process:
            child.process.wait()
        child.process = None
        now = time.time()
        child.restarts.append(now)
        recent = [at for at in child.restarts if at > now - RESTART_WINDOW_SECONDS]
        if len(recent) > RESTARTS:
            last = f"gave up after {RESTARTS} restarts in {RESTART_WINDOW_SECONDS / 60:.0f} minutes, the last for {why}"
            child.become("failed", f"{last}; see {log_file(self.settings, child.name)}")
        else:
            child.start_at = now + 2 ** (len(recent) - 1)
            child.become("waiting", why)

    def _fail_lost_runs(self) -> None:
        try:
            fail_runs(self.connected, self._lost_runs)
        except Exception:  # whatever is wrong there, the services are worth more
            log.exception("Marking lost runs as failed")
        else:
            log.warning("%d run(s) had ended with the code server and are marked as failed", len(self._lost_runs))
        self._lost_runs = []

    def _watch(self) -> None:
        """Ask every service how it is, once."""
        self._watch_database()
        for child in self.children.values():
            if child.process:
                self._watch_service(child)
        if time.time() - self._memory_told_at >= service_memory.INTERVAL_SECONDS:
            self._tell_memory()
        self._rotate_logs()

    def _tell_memory(self) -> None:
        if self.database.status.state != "healthy":
            return
        cap = int(self.settings.service_memory_gib * GIB)
        try:
            with closing(connect(self.connected)) as connection:
                for child in self.children.values():
                    if child.status.memory_bytes:
                        usage = Usage(working_set=child.status.memory_bytes, limit=cap)
                        service_memory.tell(connection, child.name, HOST, usage)
        except psycopg2.Error as error:  # the database's own watch says what is wrong
            log.info("Telling the memory of services: %s", error)
        self._memory_told_at = time.time()

    def _rotate_logs(self) -> None:
        """By size, and by day, so that no line grows older than the files' retention."""
        now = datetime.now(UTC)
        over_bytes = LOG_BYTES if now.date() == self._log_day else 0
        self._log_day = now.date()
        for name in ("supervisor", *SERVICES):
            rotate_log(log_file(self.settings, name), now=now, over_bytes=over_bytes)

    def _watch_database(self) -> None:
        if self.settings.is_embedded and embedded_url(self.settings) is None:
            try:
                with_database(self.settings)
            except MillraceError as error:
                self.database.become("unhealthy", str(error))
                return
            self.database.restarts.append(time.time())
        answer = probe_database(self.connected)
        self.database.become("healthy" if answer.is_alive else "unhealthy", answer.problem)

    def _watch_service(self, child: Child) -> None:
        answer = self._probe(child)
        memory = memory_bytes(child.process.pid) if child.process else 0
        cap = self.settings.service_memory_gib
        if memory > cap * GIB:
            why = f"used {memory / GIB:.2f} GiB, over its {cap:g} GiB (MILLRACE_SERVICE_MEMORY_GIB)"
            self._restart(child, why)
            return
        now = time.time()
        if answer.is_alive:
            child.answered = now
        elif now > child.answered + SILENT_SECONDS and self.database.status.state == "healthy":
            self._restart(child, f"no answer for {SILENT_SECONDS:.0f} s ({answer.problem})")
            return
        if answer.is_alive and child.name == CODE_SERVER and self._lost_runs:
            self._fail_lost_runs()
        if not answer.problem:
            child.become("healthy", memory_bytes=memory)
        elif answer.is_alive or child.status.state != "starting":
            child.become("unhealthy", answer.problem, memory)

    def _probe(self, child: Child) -> Answer:
        if child.name == CODE_SERVER:
            return probe_code_server(HOST, self.settings.code_server_port)
        if child.name == WEBSERVER:
            return probe_webserver(HOST, self.settings.ui_port)
        if child.name == EXPORTER:
            return probe_exporter(HOST, self.settings.metrics_port)
        return probe_daemon(self.connected, since=child.started)

    def _write_record(self) -> None:
        statuses = [self.database.status, *(child.status for child in self.children.values())]
        text = json.dumps({"supervisor": os.getpid(), "services": [asdict(status) for status in statuses]})
        file = record_file(self.settings)
        if not file.exists() or file.read_text() != text:
            partial = file.with_suffix(".new")
            partial.write_text(text)
            partial.replace(file)


def commands(settings: Settings, module: str) -> dict[str, list[str]]:
    """Arguments of Python for each service. *module* holds the Dagster definitions."""
    workspace = str(settings.dagster_home / "workspace.yaml")
    port, ui_port = str(settings.code_server_port), str(settings.ui_port)
    code_server = ["-m", "dagster", "code-server", "start", "-m", module, "-h", HOST, "-p", port]
    return {
        CODE_SERVER: [*code_server, "--location-name", LOCATION, "--use-python-environment-entry-point"],
        DAEMON: ["-m", "dagster._daemon", "run", "-w", workspace],
        WEBSERVER: ["-m", "pipeline", "serve", "webserver", "-h", HOST, "-p", ui_port, "-w", workspace],
        EXPORTER: ["-m", "pipeline", "serve", "metrics", "--host", HOST],
    }


def log_file(settings: Settings, name: str) -> Path:
    """Where *name* (a service or ``supervisor``) writes."""
    return settings.log_path / f"{name}.log"


def record_file(settings: Settings) -> Path:
    """The supervisor's last word on every service, as JSON; absent when it does not run."""
    return settings.state_dir / "services.json"


@contextmanager
def supervisor_lock(settings: Settings, *, patience_seconds: float = 0) -> Iterator[bool]:
    """Try to be the one supervisor of this state folder: False if another is. The kernel frees it in any case.

    Who only looks holds it for a moment, hence the patience of who wants it.
    """
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_seconds
    with (settings.state_dir / "services.lock").open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                yield False
            else:
                yield True
            return


def main(module: str) -> int:
    """Supervise in the background: returns in the parent once the lock is held."""
    settings = Settings.load()
    with supervisor_lock(settings, patience_seconds=1) as acquired:
        if not acquired:
            return 3  # the caller says so
        if os.fork():
            os._exit(0)  # the child keeps the lock
        os.setsid()
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        logging.Formatter.converter = time.gmtime
        try:
            supervisor = Supervisor(settings, module)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: supervisor.stop.set())
            supervisor.run()
        except Exception:  # nobody above to hear of it
            log.exception("The supervisor ends")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
