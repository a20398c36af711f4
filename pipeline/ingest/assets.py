"""Every stream as an asset ``raw/<source>/<stream>``, and ``health/sources``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg

from pipeline.cgroup import read_usage
from pipeline.errors import MillraceError
from pipeline.ingest.raw import LoadResult, columns_of
from pipeline.ingest.spec import AirbyteSource, FileSource, FileStream, SourceFile, Stream, table_name
from pipeline.lake.connection import Lake
from pipeline.progress import report
from pipeline.settings import FULL_TAG, Settings

RETRY = dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)  # seconds
LISTED_FILES = 50


def asset_key(source: str, stream: str) -> dg.AssetKey:
    """Key of a stream's asset."""
    return dg.AssetKey(["raw", source, stream])


def build_assets(
    files: Sequence[SourceFile], settings: Settings, *, retry: dg.RetryPolicy = RETRY
) -> list[dg.AssetsDefinition]:
    """One asset for each stream of *files*; a connector's streams share one process and so one step."""
    assets: list[dg.AssetsDefinition] = []
    for file in files:
        if isinstance(file.source, FileSource):
            assets += [_file_asset(file, stream, settings, retry) for stream in file.source.streams]
        else:
            assets.append(_connector_assets(file, settings, retry))
    return [*assets, _health_asset(files, settings)]


@contextmanager
def retried_by_class() -> Iterator[None]:
    """A transient error is left to the retry policy; any other of ours must not be tried again.

    Nor one beside which the kernel killed a process for want of memory: that needs a run with more of it.
    """
    kills = read_usage().oom_kills
    try:
        yield
    except MillraceError as error:
        if error.is_transient and read_usage().oom_kills == kills:
            raise
        raise dg.Failure(str(error), allow_retries=False) from error


def _file_asset(file: SourceFile, stream: FileStream, settings: Settings, retry: dg.RetryPolicy) -> dg.AssetsDefinition:
    source = file.source.name
    months = stream.months if stream.is_monthly else None

    @dg.asset(  # type: ignore[untyped-decorator]  # of the ** below
        **_common(file, stream),
        kinds={stream.format or "files", "ducklake"},
        partitions_def=_months(months.first, months.last) if months else None,
        backfill_policy=_backfill_policy(settings) if months else None,
        retry_policy=retry,
        output_required=False,
    )
    def load(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> Iterator[dg.MaterializeResult[Any]]:
        from pipeline.ingest.files import load_files

        asked = (
            frozenset(context.partition_keys) if context.has_partition_key or context.has_partition_key_range else None
        )
        with retried_by_class():
            result = load_files(
                lake,
                file,
                stream,
                settings=settings,
                run_id=context.run.run_id,
                months=asked,
                full=context.run.tags.get(FULL_TAG) == "true",
                report=report,
            )
        if asked is None:  # a run for all months still says which months it brought
            for month, rows in result.rows_by_month:
                event = dg.AssetMaterialization(
                    asset_key(source, stream.name), partition=month, metadata={"rows_loaded": rows}
                )
                context.log_event(event)
        yield dg.MaterializeResult(
            metadata=_metadata(lake, result, {item.name: item.description for item in stream.columns})
        )

    assert isinstance(load, dg.AssetsDefinition)
    return load


def _connector_assets(file: SourceFile, settings: Settings, retry: dg.RetryPolicy) -> dg.AssetsDefinition:
    source = file.source
    assert isinstance(source, AirbyteSource)
    is_deduped = any(stream.sync == "incremental_deduped" for stream in source.streams)
    specs = [
        dg.AssetSpec(**_common(file, stream), kinds={"airbyte", "ducklake"}, skippable=True)
        for stream in source.streams
    ]
    names = {spec.key: stream.name for spec, stream in zip(specs, source.streams, strict=True)}

    @dg.multi_asset(
        name=f"sync_{source.name}",
        specs=specs,
        can_subset=True,
        retry_policy=retry,
        pool=f"connector_{source.name}" if is_deduped else None,  # replacing by key conflicts with any other writer
    )
    def sync(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> Iterator[dg.MaterializeResult[Any]]:
        from pipeline.ingest.airbyte import sync as sync_streams

        with retried_by_class():
            results = sync_streams(
                lake,
                file,
                sorted(names[key] for key in context.selected_asset_keys),
                settings=settings,
                run_id=context.run.run_id,
                full=context.run.tags.get(FULL_TAG) == "true",
                report=report,
            )
        for result in results:
            yield dg.MaterializeResult(
                asset_key=asset_key(source.name, result.stream), metadata=_metadata(lake, result)
            )

    return sync


def _common(file: SourceFile, stream: Stream) -> dict[str, Any]:
    source = file.source
    table = f"raw.{table_name(source.name, stream.name)}"
    return {
        "key": asset_key(source.name, stream.name),
        "group_name": "raw",
        "owners": [source.owner],
        "description": stream.description or source.description,
        "metadata": {
            "dagster/relation_identifier": f"lake.{table}",
            "source_file": file.path.name,
            **({"homepage": dg.MetadataValue.url(source.homepage)} if source.homepage else {}),
            **({"licence": source.licence} if source.licence else {}),
            **({"max_age_hours": stream.max_age_hours} if stream.max_age_hours else {}),  # the exporter reads it
        },
    }


def _months(first: str, last: str | None) -> dg.TimeWindowPartitionsDefinition:
    end = None
    if last:
        year, month = map(int, last.split("-"))
        end = f"{year + month // 12:04}-{month % 12 + 1:02}"
    return dg.TimeWindowPartitionsDefinition(cron_schedule="0 0 1 * *", fmt="%Y-%m", start=first, end=end)


def _backfill_policy(settings: Settings) -> dg.BackfillPolicy:
    if settings.partitions_per_run is None:
        return dg.BackfillPolicy.single_run()
    return dg.BackfillPolicy.multi_run(settings.partitions_per_run)


def _metadata(lake: Lake, result: LoadResult, described: Mapping[str, str] | None = None) -> Mapping[str, Any]:
    columns = columns_of(lake, table_name(result.source, result.stream))
    listed = list(result.files_loaded[:LISTED_FILES])
    return {
        "dagster/row_count": lake.scalar(f"SELECT count(*) FROM {result.table}"),
        "dagster/column_schema": dg.TableSchema(
            [dg.TableColumn(name, kind, (described or {}).get(name) or None) for name, kind in columns.items()]
        ),
        "rows_loaded": result.rows,
        "rows_rejected": result.rejects,  # the exporter reads these two, and data_until
        "seconds": round(result.seconds, 3),
        "files_loaded": len(result.files_loaded),
        "files_unchanged": result.files_unchanged,
        **({"data_until": dg.MetadataValue.timestamp(result.data_until)} if result.data_until else {}),
        **({"files": listed} if listed else {}),
        **({"files_vanished": list(result.files_vanished[:LISTED_FILES])} if result.files_vanished else {}),
        **({"columns_added": list(result.columns_added)} if result.columns_added else {}),
    }


def _health_asset(files: Sequence[SourceFile], settings: Settings) -> dg.AssetsDefinition:
    owners = sorted({file.source.owner for file in files})

    @dg.asset(key=["health", "sources"], group_name="health", kinds={"ducklake"}, owners=owners)
    def sources(context: dg.AssetExecutionContext, lake: dg.ResourceParam[Lake]) -> dg.MaterializeResult[Any]:
        """Which sources can be reached, how fast they answer, when they last changed and were last loaded."""
        from pipeline.ingest.airbyte import probe
        from pipeline.ingest.health import check_sources, save

        found = check_sources(lake, files, settings, probe=lambda file: probe(file, settings))
        save(lake, found, run_id=context.run.run_id)
        down = [f"{item.source}/{item.stream}: {item.error}" for item in found if not item.reachable]
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": len(found),
                "reachable": len(found) - len(down),
                **({"unreachable": down} if down else {}),
            }
        )

    return sources
