"""The jobs that people and schedules start."""

from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import dagster as dg

from pipeline.errors import ConfigError
from pipeline.lake.connection import Lake
from pipeline.operate.assets import HEALTH_KEYS
from pipeline.settings import Limit, Settings

DAILY, MAINTAIN, PURGE, HEALTH = JOBS = ("daily_dbt_build", "maintain_lake", "purge_history", "monitor_health")
SERVICES = dg.AssetSelection.assets(*HEALTH_KEYS.values())
DATA = dg.AssetSelection.all() - SERVICES


def build_jobs(settings: Settings, limits: Sequence[Limit] = ()) -> list[Any]:
    """The daily build, the upkeep of the lake and of the run history, the services' health; *limits* are tags of a job's runs.

    Raises:
        ConfigError: if a limit names a job that is none of these.
    """
    tags = {limit.job: limit.tags for limit in limits if limit.job}
    if unknown := sorted(tags.keys() - set(JOBS)):
        raise ConfigError(f"millrace.yaml: limits: there is no job {unknown[0]}; there are {', '.join(JOBS)}.")
    return [
        dg.define_asset_job(
            DAILY,
            selection=DATA,
            description="Load every source, build every model, check both.",
            tags=tags.get(DAILY),
        ),
        _maintain_job(settings, tags.get(MAINTAIN)),
        _purge_job(settings, tags.get(PURGE)),
        dg.define_asset_job(
            HEALTH,
            selection=SERVICES,
            description="Record how each service is, as the monitor saw it last.",
            tags=tags.get(HEALTH),
        ),
    ]


def limited(assets: Sequence[dg.AssetsDefinition], limits: Sequence[Limit]) -> Sequence[dg.AssetsDefinition]:
    """*assets* with the tags of the *limits* that name them; of several the last one counts.

    Raises:
        ConfigError: if a limit names no asset.
    """
    keys = {key.to_user_string() for each in assets for key in each.keys}
    for limit in limits:
        if limit.assets and not any(fnmatchcase(key, limit.assets) for key in keys):
            raise ConfigError(
                f"millrace.yaml: limits: no asset is called {limit.assets}. Correct it, or remove the entry."
            )

    def tagged(spec: dg.AssetSpec) -> dg.AssetSpec:
        name = spec.key.to_user_string()
        tags = [limit.tags for limit in limits if limit.assets and fnmatchcase(name, limit.assets)]
        return (
            spec.merge_attributes(tags={tag: amount for each in tags for tag, amount in each.items()}) if tags else spec
        )

    return dg.map_asset_specs(tagged, assets) if limits else assets


def _maintain_job(settings: Settings, tags: dict[str, str] | None) -> dg.JobDefinition:
    @dg.op(name="maintain")
    def maintain_op(context: dg.OpExecutionContext, lake: dg.ResourceParam[Lake]) -> None:
        from pipeline.lake.maintenance import maintain
        from pipeline.operate.backup import lake_pin

        days, pin = settings.retention_days, lake_pin(lake.settings)
        context.log.info(f"{maintain(lake, older_than_days=days, keep_since=pin)}")

    @dg.job(
        name=MAINTAIN,
        tags=tags,
        description="Compact the lake's files, expire snapshots, remove what nothing refers to.",
    )
    def job() -> None:
        maintain_op()

    return job


def _purge_job(settings: Settings, tags: dict[str, str] | None) -> dg.JobDefinition:
    @dg.op(name="purge")
    def purge_op(context: dg.OpExecutionContext) -> None:
        from pipeline.operate.retention import purge

        context.log.info(f"{purge(settings, older_than_days=settings.retention_days, now=datetime.now(UTC))}")

    @dg.job(
        name=PURGE, tags=tags, description="Remove logs and run history past the retention. No asset loses its status."
    )
    def job() -> None:
        purge_op()

    return job
