"""A run in a pod against the stock pattern and against the floor, on the cluster of KUBECONFIG: ``make bench-cluster``."""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.benchmarks.cluster.deployments import PGBOUNCER, Stock, build_images, idle, millrace, stock
from tests.benchmarks.rows import Row, row
from tests.cluster.release import Release, image_value, kubectl, until

RUNS = 10
QUEUED = 50
PARTITIONS = 12
BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  ... on LaunchBackfillSuccess { backfillId } } }"""
SESSIONS = "SELECT sessions FROM pg_stat_database WHERE datname = 'dagster'"
PHASES = {  # from one event to the next
    "request to queue": "PIPELINE_ENQUEUED",
    "queue": "PIPELINE_DEQUEUED",
    "launch (API server)": "ENGINE_EVENT:worker job created",
    "pod scheduled, container started, imports": "ENGINE_EVENT:Started process",
    "run set up": "PIPELINE_START",
    "steps": "PIPELINE_SUCCESS",
}


def run() -> Iterator[Row]:
    """The rows of the table; the waterfall and the figures without a target among them."""
    build_images()
    started = time.monotonic()
    with millrace("bench-millrace") as ours:
        installed = time.monotonic() - started
        yield row("helm install to ready", installed, "s", target="< 90", passed=installed < 90)
        with stock("bench-stock") as theirs:
            yield from _latency(ours, theirs)
            yield from _queued(ours, theirs)
            yield row("sessions of a two-asset run", _opened(ours), "", peer=_opened(theirs), limit=0.2)
        yield from _backfill(ours)
        memory, cpu = idle(ours)
        yield row("idle memory", memory / 2**30, "GiB", target="< 1.2", passed=memory < 1.2 * 2**30)
    with millrace("bench-pooled", pgbouncer={"enabled": True, "image": image_value(PGBOUNCER)}) as pooled:
        until(lambda: _one(pooled, "two"), seconds=120, what="a first run")
        yield row("sessions of a two-asset run, with PgBouncer", _opened(pooled), "")
    platform = os.environ["MILLRACE_TEST_IMAGE"]
    with stock("bench-idle", image=platform, module="pipeline.definitions", dequeue_seconds=1) as same:
        peer_memory, peer_cpu = idle(same)
    yield row("idle CPU", cpu, "cores", peer=peer_cpu, limit=1.2)
    yield row("idle memory against stock", memory / 2**30, "GiB", peer=peer_memory / 2**30)


def _latency(ours: Release, theirs: Stock) -> list[Row]:
    """Request to success of the two-asset job, the four in turn."""
    seconds: dict[str, list[float]] = {"millrace": [], "multiprocess": [], "in process": [], "floor": []}
    phases: list[dict[str, float]] = []
    for release in (ours, theirs):  # once without counting; a UI that has just started may not know the location yet
        until(lambda release=release: _one(release, "two"), seconds=120, what="a first run")
    for _ in range(RUNS):
        seconds["multiprocess"].append(_one(theirs, "two")[0])
        seconds["in process"].append(_one(theirs, "two_in_process")[0])
        taken, run_id = _one(ours, "two")
        seconds["millrace"].append(taken)
        phases.append(_phases(ours, run_id))
        seconds["floor"].append(_floor(ours, run_id))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        row("two-asset run, against stock", medians["millrace"], "s", peer=medians["multiprocess"], limit=0.6),
        row("… against stock in one process", medians["millrace"], "s", peer=medians["in process"], limit=0.85),
        row("… against the floor", medians["millrace"], "s", peer=medians["floor"], limit=1.3),
    ]
    rows += [row(f"… of it {phase}", statistics.median(each[phase] for each in phases), "s") for phase in PHASES]
    return rows


def _one(release: Release, job: str) -> tuple[float, str]:
    """Seconds from the request to the run's recorded end, and its id."""
    requested = time.time()
    run_id = release.launch(job, location="bench")
    done = release.wait(run_id, "SUCCESS", seconds=120)
    time.sleep(2)  # what follows a run is not the next one's
    return float(done["endTime"]) - requested, run_id


def _phases(release: Release, run_id: str) -> dict[str, float]:
    query = f"SELECT extract(epoch FROM timestamp), coalesce(dagster_event_type, ''), event FROM event_logs WHERE run_id = '{run_id}' ORDER BY id"
    events = [(float(at), kind, text) for at, kind, text in release.database(query)]
    created = float(release.run(run_id)["creationTime"])
    found, before = {}, created
    for phase, wanted in PHASES.items():
        kind, _, words = wanted.partition(":")
        at = next((at for at, each, text in events if each == kind and words in text), before)
        found[phase], before = at - before, at
    return found


def _floor(release: Release, run_id: str) -> float:
    """Seconds from making the Job of a pod like that run's, which imports the definitions and ends, to its completion."""
    job = json.loads(kubectl("-n", release.namespace, "get", "job", f"dagster-run-{run_id}", "-o", "json"))
    spec = job["spec"]["template"]["spec"]
    spec["containers"][0]["command"] = ["python", "-c", "import pipeline.definitions"]
    spec["containers"][0].pop("args", None)
    labels = {"app.kubernetes.io/component": "floor"}
    floor = {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": f"floor-{run_id[:8]}", "labels": labels},
        "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }  # fmt: skip
    watch = [
        "kubectl",
        "-n",
        release.namespace,
        "wait",
        "--for=condition=Complete",
        f"job/floor-{run_id[:8]}",
        "--timeout=60s",
    ]
    started = time.monotonic()
    kubectl("-n", release.namespace, "create", "-f", "-", stdin=json.dumps(floor))
    subprocess.run(watch, check=True, capture_output=True)
    return time.monotonic() - started


def _opened(release: Release) -> float:
    """Sessions opened at PostgreSQL for one two-asset run, beyond those of the idle services."""

    def count() -> int:
        return int(release.database(SESSIONS)[0][0])

    time.sleep(5)
    first, started = count(), time.monotonic()
    time.sleep(40)
    rate = (count() - first) / (time.monotonic() - started)
    before, started = count(), time.monotonic()
    for _ in range(3):
        _one(release, "two")
    return max(count() - before - rate * (time.monotonic() - started), 0) / 3


def _backfill(release: Release) -> list[Row]:
    """Twelve partitions of some seconds' work in one, two and four pods at a time."""
    rows: list[Row] = []
    alone: float | None = None
    for pods in (1, 2, 4):
        started = time.time()
        answer = release.graphql(
            BACKFILL,
            params={
                "assetSelection": [{"path": ["slices"]}],
                "partitionNames": [f"2021-{month:02}" for month in range(1, PARTITIONS + 1)],
                "tags": [{"key": "bench/pods", "value": str(pods)}],
            },
        )["launchPartitionBackfill"]
        done = "SELECT count(*) FROM runs JOIN run_tags USING (run_id) WHERE status = 'SUCCESS' AND key = 'dagster/backfill'"
        query = f"{done} AND value = '{answer['backfillId']}'"
        until(lambda query=query: release.database(query) == [[str(PARTITIONS)]], seconds=600, what="a backfill")
        ((ended,),) = release.database(query.replace("count(*)", "max(end_time)"))
        seconds = float(ended) - started
        rows.append(row(f"backfill of {PARTITIONS} partitions, {pods} pods at a time", seconds, "s", peer=alone))
        alone = alone or seconds
    return rows


def _queued(ours: Release, theirs: Stock) -> list[Row]:
    """Fifty two-asset runs queued at once: how long they take together, and the 95th percentile of one."""

    def measure(release: Release) -> tuple[float, float]:
        started = time.time()
        with ThreadPoolExecutor(4) as pool:
            run_ids = list(pool.map(lambda _: release.launch("two", location="bench"), range(QUEUED)))
        query = f"SELECT count(*) FROM runs WHERE status = 'SUCCESS' AND run_id IN ({', '.join(map(repr, run_ids))})"
        until(lambda: release.database(query) == [[str(QUEUED)]], seconds=900, what="all done", every=5)
        ends = sorted(float(row[0]) - started for row in release.database(query.replace("count(*)", "end_time")))
        return ends[-1], ends[int(QUEUED * 0.95) - 1]

    (all_ours, late_ours), (all_theirs, late_theirs) = measure(ours), measure(theirs)
    return [
        row(f"{QUEUED} runs at once, all done", all_ours, "s", peer=all_theirs),
        row("… 95th percentile", late_ours, "s", peer=late_theirs),
    ]
