"""Definitions of the tests' own code location: small runs, hungry runs, and a project whose dbt and connector are hungry.

Mounted into the pods with the files beside it; `eaten` says how many MiB each victim takes.
"""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import dagster as dg

from pipeline.cgroup import read_usage
from pipeline.definitions import build
from pipeline.lake.connection import Lake
from pipeline.lake.resources import build_lake_resource
from pipeline.settings import Settings

PARSED = Path("/var/lib/millrace-logs/dbt")  # once, and not in every pod: an image of one's own brings it
with suppress(OSError):
    PARSED.mkdir(exist_ok=True)
SETTINGS = Settings.load().model_copy(
    update={"project_dir": Path(__file__).parent / "project", "dbt_parsed_dir": PARSED, "partitions_per_run": 1}
)


@dg.asset
def first() -> None:
    """The first of two that do nothing."""


@dg.asset(deps=[first])
def second() -> None:
    """The second of two that do nothing."""


@dg.asset
def says(context: dg.AssetExecutionContext) -> None:
    """Leaves a line in its log."""
    print(f"said by {context.run.run_id}", flush=True)


@dg.asset
def sleeps(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> None:
    """Works for the seconds of tag `trials/seconds`, then commits one row: a witness of having run to its end."""
    end = time.monotonic() + float(context.run.tags.get("trials/seconds", "60"))
    while time.monotonic() < end:
        time.sleep(0.2)
    _commit(lake, "sleeps", context.run.root_run_id or context.run.run_id, 1)


@dg.asset
def eats(context: dg.AssetExecutionContext) -> None:
    """Takes the MiB of tag `trials/mib` in its own process, and keeps them for a while."""
    food = [bytearray(os.urandom(1 << 20)) for _ in range(int(context.run.tags.get("trials/mib", "700")))]
    time.sleep(1)
    context.log.info(f"ate {len(food)} MiB")


@dg.asset
def fails_if_told(context: dg.AssetExecutionContext) -> None:
    """Fails if the run has the tag `trials/fail`."""
    if "trials/fail" in context.run.tags:
        raise ValueError("told to fail")


@dg.asset
def hoards(context: dg.AssetExecutionContext) -> None:
    """Takes nine tenths of its container's memory limit, and keeps it for the seconds of tag `trials/seconds`."""
    food = []
    while (usage := read_usage()).limit and (usage.working_set or 0) < 0.9 * usage.limit:
        food.append(bytearray(os.urandom(1 << 20)))
    time.sleep(float(context.run.tags["trials/seconds"]))
    context.log.info(f"hoarded {len(food)} MiB")


@dg.asset
def fills(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> None:
    """Takes 200 MiB of its node's disk and waits, the first time; its retry needs none. Then as `sleeps`."""
    if not context.run.parent_run_id:
        Path(tempfile.gettempdir(), "food").write_bytes(bytes(200 << 20))
        time.sleep(120)
    _commit(lake, "fills", context.run.root_run_id or context.run.run_id, 1)


def _writer(number: int) -> dg.AssetsDefinition:
    @dg.asset(name=f"writer_{number}")
    def write(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> None:
        for batch in range(5):
            _commit(lake, f"writer_{number}", f"{context.run.run_id}-{batch}", 1000)
            time.sleep(0.5)

    return write


def _commit(lake: Lake, table: str, key: str, rows: int) -> None:
    def work() -> None:
        lake.connection.execute("CREATE SCHEMA IF NOT EXISTS lake.trials")
        lake.connection.execute(f"CREATE TABLE IF NOT EXISTS lake.trials.{table} (key VARCHAR, number BIGINT)")
        lake.connection.execute(f"DELETE FROM lake.trials.{table} WHERE key = ?", [key])
        lake.connection.execute(f"INSERT INTO lake.trials.{table} SELECT ?, range FROM range({rows})", [key])

    lake.in_transaction(work, asset=f"trials/{table}")


@dg.sensor(job_name="two", default_status=dg.DefaultSensorStatus.STOPPED, minimum_interval_seconds=1)
def every_second() -> dg.RunRequest:
    """Asks for one run, ever."""
    return dg.RunRequest(run_key="once", tags={"trials/by": "sensor"})


two = dg.define_asset_job("two", selection=["first", "second"])
flaky = dg.define_asset_job("flaky", selection=["fails_if_told"])
hanging = dg.define_asset_job("hanging", selection=["sleeps"], tags={"millrace/slow_after_seconds": "20"})
hoarding = dg.define_asset_job("hoarding", selection=["hoards"])
every_minute = dg.ScheduleDefinition(
    name="every_minute", job=two, cron_schedule="* * * * *", default_status=dg.DefaultScheduleStatus.STOPPED
)

hungry = [build(SETTINGS)]  # in a list: Dagster takes every Definitions that it finds in a module
defs = dg.Definitions(
    assets=[
        first,
        second,
        says,
        sleeps,
        eats,
        fails_if_told,
        hoards,
        fills,
        *map(_writer, range(10)),
        *(hungry[0].assets or ()),
    ],
    asset_checks=hungry[0].asset_checks,
    jobs=[two, flaky, hanging, hoarding],
    schedules=[every_minute],
    sensors=[every_second],
    resources={"lake": build_lake_resource(SETTINGS)},
    executor=dg.in_process_executor,
)
