"""What of a stream's files is in its table: ``ingest.files``, append-only; the newest line of a path counts."""

from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.ingest.locations import FoundFile
from pipeline.lake.connection import Lake


@dataclass(frozen=True)
class Entry:
    """The newest line of a path. `status` is "loaded", "vanished" or "replaced" (its month came under another name)."""

    file: FoundFile
    checksum: str
    rows: int
    rejects: int
    status: str

    @property
    def has_rows(self) -> bool:
        """True if its rows are in the table: those of a vanished file stay."""
        return self.status != "replaced"


class Ledger:
    """The lines of one stream."""

    def __init__(self, lake: Lake, source: str, stream: str, run_id: str) -> None:
        self._lake, self._source, self._stream, self._run_id = lake, source, stream, run_id

    def entries(self) -> dict[str, Entry]:
        """Path → its newest line."""
        rows = self._lake.query(
            "SELECT path, month, bytes, etag, modified_at, checksum, rows, rejects, status FROM ingest.files "
            "WHERE source = ? AND stream = ? QUALIFY row_number() OVER (PARTITION BY path ORDER BY recorded_at DESC) = 1",
            [self._source, self._stream],
        )
        return {
            path: Entry(FoundFile(path, "", month, size, etag, modified), checksum, loaded, rejects, status)
            for path, month, size, etag, modified, checksum, loaded, rejects, status in rows
        }

    def write(self, entry: Entry) -> None:
        """Add a line. Call it inside the transaction that makes it true."""
        file = entry.file
        self._lake.connection.execute(
            "INSERT INTO ingest.files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [self._source, self._stream, file.path, file.month, file.bytes, file.etag, file.modified_at, entry.checksum,
             entry.rows, entry.rejects, entry.status, datetime.now(UTC), self._run_id],
        )  # fmt: skip
