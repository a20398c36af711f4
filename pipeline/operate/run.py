"""`millrace run`: the asset graph in this process, recorded in the same instance that the UI shows.

What failed stops only what depends on it: a step that Dagster skipped because one of its many inputs failed is run
again for the rest (dbt builds all models in one step, of which a failed source concerns some).
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.operate.instance import ensure_instance
from pipeline.operate.recovery import blocked, step_of, unchecked, unhindered
from pipeline.progress import Report, heard_by
from pipeline.settings import FULL_TAG, Settings

if TYPE_CHECKING:
    import dagster as dg

RANGE = "..."  # between the first and the last month of a range, as Dagster writes it


@dataclass(frozen=True)
class Outcome:
    """One asset or check of a run. *status* of an asset: built, failed or skipped; of a check: passed, failed, warned."""

    name: str
    status: str
    detail: str = ""
    rows: int | None = None
    rows_loaded: int | None = None


@dataclass
class Summary:
    """What a `millrace run` did, and how long each part of it took."""

    run_ids: list[str] = field(default_factory=list)
    assets: dict[str, Outcome] = field(default_factory=dict)
    checks: dict[str, Outcome] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The summary as plain values, for JSON."""
        return {"succeeded": self.succeeded, **asdict(self)}

    @property
    def succeeded(self) -> bool:
        """True if every selected asset was built and no check failed."""
        return not self.errors and all(item.status == "built" for item in self.assets.values())


def run(
    settings: Settings,
    *,
    select: str = "*",
    partition: str | None = None,
    full: bool = False,
    report: Report,
    log: Callable[[str], None],
) -> Summary:
    """Run the selected assets and their checks now.

    *select* is a list of asset keys with ``*`` and with ``+`` for what is up- or downstream (``raw/tlc/*,+marts/fct_trips``)
    or any expression of Dagster's selection syntax; *partition* is a month or ``first...last``; without it every month that is new or changed. *full* loads every file and rebuilds every model.

    Raises:
        ConfigError: if nothing matches, or the project is wrong.
    """
    started = time.monotonic()
    os.environ.update(settings.child_environment())
    ensure_instance(settings)
    import dagster as dg
    from dagster._core.instance import InstanceRef  # no public name takes overrides

    from pipeline.definitions import build

    defs = build(Settings.load())  # of the environment completed above: what the import has just built
    summary = Summary()
    summary.seconds["start"] = time.monotonic() - started
    job = defs.resolve_implicit_global_asset_job_def()
    graph = defs.resolve_asset_graph()
    selected = _selected(select, graph)
    _refuse_partition(partition, selected, graph)
    tags = _tags(partition, full=full)
    noop = {"module": "dagster.core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
    reference = InstanceRef.from_dir(str(settings.dagster_home), overrides={"compute_logs": noop})
    summary.seconds["definitions"] = time.monotonic() - started - summary.seconds["start"]
    with dg.DagsterInstance.from_ref(reference) as instance:
        # One session instead of one a query: 511 connections, 3 of 9 s, in a run of the bundled models.
        instance.optimize_for_webserver(statement_timeout=60_000, pool_recycle=3600, max_overflow=20)
        remaining, held_back = selected, set[dg.AssetKey]()
        while remaining:
            with _quiet(settings), heard_by(report):
                result = job.execute_in_process(
                    instance=instance,
                    asset_selection=sorted(remaining),
                    partition_key=partition if partition and RANGE not in partition else None,
                    tags=tags,
                    run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                    raise_on_error=False,
                )
            _collect(summary, result, remaining, graph)
            evaluations = result.get_asset_check_evaluations()
            built = [key for key in remaining if _status(summary, key) == "built"]
            held_back |= blocked(evaluations) | unchecked(graph, built=built, evaluations=evaluations)
            failed = [*held_back, *(key for key in selected if _status(summary, key) == "failed")]
            skipped = [key for key in remaining if _status(summary, key) == "skipped"]
            again = unhindered(graph, failed=failed, skipped=skipped)
            if again == remaining:
                break
            if again:
                log(f"{len(again)} assets do not depend on what failed: running them")
            remaining = again
    summary.seconds["total"] = time.monotonic() - started
    return summary


def _selected(select: str, graph: Any) -> "set[dg.AssetKey]":
    import dagster as dg

    from pipeline.operate.jobs import DATA

    expression = select
    if not re.search(r"[:()]", select):
        parts = [re.fullmatch(r"(\+?)(.+?)(\+?)", part.strip()) for part in select.split(",")]
        expression = " or ".join(f'{part[1]}key:"{part[2]}"{part[3]}' for part in parts if part)
    try:
        selection = DATA if select == "*" else dg.AssetSelection.from_string(expression)
        found = set(selection.resolve(graph))
    except Exception as error:  # the parser's own tree
        raise ConfigError(f"--select {select!r}: {error}") from error
    if not found:
        names = ", ".join(sorted(key.to_user_string() for key in graph.executable_asset_keys))
        raise ConfigError(f"--select {select!r} matches no asset. There are: {names}")
    return found & set(graph.executable_asset_keys)


def _refuse_partition(partition: str | None, selected: "set[dg.AssetKey]", graph: Any) -> None:
    if partition is None:
        return
    months = {month for key in selected if (of := graph.get(key).partitions_def) for month in of.get_partition_keys()}
    if not months:
        raise ConfigError(f"--partition {partition}: nothing that is selected has months. Leave it out.")
    first, _, last = partition.partition(RANGE)
    asked = [first, last] if RANGE in partition else [first]
    if not months >= set(asked) or asked != sorted(asked):
        raise ConfigError(
            f"--partition {partition}: there are the months {min(months)} to {max(months)}; give one, or a range as "
            f"{min(months)}{RANGE}{max(months)}."
        )


def _tags(partition: str | None, *, full: bool) -> dict[str, str]:
    tags = {FULL_TAG: "true"} if full else {}
    if partition and RANGE in partition:
        first, last = partition.split(RANGE, 1)
        tags |= {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    return tags


@contextlib.contextmanager
def _quiet(settings: Settings) -> Iterator[None]:
    """Send what dbt and Dagster print to a log file: the terminal shows progress and the summary."""
    settings.log_path.mkdir(parents=True, exist_ok=True)
    level = logging.getLogger("dagster").level
    with (settings.log_path / "run.log").open("a") as out, contextlib.redirect_stdout(out):
        try:
            logging.getLogger("dagster").setLevel(logging.CRITICAL)
            yield
        finally:
            logging.getLogger("dagster").setLevel(level)


def _status(summary: Summary, key: "dg.AssetKey") -> str:
    return summary.assets[key.to_user_string()].status


def _collect(
    summary: Summary,
    result: "dg.ExecuteInProcessResult",
    selected: "Sequence[dg.AssetKey] | set[dg.AssetKey]",
    graph: Any,
) -> None:
    """Add one Dagster run to *summary*."""
    summary.run_ids.append(result.run_id)
    failed_steps: dict[str, str] = {}
    whole = ""  # what failed the run before any step, such as a lake that cannot be opened
    for event in result.all_events:
        if event.is_failure and not event.is_step_event:
            whole = _message(event.job_failure_data.error) if event.job_failure_data.error else event.message or ""
        if event.is_step_failure:
            data = event.step_failure_data
            failed_steps[event.step_key or ""] = (data.user_failure_data and data.user_failure_data.description) or (
                _message(data.error) if data.error else ""
            )
        elif event.is_step_success and event.step_key:
            duration = event.step_success_data.duration_ms / 1000
            summary.seconds[event.step_key] = summary.seconds.get(event.step_key, 0) + duration
    built = {}
    for event in result.get_asset_materialization_events():
        materialization = event.step_materialization_data.materialization
        built[materialization.asset_key] = materialization.metadata
    for evaluation in result.get_asset_check_evaluations():
        name = f"{evaluation.asset_key.to_user_string()}: {evaluation.check_name}"
        status = "passed" if evaluation.passed else "warned" if evaluation.severity.value == "WARN" else "failed"
        facts = {key: value.value for key, value in evaluation.metadata.items() if key not in ("query",)}
        summary.checks[name] = Outcome(
            name, status, "" if evaluation.passed else ", ".join(f"{k} {v}" for k, v in facts.items())
        )
    for step, message in failed_steps.items():
        text = message or "failed"
        if text not in summary.errors:
            summary.errors.append(text if step in text else f"{step}: {text}")
    if whole and not failed_steps and whole not in summary.errors:
        summary.errors.append(whole)
    for key in sorted(selected):
        name = key.to_user_string()
        metadata = built.get(key)
        if metadata is not None:
            counts: dict[str, Any] = {fact: value.value for fact, value in metadata.items()}
            rows, loaded = counts.get("dagster/row_count"), counts.get("rows_loaded")
            gone = counts.get("files_vanished")
            detail = f"gone at the source, rows kept: {', '.join(gone)}" if gone else ""
            summary.assets[name] = Outcome(name, "built", detail, rows=rows, rows_loaded=loaded)
            continue
        has_failed = step_of(graph, key) in failed_steps
        summary.assets[name] = Outcome(name, "failed" if has_failed else "skipped")


def _message(error: Any) -> str:
    while error.cause:
        error = error.cause
    return str(error.message).strip()
