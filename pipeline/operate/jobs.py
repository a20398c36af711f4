"""The jobs that people and schedules start."""

from datetime import UTC, datetime
from typing import Any

import dagster as dg

from pipeline.lake.connection import Lake
from pipeline.settings import Settings

DAILY, MAINTAIN, PURGE = "daily_dbt_build", "maintain_lake", "purge_history"


def build_jobs(settings: Settings) -> list[Any]:
    """The daily build, and the upkeep of the lake and of the run history."""
    return [
        dg.define_asset_job(
            DAILY, selection=dg.AssetSelection.all(), description="Load every source, build every model, check both."
        ),
        _maintain_job(settings),
        _purge_job(settings),
    ]


def _maintain_job(settings: Settings) -> dg.JobDefinition:
    @dg.op(name="maintain")
    def maintain_op(context: dg.OpExecutionContext, lake: dg.ResourceParam[Lake]) -> None:
        from pipeline.lake.maintenance import maintain
        from pipeline.operate.backup import lake_pin

        days, pin = settings.retention_days, lake_pin(lake.settings)
        context.log.info(f"{maintain(lake, older_than_days=days, keep_since=pin)}")

    @dg.job(name=MAINTAIN, description="Compact the lake's files, expire snapshots, remove what nothing refers to.")
    def job() -> None:
        maintain_op()

    return job


def _purge_job(settings: Settings) -> dg.JobDefinition:
    @dg.op(name="purge")
    def purge_op(context: dg.OpExecutionContext) -> None:
        from pipeline.operate.retention import purge

        context.log.info(f"{purge(settings, older_than_days=settings.retention_days, now=datetime.now(UTC))}")

    @dg.job(name=PURGE, description="Remove logs and run history past the retention. No asset loses its status.")
    def job() -> None:
        purge_op()

    return job
