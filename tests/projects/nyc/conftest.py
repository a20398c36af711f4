"""Loading the bundled project's sources and building its models for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

from pipeline.ingest.files import load_files
from pipeline.ingest.spec import FileSource, load_sources
from pipeline.lake.connection import Lake, install_extensions
from pipeline.settings import BUNDLED_PROJECT, Settings


def load_all(settings: Settings, data: Path, *, run_id: str = "test") -> dict[str, int]:
    """Load every file source from *data*; rows that this load brought, by raw table."""
    settings = settings.model_copy(update={"data_dir": data})
    rows = {}
    with Lake.open(settings) as lake:
        for file in load_sources(BUNDLED_PROJECT / "sources"):
            if isinstance(file.source, FileSource):
                for stream in file.source.streams:
                    result = load_files(lake, file, stream, settings=settings, run_id=run_id)
                    rows[result.table] = result.rows
    return rows


def dbt(settings: Settings, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run plain dbt as a person does under `millrace env`."""
    install_extensions(settings.extensions_path)
    settings.scratch_path.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(
        [Path(sys.executable).with_name("dbt"), *arguments, "--no-use-colors"],
        env={**os.environ, **settings.child_environment()},
        cwd=settings.state_dir,
        capture_output=True,
        text=True,
        timeout=240,
    )
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


def node_results(settings: Settings) -> dict[str, str]:
    """Status of every node of the last dbt command, by unique id."""
    document = json.loads((settings.dbt_target_path / "run_results.json").read_text())
    return {item["unique_id"]: item["status"] for item in document["results"]}
