"""Sensors that keep the platform going; each says in its name what it causes."""

from typing import Any

import dagster as dg

from pipeline.operate.jobs import DAILY, DATA
from pipeline.operate.recovery import blocked, step_of, unchecked, unhindered


def build_sensors(jobs: list[Any]) -> list[dg.SensorDefinition]:
    """All sensors, on from the start."""
    (daily,) = [job for job in jobs if job.name == DAILY]

    @dg.run_failure_sensor(
        name="build_what_does_not_depend_on_a_failure",
        monitored_jobs=[daily],
        request_job=daily,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
    )
    def build_the_rest(context: dg.RunFailureSensorContext) -> dg.RunRequest | dg.SkipReason:
        """After a failed daily run, build the models that were skipped although nothing they read has failed."""
        run, instance = context.dagster_run, context.instance
        assert context.repository_def
        graph = context.repository_def.asset_graph
        status = {step.step_key: step.status.value for step in instance.get_run_step_stats(run.run_id) if step.status}
        failed_steps = {step for step, value in status.items() if value == "FAILURE"}
        if not failed_steps:
            return dg.SkipReason(f"run {run.run_id} failed as a whole: that is for run retries")
        evaluations = [
            entry.get_dagster_event().asset_check_evaluation_data
            for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        ]
        planned = run.asset_selection or DATA.resolve(graph) & set(graph.executable_asset_keys)
        built = [key for key in planned if status.get(step_of(graph, key)) == "SUCCESS"]
        rest = unhindered(
            graph,
            failed=[
                *blocked(evaluations),
                *unchecked(graph, built=built, evaluations=evaluations),
                *(key for key in planned if step_of(graph, key) in failed_steps),
            ],
            skipped=[key for key in planned if status.get(step_of(graph, key), "SKIPPED") == "SKIPPED"],
        )
        if not rest:
            return dg.SkipReason(f"nothing was skipped in run {run.run_id} that does not depend on a failure")
        return dg.RunRequest(run_key=run.run_id, asset_selection=sorted(rest), tags={"millrace/rest_of": run.run_id})

    return [build_the_rest]
