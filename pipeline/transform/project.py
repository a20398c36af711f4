"""The project's dbt folder: parsing it when it changed, and what its children need.

Building models as assets is `assets`; dbt itself runs only as a child process.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from pipeline.aws import credentials
from pipeline.errors import ConfigError
from pipeline.lake.connection import install_extensions
from pipeline.locks import file_lock
from pipeline.settings import PROFILES_DIR, Settings

PARSE_TIMEOUT_SECONDS = 300
_IGNORED = {"target", "logs", "dbt_packages", "__pycache__"}


def dbt_executable() -> str:
    """The dbt command of this environment; PATH is not asked, it may hold another version.

    Raises:
        ConfigError: if dbt is not installed beside Millrace.
    """
    path = Path(sys.executable).with_name("dbt")
    if not path.exists():
        raise ConfigError(f"Looking for dbt: there is no {path}. Install Millrace's dependencies again.")
    return str(path)


def fingerprint(settings: Settings) -> str:
    """A digest of what the manifest depends on: every file of the project, by content as an image's layers change the
    times, and the profile. Memory, threads and addresses are not among it: they differ between an image and its pods."""
    directory = settings.project_dir / "dbt"
    digest = hashlib.sha256((PROFILES_DIR / "profiles.yml").read_bytes())
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not _IGNORED & set(path.relative_to(directory).parts):
            digest.update(f"{path.relative_to(directory)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def parsed(settings: Settings) -> Path:
    """The target folder with the project as it is now parsed: the image's, else this state folder's.

    It is parsed again only if a file of it changed, into the first of the two that can be written.

    Raises:
        ConfigError: with dbt's own message, if the project does not parse.
    """
    current = fingerprint(settings)
    folders = [folder for folder in (settings.dbt_parsed_dir, settings.dbt_target_path) if folder]
    for folder in folders:
        if _holds(folder, current):
            return folder
    target = next((folder for folder in folders if os.access(folder, os.W_OK)), settings.dbt_target_path)
    with file_lock(target / "parse.lock"):
        if not _holds(target, current):  # nobody else parsed it meanwhile
            _parse(settings, target)
            (target / "fingerprint").write_text(current)
    return target


def _holds(folder: Path, current: str) -> bool:
    mark = folder / "fingerprint"
    return mark.exists() and mark.read_text() == current and (folder / "manifest.json").exists()


def manifest(settings: Settings) -> dict[str, Any]:
    """The parsed project (manifest.json).

    Raises:
        ConfigError: with dbt's own message, if the project does not parse.
    """
    content: dict[str, Any] = orjson.loads((parsed(settings) / "manifest.json").read_bytes())
    return content


def _parse(settings: Settings, target: Path) -> None:
    """Run ``dbt parse``, which connects nowhere, and put what it writes into *target* file by file: others read there."""
    for left in target.glob("parse-*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=target, prefix="parse-") as made:
        before = target / "partial_parse.msgpack"
        if before.exists():  # dbt then parses only what changed
            shutil.copy(before, made)
        environment = {**os.environ, **settings.project_environment(), "DBT_TARGET_PATH": made}
        command = [dbt_executable(), "--no-use-colors", "parse"]
        finished = subprocess.run(
            command, env=environment, cwd=settings.project_dir / "dbt", capture_output=True, text=True, timeout=PARSE_TIMEOUT_SECONDS, check=False
        )  # fmt: skip
        if finished.returncode != 0:
            text = (finished.stdout + finished.stderr).strip().splitlines()
            raise ConfigError(f"Parsing the dbt project {settings.project_dir / 'dbt'}:\n" + "\n".join(text[-30:]))
        (target / "fingerprint").unlink(missing_ok=True)  # from here on it is not what that says
        for file in Path(made).iterdir():
            if file.is_file():
                file.replace(target / file.name)


def _end_orphans(folder: Path) -> None:
    """End the dbt processes whose run was killed, which would build beside the next one, and remove what they left."""
    import psutil

    for left in folder.glob("*-*"):
        if psutil.pid_exists(int(left.name.rpartition("-")[2])):
            continue
        orphans = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("DBT_TARGET_PATH") == str(left / "target"):
                    process.kill()
                    orphans.append(process)
        psutil.wait_procs(orphans, timeout=10)
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def invocation(settings: Settings, run_id: str) -> Iterator[dict[str, str]]:
    """The environment of one dbt process, with a target folder of its own, removed afterwards.

    Two dbt processes must not share a target: one would read the other's half-written files.
    """
    install_extensions(settings.extensions_path)
    folder = settings.scratch_path / "dbt" / f"{run_id or 'hand'}-{os.getpid()}"
    _end_orphans(folder.parent)
    folder.mkdir(parents=True, exist_ok=True)
    partial = parsed(settings) / "partial_parse.msgpack"
    if partial.exists():
        (folder / "target").mkdir(exist_ok=True)
        shutil.copyfile(partial, folder / "target" / partial.name)
    try:
        yield {
            **settings.child_environment(),
            **(credentials() if settings.lake_path.startswith("s3://") else {}),
            "MILLRACE_RUN_ID": run_id,
            "DBT_TARGET_PATH": str(folder / "target"),
            "DBT_LOG_PATH": str(folder / "target"),
            "DBT_LOG_LEVEL_FILE": "none",  # its debug lines go with the folder; what it prints is kept
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
