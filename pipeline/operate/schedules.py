"""When the jobs run, in UTC. All are on from the start but one.

The monitor collects without it, and alerts do: a pod every quarter of an hour, for who wants the health of services as assets
too, is for them to turn on.
"""

import dagster as dg

from pipeline.operate.jobs import DAILY, HEALTH, MAINTAIN, PURGE
from pipeline.settings import Project


def build_schedules(project: Project) -> list[dg.ScheduleDefinition]:
    """One schedule a job, named like it; the project's millrace.yaml may move them."""
    crons = {
        DAILY: project.schedules.daily_dbt_build,
        MAINTAIN: project.schedules.maintain_lake,
        PURGE: project.schedules.purge_history,
        HEALTH: project.schedules.monitor_health,
    }
    return [
        dg.ScheduleDefinition(
            name=name,
            job_name=name,
            cron_schedule=cron,
            execution_timezone="UTC",
            default_status=dg.DefaultScheduleStatus.STOPPED if name == HEALTH else dg.DefaultScheduleStatus.RUNNING,
        )
        for name, cron in crons.items()
    ]
