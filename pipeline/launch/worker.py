"""What a run pod runs: Dagster's own execution, watched from within for want of memory.

``python -m pipeline.launch.worker ARGS`` where ARGS are those of ``dagster api execute_run``. The kernel may kill a child
(dbt, a connector) and leave this process: then the run fails as any run with a failed step, which is not retried.
So the worker says what happened, and lets this failure be retried.

Kubernetes may also take the pod away, as when a node is drained. Dagster would record a failure of which nobody knows the
reason; the worker ends at once instead, and the daemon, which may look at the pod, says what became of it.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from dagster import DagsterEvent, DagsterEventType, DagsterInstance, DagsterRunStatus
from dagster._cli.api import _execute_run_command_body
from dagster._cli.utils import get_instance_for_cli
from dagster._core.storage.tags import RETRY_ON_ASSET_OR_OP_FAILURE_TAG
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import deserialize_value
from dagster._utils import interrupts

from pipeline.cgroup import Usage, read_usage
from pipeline.launch import sessions
from pipeline.launch.pods import KILLED_AT_TAG, MORE_MEMORY
from pipeline.launch.sampler import sampling
from pipeline.settings import Settings

LAST_WORDS = Path("/dev/termination-log")  # the kubelet shows its content as the message of a container that ended
LAST_WORDS_SECONDS = 2.0
STEP_ENDS = (DagsterEventType.STEP_SUCCESS, DagsterEventType.STEP_FAILURE)


def execute(run_id: str, instance: DagsterInstance, settings: Settings, *, exit_code_on_failure: bool) -> int:
    """Execute the run in this process; returns the exit code of the pod."""
    run = instance.get_run_by_id(run_id)
    if run is None:
        raise LookupError(f"Executing run {run_id}: the database has no such run. It was deleted after its launch.")
    if KILLED_AT_TAG in run.tags:  # inherited from the run that this one repeats, as is the permission
        instance.add_run_tags(run_id, {RETRY_ON_ASSET_OR_OP_FAILURE_TAG: "false"})
    kills, any_step_ended = read_usage().oom_kills, False

    def on_event(event: DagsterEvent) -> None:
        """Called between a step's failure and the run's: what is tagged now counts for the decision on a retry."""
        nonlocal kills, any_step_ended
        if event.event_type == DagsterEventType.STEP_FAILURE and (usage := read_usage()).oom_kills > kills:
            kills = usage.oom_kills  # a later failure of another step has its own reason
            _report_out_of_memory(instance, run_id, usage)
        any_step_ended = any_step_ended or event.event_type in STEP_ENDS
        if any_step_ended and event.event_type == DagsterEventType.ENGINE_EVENT and sampler:
            sampler.tell()  # executors say that they have finished, and then the run ends

    with sampling(instance, run, settings) as sampler:
        return _execute_run_command_body(run_id, instance, on_event, exit_code_on_failure)


def _report_out_of_memory(instance: DagsterInstance, run_id: str, usage: Usage) -> None:
    run = instance.get_run_by_id(run_id)
    assert run
    message = f"It ran out of memory: the kernel killed one of the run's child processes; {usage}. {MORE_MEMORY}"
    instance.report_engine_event(message, run)
    limit = {KILLED_AT_TAG: str(usage.limit)} if usage.limit else {}
    instance.add_run_tags(run_id, {RETRY_ON_ASSET_OR_OP_FAILURE_TAG: "true", **limit})


def _keep_last_words() -> None:
    """Leave the peak where it can be read after this process was killed, which it will not hear of."""
    while True:
        with suppress(OSError):
            LAST_WORDS.write_text(str(read_usage()))
        time.sleep(LAST_WORDS_SECONDS)


def _end_when_told(instance: DagsterInstance, run_id: str) -> None:
    """From now on SIGTERM is an interrupt of the run only if somebody cancels it."""

    def told(_signal: int, _frame: object) -> None:  # in a thread: a handler may not use the database
        threading.Thread(target=_end, args=[instance, run_id], daemon=True).start()

    def set_handler() -> None:
        signal.signal(signal.SIGTERM, told)

    interrupts.setup_interrupt_handlers = set_handler  # by which Dagster makes SIGTERM what SIGINT is, again and again
    set_handler()


def _end(instance: DagsterInstance, run_id: str) -> None:
    with suppress(Exception):  # without a database nobody can have cancelled it
        run = instance.get_run_by_id(run_id)
        if run and run.status == DagsterRunStatus.CANCELING:
            os.kill(os.getpid(), signal.SIGINT)
            return
        if run and not run.is_finished:
            instance.report_engine_event(
                "Kubernetes told the run's process to end and nobody cancelled the run: its pod is evicted or its node drained. "
                "It is tried again if retries are on.",
                run,
            )
    os._exit(128 + signal.SIGTERM)


def main(arguments: str) -> int:
    """Execute the run that *arguments* (JSON) name."""
    if LAST_WORDS.exists():
        threading.Thread(target=_keep_last_words, daemon=True).start()
    with interrupts.capture_interrupts():
        args = deserialize_value(arguments, ExecuteRunArgs)
        with get_instance_for_cli(instance_ref=args.instance_ref) as instance:
            sessions.pool(instance)
            _end_when_told(instance, args.run_id)
            failing = bool(args.set_exit_code_on_failure)
            return execute(args.run_id, instance, Settings.load(), exit_code_on_failure=failing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
