"""The Airbyte protocol on a pipe: record lines go to files as they are, everything else is parsed and handed on.

A record costs one comparison of its first bytes here; DuckDB parses it later.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import LakeRejected, SourceRejected

log = logging.getLogger(__name__)

LINE_BYTES = 16 << 20  # DuckDB's own bound of one JSON object; more would cost it memory for every load
SHOWN_LINES = 50
_PREFIXES = 1000
# Up to here a line tells that it is a record and whose. Other orders of the keys are parsed, line by line.
_HEAD = re.compile(
    rb'\s*\{\s*"type"\s*:\s*"RECORD"\s*,\s*"record"\s*:\s*\{\s*'
    rb'(?:"namespace"\s*:\s*(?:null|"[^"\\]*")\s*,\s*)?"stream"\s*:\s*"[^"\\]*"'
)


class Spool:
    """The records of one stream that are not in the lake yet, as a file of their lines.

    *Covered* are those before the stream's last state: after a crash they may be committed, the others may not.
    """

    def __init__(self, stream: str, path: Path) -> None:
        self.stream, self.path = stream, path
        self.rows = self.bytes = self.covered_rows = self.covered_bytes = 0
        self.rows_before = 0  # of this sync, in earlier commits
        self._bytes_before = 0
        self._handle = path.open("wb", buffering=0)

    def add(self, text: bytes, rows: int) -> None:
        """Append *rows* record lines."""
        try:
            written = self._handle.write(text)
            if written != len(text):  # a nearly full disk takes a part; the next write says why
                self._handle.write(text[written:])
        except OSError as error:
            raise LakeRejected(
                f"Reading {self.stream}: {self.path.parent}: {error.strerror}. Nothing uncommitted is kept; free space, or set "
                "MILLRACE_SCRATCH_DIR, and run again."
            ) from error
        self.rows += rows
        self.bytes += len(text)

    @property
    def bytes_in_all(self) -> int:
        """Bytes of this sync, with those committed."""
        return self._bytes_before + self.bytes

    def cover(self) -> None:
        """Mark all records so far as covered by a state."""
        self.covered_rows, self.covered_bytes = self.rows, self.bytes

    def drop_uncovered(self) -> int:
        """Forget the records after the last state; returns how many."""
        dropped = self.rows - self.covered_rows
        self._handle.truncate(self.covered_bytes)
        self._handle.seek(self.covered_bytes)
        self.rows, self.bytes = self.covered_rows, self.covered_bytes
        return dropped

    def clear(self) -> None:
        """Start anew after a commit."""
        self.rows_before += self.rows
        self._bytes_before += self.bytes
        self.covered_rows = self.covered_bytes = 0
        self.drop_uncovered()

    def close(self) -> None:
        """Close the file; its folder's owner removes it."""
        self._handle.close()


class Splitter:
    """Cuts a connector's output into lines: records to their stream's `Spool`, messages to *on_message*.

    *hide* takes secrets out of a text.
    """

    def __init__(
        self,
        spools: Mapping[str, Spool],
        on_message: Callable[[dict[str, Any]], None],
        *,
        doing: str,
        hide: Callable[[str], str] = str,
    ) -> None:
        self.spools, self.on_message, self.doing, self.hide = spools, on_message, doing, hide
        self.messages = self.garbage = 0
        self.first_garbage = ""
        self._rest = b""
        self._known: dict[bytes, Spool] = {}
        self._head = b"\0"  # of the last record; a line never starts so

    def feed(self, block: bytes) -> None:
        """Take the next piece of output.

        Raises:
            SourceRejected: if a line is too long, or a record is broken or of a stream that was not asked for.
        """
        data = self._rest + block
        end = data.rfind(b"\n") + 1
        text, self._rest = data[:end], data[end:]
        if len(self._rest) > LINE_BYTES:
            raise SourceRejected(
                f"{self.doing}: a line is longer than {LINE_BYTES >> 20} MiB: {self._shown(self._rest)}. "
                "Have the connector leave out the field that is so large."
            )
        rows = text.count(b"\n")
        if text.startswith(self._head) and text.count(b"\n" + self._head) == rows - 1:
            self._known[self._head].add(text, rows)  # nothing but records of one stream
            return
        head, run = self._head, []
        for line in text.split(b"\n")[:-1]:
            if line.startswith(head):
                run.append(line)
                continue
            self._add(run)
            run = []
            self._other(line)
            head = self._head
        self._add(run)

    def _add(self, run: list[bytes]) -> None:
        if run:
            self._known[self._head].add(b"\n".join(run) + b"\n", len(run))

    def finish(self) -> None:
        """Take the last line, which may lack its end."""
        rest, self._rest = self._rest, b""
        if rest.strip():
            self._other(rest)

    def _other(self, line: bytes) -> None:
        for head, spool in self._known.items():
            if line.startswith(head):
                self._head = head
                return spool.add(line + b"\n", 1)
        try:
            message = orjson.loads(line)
        except orjson.JSONDecodeError:
            return self._garbage(line)
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            return self._garbage(line)
        self.messages += 1
        if message["type"] != "RECORD":
            return self.on_message(message)
        name = str((message.get("record") or {}).get("stream"))
        if name not in self.spools:
            raise SourceRejected(
                f"{self.doing}: a record of stream {name}, which was not asked for ({', '.join(self.spools)} was). "
                "The connector does not keep to the catalogue it is given; use another version of it."
            )
        spool = self.spools[name]
        found = _HEAD.match(line)
        if found and len(self._known) < _PREFIXES:
            self._known[found[0]], self._head = spool, found[0]
        return spool.add(line + b"\n", 1)

    def _garbage(self, line: bytes) -> None:
        if not line.strip():
            return
        if b'"RECORD"' in line:
            raise SourceRejected(
                f"{self.doing}: a record is not JSON: {self._shown(line)}. The connector may print into its own records."
            )
        self.garbage += 1
        self.first_garbage = self.first_garbage or self._shown(line)
        if self.garbage <= SHOWN_LINES:
            log.info("%s: not a message: %s", self.doing, self._shown(line))

    def _shown(self, line: bytes) -> str:
        return self.hide(line[:500].decode(errors="replace"))[:200]
