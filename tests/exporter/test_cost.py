"""What a poll costs the database does not grow with the history: the same plans, the same pages.

`make bench` repeats it at three million events.
"""

import re

import pytest

from pipeline.settings import Settings
from tests.exporter import history
from tests.exporter.explain import Cost, costs_of_a_poll

SMALL, LARGE = 10_000, 100_000  # events
GROWS = {*history.TABLES, "bulk_actions"}


@pytest.fixture
def costs(settings: Settings) -> tuple[list[Cost], list[Cost]]:
    """Of a poll on a short history and on a long one; both find the same that is new."""
    history.record(settings)
    history.grow(settings, SMALL // history.EVENTS_OF_A_RUN)
    short = costs_of_a_poll(settings)
    events = history.grow(settings, (LARGE - SMALL) // history.EVENTS_OF_A_RUN)
    assert events > 0.95 * (LARGE - SMALL)
    return short, costs_of_a_poll(settings)


def test_a_poll_costs_the_same_on_a_history_ten_times_as_long(costs: tuple[list[Cost], list[Cost]]):
    short, long = costs

    assert [(cost.statement, cost.plan) for cost in long] == [(cost.statement, cost.plan) for cost in short]
    assert not [cost for cost in long if cost.scanned & GROWS]
    assert sum(cost.buffers for cost in long) <= 1.2 * sum(cost.buffers for cost in short), long
    asked = {table for cost in long for table in re.findall(r"\b(?:FROM|JOIN) (\w+)", cost.statement)}
    assert {"event_logs", "runs", "run_tags", "job_ticks", "bulk_actions", "instigators"} <= asked
