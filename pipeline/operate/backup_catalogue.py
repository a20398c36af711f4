"""What a dumped DuckLake catalogue refers to, read out of the dump: no server is needed.

Memory grows with the number of data files, about 300 bytes each, not with the dump.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.operate.backup_programs import Programs

TABLES = ("ducklake_metadata", "ducklake_snapshot", "ducklake_schema", "ducklake_table", "ducklake_data_file", "ducklake_delete_file")  # fmt: skip
COPY = re.compile(r"COPY public\.(\w+) \(([^)]*)\) FROM stdin;")
ESCAPED = re.compile(r"\\(.)")
CHARACTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@dataclass(frozen=True)
class Catalogue:
    """The files (name below `data_path` → bytes) of every snapshot in it; those `elsewhere` were added by hand.

    An empty database has neither snapshot nor path.
    """

    snapshot_id: int | None
    data_path: str | None
    files: dict[str, int]
    elsewhere: tuple[str, ...]


def read_catalogue(programs: Programs, dump: Iterable[bytes]) -> Catalogue:
    """The catalogue in *dump*.

    Raises:
        BackupError: if the dump cannot be read.
    """
    snapshot_id, data_path = None, None
    schemas: dict[str, tuple[str, bool]] = {}
    tables: dict[str, tuple[str, str, bool]] = {}
    found: list[tuple[str, str, bool, int]] = []
    for table, row in _rows(programs.rows(dump, TABLES)):
        if table == "ducklake_metadata" and row["key"] == "data_path":
            data_path = row["value"]
        elif table == "ducklake_snapshot":
            snapshot_id = max(snapshot_id or 0, int(row["snapshot_id"]))
        elif table == "ducklake_schema":
            schemas[row["schema_id"]] = row["path"], row["path_is_relative"] == "t"
        elif table == "ducklake_table":
            tables[row["table_id"]] = row["schema_id"], row["path"], row["path_is_relative"] == "t"
        elif table in ("ducklake_data_file", "ducklake_delete_file"):
            is_relative = row["path_is_relative"] == "t"
            found.append((row["table_id"], row["path"], is_relative, int(row["file_size_bytes"])))
    folders = {}
    for table_id, (schema_id, path, is_relative) in tables.items():
        above, schema_is_relative = schemas[schema_id]
        prefix = (data_path or "") if schema_is_relative else ""
        folders[table_id] = f"{prefix}{above}{path}" if is_relative else path
    files, elsewhere = {}, []
    for table_id, path, is_relative, size in found:
        full = folders[table_id] + path if is_relative else path
        if data_path and full.startswith(data_path):
            files[full.removeprefix(data_path)] = size
        else:
            elsewhere.append(full)
    return Catalogue(snapshot_id, data_path, files, tuple(elsewhere))


def _rows(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Table and row (column → text, without NULLs) of each line of a COPY."""
    table, columns = "", [""]
    for line in lines:
        text = line.removesuffix("\n")
        if table and text != r"\.":
            values = zip(columns, text.split("\t"), strict=True)
            yield table, {name: _unescaped(value) for name, value in values if value != r"\N"}
        elif table:
            table = ""
        elif start := COPY.match(text):
            table, columns = start[1], start[2].split(", ")


def _unescaped(value: str) -> str:
    return ESCAPED.sub(lambda found: CHARACTERS.get(found[1], found[1]), value) if "\\" in value else value
