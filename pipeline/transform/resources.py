"""dbt as a Dagster resource, started as a child process and nothing else.

dagster-dbt also imports dbt into this process (2 s at every start of a run), for names that it defines
itself where dbt is not installed. So it is imported here, by this file alone, as if dbt were not.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from typing import Any

from packaging.version import Version


@contextmanager
def _dbt_hidden() -> Iterator[None]:
    if "dbt" in sys.modules:
        yield
        return
    sys.modules["dbt"] = None  # type: ignore[assignment]  # how Python spells "cannot be imported"
    try:
        yield
    finally:
        del sys.modules["dbt"]


with _dbt_hidden():
    from dagster_dbt import DagsterDbtTranslator as DagsterDbtTranslator
    from dagster_dbt import DbtCliInvocation as DbtCliInvocation
    from dagster_dbt import DbtCliResource
    from dagster_dbt import dbt_assets as dbt_assets


class Dbt(DbtCliResource):
    """dagster-dbt's resource without its two start-up costs: a ``dbt --version`` child (3 s) and an import of dbt
    with a database connection into this process (3 s), both only for metadata that the lake tells in milliseconds.
    """

    @cached_property
    def _cli_version(self) -> Version:
        return Version(version("dbt-core"))

    def _initialize_dbt_core_adapter(self, args: Any) -> None:  # type: ignore[override]
        """No adapter: row counts and columns come from the lake's catalogue."""
