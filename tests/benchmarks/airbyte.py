"""The record stream of a connector into the lake, through `millrace run`; against PyAirbyte's own DuckDB cache.

The connector is a stand-in that writes ready-made blocks: ten fields, an object and an array among them, 300 bytes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.ingest.airbyte_connectors import Connector, install
from pipeline.ingest.airbyte_environments import pyairbyte_python
from pipeline.ingest.spec import load_source
from pipeline.lake.connection import Lake
from pipeline.operate.database import stop_embedded, with_database
from pipeline.settings import Settings
from tests.benchmarks.rows import Row, row

MILLRACE = Path(sys.executable).with_name("millrace")
STAND_IN = Path(__file__).parents[1] / "ingest" / "connectors" / "source_fast.py"
COUNTS = (100_000, 1_000_000, 5_000_000)
PEER_COUNT = 200_000
RATE, RATIO, GROWTH = 150_000, 10, 1.25  # records a second; times the peer; memory of the largest sync to the smallest

SOURCE = """
name: fast{count}
owner: team:bench
kind: airbyte
executable: {executable}
config: {{count: {count}}}
streams:
  - {{name: items, sync: {sync}{key}}}
"""

# The cache as PyAirbyte's documentation uses it; the seconds of its import are not counted.
PEER = """
import os, sys, time
os.environ.update(AIRBYTE_OFFLINE_MODE="1", DO_NOT_TRACK="1")
import airbyte
from airbyte.caches import DuckDBCache
source = airbyte.get_source("source-fast", config={"count": int(sys.argv[2])}, local_executable=sys.argv[1])
source.select_all_streams()
started = time.perf_counter()
source.read(cache=DuckDBCache(db_path=sys.argv[3]))
print("seconds", time.perf_counter() - started)
"""


def run() -> list[Row]:
    """The connector rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        lent = os.environ.get("MILLRACE_CONNECTORS_DIR")
        home = Settings(state_dir=Path(folder) / "state", connectors_dir=Path(lent) if lent else None)
        settings = with_database(home)
        try:
            return _measure(settings, Path(folder))
        finally:
            stop_embedded(home)


def _measure(settings: Settings, folder: Path) -> list[Row]:
    rows: list[Row] = []
    found = {count: _millrace(settings, folder, count, "incremental_append") for count in COUNTS}
    for count, (rate, _) in found.items():
        is_timed = count == COUNTS[-1]  # the others mostly show what the command's start costs
        rows.append(
            row(
                f"connector, {count:,} records, append",
                rate,
                "records/s",
                target=f">= {RATE:,}" if is_timed else "",
                passed=rate >= RATE or not is_timed,
            )
        )
    for sync in ("full_refresh", "incremental_deduped"):
        rate, _ = _millrace(settings, folder, 1_000_000, sync)
        rows.append(row(f"connector, 1,000,000 records, {sync}", rate, "records/s"))
    (_, small), (_, middle), (_, large) = (found[count] for count in COUNTS)
    for name, base in (("0.1 M", small), ("1 M", middle)):
        rows.append(row(f"memory, 5 M records to {name}", large, "MiB", peer=base, limit=GROWTH))
    peer = _pyairbyte(settings, folder)
    rows.append(
        row("connector, to PyAirbyte's cache", found[COUNTS[-1]][0], "records/s", peer=peer, limit=RATIO, target=">=")
    )
    return rows


def _millrace(settings: Settings, folder: Path, count: int, sync: str) -> tuple[float, float]:
    """Records a second from the command's start to its last commit, and the peak memory of its process, MiB."""
    project = folder / f"{sync}_{count}"
    subprocess.run([MILLRACE, "init", project], check=True, capture_output=True)
    for path in (project / "sources").glob("*.yaml"):
        path.unlink()
    path = project / "sources" / "fast.yaml"
    # Without a declared key there is no check of it, a GROUP BY of the whole table, beside the sync.
    key = ", primary_key: [id]" if sync == "incremental_deduped" else ""
    path.write_text(SOURCE.format(count=count, sync=sync, key=key, executable=STAND_IN))
    file = load_source(path)
    install(settings, [file])
    Connector(file, settings).describe()
    environment = {
        **os.environ,
        **settings.child_environment(),
        "MILLRACE_PROJECT_DIR": str(project),
        "MILLRACE_CONNECTORS_DIR": str(settings.connectors_path),
        "DBT_PROJECT_DIR": str(project / "dbt"),
        "DBT_PROFILES_DIR": str(project / "dbt"),
    }
    started = time.time()
    command = [MILLRACE, "run", "--select", f"raw/{file.source.name}/items"]
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)  # its own peak: RUSAGE_CHILDREN would be that of all so far
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        if process.returncode:
            raise RuntimeError(f"{command} ended with {process.returncode}: {output.read()[-3000:]}")
    with Lake.open(settings) as lake:
        table = f"raw.{file.source.name}__items"
        rows, keys = lake.query(f"SELECT count(*), count(DISTINCT id) FROM {table}")[0]
        ended = lake.scalar(
            "SELECT epoch(max(snapshot_time)) FROM lake.snapshots() WHERE commit_message LIKE 'raw/fast%'"
        )
        if not rows == keys == count:
            raise RuntimeError(f"{table}: {rows} rows, {keys} keys instead of {count}")
        lake.query(f"DROP TABLE {table}")
        lake.query(f"DROP TABLE {table}__rejects")
        lake.query("DELETE FROM ingest.connector_state")
    return count / (ended - started), usage.ru_maxrss / 1024


def _pyairbyte(settings: Settings, folder: Path) -> float:
    """Records a second of PyAirbyte reading the same connector into its own cache."""
    done = subprocess.run(
        [pyairbyte_python(settings), "-c", PEER, STAND_IN, str(PEER_COUNT), folder / "cache.duckdb"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return PEER_COUNT / float(done.stdout.rpartition("seconds ")[2])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(), indent=2) + "\n")
