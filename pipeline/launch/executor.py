"""Dagster's in-process executor, sampled: where no worker of ours executes a run, as on one machine."""

from collections.abc import Iterator

import dagster as dg
from dagster._core.events import DagsterEvent
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.executor.in_process import InProcessExecutor

from pipeline.launch.sampler import read_processes, sampling
from pipeline.settings import Settings


class SampledExecutor(InProcessExecutor):
    """All steps in this process; what it and its children use is told as `pipeline.launch.sampler` says."""

    def execute(self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan) -> Iterator[DagsterEvent]:
        run = plan_context.dagster_run
        with sampling(plan_context.instance, run, Settings.load(), read=read_processes) as sampler:
            try:
                yield from super().execute(plan_context, execution_plan)
            finally:
                if sampler:
                    sampler.tell()


def _sampled(context: dg.InitExecutorContext) -> SampledExecutor:
    stock = dg.in_process_executor.executor_creation_fn
    made = stock and stock(context)
    assert isinstance(made, InProcessExecutor)
    return SampledExecutor(made.retries, made.step_dependency_config)


in_process_executor = dg.ExecutorDefinition(
    name="in_process",
    config_schema=dg.in_process_executor.config_schema,  # type: ignore[arg-type]
    executor_creation_fn=_sampled,
)
