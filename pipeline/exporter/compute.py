"""The time of steps, borne by the assets that they make: what an asset costs, times the prices of `prices`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.exporter.metrics import Registry
from pipeline.exporter.runs import ENDS as RUN_ENDS
from pipeline.exporter.tail import Event

SECONDS = ("Execution Duration", "seconds")  # labels by which dbt and the loads tell how long an asset took
MAX_RUNS = 20_000  # under way


@dataclass
class Work:
    """A step under way: since when, and its assets with the seconds that each tells, if it does."""

    began: float | None = None
    told: dict[str, float | None] = field(default_factory=dict)


class Compute:
    """One series an asset. A step that failed, or whose run was killed, has cost its time all the same."""

    def __init__(self, registry: Registry) -> None:
        self.seconds = registry.counter(
            "dagster_asset_compute_seconds_total",
            "Time of the asset's steps; the assets of one step share it as they tell how long each took, else evenly.",
            ("asset_key", "code_location"),
        )
        self._work: dict[str, dict[str, Work]] = {}  # by run and step

    def count(self, event: Event, location: str, numbers: Mapping[str, float]) -> dict[str, float]:
        """Add an event of a run; *numbers* are the metadata of a materialisation.

        With a step's success it gives how long each of its assets took: as it tells, or all of the step if it is the only one.
        """
        if event.type in RUN_ENDS:
            for work in self._work.pop(event.run_id, {}).values():
                self._add(work, event.at, location)
        elif event.step is None:
            return {}
        elif event.type == "STEP_START":
            self._of(event.run_id, event.step).began = event.at
        elif event.type == "ASSET_MATERIALIZATION_PLANNED" and event.asset:
            self._of(event.run_id, event.step).told.setdefault(event.asset, None)
        elif event.type == "ASSET_MATERIALIZATION" and event.asset:
            seconds = next((numbers[label] for label in SECONDS if numbers.get(label, -1) >= 0), None)
            self._of(event.run_id, event.step).told[event.asset] = seconds
        elif event.type in ("STEP_SUCCESS", "STEP_FAILURE"):
            work = self._work.get(event.run_id, {}).pop(event.step, Work())
            self._add(work, event.at, location)
            if event.type == "STEP_SUCCESS":
                whole = event.at - work.began if work.began is not None and len(work.told) == 1 else None
                took = {asset: whole if seconds is None else seconds for asset, seconds in work.told.items()}
                return {asset: max(seconds, 0.0) for asset, seconds in took.items() if seconds is not None}
        return {}

    def _of(self, run_id: str, step: str) -> Work:
        steps = self._work.setdefault(run_id, {})
        if len(self._work) > MAX_RUNS:
            del self._work[next(iter(self._work))]
        return steps.setdefault(step, Work())

    def _add(self, work: Work, ended: float, location: str) -> None:
        if work.began is not None:
            for asset, part in parts(work.told).items():
                self.seconds.add(asset, location, by=part * max(ended - work.began, 0.0))

    def dump(self) -> Any:
        return [
            [run_id, step, work.began, work.told]
            for run_id, steps in self._work.items()
            for step, work in steps.items()
        ]

    def load(self, dumped: Any) -> None:
        for run_id, step, began, told in dumped:
            self._work.setdefault(run_id, {})[step] = Work(began, told)


def parts(told: Mapping[str, float | None]) -> dict[str, float]:
    """The share of each, adding up to 1: as *told*, or the same for all if one of them tells nothing."""
    known = [seconds for seconds in told.values() if seconds is not None]
    total = sum(known)
    if len(known) < len(told) or total <= 0:
        return dict.fromkeys(told, 1 / len(told)) if told else {}
    return {name: (seconds or 0.0) / total for name, seconds in told.items()}
