"""What runs use, as real processes of runs tell it to the event log."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.code_pointer import FileCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import serialize_value

from pipeline.cgroup import SAMPLE, Usage
from pipeline.launch import sampler
from pipeline.launch.sampler import free_bytes, read_processes, sampling
from pipeline.settings import Settings
from tests.launch.conftest import daily

MIB = 1 << 20
CODE = """
import subprocess, sys, time
import dagster as dg
from pipeline.launch.executor import in_process_executor

HUNGRY = "import time; kept = bytearray(150 << 20); time.sleep({seconds})"

@dg.op
def nothing():
    subprocess.run([sys.executable, "-c", HUNGRY.format(seconds=0.5)], check=True)
    {ending}

@dg.job(executor_def={executor})
def daily():
    nothing()

defs = dg.Definitions(jobs=[daily])
"""


@pytest.fixture
def execute(instance: dg.DagsterInstance, settings: Settings, tmp_path: Path) -> Callable[..., str]:
    """Execute a run to its end as a run pod does; returns its id."""

    def do(executor: str = "dg.in_process_executor", ending: str = "pass") -> str:
        (tmp_path / "code.py").write_text(CODE.replace("{executor}", executor).replace("{ending}", ending))
        code = RepositoryPythonOrigin(sys.executable, FileCodePointer(str(tmp_path / "code.py"), "defs"))
        run = instance.create_run_for_job(daily, job_code_origin=JobPythonOrigin("daily", code))
        args = ExecuteRunArgs(code_origin(run), run.run_id, instance.get_ref())
        worker = [sys.executable, "-m", "pipeline.launch.worker", serialize_value(args)]
        environment = {**settings.child_environment(), "PATH": "/usr/bin:/bin"}
        subprocess.run(worker, check=True, timeout=90, env=environment)
        return run.run_id

    return do


def code_origin(run: dg.DagsterRun) -> JobPythonOrigin:
    assert run.job_code_origin
    return run.job_code_origin


def events(instance: dg.DagsterInstance, run_id: str) -> list[tuple[str, Any]]:
    """Type of each event of the run, with what it tells of resources."""
    found = []
    for entry in instance.all_logs(run_id):
        if entry.dagster_event:
            data = getattr(entry.dagster_event.event_specific_data, "metadata", None) or {}
            sample = data[SAMPLE].value if SAMPLE in data else None
            found.append((entry.dagster_event.event_type_value, sample))
    return found


def samples(instance: dg.DagsterInstance, run_id: str) -> list[dict[str, Any]]:
    return [sample for _, sample in events(instance, run_id) if sample]


@pytest.mark.parametrize("executor", ["dg.in_process_executor", "in_process_executor"])
def test_a_run_tells_what_it_used_once_and_before_its_end(
    instance: dg.DagsterInstance, settings: Settings, execute: Callable[..., str], executor: str
):
    Path(settings.lake_path).mkdir()
    found = events(instance, execute(executor))
    assert [kind for kind, sample in found if sample or kind == "PIPELINE_SUCCESS"] == [
        "ENGINE_EVENT",
        "PIPELINE_SUCCESS",
    ]
    (told,) = [sample for _, sample in found if sample]
    assert told["peak"] >= told["working_set"] > 50 * MIB
    assert told["cpu_seconds"] > 0.5
    ((free, size),) = told["volumes"].values()  # one file system here
    assert 0 < free < size


def test_what_is_thrown_away_after_the_run_is_no_volume(tmp_path: Path):
    """An emptyDir tells the room of its node's disk, which is neither its limit nor what stays."""
    settings = Settings(state_dir=tmp_path, lake_path=str(tmp_path / "lake"))
    settings.scratch_path.mkdir()
    assert free_bytes(settings) == {}
    Path(settings.lake_path).mkdir()
    assert free_bytes(settings).keys() == {"lake"}


def test_a_run_that_fails_tells_it_too(instance: dg.DagsterInstance, execute: Callable[..., str]):
    found = events(instance, execute(ending="raise ValueError('no')"))
    assert [kind for kind, sample in found if sample or kind == "PIPELINE_FAILURE"] == [
        "ENGINE_EVENT",
        "PIPELINE_FAILURE",
    ]


def test_while_a_run_works_only_what_changed_is_told(instance: dg.DagsterInstance, settings: Settings):
    run = instance.create_run_for_job(daily)
    used = [100 * MIB]
    with sampling(instance, run, settings, read=lambda: Usage(used[0], 512 * MIB), interval_seconds=0.05):
        wait_for(lambda: len(samples(instance, run.run_id)) == 1)
        time.sleep(0.3)
        used[0] = 105 * MIB  # not by a tenth
        time.sleep(0.3)
        assert len(samples(instance, run.run_id)) == 1
        used[0] = 300 * MIB
        wait_for(lambda: len(samples(instance, run.run_id)) == 2)
        used[0] = 50 * MIB
        wait_for(lambda: len(samples(instance, run.run_id)) == 3)
    told = samples(instance, run.run_id)
    assert [sample["working_set"] // MIB for sample in told] == [100, 300, 50]
    assert told[-1]["peak"] == 300 * MIB  # where the kernel tells none, the highest that was seen
    assert told[-1]["peak_is_sampled"]


def test_the_kernels_peak_is_told_as_such(instance: dg.DagsterInstance, settings: Settings):
    run = instance.create_run_for_job(daily)
    with sampling(instance, run, settings, read=lambda: Usage(100 * MIB, 512 * MIB, 400 * MIB)) as teller:
        assert teller
        teller.tell()
    (told,) = samples(instance, run.run_id)
    assert (told["peak"], told["peak_is_sampled"]) == (400 * MIB, False)


def test_a_quiet_run_tells_that_it_is_there(
    instance: dg.DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sampler, "SILENT_SECONDS", 0.2)
    run = instance.create_run_for_job(daily)
    with sampling(instance, run, settings, read=lambda: Usage(MIB, None), interval_seconds=0.05):
        wait_for(lambda: len(samples(instance, run.run_id)) >= 3)


def test_a_database_that_is_away_costs_the_run_nothing(
    instance: dg.DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to the database")

    run = instance.create_run_for_job(daily)
    monkeypatch.setattr(instance, "report_engine_event", refuse)
    with sampling(instance, run, settings) as told:
        assert told
        told.tell()


def test_of_two_samplers_in_a_process_only_the_first_tells(instance: dg.DagsterInstance, settings: Settings):
    run = instance.create_run_for_job(daily)
    with sampling(instance, run, settings) as first, sampling(instance, run, settings) as second:
        assert first
        assert second is None


def test_children_count_where_a_run_has_no_container():
    before = read_processes()
    code = "import time; kept = bytearray(200 << 20); print('ready', flush=True); time.sleep(30)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout
        child.stdout.readline()
        with_child = read_processes()
    finally:
        child.kill()
        child.wait()
        assert child.stdout
        child.stdout.close()
    assert with_child.working_set
    assert before.working_set
    assert with_child.working_set - before.working_set > 190 * MIB
    assert with_child.limit


def test_sampling_costs_less_than_half_a_percent_of_a_core(instance: dg.DagsterInstance, settings: Settings):
    run = instance.create_run_for_job(daily)
    count = 20
    with sampling(instance, run, settings) as told:
        assert told
        started = time.process_time()
        for _ in range(count):
            told.tell()
        told_seconds = (time.process_time() - started) / count
    assert told_seconds / sampler.INTERVAL_SECONDS < 0.005


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
