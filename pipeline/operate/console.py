"""What `millrace run` shows while it works and at its end, and what `millrace monitor` does."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.progress import Progress, Report

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.operate.run import Summary

PLAIN_INTERVAL_SECONDS = 5  # between two lines about the same task where there is no terminal
LISTED = 20


@contextmanager
def progress(console: "Console") -> Iterator[tuple[Report, Callable[[str], None]]]:
    """A `Report` and a log function: live bars on a terminal, plain lines elsewhere."""
    if console.is_terminal:
        yield from _live(console)
    else:
        yield _plain(console)


def _describe(step: Progress) -> str:
    parts = []
    if step.items_total:
        parts.append(f"{step.items_done}/{step.items_total} {step.item}")
    if step.rows:
        parts.append(f"{step.rows:,} rows")
    if step.bytes_total:
        parts.append(f"{step.bytes_done / 1e6:,.0f} of {step.bytes_total / 1e6:,.0f} MB")
    return ", ".join(parts)


def _plain(console: "Console") -> tuple[Report, Callable[[str], None]]:
    said: dict[str, tuple[str, float]] = {}

    def report(step: Progress) -> None:
        name, text, now = step.task, _describe(step), time.monotonic()
        before = said.get(name)
        is_last = step.share == 1.0 and bool(step.items_total)
        if text and (before is None or (before[0] != text and (is_last or now - before[1] > PLAIN_INTERVAL_SECONDS))):
            said[name] = (text, now)
            console.print(f"{name}: {text}")

    return report, console.print


def _live(console: "Console") -> Iterator[tuple[Report, Callable[[str], None]]]:
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[facts]}"),
               TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    tasks: dict[str, Any] = {}
    with Bars(*columns, console=console) as bars:

        def report(step: Progress) -> None:
            if step.items_total == 0:
                return
            task = tasks.get(step.task)
            if task is None:
                task = tasks[step.task] = bars.add_task(step.task, total=None, facts="")
            share = step.share
            bars.update(task, total=None if share is None else 1.0, completed=share or 0.0, facts=_describe(step))

        yield report, bars.console.print


def show_summary(console: "Console", summary: "Summary") -> None:
    """Tables with their rows, checks, timings, errors, and where to look next."""
    from rich.table import Table
    from rich.text import Text

    table = Table("asset", "status", title_justify="left")
    table.add_column("rows", justify="right")
    table.add_column("new", justify="right")
    for item in summary.assets.values():
        style = {"built": "green", "failed": "red"}.get(item.status, "yellow")
        table.add_row(
            Text(item.name),
            Text(item.status, style=style),
            "" if item.rows is None else f"{item.rows:,}",
            "" if item.rows_loaded is None else f"{item.rows_loaded:,}",
        )
    if not console.is_terminal:
        console.width = 160
    console.print(table)
    states = [item.status for item in summary.checks.values()]
    if states:
        console.print(
            f"checks: {states.count('passed')} passed, {states.count('warned')} warned, {states.count('failed')} failed"
        )
    bad = [item for item in summary.checks.values() if item.status != "passed"]
    for item in bad[:LISTED]:
        console.print(
            Text(f"  {item.status}: {item.name} ({item.detail})", style="red" if item.status == "failed" else "yellow")
        )
    if len(bad) > LISTED:
        console.print(f"  … and {len(bad) - LISTED} more")
    slow = sorted(
        ((name, spent) for name, spent in summary.seconds.items() if name != "total"), key=lambda pair: -pair[1]
    )
    console.print(
        f"time: {summary.seconds['total']:.1f} s; " + ", ".join(f"{name} {spent:.1f} s" for name, spent in slow[:6])
    )
    for item in summary.assets.values():
        if item.detail:
            console.print(Text(f"{item.name}: {item.detail}", style="yellow"))
    for error in summary.errors:
        console.print(Text(f"error: {error}", style="red"))
    skipped = [name for name, item in summary.assets.items() if item.status == "skipped"]
    if skipped:
        console.print(f"skipped, because what they are built of failed: {', '.join(skipped)}")


def show_monitor(console: "Console", document: dict[str, Any]) -> None:
    """The exporter's document: how old it is, services, runs by job, assets and checks that want attention."""
    from rich.table import Table
    from rich.text import Text

    if not console.is_terminal:
        console.width = 160
    window, collected = document["window"], document["collected"]
    console.print(
        f"Collected {collected['age_seconds']:.0f} s ago; events read {collected['counted_age_seconds']:.0f} s ago."
    )
    styles = {"up": "green", "degraded": "yellow", "down": "bold red"}
    table = Table("service", "state", "since", "reason")
    for item in document["services"]:
        name = f"{item['service']} {item['name']}".strip()
        table.add_row(Text(name), Text(item["state"], style=styles[item["state"]]), item["since"], Text(item["reason"]))
    console.print(table)

    runs, queue, waiting = document["runs"], document["queue"], document["runs"]["in_progress"]
    if window["hours"] is None:
        console.print(
            Text(f"Nothing is known of the last {window['asked_hours']:g} hours: {window['problem']}", style="yellow")
        )
    else:
        console.print(
            f"{window['hours']:,.1f} of {window['asked_hours']:g} hours, to {window['to']}: {_count(runs['completed'], 'run')} ended, {runs['failure']:,.0f} of them "
            f"failed ({_percent(runs['failure_rate'])})"
        )
    under_way = ", ".join(f"{count:,.0f} {status}" for status, count in waiting.items() if count)
    limit = f" of {queue['limit']:.0f} at once" if queue["limit"] else ""
    console.print(f"under way: {under_way or 'nothing'}{limit}")
    if runs["jobs"]:
        table = Table("job")
        for name in ("runs", "failed", "p50", "p95", "memory"):
            table.add_column(name, justify="right")
        memory = {
            (each["code_location"], each["job_name"]): each["peak_memory_ratio"]
            for each in document["resources"]["jobs"]
        }
        for job in runs["jobs"]:
            style = "red" if job["failure"] else ""
            table.add_row(
                Text(job["job_name"]),
                f"{job['completed']:,.0f}",
                Text(f"{job['failure']:,.0f}", style=style),
                _seconds(job["p50_seconds"]),
                _seconds(job["p95_seconds"]),
                _percent(memory.get((job["code_location"], job["job_name"]))),
            )
        console.print(table)
        if (more := runs["jobs_count"] - len(runs["jobs"])) > 0:
            console.print(f"… and {_count(more, 'job')} more with runs: --json")

    assets, checks = document["assets"], document["checks"]
    if assets["materializations"] is not None:
        console.print(
            f"assets: made {_count(assets['materializations'], 'time')}, failed {_count(assets['failures'], 'time')}, {assets['late_count']} late; "
            f"checks: {checks['passed']:,.0f} passed, {checks['failed']:,.0f} failed, {checks['failing_count']} failing now"
        )
    for late in assets["late"][:LISTED]:
        age, limit = late["last_success_age_seconds"] / 3600, late["max_age_seconds"] / 3600
        console.print(
            Text(f"  late: {late['asset_key']}, made {age:,.1f} hours ago, may be {limit:,.1f}", style="yellow")
        )
    for asset in assets["assets"][:LISTED]:
        if asset["failures"]:
            console.print(Text(f"  failed: {asset['asset_key']}, {_count(asset['failures'], 'time')}", style="red"))
    for check in checks["failing"][:LISTED]:
        style = "red" if check["severity"] == "error" else "yellow"
        console.print(
            Text(f"  {check['severity']}: {check['check']} of {check['asset_key']} since {check['at']}", style=style)
        )
    if firing := sum(alert["state"] == "firing" for alert in document["alerts"] or ()):
        console.print(Text(f"{_count(firing, 'alert')}: `millrace alerts list`", style="red"))


def _count(number: float, noun: str) -> str:
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:,.1f} s"
