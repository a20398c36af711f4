"""`millrace advise`: all rules over the history that is there, as a table or as JSON (docs/advice.md has its shape)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipeline.operate import idle, lost_time, sizing
from pipeline.operate.advice import Advice
from pipeline.operate.asset_use import Asset, read_assets, read_schedules
from pipeline.operate.bottleneck import bottleneck
from pipeline.operate.costs import Cost, Prices, costs
from pipeline.operate.history import History
from pipeline.operate.history_reader import read_history
from pipeline.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

LISTED_COSTS = 10


@dataclass(frozen=True)
class Report:
    """Advice, the most money first, and what each asset costs, the dearest first."""

    history: History
    prices: Prices
    advice: Sequence[Advice]
    costs: Sequence[Cost]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {
            "until": datetime.fromtimestamp(self.history.now, UTC).isoformat(timespec="seconds"),
            "days": self.history.days,
            "runs": sum(len(job.runs) for job in self.history.jobs),
            "prices": asdict(self.prices),
            "advice": [asdict(item) for item in self.advice],
            "costs": [asdict(item) for item in self.costs],
            "left_out": list(self.history.left_out),
        }


def advise(settings: Settings, *, days: float, now: float, job: str | None = None) -> Report:
    """What to change, by the *days* before *now*; of one *job*'s runs alone, if it is given.

    Raises:
        ConfigError: if the project is wrong, or *job* never ran.
        ServiceError: if the database does not answer.
    """
    if settings.instance_dir is None:  # elsewhere the tables are others' to make
        from pipeline.operate.instance import ensure_instance

        ensure_instance(settings)
    history = read_history(settings, days=days, now=now, job=job)
    prices = Prices(settings.price_cpu_hour, settings.price_gib_hour, settings.price_currency)
    return judge(history, read_assets(settings), read_schedules(settings), prices, is_whole=job is None)


def judge(
    history: History, assets: Mapping[str, Asset], schedules: Collection[str], prices: Prices, *, is_whole: bool = True
) -> Report:
    """The report on *history*, by the *assets* and names of *schedules* that the definitions have.

    What needs every job and schedule to be known is said only if it *is_whole*.
    """
    spent = costs(history.jobs, prices)
    found: list[Advice] = []
    for job in history.jobs:
        found += bottleneck(job, assets)
        found += lost_time.startup(job, prices)
        found += lost_time.retries(job, prices)
    found += sizing.sizes(history.jobs, assets, prices)
    if is_whole:
        found += lost_time.queue(history.jobs)
        found += idle.idle(history, assets, schedules, prices)
        found += idle.unused(assets, spent, history, prices)
    found.sort(key=lambda item: (-item.money_per_month, -item.gain, item.subject))
    return Report(history, prices, found, spent)


def show(console: "Console", report: Report) -> None:
    """The report for people: a table of advice with the evidence under each, then what the assets cost."""
    from rich.table import Table
    from rich.text import Text

    if not console.is_terminal:
        console.width = 160
    currency, history = report.prices.currency, report.history
    runs = sum(len(job.runs) for job in history.jobs)
    console.print(f"{runs:,} runs of {len(history.jobs)} jobs, {history.days:g} days")
    if report.advice:
        table = Table("advice", "what to change", show_lines=True)
        table.add_column("gain", justify="right")
        table.add_column(f"{currency} a month", justify="right")
        for item in report.advice:
            table.add_row(
                Text.assemble((item.kind, "bold"), "\n", item.subject),
                Text.assemble(item.text, "\n", (item.setting, "cyan"), "\n", (item.evidence, "dim")),
                Text(f"{item.gain:,.1f}\n{item.unit}"),
                Text(f"{item.money_per_month:,.2f}" if item.money_per_month else ""),
            )
        console.print(table)
    else:
        console.print("Nothing to advise: too few runs, or nothing to change.")
    if report.costs:
        table = Table("asset", title="What it costs a month", title_justify="left")
        for name in ("pod-hours", currency, "share", "runs"):
            table.add_column(name, justify="right")
        for cost in report.costs[:LISTED_COSTS]:
            table.add_row(
                Text(cost.name), f"{cost.pod_hours:,.2f}", f"{cost.money:,.2f}", f"{cost.share:.0%}", f"{cost.runs:,}"
            )
        console.print(table)
        if len(report.costs) > LISTED_COSTS:
            console.print(f"… and {len(report.costs) - LISTED_COSTS} more: see --json")
    for line in history.left_out:
        console.print(f"left out: {line}")
