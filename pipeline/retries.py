"""Retries of transient errors, by stamina, as a line in the log each."""

import logging

import stamina
from stamina import retry_context as retry_context

log = logging.getLogger(__name__)


def _log_retry(details: stamina.instrumentation.RetryDetails) -> None:
    log.info("%s Again in %.1f s.", details.caused_by, details.wait_for)


# Where structlog is installed stamina prints to stdout, into the output of `--json` and among alerts.
stamina.instrumentation.set_on_retry_hooks([_log_retry])
