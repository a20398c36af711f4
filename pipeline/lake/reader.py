"""SQL from people: one SELECT at a time on a connection that can read the lake's tables and nothing else.

Three walls, each enough against most attempts: DuckDB's own lock-down (no files but the lake's, no network, no
settings), the check of the parsed statement (only tables of the lake, only harmless functions), and outside of
this process the role ``lake_reader``, which may only SELECT in the catalogue. In production the data path is
mounted read-only, or its S3 credentials may only read. For a time-out that no query escapes run a `Reader` in a
process that can be killed: DuckDB is interrupted between blocks of rows, not inside one function call.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import duckdb

from pipeline.errors import LakeError, LakeRejected, QueryRejected
from pipeline.lake import catalogue
from pipeline.lake.connection import Lake, sql_text
from pipeline.settings import Settings

MAX_SQL_BYTES = 100_000
MAX_DEPTH = 400  # levels of the parsed statement; DuckDB's binder recurses over them on the C stack
MAX_ANSWER_BYTES = 32 << 20
BATCH_ROWS = 500

ALLOWED = "One SELECT (or DESCRIBE, SUMMARIZE) over the lake's tables is allowed"
TABLE_FUNCTIONS = {"range", "generate_series", "unnest", "json_each", "json_tree"}
SOURCES = {"BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EXPRESSION_LIST", "EMPTY", "PIVOT", "SHOW_REF"}
# Scalar functions of DuckDB 1.5.5 that do more than compute from their arguments. No other opens a file or a socket:
# tests/lake/test_reader.py holds the reviewed list, so a new DuckDB asks for a new review.
FORBIDDEN_FUNCTIONS = {
    "current_setting": "reads settings",
    "getvariable": "reads settings",
    "getenv": "reads the environment",
    "json_serialize_plan": "plans SQL hidden in a string",
    "write_log": "writes the log",
    "nextval": "changes a sequence",
    "currval": "reads a sequence",
    "sleep_ms": "waits",
    "pg_sleep": "waits",
    "combine": "takes raw memory",
    "finalize": "takes raw memory",
    "variant_bytes_to_variant": "takes raw memory",
}

_MISTAKES = (duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError, duckdb.PermissionException)


@dataclass(frozen=True)
class Answer:
    """Rows of one query. *truncated*: there were more than the limits let through."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    truncated: bool
    seconds: float


class Reader:
    """A locked connection. Threads may share it; they wait for each other."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._turn = threading.Lock()
        hidden = lake.query("SELECT DISTINCT lower(view_name) FROM duckdb_views() WHERE database_name <> 'lake'")
        self._hidden_views = {name for (name,) in hidden}
        self._lock_down()

    @classmethod
    def open(cls, settings: Settings) -> "Reader":
        """A reader on the lake of *settings*, as the database role ``lake_reader``. It writes nowhere.

        Raises:
            LakeUnavailable: if the catalogue's database does not answer.
            LakeRejected: if there is no lake yet, or it cannot be read.
        """
        lake = Lake.open(settings, read_only=True, role="lake_reader")
        try:
            return cls(lake)
        except BaseException:
            lake.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the engine's memory and the database session back."""
        self._lake.close()

    def query(
        self, sql: str, *, timeout_seconds: float = 30, max_rows: int = 1000, max_bytes: int = MAX_ANSWER_BYTES
    ) -> Answer:
        """Answer one SELECT, cut at *max_rows* rows or about *max_bytes* of text.

        Raises:
            QueryRejected: if it is not one SELECT over the lake, is wrong, too slow or too hungry.
            LakeError: if the lake itself cannot be read.
        """
        started = time.monotonic()
        with self._turn, self._stopped_after(timeout_seconds), self._errors(timeout_seconds):
            self._check(sql)
            result = self._lake.connection.execute(sql)
            columns, types = zip(*((name, str(kind)) for name, kind, *_ in result.description or ()), strict=True)
            rows, truncated = _fetch(result, max_rows, max_bytes)
        return Answer(columns, types, rows, truncated, time.monotonic() - started)

    def tables(self) -> list[catalogue.Table]:
        """Every table and view of the lake."""
        with self._turn:
            return catalogue.tables(self._lake)

    def describe(self, table: str) -> catalogue.Table:
        """The table or view *table* (``schema.table``).

        Raises:
            QueryRejected: if there is none; names what there is.
        """
        with self._turn:
            try:
                return catalogue.table(self._lake, table)
            except LakeRejected as error:
                raise QueryRejected(str(error)) from error

    def _lock_down(self) -> None:
        """Close the host to this connection. The order matters: each line can forbid the ones after it."""
        path = self._lake.settings.lake_path
        for statement in (
            "SET temp_directory = ''",  # fail instead of spilling; refused once external access is off
            "SET python_enable_replacements = false",  # else FROM x reads the Python variable x
            f"SET allowed_directories = [{sql_text(path)}]",  # without it even the lake's own Parquet is refused
            "SET enable_external_access = false",  # cannot be undone while the database is open
            "SET lock_configuration = true",
        ):
            self._lake.query(statement)

    def _check(self, sql: str) -> None:
        if len(sql.encode()) > MAX_SQL_BYTES or "\0" in sql:
            raise _refused(f"the text is longer than {MAX_SQL_BYTES:,} bytes or holds a NUL")
        connection = self._lake.connection
        kinds = [statement.type.name for statement in connection.extract_statements(sql)]
        if kinds != ["SELECT"]:
            hint = (
                " A PIVOT needs its values: PIVOT t ON c IN ('a', 'b') USING …" if kinds == ["CREATE", "SELECT"] else ""
            )
            raise _refused(f"this is {' and '.join(kinds) or 'empty'}.{hint}")
        (serialized,) = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone() or ("",)
        nodes = list(_nodes(serialized))
        if nodes[0].get("error"):
            raise _refused(nodes[0]["error_message"])
        names = {entry["key"].lower() for node in nodes for entry in node.get("cte_map", {}).get("map", ())}
        if wrong := sorted(name for name in names if not name.isidentifier() or name in self._hidden_views):
            raise _refused(f"WITH {wrong[0]!r} is the name of something else, or not a plain name; choose another")
        relations = catalogue.relation_names(self._lake)
        for node in nodes:
            self._check_node(node, names, relations)

    def _check_node(self, node: dict[str, Any], ctes: set[str], relations: set[tuple[str, str]]) -> None:
        if "function_name" in node:
            name = node["function_name"].lower()
            if name in FORBIDDEN_FUNCTIONS or name.startswith("__internal"):
                raise _refused(f"the function {name} {FORBIDDEN_FUNCTIONS.get(name, 'is not for people')}")
        if "class" in node or "select_list" in node or "sample" not in node:
            return  # an expression or a query: what they read from are nodes of their own
        kind = node.get("type")
        if kind not in SOURCES or (kind == "SHOW_REF" and not node["query"]):
            raise _refused(f"reading from {kind} {node.get('table_name', '')}".strip())
        if kind == "TABLE_FUNCTION":
            function = node["function"].get("function_name", "")
            if function.lower() not in TABLE_FUNCTIONS:
                raise _refused(f"the table function {function}; there are {', '.join(sorted(TABLE_FUNCTIONS))}")
        if kind == "BASE_TABLE":
            catalog, schema, table = (node[key].lower() for key in ("catalog_name", "schema_name", "table_name"))
            is_cte = not catalog and not schema and table in ctes
            if schema == "lake" and not catalog:
                catalog, schema = "lake", ""  # DuckDB reads lake.t so unless there is a schema of that name
            if not is_cte and (catalog not in ("", "lake") or (schema or "main", table) not in relations):
                name = ".".join(filter(None, (catalog, schema, table)))
                raise _refused(f"there is no table {name} in the lake")

    @contextmanager
    def _stopped_after(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._lake.connection.interrupt)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # else an interrupt under way would hit the next query

    @contextmanager
    def _errors(self, timeout_seconds: float) -> Iterator[None]:
        try:
            with self._lake.errors("Running the query"):
                yield
        except LakeError as error:
            cause = error.__cause__
            if isinstance(cause, duckdb.InterruptException):
                raise QueryRejected(
                    f"The query was stopped after {timeout_seconds:g} s. Read less, or ask for more time."
                ) from error
            if isinstance(cause, duckdb.OutOfMemoryException):
                raise QueryRejected(f"The query needs more memory than it may use. Read less. ({cause})") from error
            if isinstance(cause, _MISTAKES):
                raise QueryRejected(f"The query is not right: {cause}") from error
            raise


def _refused(what: str) -> QueryRejected:
    return QueryRejected(f"Refused: {what}. {ALLOWED}, with its functions on values; see `millrace lake catalog`.")


def _nodes(serialized: str) -> Iterator[dict[str, Any]]:
    """Every JSON object of the serialized statement, outermost first."""
    try:
        pending = [(json.loads(serialized), 0)]
    except RecursionError:
        raise _refused("the statement is nested too deeply") from None
    while pending:
        node, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise _refused("the statement is nested too deeply")
        if isinstance(node, dict):
            yield node
            pending.extend((child, depth + 1) for child in node.values() if isinstance(child, dict | list))
        else:
            pending.extend((child, depth) for child in node if isinstance(child, dict | list))


def _fetch(result: duckdb.DuckDBPyConnection, max_rows: int, max_bytes: int) -> tuple[list[tuple[Any, ...]], bool]:
    rows: list[tuple[Any, ...]] = []
    size = 0
    while batch := result.fetchmany(BATCH_ROWS):
        for row in batch:
            size += sum(len(str(value)) for value in row)
            if len(rows) == max_rows or size > max_bytes:
                return rows, True
            rows.append(row)
    return rows, False
