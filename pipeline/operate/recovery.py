"""What can still be built after a part of a run failed.

Dagster skips a step as soon as one of its inputs failed. All dbt models are one step, so one unreachable source
would hold back the models that do not read it: they are run again without those that do.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import dagster as dg
    from dagster._core.definitions.assets.graph.asset_graph import AssetGraph


def unhindered(
    graph: "AssetGraph", *, failed: "Iterable[dg.AssetKey]", skipped: "Iterable[dg.AssetKey]"
) -> "set[dg.AssetKey]":
    """Those of *skipped* that depend, at any distance, on none of *failed*."""
    hindered: set[dg.AssetKey] = set()
    waiting = list(failed)
    while waiting:
        children = graph.get(waiting.pop()).child_keys - hindered
        hindered |= children
        waiting += children
    return set(skipped) - hindered


def blocked(evaluations: "Iterable[dg.AssetCheckEvaluation]") -> "set[dg.AssetKey]":
    """The assets that a failed blocking check keeps from spreading."""
    return {
        item.asset_key for item in evaluations if item.blocking and not item.passed and item.severity.value == "ERROR"
    }


def unchecked(
    graph: "AssetGraph", *, built: "Iterable[dg.AssetKey]", evaluations: "Iterable[dg.AssetCheckEvaluation]"
) -> "set[dg.AssetKey]":
    """Those of *built* whose blocking checks were not all made: nobody knows that they may spread."""
    made = {(item.asset_key, item.check_name) for item in evaluations}
    wanted, found = set(built), set()
    for check in graph.asset_check_keys:
        if check.asset_key in wanted and (check.asset_key, check.name) not in made:
            spec = graph.get_check_spec(check)
            if spec.blocking:
                found.add(check.asset_key)
    return found


def step_of(graph: "AssetGraph", key: "dg.AssetKey") -> str:
    """Name of the step that builds *key*."""
    return str(graph.get(key).assets_def.node_def.name)
