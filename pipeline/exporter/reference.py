"""``docs/reference/metrics.md``: every metric, as the exporter itself declares it.

``python -m pipeline.exporter.reference`` prints the page; a test compares.
"""

import sys

from pipeline.exporter.database import Database
from pipeline.exporter.exporter import Exporter
from pipeline.exporter.metrics import Histogram, Registry
from pipeline.exporter.topics import build_topics
from pipeline.settings import Settings

HEAD = """# Metrics

What `millrace serve metrics` serves on port 9464 (`/metrics`; OpenMetrics for who asks for it). Made by
`python -m pipeline.exporter.reference`.

Sums begin at 0 for every job, asset and schedule that there is, before anything happens to it, and are kept over restarts;
series of what is gone are removed. No label holds a run, a partition, a step or a text of an error. A metric has 20,000
series at most; past them what is new is counted with `__other__` for its labels, and told by
`dagster_exporter_series_dropped_total`.

| metric | kind | labels | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The page, as Markdown."""
    settings, registry = Settings(), Registry()
    Exporter(registry, Database(settings), build_topics(registry, settings, lambda _: {}))
    lines = []
    for metric in sorted(registry, key=lambda metric: metric.name):
        text = metric.text
        if isinstance(metric, Histogram):
            text += f" Buckets: {', '.join(f'{limit:g}' for limit in metric.buckets)}."
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {text} |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
