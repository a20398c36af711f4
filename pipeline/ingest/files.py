"""Loading a stream of files: what is new or changed, each file one lake transaction.

Finding and fetching is `locations`, reading a format is `readers`. The ledger ``ingest.files`` is append-only; the
newest line of a path tells what of it is in the table.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from pipeline.errors import MillraceError, SourceError, SourceRejected, SourceUnavailable
from pipeline.ingest.locations import FoundFile, find_files, local_copy, location_of
from pipeline.ingest.raw import (
    FILE_COLUMNS,
    LoadResult,
    check_rejects,
    columns_of,
    fit_table,
    literal,
    prepare,
    record_load,
)
from pipeline.ingest.readers import Plan, read_plan, refuse_damaged
from pipeline.ingest.spec import FileSource, FileStream, SourceFile, table_name
from pipeline.lake.connection import Lake, sql_name
from pipeline.progress import Progress, Report, silent
from pipeline.settings import Settings

log = logging.getLogger(__name__)

LOCK_WAIT_SECONDS = 900  # as long as another run may need for one file


@dataclass(frozen=True)
class Loaded:
    """The ledger's newest line of a path."""

    file: FoundFile
    checksum: str
    status: str  # "loaded", "vanished" or "replaced" (its month came under another name)


def load_files(
    lake: Lake,
    source_file: SourceFile,
    stream: FileStream,
    *,
    settings: Settings,
    run_id: str,
    months: frozenset[str] | None = None,
    full: bool = False,
    report: Report = silent,
) -> LoadResult:
    """Bring the stream's table up to date with its files; of *months* only, if given.

    Unchanged files are not opened. A changed one replaces exactly its rows. Each file is committed by itself: one
    that cannot be loaded keeps its former rows and does not stop the others. With *full*, every file counts as changed.

    Raises:
        SourceError: after all files were tried, naming each that failed; SourceUnavailable if any may work later.
        LakeError: at once.
    """
    load = _Load(lake, source_file, stream, settings, run_id)
    return load.run(months, full=full, report=report)


def pending_files(lake: Lake, source_file: SourceFile, stream: FileStream, settings: Settings) -> list[FoundFile]:
    """The files that a load would read now: the new and the changed ones, as far as their provider tells."""
    load = _Load(lake, source_file, stream, settings, "")
    ledger = load.ledger()
    return [file for file in find_files(stream, load.location, settings) if not _is_loaded(file, ledger)]


class _Load:
    def __init__(
        self, lake: Lake, source_file: SourceFile, stream: FileStream, settings: Settings, run_id: str
    ) -> None:
        source = source_file.source
        assert isinstance(source, FileSource)
        self.lake, self.stream, self.settings, self.run_id = lake, stream, settings, run_id
        self.source = source.name
        self.location = location_of(source, settings, source_file.project_dir)
        self.asset = f"raw/{self.source}/{stream.name}"
        self.table = table_name(self.source, stream.name)
        prepare(lake)

    def run(self, months: frozenset[str] | None, *, full: bool, report: Report) -> LoadResult:
        started = time.monotonic()
        found = find_files(self.stream, self.location, self.settings, months=months)
        _refuse_shared_months(self.asset, found)
        ledger = self.ledger()
        vanished = tuple(
            path
            for path, entry in ledger.items()
            if entry.status != "replaced"
            and path not in {file.path for file in found}
            and entry.file.month not in {file.month for file in found if file.month}
            and (months is None or entry.file.month in months)
        )
        if not found and not vanished:
            raise SourceRejected(
                f"Loading {self.asset}: no file matches {' or '.join(self._paths())}{_in_months(months)} in {self.location}. "
                "Correct the location or the path, or wait until the file is published."
            )
        wanted = [file for file in found if full or not _is_loaded(file, ledger)]
        results, errors = self._load_each(wanted, ledger, full=full, report=report)
        gone_now = [path for path in vanished if ledger[path].status != "vanished"]
        if gone_now:
            self._note_vanished([ledger[path] for path in gone_now])
        if errors:
            raise _combined(self.asset, errors, done=len(results), unchanged=len(found) - len(wanted))
        return LoadResult(
            self.source,
            self.stream.name,
            rows=sum(result.rows for result in results),
            rejects=sum(result.rejects for result in results),
            seconds=time.monotonic() - started,
            files_loaded=tuple(path for result in results for path in result.files_loaded),
            files_unchanged=len(found) - sum(len(result.files_loaded) for result in results),
            files_vanished=vanished,
            rows_by_month=tuple(item for result in results for item in result.rows_by_month),
            columns_added=tuple(column for result in results for column in result.columns_added),
        )

    def _paths(self) -> tuple[str, ...]:
        return self.stream.local_paths if self.settings.data_dir is not None else self.stream.paths

    def ledger(self) -> dict[str, Loaded]:
        """The newest line of every path of the stream."""
        rows = self.lake.query(
            "SELECT path, month, bytes, etag, modified_at, checksum, status FROM ingest.files WHERE source = ? AND stream = ? "
            "QUALIFY row_number() OVER (PARTITION BY path ORDER BY recorded_at DESC) = 1",
            [self.source, self.stream.name],
        )
        return {
            row[0]: Loaded(FoundFile(row[0], "", row[1], row[2], row[3] or "", row[4]), row[5], row[6]) for row in rows
        }

    def _load_each(
        self, wanted: list[FoundFile], ledger: Mapping[str, Loaded], *, full: bool, report: Report
    ) -> tuple[list[LoadResult], list[SourceError]]:
        results: list[LoadResult] = []
        errors: list[SourceError] = []
        progress = Progress(
            f"{self.source}/{self.stream.name}",
            items_total=len(wanted),
            bytes_total=sum(file.bytes or 0 for file in wanted) or None,
        )
        for file in wanted:
            report(progress)
            try:
                with (
                    self._watched(progress, file, report),
                    local_copy(file, self.settings) as (path, fetched, checksum),
                ):
                    results.append(self._load_one(path, fetched, checksum, ledger, full=full))
            except SourceError as error:
                errors.append(error)
            progress = replace(
                progress,
                items_done=progress.items_done + 1,
                bytes_done=progress.bytes_done + (file.bytes or 0),
                rows=sum(result.rows for result in results),
            )
        report(progress)
        return results, errors

    @contextmanager
    def _watched(self, progress: Progress, file: FoundFile, report: Report) -> Iterator[None]:
        """Report how far DuckDB is within a big file, from a thread that ends with the block."""
        if (file.bytes or 0) < 32 << 20:
            yield
            return
        import threading

        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.5):
                share = max(self.lake.connection.query_progress(), 0) / 100
                report(replace(progress, bytes_done=progress.bytes_done + int(share * (file.bytes or 0))))

        thread = threading.Thread(target=watch, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _load_one(
        self, path: Path, file: FoundFile, checksum: str, ledger: Mapping[str, Loaded], *, full: bool
    ) -> LoadResult:
        before = ledger.get(file.path)
        if before and before.checksum == checksum and before.status == "loaded" and not full:
            self.lake.in_transaction(
                lambda: self._note(file, checksum, "loaded", None, None), asset=self.asset, run_id=self.run_id
            )
            return LoadResult(self.source, self.stream.name)
        # Two runs that see the same new file would both insert it, and inserts never conflict: hence the lock.
        with self.lake.lock(f"{self.asset}/{file.month or file.path}", wait_seconds=LOCK_WAIT_SECONDS) as held:
            if not held:
                raise SourceUnavailable(
                    f"Loading {self.asset}: another run has been loading {file.path} for {LOCK_WAIT_SECONDS} s. "
                    "Wait for it or stop it."
                )
            now = self.ledger()
            entry = now.get(file.path)
            if entry and entry != before and entry.checksum == checksum and entry.status == "loaded":
                return LoadResult(self.source, self.stream.name)  # the other run has just done it
            replaced = [
                other.file.path
                for other in now.values()
                if other.file.month is not None and other.file.month == file.month and other.status != "replaced"
            ]
            obsolete = sorted({*replaced, *([file.path] if entry else [])})
            return self.lake.in_transaction(
                lambda: self._write(path, file, checksum, obsolete), asset=self.asset, run_id=self.run_id
            )

    def _write(self, path: Path, file: FoundFile, checksum: str, obsolete: list[str]) -> LoadResult:
        """Replace the rows of the *obsolete* paths by those of *path*, inside the transaction."""
        started = time.monotonic()
        connection = self.lake.connection
        plan = read_plan(self.lake, path, file.path, self.stream, columns_of(self.lake, self.table))
        added = fit_table(
            self.lake, self.source, self.stream.name, plan.columns, audit=FILE_COLUMNS, run_id=self.run_id
        )
        for old in obsolete:
            for table in (self.table, f"{self.table}__rejects"):
                connection.execute(f"DELETE FROM raw.{sql_name(table)} WHERE _file = ?", [old])
        try:
            rows, rejects = self._insert(path, file, plan)
        finally:
            for name in plan.temporary:
                connection.execute(f"DROP TABLE IF EXISTS temp.{name}")
        if rows == 0:
            raise SourceRejected(f"Loading {self.asset}: {file.path} has no rows. Have it sent again, or remove it.")
        result = LoadResult(
            self.source,
            self.stream.name,
            rows,
            rejects,
            time.monotonic() - started,
            (file.path,),
            rows_by_month=((file.month, rows),) if file.month else (),
            columns_added=added,
        )
        for old in obsolete:
            if old != file.path:
                self._note(FoundFile(old, "", file.month), "", "replaced", 0, 0)
        self._note(file, checksum, "loaded", rows, rejects)
        record_load(self.lake, result, month=file.month, run_id=self.run_id)
        return result

    def _insert(self, path: Path, file: FoundFile, plan: Plan) -> tuple[int, int]:
        connection = self.lake.connection
        stamp = (
            f"{literal(datetime.now(UTC).isoformat())}::TIMESTAMPTZ AS _loaded_at, {literal(self.run_id)} AS _run_id"
        )
        origin = f"{literal(file.path)} AS _file"
        connection.execute(f"SET preserve_insertion_order = {'true' if plan.is_ordered else 'false'}")
        try:
            (rows,) = connection.execute(
                f"INSERT INTO raw.{sql_name(self.table)} BY NAME "
                f"SELECT *, {origin}, {literal(file.month)}::VARCHAR AS _month, {stamp} FROM ({plan.select})"
            ).fetchone() or (0,)
            if plan.rejects is None:
                return rows, 0
            if plan.temporary:
                refuse_damaged(connection, path, file.path, plan.rejects)
            (rejects,) = connection.execute(
                f"INSERT INTO raw.{sql_name(self.table + '__rejects')} BY NAME SELECT *, {origin}, {stamp} FROM ({plan.rejects})"
            ).fetchone() or (0,)
            if rejects:
                first = connection.execute(
                    f"SELECT _row, reason FROM ({plan.rejects}) ORDER BY _row LIMIT 1"
                ).fetchone()
                assert first
                check_rejects(
                    self.source,
                    self.stream.name,
                    rows=rows,
                    rejects=rejects,
                    share=self.stream.max_reject_share,
                    first=f"{file.path}, line {first[0]}: {first[1]}",
                )
        except (duckdb.InvalidInputException, duckdb.ConversionException) as error:
            raise SourceRejected(f"Reading {file.path}: {str(error).splitlines()[0]}") from error
        finally:
            connection.execute("SET preserve_insertion_order = true")
        return rows, rejects

    def _note(self, file: FoundFile, checksum: str, status: str, rows: int | None, rejects: int | None) -> None:
        self.lake.connection.execute(
            "INSERT INTO ingest.files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [self.source, self.stream.name, file.path, file.month, file.bytes, file.etag, file.modified_at, checksum,
             rows, rejects, status, datetime.now(UTC), self.run_id],
        )  # fmt: skip

    def _note_vanished(self, entries: list[Loaded]) -> None:
        def work() -> None:
            for entry in entries:
                self._note(entry.file, entry.checksum, "vanished", None, None)

        self.lake.in_transaction(work, asset=self.asset, run_id=self.run_id)


def _is_loaded(file: FoundFile, ledger: Mapping[str, Loaded]) -> bool:
    entry = ledger.get(file.path)
    return entry is not None and entry.status == "loaded" and file.is_same(entry.file)


def _refuse_shared_months(asset: str, found: list[FoundFile]) -> None:
    months: dict[str, str] = {}
    for file in found:
        if file.month is not None:
            other = months.setdefault(file.month, file.path)
            if other != file.path:
                raise SourceRejected(
                    f"Loading {asset}: two files claim {file.month}: {other} and {file.path}. Nothing was loaded; remove one."
                )


def _in_months(months: frozenset[str] | None) -> str:
    if not months:
        return ""
    ordered = sorted(months)
    return f" for {ordered[0]}" if len(ordered) == 1 else f" for {ordered[0]} to {ordered[-1]}"


def _combined(asset: str, errors: list[SourceError], *, done: int, unchanged: int) -> MillraceError:
    if len(errors) == 1 and not done:
        return errors[0]
    kind = SourceUnavailable if any(error.is_transient for error in errors) else SourceRejected
    listed = "\n".join(f"- {error}" for error in errors)
    return kind(
        f"Loading {asset}: {len(errors)} of {len(errors) + done + unchanged} files failed; the others are loaded.\n{listed}"
    )
