"""A connector as a child process that cannot outlive, outgrow or outwait its reader.

What its lines mean is `airbyte_messages`; which program to run is `airbyte_connectors`.
"""

import fcntl
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from pipeline.errors import SourceRejected, SourceUnavailable

BLOCK_BYTES = 1 << 20
TAIL_BYTES = 4000
START_SECONDS = 60  # of silence more before the first word: where other work runs, a program takes long to start
# Third-party code sees none of our passwords: only what a program needs to start and to reach the network.
_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|TZ|SSL_CERT_\w+|(REQUESTS|CURL)_CA_BUNDLE|AIRBYTE_\w+|\w+_proxy", re.I
)
# The kernel ends the connector when we die, kill -9 included. A preexec_fn would do the same, unsafely beside threads.
_STARTER = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[2], sys.argv[2:])"


class Child:
    """A program in a process group of its own; leaving the block ends the whole group.

    *doing* starts every message, *given* is the file it reads as standard input, *masked* are texts no message shows.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        doing: str,
        scratch: Path,
        environment: Mapping[str, str] | None = None,
        given: Path | None = None,
        masked: Sequence[str] = (),
        idle_timeout_seconds: float,
        timeout_seconds: float,
    ) -> None:
        self.doing, self.masked = doing, masked
        self.idle_timeout_seconds, self.timeout_seconds = idle_timeout_seconds, timeout_seconds
        self._silence_seconds = idle_timeout_seconds + START_SECONDS
        self._deadline = time.monotonic() + timeout_seconds
        self._tail = bytearray()
        starter = [sys.executable, "-ISc", _STARTER, str(os.getpid())] if sys.platform == "linux" else []
        try:
            with (given or Path(os.devnull)).open("rb") as stdin:
                self.process = subprocess.Popen(
                    [*starter, *command],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    cwd=scratch,
                    env={**connector_environment(scratch), **(environment or {})},
                    start_new_session=True,
                )
        except OSError as error:
            raise SourceRejected(f"{doing}: {command[0]} does not start: {error.strerror}. Install it anew.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()

    def blocks(self) -> Iterator[bytes]:
        """What the program writes to its standard output, as it comes, until it has ended.

        Raises:
            SourceUnavailable: if it stays silent or runs for too long.
        """
        stdout, stderr = self.process.stdout, self.process.stderr
        assert stdout and stderr  # noqa: PT018  (both are pipes)
        with suppress(OSError, AttributeError):  # fewer switches between writer and reader; Linux only
            fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, BLOCK_BYTES)
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            selector.register(stderr, selectors.EVENT_READ)
            last = time.monotonic()
            while selector.get_map():
                ready = selector.select(timeout=0.5)
                now = time.monotonic()
                if ready:
                    last, self._silence_seconds = now, self.idle_timeout_seconds
                elif self.process.poll() is not None:
                    break  # a grandchild may hold the pipes open
                self._check_time(now, now - last)
                for key, _ in ready:
                    block = os.read(key.fd, BLOCK_BYTES)
                    if not block:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is stdout:
                        yield block
                        last = time.monotonic()  # the time until here was ours
                    else:
                        self._tail = (self._tail + block)[-TAIL_BYTES:]
        self._await_end(last)

    def _await_end(self, last: float) -> None:
        while True:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2)
                return
            now = time.monotonic()
            self._check_time(now, now - last)

    def _check_time(self, now: float, idle_seconds: float) -> None:
        if idle_seconds > self._silence_seconds:
            raise SourceUnavailable(
                f"{self.doing}: the connector was silent for {self._silence_seconds:g} s and was ended.{self.last_words()} "
                "Look at what it waits for, or raise idle_timeout_seconds."
            )
        if now > self._deadline:
            raise SourceUnavailable(
                f"{self.doing}: the connector ran for more than {self.timeout_seconds:g} s and was ended.{self.last_words()} "
                "Look at what it does, or raise timeout_seconds."
            )

    @property
    def exit_code(self) -> int:
        """How the program ended; negative is a signal."""
        return self.process.wait()

    def last_words(self) -> str:
        """The end of its standard error as a sentence, without secrets; empty if it wrote none."""
        text = self.hide(self._tail.decode(errors="replace")).strip()
        return f" Its last words: {text[-1000:]}" if text else ""

    def hide(self, text: str) -> str:
        """*text* with the masked texts starred out."""
        for secret in self.masked:
            text = text.replace(secret, "****")
        return text


def connector_environment(scratch: Path) -> dict[str, str]:
    """The environment of a program that is not ours; its temporary files go to *scratch*."""
    passed = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    return {**passed, "TMPDIR": str(scratch), "PYTHONIOENCODING": "utf-8"}


@contextmanager
def private_folder(parent: Path) -> Iterator[Path]:
    """A folder only this user can read, removed at the end; those of killed processes are removed now."""
    parent.mkdir(parents=True, exist_ok=True)
    for other in parent.glob("connector-*"):
        with suppress(OSError), (other / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other)
    folder = Path(tempfile.mkdtemp(prefix="new-connector-", dir=parent))  # mode 0700
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = folder.rename(parent / folder.name.removeprefix("new-"))  # with its lock held, hence not removed above
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Within the block SIGTERM raises SystemExit, so that ``finally`` runs; other handlers are left alone."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
