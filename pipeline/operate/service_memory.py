"""What a service uses of its memory limit, told to the database every half minute, for the exporter.

Where each service has a container it tells this itself, from a thread; on one machine the supervisor, who caps their
memory, tells it of all.
"""

import logging
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.cgroup import Usage, read_usage
from pipeline.errors import MillraceError
from pipeline.operate.database import connect
from pipeline.settings import Settings

if TYPE_CHECKING:
    import psycopg2.extensions

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 30.0
KEPT = "1 hour"  # rows of instances that are gone


def tell(connection: "psycopg2.extensions.connection", service: str, instance: str, usage: Usage) -> None:
    """Replace the row of *instance*, the host or pod, and remove those of instances that are gone."""
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO millrace.service_memory VALUES (%s, %s, %s, %s, now()) ON CONFLICT (service, instance) DO UPDATE SET "
            "working_set = excluded.working_set, memory_limit = excluded.memory_limit, told_at = excluded.told_at",
            [service, instance, usage.working_set or 0, usage.limit],
        )
        cursor.execute("DELETE FROM millrace.service_memory WHERE told_at < now() - %s::interval", [KEPT])


def start(settings: Settings, service: str) -> None:
    """Tell it from now on, from a thread, if this process has a container of its own with a memory limit."""
    if settings.instance_dir and read_usage().limit:
        threading.Thread(target=_tell_for_ever, args=[settings, service], name="service memory", daemon=True).start()


def _tell_for_ever(settings: Settings, service: str) -> None:
    """With one session, made anew when it is gone. Nobody is told of a failure: the exporter sees what is missing."""
    import psycopg2

    connection = None
    while True:
        try:
            connection = connection or connect(settings)
            tell(connection, service, socket.gethostname(), read_usage())
        except (psycopg2.Error, MillraceError) as error:
            log.debug("Telling the memory of %s: %s", service, error)
            if connection:
                with suppress(psycopg2.Error):
                    connection.close()
            connection = None
        time.sleep(INTERVAL_SECONDS)
