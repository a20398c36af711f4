"""What time costs, as gauges: dashboards multiply with these, so that each number stands once, in the settings."""

from pipeline.exporter.metrics import Registry
from pipeline.settings import Settings


def publish(registry: Registry, settings: Settings) -> None:
    """Make the gauges."""
    money = f"{settings.price_currency} for an hour of a"
    registry.gauge("millrace_price_cpu_hour", f"{money} core.").set(settings.price_cpu_hour)
    registry.gauge("millrace_price_gib_hour", f"{money} GiB of memory.").set(settings.price_gib_hour)
