"""Speed and memory of loading files: beside DuckDB's own insert and dlt, into the same lake.

`run` gives one row for each figure; its inputs are made once and kept under the system's temporary folder.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from pipeline.ingest.files import load_files
from pipeline.ingest.raw import prepare
from pipeline.ingest.spec import FileStream, SourceFile, load_source
from pipeline.lake.connection import Lake, install_extensions
from pipeline.operate.database import stop_embedded, with_database
from pipeline.settings import GIB, Settings

ROOT = Path(__file__).parents[2]
CACHE = Path(tempfile.gettempdir()) / "millrace-benchmarks"
ROWS = 10_000_000
ROUNDS = 4
FILES = 500

YELLOW_TAXI = """
SELECT (1 + n % 2)::BIGINT AS "VendorID", started AS tpep_pickup_datetime,
       started + to_seconds((60 + hash(n) % 3600)::BIGINT) AS tpep_dropoff_datetime,
       (1 + hash(n + 1) % 6)::DOUBLE AS passenger_count, round((hash(n + 2) % 3000) / 100, 2)::DOUBLE AS trip_distance,
       (1 + hash(n + 3) % 6)::DOUBLE AS "RatecodeID", CASE WHEN hash(n + 4) % 50 = 0 THEN 'Y' ELSE 'N' END AS store_and_fwd_flag,
       (1 + hash(n + 5) % 265)::BIGINT AS "PULocationID", (1 + hash(n + 6) % 265)::BIGINT AS "DOLocationID",
       (1 + hash(n + 7) % 4)::BIGINT AS payment_type, round((250 + hash(n + 8) % 6000) / 100, 2)::DOUBLE AS fare_amount,
       ((hash(n + 9) % 4) * 0.5)::DOUBLE AS extra, 0.5::DOUBLE AS mta_tax, round((hash(n + 10) % 1500) / 100, 2)::DOUBLE AS tip_amount,
       (CASE WHEN hash(n + 11) % 15 = 0 THEN 6.12 ELSE 0 END)::DOUBLE AS tolls_amount, 0.3::DOUBLE AS improvement_surcharge,
       round((500 + hash(n + 12) % 9000) / 100, 2)::DOUBLE AS total_amount, 2.5::DOUBLE AS congestion_surcharge,
       NULL::DOUBLE AS airport_fee
FROM (SELECT range AS n, TIMESTAMP '2021-01-01' + to_milliseconds((range * 267)::BIGINT) AS started FROM range({rows}))
"""

DLT = """
import json, sys, time
started = time.perf_counter()
import dlt
import pyarrow.parquet as pq
path, catalog, storage, working = sys.argv[1:]
from dlt.destinations import ducklake
from dlt.destinations.impl.ducklake.configuration import DuckLakeCredentials

@dlt.resource(name="trips", write_disposition="append")
def trips():
    for batch in pq.ParquetFile(path).iter_batches(batch_size=1_000_000):
        yield batch

pipeline = dlt.pipeline(
    "bench", pipelines_dir=working, dataset_name="bench",
    destination=ducklake(credentials=DuckLakeCredentials("lake", catalog=catalog, storage=storage)),
)
pipeline.run(trips(), loader_file_format="parquet")
seconds = time.perf_counter() - started
with pipeline.sql_client() as client:
    rows = client.execute_sql("SELECT count(*) FROM trips")[0][0]
print(json.dumps({"seconds": seconds, "rows": rows}))
"""


def run() -> list[dict[str, Any]]:
    """Every figure: name, value, unit, peer, ratio, target, passed. A peer that cannot be had says so in `peer`."""
    CACHE.mkdir(exist_ok=True)
    trips = yellow_taxi(ROWS)
    with lake_settings() as settings:
        seconds, peer = beside_duckdb(settings, trips)
        rows = [
            figure(
                "10 M row Parquet load", ROWS / seconds, "rows/s", "DuckDB INSERT SELECT", peer / seconds, 0.8, ">="
            ),
            beside_dlt(settings, trips, seconds),
            unchanged_files(settings),
        ]
    for count in (ROWS, 3 * ROWS):
        with lake_settings() as settings:
            peak = peak_memory(settings, yellow_taxi(count))
        rows.append(figure(f"peak memory, {count // 1_000_000} M rows", peak / GIB, "GiB", "", None, 1.5, "<="))
    return rows


def figure(
    name: str, value: float, unit: str, peer: str, ratio: float | None, target: float, sign: str
) -> dict[str, Any]:
    """One row of the table; the target is for the ratio, or for the value where there is no peer."""
    measured = value if ratio is None else ratio
    passed = measured >= target if sign == ">=" else measured <= target
    return {
        "name": name, "value": round(value, 3), "unit": unit, "peer": peer, "ratio": ratio and round(ratio, 3),
        "target": f"{sign} {target:g}", "passed": passed,
    }  # fmt: skip


def yellow_taxi(rows: int) -> Path:
    """A month's file in the provider's layout, made once."""
    path = CACHE / f"yellow_{rows}.parquet"
    if not path.exists():
        partial = path.with_suffix(".partial")
        with duckdb.connect() as connection:
            query = YELLOW_TAXI.format(rows=rows)
            connection.execute(f"COPY ({query}) TO '{partial}' (FORMAT parquet, COMPRESSION zstd)")
        partial.rename(path)
    return path


@contextmanager
def lake_settings() -> Iterator[Settings]:
    """An empty lake with a database of its own, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="lake-", dir=CACHE))
    settings = Settings(state_dir=folder)
    try:
        yield with_database(settings)
    finally:
        stop_embedded(settings)
        shutil.rmtree(folder)


def declared(folder: Path, location: Path, path: str) -> SourceFile:
    """A source of the files *path* in *location*."""
    (folder / "sources").mkdir(parents=True, exist_ok=True)
    file = folder / "sources" / "bench.yaml"
    file.write_text(
        f"name: bench\nkind: files\nowner: team:bench\nlocation: {location}\nstreams: [{{name: trips, path: '{path}'}}]\n"
    )
    return load_source(file)


def load(lake: Lake, settings: Settings, file: SourceFile) -> float:
    """Seconds of one load."""
    (stream,) = file.source.streams
    assert isinstance(stream, FileStream)
    started = time.perf_counter()
    load_files(lake, file, stream, settings=settings, run_id=str(uuid.uuid4()))
    return time.perf_counter() - started


def beside_duckdb(settings: Settings, trips: Path) -> tuple[float, float]:
    """Best seconds of ours and of DuckDB's insert, in turns into fresh tables of one lake."""
    ours, theirs = [], []
    file = declared(settings.state_dir, trips.parent, trips.name)
    with Lake.open(settings) as lake:
        prepare(lake)
        lake.query("CREATE SCHEMA IF NOT EXISTS peer")
        for turn in range(2 * ROUNDS):
            if turn % 4 in (0, 3):
                ours.append(load(lake, settings, file))
                assert lake.scalar("SELECT count(*) FROM raw.bench__trips") == ROWS
                lake.query("DROP TABLE raw.bench__trips")
                lake.query("DROP TABLE raw.bench__trips__rejects")
                lake.query("DELETE FROM ingest.files")
            else:
                lake.query(f"CREATE TABLE peer.trips AS FROM read_parquet('{trips}') LIMIT 0")
                started = time.perf_counter()
                lake.query(f"INSERT INTO peer.trips SELECT * FROM read_parquet('{trips}')")
                theirs.append(time.perf_counter() - started)
                lake.query("DROP TABLE peer.trips")
            _forget_files(lake)
    return min(ours), min(theirs)  # what else runs on the machine only ever adds


def _forget_files(lake: Lake) -> None:
    """Give the disk of dropped tables back, so that no turn pays for the one before."""
    lake.query("CALL ducklake_expire_snapshots('lake', older_than => now())")
    lake.query("CALL ducklake_cleanup_old_files('lake', cleanup_all => true)")


def beside_dlt(settings: Settings, trips: Path, ours: float) -> dict[str, Any]:
    """Our seconds against those of dlt's ``ducklake`` destination fed with Arrow batches, imports included."""
    name, peer = "10 M row Parquet load", "dlt, Arrow to DuckLake"
    python = dlt_environment()
    if isinstance(python, str):
        row = figure(name, ours, "s", f"{peer}: {python}", float("nan"), 0.5, "<=")
        return {**row, "ratio": None, "passed": None}
    home = CACHE / "home"
    install_extensions(home / ".duckdb" / "extensions")
    with lake_settings() as own:
        pg = own.libpq("lake")
        address = f"postgres://{pg['user']}@/{pg['dbname']}?host={pg['host']}&port={pg.get('port', '5432')}"
        result = subprocess.run(
            [python, "-c", DLT, trips, address, own.state_dir / "dlt-lake", own.state_dir / "dlt"],
            env={**os.environ, "HOME": str(home), "RUNTIME__DLTHUB_TELEMETRY": "false"},
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    if result.returncode:
        row = figure(name, ours, "s", f"{peer}: failed: {result.stderr.strip()[-2000:]}", float("nan"), 0.5, "<=")
        return {**row, "ratio": None, "passed": None}
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["rows"] == ROWS
    return figure(name, ours, "s", f"{peer}: {answer['seconds']:.1f} s", ours / answer["seconds"], 0.5, "<=")


def dlt_environment() -> Path | str:
    """Python of an environment with dlt as locked, made once; or why there is none."""
    lock = ROOT / "requirements" / "bench.lock"
    folder = CACHE / f"dlt-{hash_of(lock)}"
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        return "not measured, uv is not on PATH"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for command in (
            [uv, "venv", "--quiet", "--python", sys.executable, folder],
            [uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", lock],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    except subprocess.SubprocessError as error:
        return f"not measured, its environment cannot be built: {getattr(error, 'stderr', '') or error}"[:500]
    (folder / "ready").touch()
    return python


def hash_of(path: Path) -> str:
    """A short name for what is in *path*."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def unchanged_files(settings: Settings) -> dict[str, Any]:
    """Seconds of a load that finds nothing new in many files."""
    folder = settings.state_dir / "many"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number:03}.csv").write_text(f"id,name\n{number},a\n")
    file = declared(settings.state_dir / "unchanged", folder, "*.csv")
    with Lake.open(settings) as lake:
        load(lake, settings, file)
        seconds = load(lake, settings, file)
    return figure(f"unchanged source of {FILES} files", seconds, "s", "", None, 1.0, "<=")


def peak_memory(settings: Settings, trips: Path) -> int:
    """Most bytes resident in a process that loads *trips*, DuckDB's limit as a user has it by default."""
    file = declared(settings.state_dir, trips.parent, trips.name)
    url = settings.database_url
    assert url
    environment = {
        **os.environ,
        "MILLRACE_STATE_DIR": str(settings.state_dir),
        "MILLRACE_DATABASE_URL": url.get_secret_value(),
    }
    command = [sys.executable, "-m", "tests.benchmarks.files", str(file.path)]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(result.stdout.splitlines()[-1])


def _load_and_tell_peak(source: str) -> None:
    import resource

    settings = Settings.load()
    with Lake.open(settings) as lake:
        load(lake, settings, load_source(Path(source)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _load_and_tell_peak(sys.argv[1])
    else:
        print(json.dumps(run(), indent=2))
