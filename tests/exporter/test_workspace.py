"""What the webserver's GraphQL says of a real code location, and what becomes of the series of what is gone."""

import copy
import json
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import ConfigError, ServiceError
from pipeline.exporter import workspace as workspace_module
from pipeline.exporter.metrics import OTHER
from pipeline.exporter.workspace import ask_webserver
from pipeline.settings import Settings
from tests.exporter.conftest import Watched
from tests.receivers import webhook

CODE = """
import dagster as dg

@dg.asset(group_name="g", owners=["team:data"], kinds={"python"}, metadata={"max_age_hours": 26.0})
def made(): ...

@dg.asset_check(asset=made)
def holds(): return dg.AssetCheckResult(passed=True)

quick = dg.define_asset_job("quick", [made], tags={"millrace/slow_after_seconds": "30"})
other = dg.define_asset_job("other", [made])

@dg.sensor(job=quick)
def looks(): ...

on = dg.ScheduleDefinition(name="on", job=quick, cron_schedule="* * * * *", default_status=dg.DefaultScheduleStatus.RUNNING)
off = dg.ScheduleDefinition(name="off", job=quick, cron_schedule="0 0 * * *")

defs = dg.Definitions(assets=[made], asset_checks=[holds], jobs=[quick, other], schedules=[on, off], sensors=[looks])
"""
HERE = {"code_location": "here"}


# In a process of its own, as the code location is a child of it that outlives the workspace.
PROGRAM = """
import json, sys
import dagster as dg
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import PythonFileTarget
from dagster_graphql.schema import create_schema
from pipeline.exporter.workspace import QUERY

file = sys.argv[1]
target = PythonFileTarget(file, attribute=None, working_directory=None, location_name="here")
with dg.instance_for_test() as instance, WorkspaceProcessContext(instance, target) as process:
    result = create_schema().execute(QUERY, context_value=process.create_request_context())
assert not result.errors, result.errors
print(json.dumps(result.data), file=open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Dagster's own GraphQL says of CODE."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "code.py").write_text(CODE)
    arguments = [str(folder / "code.py"), str(folder / "answer.json")]
    subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True, capture_output=True, timeout=120)
    found: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return found


@pytest.fixture
def answer(answered: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(answered)


def at(watched: Watched, now: float) -> None:
    """Poll with the roster asked for anew."""
    (workspace,) = (topic for topic in watched.exporter.topics if topic.name == "workspace")
    workspace.poll(watched.database, now)
    watched.poll()


def test_jobs_assets_and_schedules_have_their_series_before_anything_happens(watched: Watched, answer: dict[str, Any]):
    watched.workspace = answer
    at(watched, 1e12)

    assert watched.value("dagster_code_location_loaded", **HERE) == 1
    assert watched.value("dagster_code_location_definitions", **HERE, kind="schedules") == 2
    for job in ("quick", "other", "__ASSET_JOB"):
        assert watched.value("dagster_runs_completed_total", **HERE, job_name=job, status="failure") == 0, job
    assert watched.value("dagster_asset_materializations_total", **HERE, asset_key="made") == 0
    assert watched.value("dagster_ticks_total", **HERE, name="on", status="failure") == 0
    assert watched.value("dagster_job_slow_threshold_seconds", job_name="quick") == 30
    assert watched.value("dagster_job_slow_threshold_seconds", job_name="other") == 300
    assert watched.value("dagster_asset_max_age_seconds", asset_key="made") == 26 * 3600
    assert watched.value("dagster_asset_info", asset_key="made", group="g", owner="data", kind="python") == 1
    assert watched.value("dagster_instigator_running", name="on") == 1
    assert watched.value("dagster_instigator_running", name="off") == 0


def test_a_check_has_its_sums_before_it_is_made_and_one_that_is_gone_does_not_fail_for_ever(
    watched: Watched, answer: dict[str, Any], event: Callable[..., None]
):
    watched.workspace = answer
    at(watched, 1e12)
    sums = {"asset_key": "made", "check": "holds"}
    for severity in ("warn", "error"):
        assert watched.value("dagster_asset_check_evaluations_total", **sums, result="failed", severity=severity) == 0

    for check in ("holds", "renamed"):
        found = {
            "asset_key": {"path": ["made"]},
            "check_name": check,
            "success": False,
            "severity": {"__enum__": "ERROR"},
        }
        event("ASSET_CHECK_EVALUATION", body=json.dumps({"dagster_event": {"event_specific_data": found}}))
    watched.poll()
    assert watched.value("dagster_asset_check_last_passed", check="renamed") == 0
    entries = answer["workspaceOrError"]["locationEntries"]
    entries.append({"name": "broken", "updatedTimestamp": 0.0, "locationOrLoadError": {"__typename": "PythonError"}})
    at(watched, 2e12)
    assert watched.value("dagster_asset_check_last_passed", check="renamed") == 0  # the other location may have it

    entries.pop()
    at(watched, 3e12)
    at(watched, 4e12)  # checks are asked for once the locations are others
    assert watched.value("dagster_asset_check_last_passed", check="renamed") is None
    assert watched.value("dagster_asset_check_evaluations_total", check="renamed") is None
    assert watched.value("dagster_asset_check_last_passed", check="holds") == 0


def test_a_schedule_that_is_on_tells_when_it_was_to_tick_once_that_is_past(watched: Watched, answer: dict[str, Any]):
    watched.workspace = answer
    (repository,) = answer["workspaceOrError"]["locationEntries"][0]["locationOrLoadError"]["repositories"]
    (tick,) = (each["scheduleState"]["nextTick"] for each in repository["schedules"] if each["name"] == "on")
    assert tick["timestamp"] > time.time() - 600
    tick["timestamp"] = 1.5e12  # as of an answer that this minute does not end
    at(watched, 1e12)
    assert watched.value("dagster_schedule_expected_tick_timestamp_seconds", name="on") is None

    at(watched, 2e12)
    assert watched.value("dagster_schedule_expected_tick_timestamp_seconds", name="on") == 1.5e12
    assert watched.value("dagster_schedule_expected_tick_timestamp_seconds", name="off") is None


def test_what_came_after_the_cap_stays_although_nothing_has_its_name(watched: Watched, answer: dict[str, Any]):
    watched.workspace = answer
    watched.registry["dagster_runs_completed_total"].series.update({(OTHER, OTHER, OTHER): 7.0})
    at(watched, 1e12)

    assert watched.value("dagster_runs_completed_total", job_name=OTHER) == 7


def test_what_is_gone_loses_its_series_and_what_does_not_load_keeps_them(watched: Watched, answer: dict[str, Any]):
    watched.workspace = answer
    at(watched, 1e12)
    (entry,) = answer["workspaceOrError"]["locationEntries"]
    loaded = entry["locationOrLoadError"]

    entry["locationOrLoadError"] = {"__typename": "PythonError"}
    at(watched, 2e12)
    assert watched.value("dagster_code_location_loaded", **HERE) == 0
    assert watched.value("dagster_runs_completed_total", **HERE, job_name="other", status="failure") == 0
    assert watched.value("dagster_asset_materializations_total", **HERE, asset_key="made") == 0
    assert watched.value("dagster_ticks_total", **HERE, name="on", status="failure") == 0

    entry["locationOrLoadError"] = loaded
    (repository,) = loaded["repositories"]
    repository["jobs"] = [job for job in repository["jobs"] if job["name"] != "other"]
    repository["assetNodes"], repository["schedules"] = [], []
    at(watched, 3e12)
    assert watched.value("dagster_runs_completed_total", job_name="other") is None
    assert watched.value("dagster_runs_completed_total", job_name="quick", status="failure") == 0
    assert watched.value("dagster_asset_materializations_total", asset_key="made") is None
    assert watched.value("dagster_ticks_total", name="on") is None


def test_a_password_in_the_webservers_address_is_in_no_error():
    with webhook() as server:
        address = server.url.replace("//", "//me:T0p-S3cret@")
        server.answers = [(404, "nothing"), (200, "no JSON"), (200, '{"errors": [{"message": "no"}]}')]
        for url in (*[f"{address}/ui"] * 3, "http://me:T0p-S3cret@127.0.0.1:9"):
            with pytest.raises(ServiceError, match=r"Asking the webserver at http://127.0.0.1:") as failed:
                ask_webserver(url)("{}")
            assert "T0p-S3cret" not in "".join(traceback.format_exception(failed.value))
    nowhere = address.removeprefix("http://")
    with pytest.raises(ConfigError, match="MILLRACE_WEBSERVER_URL is no address") as refused:
        ask_webserver(nowhere)
    assert "T0p-S3cret" not in "".join(traceback.format_exception(refused.value))


def test_the_limits_that_definitions_declare_outlive_a_restart_and_a_location_that_does_not_load(
    watched: Watched, answer: dict[str, Any]
):
    watched.workspace = answer
    at(watched, 1e12)
    watched.exporter.save()

    second = watched.again().start()  # its webserver tells of a location that is broken
    assert second.value("dagster_job_slow_threshold_seconds", job_name="quick") == 30
    assert second.value("dagster_asset_max_age_seconds", asset_key="made") == 26 * 3600


def test_a_webserver_that_never_answered_since_the_start_has_an_age_that_a_restart_does_not_renew(settings: Settings):
    now = [1e9]
    watched = Watched(settings, clock=lambda: now[0])
    watched.workspace = {"workspaceOrError": {"message": "away"}}
    watched.start()
    now[0] += 60
    assert not watched.exporter.poll()
    watched.exporter.save()
    second = watched.again()
    second.workspace = watched.workspace
    second.start()

    assert second.value("dagster_exporter_last_success_timestamp_seconds", collector="workspace") == 1e9


def test_a_webserver_that_hangs_holds_up_no_poll_and_its_answer_is_shown_when_it_comes(
    settings: Settings, answer: dict[str, Any], event: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workspace_module, "WAIT_SECONDS", 0.01)
    watched, answers = Watched(settings), threading.Event()
    watched.workspace = answer

    def ask(_: str) -> dict[str, Any]:
        answers.wait(10)
        return answer

    watched.ask = ask  # type: ignore[method-assign]
    watched.start()
    event("PIPELINE_SUCCESS")
    assert not watched.exporter.poll()
    assert watched.value("dagster_runs_completed_total", status="success") == 1
    assert watched.value("dagster_exporter_poll_errors_total", collector="workspace") == 2
    answers.set()
    (thread,) = (each for each in threading.enumerate() if each.name == "workspace")
    thread.join()
    watched.poll()
    assert watched.value("dagster_code_location_loaded", **HERE) == 1
