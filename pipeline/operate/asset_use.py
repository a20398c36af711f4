"""What the definitions have: assets, with all that reads them (dashboards and metrics by dbt's YAML), and schedules."""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.settings import Settings, process_environment

if TYPE_CHECKING:
    import dagster as dg


@dataclass(frozen=True)
class Asset:
    """One asset, by keys as ``marts/fct_trips``; *source* is the file of the project that declares it."""

    key: str
    parents: frozenset[str] = frozenset()
    readers: frozenset[str] = frozenset()
    checks: int = 0
    uses: frozenset[str] = frozenset()  # exposures, metrics, semantic models, saved queries
    holds_back: bool = False  # by a blocking check
    is_partitioned: bool = False
    source: str = ""


def read_assets(settings: Settings) -> dict[str, Asset]:
    """Every asset that the project's definitions can make, by key.

    Raises:
        ConfigError: if a file of the project is wrong.
    """
    from pipeline.transform.project import manifest

    with _definitions(settings) as definitions:
        graph = definitions.resolve_asset_graph()
        has_dbt = (settings.project_dir / "dbt" / "dbt_project.yml").exists()
        dbt: Mapping[str, Any] = manifest(settings) if has_dbt else {}
    uses, files = _uses(dbt), _files(dbt)
    found = {}
    for key in graph.executable_asset_keys:
        node, name = graph.get(key), key.to_user_string()
        source = node.metadata.get("source_file")
        found[name] = Asset(
            name,
            frozenset(parent.to_user_string() for parent in node.parent_keys),
            frozenset(child.to_user_string() for child in node.child_keys),
            len(node.check_keys),
            frozenset(uses.get(name, ())),
            any(graph.get_check_spec(check).blocking for check in node.check_keys),
            node.partitions_def is not None,
            f"sources/{getattr(source, 'value', source)}" if source else files.get(name, ""),
        )
    return found


def read_schedules(settings: Settings) -> frozenset[str]:
    """The names of the schedules that the project's definitions have; raises as `read_assets` does."""
    with _definitions(settings) as definitions:
        return frozenset(each.name for each in definitions.schedules or ())


@contextmanager
def _definitions(settings: Settings) -> "Iterator[dg.Definitions]":
    with process_environment(settings.child_environment()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # beta features of Dagster, which the definitions use on purpose
        from pipeline.definitions import build

        yield build(Settings.load())


def _keys(dbt: Mapping[str, Any]) -> dict[str, str]:
    """dbt's ids of models as asset keys."""
    from pipeline.transform.assets import Translator

    kinds = ("model", "seed", "snapshot")
    nodes = {name: node for name, node in dbt.get("nodes", {}).items() if node["resource_type"] in kinds}
    sources = dbt.get("sources", {})
    return {name: Translator().get_asset_key(node).to_user_string() for name, node in {**nodes, **sources}.items()}


def _files(dbt: Mapping[str, Any]) -> dict[str, str]:
    keys = _keys(dbt)
    return {
        keys[name]: f"dbt/{node['original_file_path']}" for name, node in dbt.get("nodes", {}).items() if name in keys
    }


def _uses(dbt: Mapping[str, Any]) -> dict[str, set[str]]:
    """What reads each asset and is no asset. A time spine is read by every metric."""
    keys = _keys(dbt)
    uses: dict[str, set[str]] = defaultdict(set)
    for kind in ("exposures", "semantic_models", "metrics", "saved_queries"):
        for reader in dbt.get(kind, {}).values():
            for name in reader["depends_on"]["nodes"]:
                if name in keys:
                    uses[keys[name]].add(f"{kind.removesuffix('s').replace('_', ' ')} {reader['name']}")
    for name, node in dbt.get("nodes", {}).items():
        if node.get("time_spine"):
            uses[keys[name]].add("time spine")
    return uses
