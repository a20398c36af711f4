"""What counts as too much, as gauges: rules compare with these, so that each number stands once, in the settings."""

from pipeline.exporter.metrics import Registry
from pipeline.settings import Settings


def publish(registry: Registry, settings: Settings) -> None:
    """Make the gauges. That of slow runs is by job, in `workspace`."""
    for name, text, value in (
        (
            "millrace_threshold_failure_ratio",
            "Share of failed runs above which an alert fires.",
            settings.alert_failure_ratio,
        ),
        (
            "millrace_threshold_slow_run_seconds",
            "A run that takes longer is slow, if its job says nothing else.",
            settings.alert_slow_run_seconds,
        ),
        (
            "millrace_threshold_memory_ratio",
            "Share of its memory limit above which an alert fires.",
            settings.alert_memory_ratio,
        ),
        (
            "millrace_threshold_unavailable_seconds",
            "A service that is away for longer is unavailable.",
            settings.alert_unavailable_seconds,
        ),
        (
            "millrace_threshold_daemon_silent_seconds",
            "A daemon without a heartbeat for longer is down.",
            settings.alert_daemon_silent_seconds,
        ),
        (
            "millrace_slo_success_ratio",
            "Share of runs that are to succeed; what is left of one is the error budget.",
            settings.slo_success_ratio,
        ),
    ):
        registry.gauge(name, text).set(value)
