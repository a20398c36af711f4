"""Two assets that do nothing, as a job of each of the two executors."""

import dagster as dg


@dg.asset
def first() -> None: ...


@dg.asset(deps=[first])
def second() -> None: ...


two = dg.define_asset_job("two", selection=["first", "second"], executor_def=dg.multiprocess_executor)
two_in_process = dg.define_asset_job(
    "two_in_process", selection=["first", "second"], executor_def=dg.in_process_executor
)
defs = dg.Definitions(assets=[first, second], jobs=[two, two_in_process])
