"""The platform's own definitions and the two-asset job, in one code location. Mounted into the pods."""

import dagster as dg

import pipeline.definitions as platform
from pipeline.lake.connection import Lake


@dg.asset
def first() -> None:
    """The first of two that do nothing."""


@dg.asset(deps=[first])
def second() -> None:
    """The second of two that do nothing."""


# The platform's own months: its daily job holds all assets, and a job has one kind of partitions.
(monthly,) = {spec.partitions_def for spec in platform.defs.resolve_all_asset_specs() if spec.partitions_def}


@dg.asset(partitions_def=monthly)
def slices(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> None:
    """Sorts five million rows and commits them, as a first load does: some seconds' work of processor and disk."""

    def work() -> None:
        lake.connection.execute("CREATE TABLE IF NOT EXISTS lake.slices (slice VARCHAR, number BIGINT, text VARCHAR)")
        rows = "SELECT ?, range, md5(range::VARCHAR) FROM range(5_000_000) ORDER BY 3"
        lake.connection.execute(f"INSERT INTO lake.slices {rows}", [context.partition_key])

    lake.in_transaction(work, asset="slices", run_id=context.run.run_id)


two = dg.define_asset_job("two", selection=["first", "second"])
defs = dg.Definitions.merge(platform.defs, dg.Definitions(assets=[first, second, slices], jobs=[two]))
