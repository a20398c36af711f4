"""`make bench`: every figure against a peer or a floor of the same run, as a table and JSON.

``python -m tests.benchmarks [files] [airbyte] [commands] [exporter] [cluster]`` runs some of them. A missed target is shown as missed.
"""

import importlib
import json
import sys

from rich.console import Console
from rich.table import Table

from tests.benchmarks.rows import Row

PARTS = ("commands", "files", "airbyte", "exporter")


def main() -> int:
    console = Console(width=150)
    rows: list[Row] = []
    for part in sys.argv[1:] or PARTS:
        console.print(f"measuring {part} …")
        for row in importlib.import_module(f"tests.benchmarks.{part}").run():
            rows.append(row)
            console.print(f"  {row['name']}: {_number(row['value'])} {row['unit']}")
    table = Table("measure", "value", "unit", "against", "ratio", "target", "held")
    for row in rows:
        ratio = row.get("ratio")
        table.add_row(
            str(row["name"]),
            _number(row["value"]),
            str(row["unit"]),
            _number(row.get("peer")),
            f"{ratio:.2f}" if isinstance(ratio, float) else "",
            str(row["target"]),
            "yes" if row["passed"] else "NO",
        )
    console.print(table)
    sys.stdout.write(json.dumps(rows, default=str) + "\n")
    return 0 if all(row["passed"] for row in rows) else 1


def _number(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
