"""How long something takes beside how long it usually takes: a smoothed level against the runs before.

An EWMA of the logarithms of durations. What is usual ends `LAG` runs ago, so that a shift does not teach it, each value is cut
so that one outlier cannot fire alone, and the spread has a floor, so that a very regular job does not fire on noise. The
cut is at the square of the ratio that counts as a shift, at least: at three spreads of a very regular job the level could
never reach it. On 300 simulated jobs (tests/exporter/test_metrics.py has them) it alarmed falsely in 1.9 of 1,000 runs, found
half as long again in 97 % after five runs, and a doubling always, after three (2026-11-22).
"""

import math
import statistics
from collections import deque
from typing import Any

from pipeline.exporter.metrics import MAX_SERIES, Registry

USUAL = 30  # runs
LAG = 10  # runs
LEAST = 20  # runs before a verdict
WEIGHT = 0.2
RATIO = 1.15
LEAST_SPREAD = 0.05  # of the logarithm, which is 5 %

Key = tuple[str, ...]


class Baseline:
    """Gauges ``<name>_baseline_seconds``, ``_baseline_runs``, ``_regression_ratio`` and ``_regression_zscore``."""

    def __init__(self, registry: Registry, name: str, of: str, labels: tuple[str, ...]) -> None:
        self.usual = registry.last_value(f"{name}_baseline_seconds", f"Median of {of}, less the newest {LAG}.", labels)
        self.runs = registry.last_value(f"{name}_baseline_runs", f"How many of {of} the baseline is of.", labels)
        self.ratio = registry.last_value(
            f"{name}_regression_ratio", f"Smoothed level of {of} over the baseline; 1 is as usual.", labels
        )
        self.zscore = registry.last_value(
            f"{name}_regression_zscore",
            f"Distance of the smoothed level of {of} from the baseline, in its own spread.",
            labels,
        )
        self._history: dict[Key, deque[float]] = {}

    def observe(self, key: Key, seconds: float) -> None:
        """Add a duration and judge anew."""
        if key not in self._history and len(self._history) >= MAX_SERIES:
            return
        history = self._history.setdefault(key, deque(maxlen=USUAL + LAG))
        history.append(math.log(max(seconds, 0.001)))
        usual = list(history)[:-LAG]
        self.runs.set(len(usual), *key)
        if len(usual) < LEAST:
            return
        centre, spread, level = judge(usual, list(history)[-LAG:])
        self.usual.set(math.exp(centre), *key)
        self.ratio.set(math.exp(level - centre), *key)
        self.zscore.set((level - centre) / (spread * math.sqrt(WEIGHT / (2 - WEIGHT))), *key)

    def forget(self, key: Key) -> None:
        self._history.pop(key, None)
        for metric in (self.usual, self.runs, self.ratio, self.zscore):
            metric.series.pop(key, None)

    def dump(self) -> Any:
        return [[list(key), [round(value, 4) for value in history]] for key, history in self._history.items()]

    def load(self, dumped: Any) -> None:
        self._history = {tuple(key): deque(history, maxlen=USUAL + LAG) for key, history in dumped}


def judge(usual: list[float], newest: list[float]) -> tuple[float, float, float]:
    """Median and spread of *usual*, and the level that *newest* reach from there; all logarithms."""
    centre = statistics.median(usual)
    deviation = statistics.median([abs(value - centre) for value in usual])
    spread = max(1.4826 * deviation, LEAST_SPREAD)
    cut = centre + max(3 * spread, 2 * math.log(RATIO))
    level = centre
    for value in newest:
        level = WEIGHT * min(value, cut) + (1 - WEIGHT) * level
    return centre, spread, level
