"""dbt as a Dagster resource, started as a child process and nothing else."""

from functools import cached_property
from importlib.metadata import version
from typing import Any

from dagster_dbt import DbtCliResource
from packaging.version import Version


class Dbt(DbtCliResource):
    """dagster-dbt's resource without its two start-up costs: a ``dbt --version`` child (3 s) and an import of dbt
    with a database connection into this process (3 s), both only for metadata that the lake tells in milliseconds.
    """

    @cached_property
    def _cli_version(self) -> Version:
        return Version(version("dbt-core"))

    def _initialize_dbt_core_adapter(self, args: Any) -> None:  # type: ignore[override]
        """No adapter: row counts and columns come from the lake's catalogue."""
