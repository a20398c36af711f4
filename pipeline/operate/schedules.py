"""When the jobs run, in UTC. All are on from the start."""

import dagster as dg

from pipeline.operate.jobs import DAILY, MAINTAIN, PURGE
from pipeline.settings import Project


def build_schedules(project: Project) -> list[dg.ScheduleDefinition]:
    """One schedule a job, named like it; the project's millrace.yaml may move them."""
    crons = {
        DAILY: project.schedules.daily_dbt_build,
        MAINTAIN: project.schedules.maintain_lake,
        PURGE: project.schedules.purge_history,
    }
    return [
        dg.ScheduleDefinition(
            name=name,
            job_name=name,
            cron_schedule=cron,
            execution_timezone="UTC",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
        for name, cron in crons.items()
    ]
