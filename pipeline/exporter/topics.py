"""Every topic of the exporter. A further one is a file beside this one and a line here."""

from collections.abc import Sequence

from pipeline.exporter import prices, thresholds
from pipeline.exporter.asset_checks import AssetChecks
from pipeline.exporter.backfills import Backfills
from pipeline.exporter.backups import Backups
from pipeline.exporter.certificates import Certificates
from pipeline.exporter.daemons import Daemons
from pipeline.exporter.database import Database
from pipeline.exporter.lake import LakeTables
from pipeline.exporter.materializations import Materializations
from pipeline.exporter.metrics import Registry
from pipeline.exporter.pools import Pools
from pipeline.exporter.postgres import Postgres
from pipeline.exporter.resources import Resources
from pipeline.exporter.run_queue import RunQueue
from pipeline.exporter.runs import Runs
from pipeline.exporter.services import Services
from pipeline.exporter.sources import Sources
from pipeline.exporter.steps import Steps
from pipeline.exporter.ticks import Ticks
from pipeline.exporter.topic import Topic
from pipeline.exporter.volumes import Volumes
from pipeline.exporter.workspace import Ask, Workspace
from pipeline.settings import Settings


def build_topics(registry: Registry, settings: Settings, ask: Ask) -> Sequence[Topic]:
    """All topics with their metrics in *registry*; *ask* answers GraphQL."""
    thresholds.publish(registry, settings)
    prices.publish(registry, settings)
    runs, steps, ticks, daemons = Runs(registry), Steps(registry), Ticks(registry), Daemons(registry)
    resources, volumes = Resources(registry, runs), Volumes(registry)
    assets, checks, sources = Materializations(registry), AssetChecks(registry), Sources(registry)
    pools = Pools(registry)
    queue = RunQueue(registry, pools)
    workspace = Workspace(
        registry, ask, runs=runs, steps=steps, resources=resources, assets=assets, checks=checks, sources=sources, ticks=ticks, daemons=daemons,
        queue=queue, slow_after_seconds=settings.alert_slow_run_seconds,
    )  # fmt: skip
    return (
        runs, steps, assets, checks, sources, ticks, daemons, pools, queue, Backfills(registry), resources,
        volumes, Services(registry), Postgres(registry), Backups(registry, settings, volumes), LakeTables(registry, Database(settings, "lake")),
        Certificates(registry, settings), workspace,
    )  # fmt: skip
