"""Retries of crashed runs that wait for their code location, which Dagster's do not.

A node that dies may take a run's pod and its code location at once. Dagster asks the location for the job when the run
fails, and if it does not answer that retry is given up for ever.
"""

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from dagster import DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.errors import DagsterCodeLocationLoadError, DagsterUserCodeUnreachableError
from dagster._core.events import EngineEventData
from dagster._core.storage.dagster_run import RunRecord
from dagster._core.storage.tags import WILL_RETRY_TAG
from dagster._core.workspace.context import IWorkspaceProcessContext
from dagster._daemon import controller
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import filter_runs_to_should_retry, retry_run
from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon
from dagster._daemon.daemon import SpanMarker
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster_shared.error import SerializableErrorInfo

POSTPONED_TAG = "millrace/retry_postponed"
WAIT_SECONDS = 3600.0  # as long as the queue asks for a code location
PAGE = 100
AWAY = (DagsterUserCodeUnreachableError, DagsterCodeLocationLoadError)

Context = IWorkspaceProcessContext[Any]
Ticks = Generator[SerializableErrorInfo | SpanMarker | None, None, None]
Handler = Callable[[Context, Sequence[RunRecord], logging.Logger], Iterator[None]]


class RetryDaemon(EventLogConsumerDaemon):
    """The part of Dagster's daemon that retries runs. Which ones wait is in the database: it may be ended at any moment."""

    @property
    def handle_updated_runs_fns(self) -> Sequence[Handler]:
        return [_retry_new]

    def run_iteration(self, workspace_process_context: Context) -> Ticks:
        """One look at new failures, then at what waits."""
        yield from super().run_iteration(workspace_process_context)
        waiting = RunsFilter(statuses=[DagsterRunStatus.FAILURE], tags={POSTPONED_TAG: "true"})
        for record in workspace_process_context.instance.get_run_records(waiting, limit=PAGE, ascending=True):
            yield None
            _retry(record.dagster_run, workspace_process_context, failed_at=record.end_time or 0.0)


def install() -> None:
    """Let the daemon that this process starts be made with ours."""
    controller.EventLogConsumerDaemon = RetryDaemon  # type: ignore[attr-defined]


def _retry_new(context: Context, records: Sequence[RunRecord], _: logging.Logger) -> Iterator[None]:
    for run in filter_runs_to_should_retry([record.dagster_run for record in records], context.instance):
        yield
        _retry(run, context, failed_at=time.time())


def _retry(run: DagsterRun, context: Context, *, failed_at: float) -> None:
    """Retry, or leave it for the next look. Repeated after a kill it finds the retry that was made."""
    is_waiting = POSTPONED_TAG in run.tags
    try:
        # The retry inherits the tags of what it repeats; it does not wait itself.
        retry_run(run.with_tags({key: value for key, value in run.tags.items() if key != POSTPONED_TAG}), context)
    except Exception as error:  # noqa: BLE001 - as Dagster does: one run's must not keep others from theirs
        said = EngineEventData(error=serializable_error_info_from_exc_info(sys.exc_info()))
        if isinstance(error, AWAY) and time.time() - failed_at < WAIT_SECONDS:
            if not is_waiting:
                text = "Its code location does not answer: the run is tried again as soon as that does."
                context.instance.report_engine_event(text, run, said)
                context.instance.add_run_tags(run.run_id, {POSTPONED_TAG: "true"})
            return
        context.instance.report_engine_event("It is not tried again: making its retry failed.", run, said)
        context.instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "false", POSTPONED_TAG: "false"})
    else:
        if is_waiting:
            context.instance.add_run_tags(run.run_id, {POSTPONED_TAG: "false"})
