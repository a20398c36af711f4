"""Environments of PyAirbyte and of connectors: how they are built, and whether they are whole.

Which of them a project needs is said by `airbyte_connectors.install`, the only caller that builds.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, SourceUnavailable
from pipeline.locks import file_lock

if TYPE_CHECKING:  # the image builds this environment from a few files, which no change of the settings changes
    from pipeline.settings import Settings

LOCK_FILE = Path(__file__).with_name("airbyte.lock")
INSTALL_SECONDS = 1800
_FINISHED = ".finished"  # written last: an environment without it is the rest of a killed install


def pyairbyte_python(settings: "Settings") -> Path:
    """The interpreter of PyAirbyte's environment.

    Raises:
        ConfigError: if `install` has not built it, or for other versions.
    """
    folder = settings.connectors_path / "pyairbyte"
    if not is_finished(folder, lock_checksum()):
        raise ConfigError(
            f"PyAirbyte is not installed (or another version) in {folder}. Run `millrace sources install`."
        )
    return folder / "bin" / "python"


def is_finished(folder: Path, version: str) -> bool:
    """True if the environment in *folder* is whole and of this *version*."""
    try:
        return (folder / _FINISHED).read_text() == version
    except OSError:
        return False


@contextmanager
def building(folder: Path, version: str, title: str, progress: Callable[[str], None]) -> Iterator[bool]:
    """Yields True if *folder* is to be filled; it is then empty, and counts as built when the block ends well."""
    if is_finished(folder, version):
        progress(f"{title}: installed")
        yield False
        return
    try:
        with file_lock(folder.with_suffix(".lock")):
            if is_finished(folder, version):  # another process has just done it
                yield False
                return
            shutil.rmtree(folder, ignore_errors=True)
            started = time.monotonic()
            progress(f"{title}: installing into {folder}")
            yield True
            (folder / _FINISHED).write_text(version)
            progress(f"{title}: installed in {time.monotonic() - started:.0f} s")
    except OSError as error:
        raise ConfigError(
            f"Installing {title} into {folder}: {error.strerror}. Make the folder writable, or set MILLRACE_CONNECTORS_DIR."
        ) from error


def build_pyairbyte(folder: Path) -> None:
    """Fill *folder* with PyAirbyte's locked environment, byte-compiled; about 10 s.

    Raises:
        SourceUnavailable: with the installer's words.
    """
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    python = folder / "bin" / "python"
    if uv:
        _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
    else:  # pip alone would need two minutes
        _run([sys.executable, "-m", "venv", str(folder)])
        pinned = re.search(r"^uv==(.*\\\n)+.*$", LOCK_FILE.read_text(), re.MULTILINE)
        (folder / "uv.txt").write_text(pinned[0] if pinned else "uv")
        _run(
            [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-r",
                str(folder / "uv.txt"),
            ]
        )
        uv = str(folder / "bin" / "uv")
    # The lock is complete, so nothing has to be resolved again.
    _run(
        [
            uv,
            "pip",
            "install",
            "--quiet",
            "--compile-bytecode",
            "--no-deps",
            "--python",
            str(python),
            "-r",
            str(LOCK_FILE),
        ]
    )


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    if done.returncode:
        raise SourceUnavailable(
            f"Installing PyAirbyte: {Path(command[0]).name} ended with code {done.returncode}: {done.stderr.strip()[-2000:]} "
            "Make the package index reachable and run `millrace sources install` again."
        )


def lock_checksum() -> str:
    """What the environment is built from; the interpreter counts, because an environment links to it."""
    return hashlib.sha256(LOCK_FILE.read_bytes() + sys.version.encode()).hexdigest()[:16]


if __name__ == "__main__":  # python -m pipeline.ingest.airbyte_environments FOLDER-OF-CONNECTORS
    target = Path(sys.argv[1]) / "pyairbyte"
    with building(target, lock_checksum(), "PyAirbyte", print) as is_needed:
        if is_needed:
            build_pyairbyte(target)
