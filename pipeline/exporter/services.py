"""Memory of the platform's own services, from the rows that each of them keeps new, and of this one."""

from pipeline.cgroup import read_usage
from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.topic import Topic

FRESH_SECONDS = 150  # a service tells every half minute
MAX_ROWS = 1_000


class Services(Topic):
    """Of several copies of a service the one that is closest to its limit counts."""

    name = "services"

    def __init__(self, registry: Registry) -> None:
        self.working_set = registry.gauge(
            "millrace_service_memory_working_set_bytes", "Memory in use by the service.", ["service"]
        )
        self.limit = registry.gauge("millrace_service_memory_limit_bytes", "Memory limit of the service.", ["service"])

    def poll(self, database: Database, now: float) -> None:
        rows = database.rows(
            "SELECT service, working_set, memory_limit FROM millrace.service_memory "
            "WHERE told_at > now() - %s * interval '1 second' ORDER BY coalesce(working_set::float8 / memory_limit, 0) LIMIT %s",
            FRESH_SECONDS,
            MAX_ROWS,
        )
        own = read_usage()
        told = any(service == "exporter" for service, *_ in rows)
        if own.limit and own.working_set and not told:  # without a limit it shares the group of who knows what
            rows.append(("exporter", own.working_set, own.limit))
        self.working_set.replace({(service,): used for service, used, _ in rows})
        self.limit.replace({(service,): limit for service, _, limit in rows if limit})
