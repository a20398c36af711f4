"""The project's dbt folder: parsing it when it changed, and what its children need.

Building models as assets is `assets`; dbt itself runs only as a child process.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import ConfigError
from pipeline.lake.connection import install_extensions
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
    """A digest of what dbt's kept parse depends on: every file of the project, by content as an image's layers change
    the times, the profile, and the values that go into it."""
    directory = settings.project_dir / "dbt"
    digest = hashlib.sha256(repr(sorted(settings.project_environment().items())).encode())
    digest.update((PROFILES_DIR / "profiles.yml").read_bytes())
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not _IGNORED & set(path.relative_to(directory).parts):
            digest.update(f"{path.relative_to(directory)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def manifest(settings: Settings) -> dict[str, Any]:
    """The parsed project (manifest.json), parsed again only if a file of it changed.

    Raises:
        ConfigError: with dbt's own message, if the project does not parse.
    """
    target = settings.dbt_target_path
    mark = target / "fingerprint"
    current = fingerprint(settings)
    if not mark.exists() or mark.read_text() != current or not (target / "manifest.json").exists():
        parse(settings)
        mark.write_text(current)
    content: dict[str, Any] = orjson.loads((target / "manifest.json").read_bytes())
    return content


def parse(settings: Settings) -> None:
    """Run ``dbt parse`` into the target folder. It connects nowhere.

    Raises:
        ConfigError: with dbt's own message.
    """
    settings.dbt_target_path.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **settings.project_environment()}
    command = [dbt_executable(), "--no-use-colors", "parse"]
    finished = subprocess.run(
        command, env=environment, cwd=settings.project_dir / "dbt", capture_output=True, text=True, timeout=PARSE_TIMEOUT_SECONDS, check=False
    )  # fmt: skip
    if finished.returncode != 0:
        text = (finished.stdout + finished.stderr).strip().splitlines()
        raise ConfigError(f"Parsing the dbt project {settings.project_dir / 'dbt'}:\n" + "\n".join(text[-30:]))


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
    partial = settings.dbt_target_path / "partial_parse.msgpack"
    if partial.exists():
        (folder / "target").mkdir(exist_ok=True)
        shutil.copyfile(partial, folder / "target" / partial.name)
    try:
        yield {
            **settings.child_environment(),
            "MILLRACE_RUN_ID": run_id,
            "DBT_TARGET_PATH": str(folder / "target"),
            "DBT_LOG_PATH": str(folder / "target"),
            "DBT_LOG_LEVEL_FILE": "none",  # its debug lines go with the folder; what it prints is kept
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
