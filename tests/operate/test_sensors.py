"""The sensor that builds what a failure does not concern, on the record of a really failed run."""

import os

import dagster as dg

from pipeline.definitions import build
from pipeline.operate.instance import ensure_instance, open_instance
from pipeline.operate.jobs import DAILY
from pipeline.settings import Settings


def evaluate(project: Settings) -> dg.RunRequest | dg.SkipReason:
    """Run the daily job of *project*, which must fail, and ask the sensor about it."""
    os.environ.update(project.child_environment())
    ensure_instance(project)
    definitions = build(project)
    with open_instance(project) as instance:
        result = definitions.resolve_job_def(DAILY).execute_in_process(instance=instance, raise_on_error=False)
        assert not result.success
        (event,) = [event for event in result.all_events if event.event_type_value == "PIPELINE_FAILURE"]
        context = dg.build_run_status_sensor_context(
            sensor_name="build_what_does_not_depend_on_a_failure",
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            dagster_event=event,
            repository_def=definitions.get_repository_def(),
        ).for_run_failure()
        answer = definitions.resolve_sensor_def("build_what_does_not_depend_on_a_failure")(context)
        assert isinstance(answer, dg.RunRequest | dg.SkipReason)
        return answer


def test_models_that_read_no_failed_source_are_asked_for(project: Settings) -> None:
    for path in (project.project_dir / "data").glob("sales_*.csv"):
        path.unlink()

    answer = evaluate(project)

    assert isinstance(answer, dg.RunRequest)
    assert answer.asset_selection
    assert [key.to_user_string() for key in answer.asset_selection] == ["marts/dim_city", "staging/stg_example__cities"]


def test_models_behind_a_failed_blocking_check_are_not_asked_for(project: Settings) -> None:
    path = project.project_dir / "data" / "sales_2021-01.csv"
    path.write_text(path.read_text() + "1,New York,9\n")

    answer = evaluate(project)

    assert isinstance(answer, dg.RunRequest)
    assert answer.asset_selection
    assert dg.AssetKey(["marts", "fct_sales"]) not in answer.asset_selection


def test_nothing_is_asked_for_where_the_models_themselves_failed(project: Settings) -> None:
    (project.project_dir / "dbt" / "models" / "marts" / "fct_sales.sql").write_text("select 1 as broken from nowhere\n")

    answer = evaluate(project)

    assert isinstance(answer, dg.SkipReason)
