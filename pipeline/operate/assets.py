"""``health/<service>``: how each service is, as assets with a check, for who looks at the asset graph.

The exporter looks every half minute and stores what it saw; these are views of its newest sample. A run for each look would be a
pod each half minute, hence they are no part of the daily build, and their schedule is off until someone turns it on.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from pipeline.operate.monitor import SERVICES, Health, read_health
from pipeline.settings import Settings

HEALTH_KEYS = {service: dg.AssetKey(["health", service]) for service in SERVICES}
IS_UP = "is_up"

DESCRIPTIONS = {
    "database": "PostgreSQL, by whether the exporter's last queries were answered.",
    "lake": "The lake's catalogue, by whether it could be read.",
    "webserver": "Dagster's webserver, by whether it answered the exporter.",
    "daemon": "Dagster's daemon: the heartbeats of all threads that this instance requires.",
    "code_location": "The code locations: whether their definitions load.",
    "exporter": "The exporter, by the age of the newest sample and by what it could not read.",
}


def build_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """All services as one subsettable step: one row is read for whatever is selected."""

    @dg.multi_asset(
        name="look_at_services",
        specs=[
            dg.AssetSpec(
                key,
                group_name="health",
                owners=["team:platform"],
                kinds={"postgres"},
                description=DESCRIPTIONS[service],
                skippable=True,
            )
            for service, key in HEALTH_KEYS.items()
        ],
        check_specs=[
            dg.AssetCheckSpec(
                IS_UP, asset=key, description="The service is not down, and the monitor's figures are fresh."
            )
            for key in HEALTH_KEYS.values()
        ],
        can_subset=True,
    )
    def look_at_services(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        found = read_health(settings)
        for service, key in HEALTH_KEYS.items():
            health = found[service]
            if key in context.selected_asset_keys:
                yield dg.MaterializeResult(asset_key=key, metadata=_metadata(health))
            if dg.AssetCheckKey(key, IS_UP) in context.selected_asset_check_keys:
                yield _check(key, health)

    return [look_at_services]


def _check(key: dg.AssetKey, health: Health) -> dg.AssetCheckResult:
    """Where nothing is known of a service, the exporter is what is wrong: one error, and not six."""
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=IS_UP,
        passed=health.state in ("up", "degraded"),
        severity=dg.AssetCheckSeverity.WARN if health.state == "unknown" else dg.AssetCheckSeverity.ERROR,
        description=f"{health.service} is {health.state}{f': {health.reason}' if health.reason else ''}",
        metadata=_metadata(health),
    )


def _metadata(health: Health) -> dict[str, Any]:
    facts = {
        "state": health.state,
        "since": health.since and dg.MetadataValue.timestamp(datetime.fromtimestamp(health.since, UTC)),
        "reason": health.reason,
        "parts_that_are_not_up": list(health.parts),
        "sample_age_seconds": health.sample_age_seconds and round(health.sample_age_seconds, 1),
        "memory_bytes": health.memory_bytes,
    }
    return {name: value for name, value in facts.items() if value not in (None, "", [])}
