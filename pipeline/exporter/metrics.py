"""Counters, gauges and histograms with labels: in memory, saved as JSON, printed for Prometheus.

Every series of a metric is a tuple of label values. What a metric may hold is capped: past the cap everything new is one
series whose labels are all ``__other__``, and `dropped` counts it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

MAX_SERIES = 20_000
MAX_LABEL_CHARACTERS = 200
OTHER = "__other__"
RUN_SECONDS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200)

Labels = tuple[str, ...]
K = TypeVar("K", bound=tuple[str, ...])
M = TypeVar("M", bound="Metric")


class Metric(ABC):
    """One metric. `is_saved`: its values are a sum over history and outlive a restart; the others are read anew."""

    kind = ""
    is_saved = True

    def __init__(self, name: str, text: str, labels: Sequence[str] = (), *, max_series: int = MAX_SERIES) -> None:
        self.name, self.text, self.labels = name, text, tuple(labels)
        self.series: dict[Labels, Any] = {}
        self.dropped = 0
        self._max_series = max_series

    def start(self, *values: str) -> None:
        """Have the series from now on, at zero: one that is born at 1 is invisible to ``increase()``."""
        key = self._key(values)
        self.series.setdefault(key, self._zero())

    def forget(self, **where: str) -> None:
        """Remove the series with these labels."""
        places = [(self.labels.index(name), value) for name, value in where.items()]
        for key in [key for key in self.series if all(key[place] == value for place, value in places)]:
            del self.series[key]

    @abstractmethod
    def family(self) -> Family:
        """All series, for prometheus_client."""

    def _zero(self) -> Any:
        return 0.0

    def _key(self, values: tuple[str, ...]) -> Labels:
        assert len(values) == len(self.labels), (self.name, values)
        key = tuple(value[:MAX_LABEL_CHARACTERS] for value in values)
        if key not in self.series and len(self.series) >= self._max_series and self.labels:
            self.dropped += 1
            return (OTHER,) * len(self.labels)
        return key


class Counter(Metric):
    """A sum that only grows. *name* ends in ``_total``."""

    kind = "counter"

    def add(self, *values: str, by: float = 1.0) -> None:
        key = self._key(values)
        self.series[key] = self.series.get(key, 0.0) + by

    def family(self) -> Family:
        family = CounterMetricFamily(self.name.removesuffix("_total"), self.text, labels=self.labels)
        for key, value in self.series.items():
            family.add_metric(key, value)
        return family


class Gauge(Metric):
    """A value as it is now."""

    kind = "gauge"
    is_saved = False

    def set(self, value: float, *values: str) -> None:
        self.series[self._key(values)] = float(value)

    def replace(self, series: Mapping[K, float]) -> None:
        """Have these series and no others."""
        self.series = {}
        for key, value in series.items():
            self.set(value, *key)

    def family(self) -> Family:
        family = GaugeMetricFamily(self.name, self.text, labels=self.labels)
        for key, value in self.series.items():
            family.add_metric(key, value)
        return family


class LastValue(Gauge):
    """A gauge that events set: it outlives a restart, as the events are not read again."""

    is_saved = True


class Histogram(Metric):
    """Observations in *buckets*. A series is its counts, a bucket each and one past the last, and then the sum."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        max_series: int = MAX_SERIES,
    ) -> None:
        super().__init__(name, text, labels, max_series=max_series // (len(buckets) + 3))
        self.buckets = tuple(buckets)

    def observe(self, value: float, *values: str) -> None:
        key = self._key(values)
        series = self.series.setdefault(key, self._zero())
        place = next((at for at, limit in enumerate(self.buckets) if value <= limit), len(self.buckets))
        series[place] += 1
        series[-1] += value

    def family(self) -> Family:
        family = HistogramMetricFamily(self.name, self.text, labels=self.labels)
        for key, (*counts, total) in self.series.items():
            so_far, buckets = 0.0, []
            for limit, count in zip((*map(str, map(float, self.buckets)), "+Inf"), counts, strict=True):
                so_far += count
                buckets.append((limit, so_far))
            family.add_metric(key, buckets, total)
        return family

    def _zero(self) -> list[float]:
        return [0.0] * (len(self.buckets) + 2)


class Registry:
    """All metrics of the exporter, in the order in which they were made."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}
        self._printer = CollectorRegistry(auto_describe=False)
        self._printer.register(self)

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return self._add(Counter(name, text, labels))

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return self._add(Gauge(name, text, labels))

    def last_value(self, name: str, text: str, labels: Sequence[str] = ()) -> LastValue:
        return self._add(LastValue(name, text, labels))

    def histogram(
        self, name: str, text: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = RUN_SECONDS
    ) -> Histogram:
        return self._add(Histogram(name, text, labels, buckets=buckets))

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._metrics.values())

    def __getitem__(self, name: str) -> Metric:
        return self._metrics[name]

    def dump(self) -> dict[str, list[Any]]:
        """What outlives a restart, for JSON: name → [labels, value] of each series."""
        saved = [metric for metric in self if metric.is_saved and metric.series]
        return {metric.name: [[list(key), value] for key, value in metric.series.items()] for metric in saved}

    def load(self, dumped: Mapping[str, Iterable[Any]]) -> None:
        """The reverse of `dump`. Metrics and shapes that this version does not have are left out."""
        for name, series in dumped.items():
            metric = self._metrics.get(name)
            if metric is None or not metric.is_saved:
                continue
            for key, value in series:
                same_shape = isinstance(value, list) is isinstance(metric, Histogram) and len(key) == len(metric.labels)
                if same_shape and (not isinstance(value, list) or len(value) == len(metric._zero())):
                    metric.series[tuple(key)] = value

    def collect(self) -> Iterator[Family]:
        """For prometheus_client, which prints the two formats."""
        for metric in self:
            yield metric.family()

    def page(self, *, openmetrics: bool = False) -> bytes:
        """All series as Prometheus reads them."""
        if openmetrics:
            return bytes(generate_openmetrics(self._printer))  # type: ignore[no-untyped-call]
        return generate_latest(self._printer)

    def _add(self, metric: M) -> M:
        assert metric.name not in self._metrics, f"{metric.name} is there already"
        self._metrics[metric.name] = metric
        return metric
