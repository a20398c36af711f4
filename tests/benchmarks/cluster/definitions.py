"""The platform's own definitions and the two-asset job, in one code location. Mounted into the pods."""

import dagster as dg

import pipeline.definitions as platform


@dg.asset
def first() -> None:
    """The first of two that do nothing."""


@dg.asset(deps=[first])
def second() -> None:
    """The second of two that do nothing."""


two = dg.define_asset_job("two", selection=["first", "second"])
defs = dg.Definitions.merge(platform.defs, dg.Definitions(assets=[first, second], jobs=[two]))
