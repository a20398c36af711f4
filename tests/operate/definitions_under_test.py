"""Definitions that the services serve in these tests."""

import time

import dagster as dg

from pipeline.launch.executor import in_process_executor


@dg.asset
def quick(context: dg.AssetExecutionContext) -> None:
    context.log.info("quick ran")


@dg.asset(pool="slow")
def slow() -> None:
    time.sleep(120)


defs = dg.Definitions(
    assets=[quick, slow],
    jobs=[dg.define_asset_job("quick_job", selection=["quick"]), dg.define_asset_job("slow_job", selection=["slow"])],
    executor=in_process_executor,
)
