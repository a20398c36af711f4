"""The project's dbt models as assets ``staging/<model>`` and ``marts/<model>``, its data tests as their checks."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from pipeline.errors import LakeUnavailable
from pipeline.lake.catalogue import relation_columns, sketch
from pipeline.lake.connection import Lake
from pipeline.progress import Progress, report
from pipeline.settings import FULL_TAG, Settings, process_environment
from pipeline.transform.lineage import Origin, column_lineage
from pipeline.transform.project import dbt_executable, invocation, manifest
from pipeline.transform.resources import DagsterDbtTranslator, Dbt, DbtCliInvocation, dbt_assets

WAIT_SECONDS = 3600  # the pool binds the daemon's runs only, not a `millrace run` beside them
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
        # dagster-dbt gives the child the environment of its own process.
        with (
            lake.lock("dbt", wait_seconds=WAIT_SECONDS) as held,
            invocation(settings, context.run.run_id) as environment,
            process_environment(environment),
        ):
            if not held:
                raise LakeUnavailable(
                    f"Building the models: another run has been building for {WAIT_SECONDS} s. Wait for it or stop it."
                )
            dbt = Dbt(project_dir=str(settings.project_dir / "dbt"), dbt_executable=dbt_executable())
            process = dbt.cli(arguments, context=context, target_path=Path(environment["DBT_TARGET_PATH"]))
            yield from _events(process, context, lake)

    return [dbt_build]


def _events(process: DbtCliInvocation, context: dg.AssetExecutionContext, lake: Lake) -> Iterator[Any]:
    """dbt's events as Dagster's, each model's with its rows, columns and their origins."""
    done, total = 0, None
    relations = relation_columns(lake)
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
                    model = process.manifest["nodes"][node["unique_id"]]
                    origins = column_lineage(_compiled(process, model), relations)
                    name = model["schema"], model["alias"]
                    relations[name] = tuple(origins) or relations.get(name, ())  # what reads it comes later
                    more = {**_table_metadata(lake, model), **_lineage_metadata(origins, model, process.manifest)}
                    result = result.with_metadata({**result.metadata, **more})
                yield result
    finally:
        if process.process.poll() is None:  # this generator was closed: no dbt may outlive its run
            process.process.terminate()
            process.process.wait(timeout=30)


def _compiled(process: DbtCliInvocation, model: Mapping[str, Any]) -> str:
    """The SQL that dbt made of a model, without what its materialisation puts around; empty for a seed."""
    path = process.target_path / "compiled" / model["package_name"] / model["original_file_path"]
    return path.read_text() if path.suffix == ".sql" and path.exists() else ""


def _table_metadata(lake: Lake, model: Mapping[str, Any]) -> dict[str, Any]:
    table = sketch(lake, model["schema"], model["alias"])
    if table is None:  # a view: its columns are known by their documentation, its rows only by reading them
        documented = model["columns"].items()
        columns = [dg.TableColumn(name, description=item.get("description")) for name, item in documented]
        return {"dagster/column_schema": dg.TableSchema(columns)} if columns else {}
    columns = [dg.TableColumn(column.name, column.type, column.comment) for column in table.columns]
    return {"dagster/row_count": table.rows, "dagster/column_schema": dg.TableSchema(columns)}


def _lineage_metadata(
    origins: Mapping[str, Sequence[Origin]], model: Mapping[str, Any], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """*origins* in the terms of the asset graph: of the models and sources that *model* depends on."""
    upstream = [manifest["nodes"].get(name) or manifest["sources"][name] for name in model["depends_on"]["nodes"]]
    keys = {
        (node["schema"], node.get("alias") or node["identifier"]): Translator().get_asset_key(node) for node in upstream
    }
    by_column = {
        column: [
            dg.TableColumnDep(keys[origin.schema, origin.relation], origin.column)
            for origin in found
            if (origin.schema, origin.relation) in keys
        ]
        for column, found in origins.items()
    }
    return {"dagster/column_lineage": dg.TableColumnLineage(by_column)} if any(by_column.values()) else {}
