"""Runs in pods of their own: what they leave, their limits, what they die of, their queue, their logs."""

import json
import re

import pytest

from tests.cluster.release import Release, kubectl, until

VICTIMS = {"eats": "container dagster", "marts/dim_hungry": "child", "raw/hungry/records": "child"}


def test_the_daily_job_runs_in_a_pod_under_its_limit_and_leaves_what_an_embedded_run_leaves(
    release: Release, embedded: dict[str, int]
):
    run_id = release.launch("daily_dbt_build")
    pod = release.run_pod(run_id)
    run = release.wait(run_id, "SUCCESS", seconds=300)

    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "2Gi"}
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "run_worker"
    assert run["tags"]["dagster/image"].endswith(container["image"].rpartition("/")[2])
    assert len(embedded) > 20
    counts = " UNION ALL ".join(f"SELECT '{name}' AS name, count(*) AS n FROM {name}" for name in embedded)
    assert {row["name"]: row["n"] for row in release.lake(counts)} == embedded


def test_what_a_run_printed_is_read_after_its_pod_is_gone(release: Release):
    run_id = release.launch(assets=["says"], location="trials")
    release.wait(run_id, "SUCCESS")
    kubectl("-n", release.namespace, "delete", "job", "-l", f"dagster/run-id={run_id}", "--wait")
    until(lambda: not release.get("pods", "-l", f"dagster/run-id={run_id}"), seconds=60, what="no pod of the run")

    (key,) = [event["fileKey"] for event in release.events(run_id) if event["__typename"] == "LogsCapturedEvent"]
    logs = release.graphql(
        "query($key: [String!]!) { capturedLogs(logKey: $key) { stdout } }", key=[run_id, "compute_logs", key]
    )
    assert f"said by {run_id}" in logs["capturedLogs"]["stdout"]


@pytest.fixture(scope="module")
def hungry_runs(release: Release) -> dict[str, str]:
    """Run ids by asset; all at work at once."""
    tags = {"millrace/memory": "800Mi"}
    return {asset: release.launch(assets=[asset], location="trials", tags=tags) for asset in VICTIMS}


@pytest.mark.parametrize("asset", VICTIMS)
def test_a_run_out_of_memory_says_so_with_peak_and_limit_and_is_tried_again_with_more(
    release: Release, hungry_runs: dict[str, str], asset: str
):
    run_id, victim = hungry_runs[asset], VICTIMS[asset]
    failed = release.wait(run_id, "FAILURE")
    text = "\n".join(release.messages(run_id))

    assert "ran out of memory" in text, text
    assert victim in text
    assert "memory peaked at" in text
    assert "of 800 MiB" in text
    assert failed["tags"]["millrace/out_of_memory_at"] in ("800Mi", str(800 << 20))
    retry = release.retry_of(run_id)
    pod = release.run_pod(retry["runId"])
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"memory": "1200Mi"}
    release.wait(retry["runId"], "SUCCESS")


def test_ten_runs_at_once_write_ten_tables_and_no_more_than_the_limit_work_at_a_time(release: Release):
    run_ids = [release.launch(assets=[f"writer_{number}"], location="trials") for number in range(10)]
    runs = [release.wait(run_id, "SUCCESS", seconds=400) for run_id in run_ids]

    for number in range(10):
        (found,) = release.lake(f"SELECT count(*) AS n, count(DISTINCT key) AS batches FROM trials.writer_{number}")
        assert found == {"n": 5000, "batches": 5}
    moments = sorted([(run["startTime"], 1) for run in runs] + [(run["endTime"], -1) for run in runs])
    under_way = [sum(step for _, step in moments[: at + 1]) for at in range(len(moments))]
    assert 1 < max(under_way) <= 4  # of tests/cluster/trials.yaml
    text = "\n".join(line for run_id in run_ids for line in release.messages(run_id))
    assert not re.search(r"\block(ed|s)?\b|conflict", text, re.IGNORECASE), text


def test_a_backfill_of_24_months_is_24_pods_and_one_table_without_gaps_or_doubles(release: Release):
    months = [f"{year}-{month:02}" for year in (2023, 2024) for month in range(1, 13)]
    answer = release.graphql(
        "mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) { __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
        p={"assetSelection": [{"path": ["raw", "months", "rows"]}], "partitionNames": months},
    )["launchPartitionBackfill"]
    assert "backfillId" in answer, answer
    backfill = answer["backfillId"]
    query = f"SELECT status, count(*) FROM runs JOIN run_tags USING (run_id) WHERE key = 'dagster/backfill' AND value = '{backfill}' GROUP BY 1"
    until(lambda: release.database(query) == [["SUCCESS", "24"]], seconds=500, what="24 successful runs", every=3)

    (found,) = release.lake(
        "SELECT count(*) AS n, count(DISTINCT month) AS months, count(DISTINCT (id, month)) AS keys FROM raw.months__rows"
    )
    assert found == {"n": 48, "months": 24, "keys": 48}


def test_a_schedule_and_a_sensor_fire(release: Release):
    selector = {"repositoryLocationName": "trials", "repositoryName": "__repository__"}
    start = "mutation($s: ScheduleSelector!) { startSchedule(scheduleSelector: $s) { __typename } }"
    release.graphql(start, s=selector | {"scheduleName": "every_minute"})
    release.graphql(
        "mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename } }",
        s=selector | {"sensorName": "every_second"},
    )
    try:
        for tag in ({"key": "dagster/schedule_name", "value": "every_minute"}, {"key": "trials/by", "value": "sensor"}):
            run = until(lambda tag=tag: release.runs(tags=[tag])[0], seconds=120, what=f"a run by {tag['value']}")
            release.wait(run["runId"], "SUCCESS")
    finally:
        for kind in ("schedule", "sensor"):
            state = release.graphql(
                f"query($s: {kind.title()}Selector!) {{ {kind}OrError({kind}Selector: $s) {{ ... on {kind.title()} {{ {kind}State {{ id }} }} }} }}",
                s=selector | {f"{kind}Name": {"schedule": "every_minute", "sensor": "every_second"}[kind]},
            )[f"{kind}OrError"][f"{kind}State"]["id"]
            stop = {"schedule": "stopRunningSchedule", "sensor": "stopSensor"}[kind]
            release.graphql(f"mutation($id: String!) {{ {stop}(id: $id) {{ __typename }} }}", id=state)


def test_a_tag_cannot_give_a_run_the_node(release: Release):
    privileged = {"container_config": {"security_context": {"privileged": True}}}
    run_id = release.launch(assets=["first"], location="trials", tags={"dagster-k8s/config": json.dumps(privileged)})
    release.wait(run_id, "FAILURE")

    assert "violated the allowed list" in "\n".join(release.messages(run_id))
    assert not release.get("pods", "-l", f"dagster/run-id={run_id}")


def test_terminating_a_run_in_the_ui_ends_its_pod(release: Release):
    run_id = release.launch(assets=["sleeps"], location="trials", tags={"trials/seconds": "300"})
    release.wait(run_id, "STARTED")
    terminated = release.graphql("mutation($id: String!) { terminateRun(runId: $id) { __typename } }", id=run_id)

    assert terminated["terminateRun"]["__typename"] == "TerminateRunSuccess"
    release.wait(run_id, "CANCELED", seconds=90)
    until(lambda: not release.get("pods", "-l", f"dagster/run-id={run_id}"), seconds=90, what="no pod of the run")
