"""A source of files in a folder of its own, declared as a person would declare it, and what came of loading it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import SourceError, SourceRejected
from pipeline.ingest.files import load_files, pending_files
from pipeline.ingest.raw import LoadResult
from pipeline.ingest.spec import FileStream, SourceFile, load_source
from pipeline.lake.connection import Lake
from pipeline.operate.database import stop_embedded, with_database
from pipeline.settings import Settings

AUDIT = "_file, _row, _month, _loaded_at"


def declare(project: Path, *, location: str = "files", source: str = "shop", **stream: Any) -> SourceFile:
    """Write ``sources/<source>.yaml`` with the one stream ``sales`` and read it back."""
    (project / "sources").mkdir(parents=True, exist_ok=True)
    path = project / "sources" / f"{source}.yaml"
    document = {"name": source, "kind": "files", "owner": "team:shop", "location": location}
    path.write_text(yaml.safe_dump({**document, "streams": [{"name": "sales", **stream}]}))
    return load_source(path)


@dataclass
class Shop:
    """The stream ``shop/sales``: its files in `folder`, its rows in ``raw.shop__sales``."""

    lake: Lake
    settings: Settings
    project: Path
    file: SourceFile = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def in_empty(cls, lake: Lake, project: Path) -> "Shop":
        """In a lake where no test has left anything of it: making a lake costs more than most tests."""
        tables = lake.query("SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = 'lake'")
        lake.query("BEGIN")
        for schema, table in tables:
            lake.query(f"DROP TABLE {schema}.{table}")
        lake.query("COMMIT")
        return cls(lake, lake.settings, project)

    @property
    def folder(self) -> Path:
        return self.project / "files"

    @property
    def stream(self) -> FileStream:
        (stream,) = self.file.source.streams
        assert isinstance(stream, FileStream)
        return stream

    def declare(self, **stream: Any) -> "Shop":
        """Declare the stream; columns are given as {name: type} or {name: {more}}."""
        if isinstance(columns := stream.get("columns"), dict):
            stream["columns"] = [
                {"name": name, **(more if isinstance(more, dict) else {"type": more})} for name, more in columns.items()
            ]
        self.file = declare(self.project, **stream)
        return self

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def parquet(self, name: str, sql: str) -> Path:
        """Write the answer of *sql* as a Parquet file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lake.connection.execute(f"COPY ({sql}) TO '{path}' (FORMAT parquet)")
        return path

    def load(self, **options: Any) -> LoadResult:
        settings = options.pop("settings", self.settings)
        return load_files(
            self.lake, self.file, self.stream, settings=settings, run_id=options.pop("run_id", "run"), **options
        )

    def pending(self) -> list[str]:
        return [file.path for file in pending_files(self.lake, self.file, self.stream, self.settings)]

    def refused(self, *expected: str, kind: type[SourceError] = SourceRejected, **options: Any) -> str:
        """Load, which must fail with a message that holds all of *expected*; the table stays as it was."""
        before = self.state()
        with pytest.raises(kind) as caught:
            self.load(**options)
        message = str(caught.value)
        for text in expected:
            assert text in message, message
        assert type(caught.value) is kind
        assert self.state() == before
        return message

    def state(self) -> Any:
        """Everything a load may change."""
        if not self.has_table():
            return None
        return [
            self.lake.query(f"SELECT * FROM {table} ORDER BY ALL")
            for table in ("raw.shop__sales", "raw.shop__sales__rejects", "ingest.schema_changes", "ingest.loads")
        ]

    def has_table(self) -> bool:
        found = self.lake.query("SELECT 1 FROM duckdb_tables() WHERE table_name = 'shop__sales'")
        return bool(found)

    def rows(self, columns: str = f"* EXCLUDE ({AUDIT})") -> list[tuple[Any, ...]]:
        return self.lake.query(f"SELECT {columns} FROM raw.shop__sales ORDER BY ALL")

    def loaded_by(self) -> dict[str, str]:
        """The run whose rows the table has, for each file: that of its first line of the ledger since."""
        found = self.lake.query(
            "SELECT path, min_by(run_id, recorded_at) FROM ingest.files JOIN "
            "(SELECT DISTINCT _file, _loaded_at FROM raw.shop__sales) AS r ON path = _file AND recorded_at >= _loaded_at "
            "GROUP BY path"
        )
        return dict(found)

    def rejects(self, columns: str = '_file, _row, "column", reason, line') -> list[tuple[Any, ...]]:
        return self.lake.query(f"SELECT {columns} FROM raw.shop__sales__rejects ORDER BY ALL")

    def types(self) -> dict[str, str]:
        found = self.lake.query(f"DESCRIBE SELECT * EXCLUDE ({AUDIT}) FROM raw.shop__sales")
        return {row[0]: row[1] for row in found}

    def ledger(self) -> list[tuple[Any, ...]]:
        """The newest line of each path: path, month, rows, rejects, status."""
        return self.lake.query(
            "SELECT path, month, rows, rejects, status FROM ingest.files WHERE source = 'shop' "
            "QUALIFY row_number() OVER (PARTITION BY path ORDER BY recorded_at DESC) = 1 ORDER BY path"
        )


def one_lake(state: Path) -> Iterator[Lake]:
    """A lake for a whole module, on a server of its own."""
    settings = Settings(state_dir=state)
    try:
        with Lake.open(with_database(settings)) as lake:
            yield lake
    finally:
        stop_embedded(settings)


def json_lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
