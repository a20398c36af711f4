"""What runs in these tests, so that every panel has something to show. A code location is made of this file."""

import time

import dagster as dg


@dg.asset(key=["raw", "bikes", "trips"], group_name="raw", owners=["team:mobility"], metadata={"max_age_hours": 26.0})
def trips() -> dg.MaterializeResult[None]:
    told = {
        "dagster/row_count": 1_000,
        "rows_loaded": 900,
        "rows_rejected": 3,
        "data_until": dg.TimestampMetadataValue(time.time()),
    }
    return dg.MaterializeResult(metadata=told)


@dg.asset_check(asset=trips)
def key_is_unique() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@dg.asset(key=["marts", "rides"], deps=[trips], metadata={"max_age_hours": 0.0001})
def rides(context: dg.AssetExecutionContext) -> None:
    """Late a third of a second after it was made."""
    context.log_event(dg.AssetObservation(["marts", "rides"]))


@dg.asset_check(asset=rides)
def is_whole() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=False)


@dg.asset(key=["marts", "broken"], retry_policy=dg.RetryPolicy(max_retries=1))
def broken() -> None:
    raise ValueError("on purpose")


daily = dg.define_asset_job("daily", [trips, rides], executor_def=dg.in_process_executor)
hourly = dg.define_asset_job(
    "hourly", dg.AssetSelection.assets(trips).without_checks(), executor_def=dg.in_process_executor
)
failing = dg.define_asset_job("failing", [broken], executor_def=dg.in_process_executor)


@dg.sensor(job=daily)
def arrivals() -> None: ...


every_minute = dg.ScheduleDefinition(
    name="every_minute", job=daily, cron_schedule="* * * * *", default_status=dg.DefaultScheduleStatus.RUNNING
)
defs = dg.Definitions(
    assets=[trips, rides, broken],
    asset_checks=[key_is_unique, is_whole],
    jobs=[daily, hourly, failing],
    schedules=[every_minute],
    sensors=[arrivals],
)
