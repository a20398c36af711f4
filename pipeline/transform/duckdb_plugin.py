"""What dbt's DuckDB has of the place where it runs, a plugin of dbt-duckdb. In the profile each change of it would make
dbt parse the whole project again, and a pod is never the place where its image was made."""

import os
from typing import Any

from dbt.adapters.duckdb.credentials import DuckDBCredentials
from dbt.adapters.duckdb.plugins import BasePlugin
from duckdb import DuckDBPyConnection

from pipeline.aws import credentials, duckdb_secret
from pipeline.errors import ConfigError


class Plugin(BasePlugin):
    """Limits, folders and the lake, from the variables that `millrace env` prints."""

    def update_connection_config(self, creds: DuckDBCredentials, config: dict[str, Any]) -> None:
        config |= {
            "extension_directory": _given("MILLRACE_DUCKDB_EXTENSIONS"),
            "memory_limit": _given("MILLRACE_LAKE_MEMORY"),
            "threads": int(_given("MILLRACE_LAKE_THREADS")),
            "temp_directory": f"{_given('MILLRACE_SCRATCH_DIR')}/dbt",
        }

    def configure_connection(self, conn: DuckDBPyConnection) -> None:
        path = _given("MILLRACE_LAKE_DATA")
        if path.startswith("s3://"):
            conn.load_extension("httpfs")
            endpoint = os.environ.get("MILLRACE_S3_ENDPOINT", "")
            secret = duckdb_secret(credentials(), region=_given("MILLRACE_S3_REGION"), endpoint=endpoint)
            options = "".join(f", {name} ?" for name in secret)
            conn.execute(f"CREATE SECRET lake_data (TYPE s3{options})", list(secret.values()))
        text = path.replace("'", "''")
        conn.execute(f"ATTACH 'ducklake:postgres:' AS lake (DATA_PATH '{text}')")


def _given(name: str) -> str:
    if name not in os.environ:
        raise ConfigError(
            f"Connecting dbt to the lake: {name} is not set. Run dbt with the variables that `millrace env` prints."
        )
    return os.environ[name]
