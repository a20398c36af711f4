"""The whole asset graph on one page: what Dagster loads."""

import warnings
from functools import cache

import dagster as dg

from pipeline.ingest import assets as ingest_assets
from pipeline.ingest import checks as ingest_checks
from pipeline.ingest.spec import load_sources
from pipeline.lake.resources import build_lake_resource
from pipeline.launch.executor import in_process_executor
from pipeline.operate import assets as operate_assets
from pipeline.operate.jobs import build_jobs, limited
from pipeline.operate.schedules import build_schedules
from pipeline.operate.sensors import build_sensors
from pipeline.settings import Project, Settings
from pipeline.transform import assets as transform_assets

warnings.filterwarnings("ignore", category=dg.BetaWarning)  # backfill policies; Dagster's version is pinned


@cache
def build(settings: Settings) -> dg.Definitions:
    """The platform's definitions for the project of *settings*; made once for equal settings.

    Raises:
        ConfigError: if a file of the project is wrong; it names the file and the line.
    """
    project = Project.load(settings.project_dir)
    jobs = build_jobs(settings, project.limits)
    sources = load_sources(settings.project_dir / "sources")
    assets = [
        *ingest_assets.build_assets(sources, settings),
        *transform_assets.build_assets(settings),
        *operate_assets.build_assets(settings),
    ]
    return dg.Definitions(
        assets=limited(assets, project.limits),
        asset_checks=ingest_checks.build_checks(sources),
        jobs=jobs,
        schedules=build_schedules(project),
        sensors=build_sensors(jobs),
        resources={"lake": build_lake_resource(settings)},
        executor=in_process_executor,  # a run is the unit that is isolated and limited, not a step
    )


defs = build(Settings.load())
