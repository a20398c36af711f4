"""What the commands cost beyond what they are made of: whole processes, timed in turn, medians."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.lake.connection import install_extensions
from pipeline.operate.database import stop_embedded, with_database
from pipeline.operate.scaffold import generate
from pipeline.settings import Settings

BIN = Path(sys.executable).parent
RUNS = 5


def run() -> list[dict[str, object]]:
    """The start-up and overhead rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        home = Settings(state_dir=Path(folder) / "state")
        settings = with_database(home)
        try:
            return _measure(settings, Path(folder))
        finally:
            stop_embedded(home)


def _measure(settings: Settings, folder: Path) -> list[dict[str, object]]:
    data = folder / "data"
    generate(settings, data)
    install_extensions(settings.extensions_path)
    environment = {**os.environ, **settings.child_environment(), "MILLRACE_DATA_DIR": str(data)}
    millrace = str(BIN / "millrace")
    subprocess.run(
        [millrace, "run", "--select", "raw/tlc/*,raw/citibike/*,raw/weather/*"],
        env=environment,
        check=True,
        capture_output=True,
    )
    dbt = settings.project_dir / "dbt"
    imports = [sys.executable, "-c", "import dagster, dagster_dbt"]
    rows = [
        _pair("millrace --help", [millrace, "--help"], [[sys.executable, "-c", "import click"]], 2.0, environment),
        _pair(
            "import pipeline.definitions",
            [sys.executable, "-c", "import pipeline.definitions"],
            [imports],
            1.3,
            environment,
        ),
    ]
    select = "staging/*,marts/*"
    bare = [str(BIN / "dbt"), "build"]
    rows.append(
        _pair(
            "millrace run (dbt part)",
            [millrace, "run", "--select", select],
            [bare, imports],
            1.15,
            environment,
            cwd=dbt,
        )
    )
    return rows


def _pair(
    name: str,
    command: list[str],
    floor: Sequence[list[str]],
    limit: float,
    environment: dict[str, str],
    cwd: Path | None = None,
) -> dict[str, object]:
    """*command* against the sum of the *floor* commands, in turn; the ratio is the median of the pairs'."""
    ours, theirs = [], []
    for count in range(RUNS + 1):
        a, b = _seconds(command, environment, cwd), sum(_seconds(part, environment, cwd) for part in floor)
        if count:  # the first pair warms the caches
            ours.append(a)
            theirs.append(b)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return {
        "name": name,
        "value": statistics.median(ours),
        "unit": "s",
        "peer": statistics.median(theirs),
        "ratio": ratio,
        "target": f"<= {limit:g} x",
        "passed": ratio <= limit,
    }


def _seconds(command: list[str], environment: dict[str, str], cwd: Path | None) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}")
    return time.perf_counter() - started
