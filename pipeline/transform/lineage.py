"""Which columns a model's columns are made from, as its compiled SQL says; sqlglot reads it."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlglot import exp

log = logging.getLogger(__name__)

Relations = Mapping[tuple[str, str], tuple[str, ...]]  # schema and name of a table or view → its columns


@dataclass(frozen=True, order=True)
class Origin:
    """A column of a table or view that a model reads."""

    schema: str
    relation: str
    column: str


def column_lineage(sql: str, relations: Relations) -> dict[str, tuple[Origin, ...]]:
    """Column of the query *sql*, in order → the columns of *relations* that its values come from.

    What only decides which rows there are (joins, filters) is no origin of a value. A query that sqlglot cannot read
    has no lineage: the answer is then empty.
    """
    from sqlglot import exp, parse_one
    from sqlglot.lineage import lineage
    from sqlglot.optimizer.qualify import qualify
    from sqlglot.optimizer.scope import build_scope
    from sqlglot.schema import MappingSchema

    tables: dict[str, dict[str, dict[str, str]]] = {}
    for (schema, name), columns in relations.items():
        tables.setdefault(schema, {})[name] = dict.fromkeys(columns, "UNKNOWN")
    known = MappingSchema({"lake": tables}, dialect="duckdb")
    found: dict[str, tuple[Origin, ...]] = {}
    try:
        query: Any = qualify(
            parse_one(sql, dialect="duckdb"), schema=known, dialect="duckdb", validate_qualify_columns=False
        )
        for union in query.find_all(exp.SetOperation):
            _by_position(union)
        scope = build_scope(query)
        for column in query.named_selects:
            tree = lineage(column, query, schema=known, dialect="duckdb", scope=scope, copy=False)
            found[column] = tuple(sorted({origin for node in tree.walk() for origin in _origin(node)}))
    except Exception:  # whatever sqlglot stumbles over: the model is built, and this is only about it
        log.info("No column lineage of a query", exc_info=True)
        return {}
    return found


def _origin(node: Any) -> Iterator[Origin]:
    """The column that *node* of a lineage tree is, if it is a leaf that reads one."""
    from sqlglot import exp

    table = node.expression.find(exp.Table)
    if not node.downstream and table is not None:
        yield Origin(table.db, table.name, exp.to_column(node.name).name)


def _branches(query: "exp.Query") -> "Iterator[exp.Query]":
    """The queries that a chain of unions is of."""
    from sqlglot import exp

    inner: Any = query.unnest()
    if isinstance(inner, exp.SetOperation):
        yield from _branches(inner.left)
        yield from _branches(inner.right)
    else:
        yield inner


def _by_position(union: "exp.SetOperation") -> None:
    """Rewrite ``UNION BY NAME``, which sqlglot traces by position, so that position and name agree."""
    from sqlglot import exp

    if not union.args.get("by_name"):
        return
    branches = list(_branches(union))
    names = list(dict.fromkeys(name for branch in branches for name in branch.named_selects))
    for branch in branches:
        present = dict(zip(branch.named_selects, branch.selects, strict=True))
        branch.set("expressions", [present.get(name) or exp.alias_(exp.null(), name) for name in names])
    union.set("by_name", False)
