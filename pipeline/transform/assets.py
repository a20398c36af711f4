"""The project's dbt models as assets ``staging/<model>`` and ``marts/<model>``, its data tests as their checks."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from pipeline.lake.catalogue import sketch
from pipeline.lake.connection import Lake
from pipeline.progress import Progress, report
from pipeline.settings import Settings
from pipeline.transform.project import dbt_executable, invocation, manifest
from pipeline.transform.resources import DagsterDbtTranslator, Dbt, DbtCliInvocation, dbt_assets

FULL_TAG = "millrace/full"
POOL = "dbt"  # dbt replaces tables, which conflicts with any other writer of them


class Translator(DagsterDbtTranslator):
    """Keys, groups and owners from where a model stands and what its YAML says."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        if dbt_resource_props["resource_type"] == "source":
            return dg.AssetKey([dbt_resource_props["schema"], *dbt_resource_props["identifier"].split("__", 1)])
        return dg.AssetKey([dbt_resource_props["schema"], dbt_resource_props["name"]])

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        return str(dbt_resource_props["schema"])


def build_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """All models of the project as one subsettable step: one dbt process builds what is selected."""
    if not (settings.project_dir / "dbt" / "dbt_project.yml").exists():
        return []

    @dbt_assets(manifest=manifest(settings), dagster_dbt_translator=Translator(), name="dbt_build", pool=POOL)
    def dbt_build(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> Iterator[Any]:
        arguments = ["build"] + (["--full-refresh"] if context.run.tags.get(FULL_TAG) == "true" else [])
        with invocation(settings, context.run.run_id) as environment:
            os.environ.update(environment)  # dagster-dbt takes the child's environment from its own
            dbt = Dbt(project_dir=str(settings.project_dir / "dbt"), dbt_executable=dbt_executable())
            process = dbt.cli(arguments, context=context, target_path=Path(environment["DBT_TARGET_PATH"]))
            yield from _events(process, context, lake)

    return [dbt_build]


def _events(process: DbtCliInvocation, context: dg.AssetExecutionContext, lake: Lake) -> Iterator[Any]:
    """dbt's events as Dagster's, each model's with its rows and columns as the lake has them."""
    done, total = 0, None
    try:
        for event in process.stream_raw_events():
            data = event.raw_event.get("data", {})
            node = data.get("node_info") or {}
            if event.raw_event["info"]["name"] in ("LogStartLine", "LogTestResult", "LogModelResult"):
                total = data.get("total", total)
            if event.raw_event["info"]["name"] == "NodeFinished":
                done += 1
                report(Progress(f"dbt {node.get('node_name', '')}", items_done=done, items_total=total, item="nodes"))
            for result in event.to_default_asset_events(
                manifest=process.manifest,
                dagster_dbt_translator=process.dagster_dbt_translator,
                context=process.context,
                target_path=process.target_path,
                project=process.project,
            ):
                if isinstance(result, dg.Output):
                    documented = process.manifest["nodes"].get(node.get("unique_id"), {}).get("columns", {})
                    result = result.with_metadata({**result.metadata, **_table_metadata(lake, node, documented)})
                yield result
    finally:
        if process.process.poll() is None:  # this generator was closed: no dbt may outlive its run
            process.process.terminate()
            process.process.wait(timeout=30)


def _table_metadata(lake: Lake, node: Mapping[str, Any], documented: Mapping[str, Any]) -> dict[str, Any]:
    relation = node.get("node_relation") or {}
    table = sketch(lake, relation.get("schema", ""), relation.get("alias", ""))
    if table is None:  # a view: its columns are known by their documentation, its rows only by reading them
        columns = [dg.TableColumn(name, description=item.get("description")) for name, item in documented.items()]
        return {"dagster/column_schema": dg.TableSchema(columns)} if columns else {}
    columns = [dg.TableColumn(column.name, column.type, column.comment) for column in table.columns]
    return {"dagster/row_count": table.rows, "dagster/column_schema": dg.TableSchema(columns)}
