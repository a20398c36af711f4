"""Loading a stream of files: what is new or changed, each file one lake transaction.

Finding and fetching is `locations`, reading a format is `readers`, what is loaded already `ledger`.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline.errors import SourceError, SourceRejected, SourceUnavailable
from pipeline.ingest.ledger import Entry, Ledger
from pipeline.ingest.locations import FoundFile, find_files, local_copy, location_of
from pipeline.ingest.plan import Plan, reading
from pipeline.ingest.raw import (
    FILE_COLUMNS,
    LoadResult,
    check_rejects,
    columns_of,
    fit_table,
    fits,
    literal,
    prepare,
    record_load,
)
from pipeline.ingest.readers import read_plan
from pipeline.ingest.spec import FileSource, FileStream, SourceFile, month_values, table_name
from pipeline.lake.connection import Lake, sql_name
from pipeline.progress import Progress, Report, silent
from pipeline.settings import Settings

LOCK_WAIT_SECONDS = 900  # as long as another run may need for one file
WATCHED_BYTES = 32 << 20  # files from this size on report their progress within


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
    entries = load.ledger.entries()
    return [file for file in find_files(stream, load.location, settings) if not _is_loaded(file, entries)]


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
        self.ledger = Ledger(lake, self.source, stream.name, run_id)
        self.vanished: set[str] = set()
        self.is_whole = False  # every file there is, whether loaded before or not
        prepare(lake)

    def run(self, months: frozenset[str] | None, *, full: bool, report: Report) -> LoadResult:
        started = time.monotonic()
        found = find_files(self.stream, self.location, self.settings, months=months)
        _refuse_shared_months(self.asset, found)
        entries = self.ledger.entries()
        vanished = _vanished(entries, found, months)
        self.vanished = {entry.file.path for entry in vanished}
        self.is_whole = full and months is None
        if not found and not vanished:
            paths = self.stream.local_paths if self.settings.data_dir is not None else self.stream.paths
            raise SourceRejected(
                f"Loading {self.asset}: no file matches {' or '.join(paths)}{_in_months(months)} in {self.location}. "
                "Correct the location or the path, or wait until the file is published."
            )
        wanted = [file for file in found if full or not _is_loaded(file, entries)]
        results, errors = self._load_each(wanted, full=full, report=report)
        entries = self.ledger.entries()
        vanished = _vanished(entries, found, months)  # less those that came under another name
        self._note([replace(entry, status="vanished") for entry in vanished if entry.status != "vanished"])
        if errors:
            raise _combined(self.asset, errors, of=len(found))
        loaded = [result for result in results if result.files_loaded]
        return LoadResult(
            self.source,
            self.stream.name,
            rows=sum(result.rows for result in loaded),
            rejects=sum(result.rejects for result in loaded),
            seconds=time.monotonic() - started,
            files_loaded=tuple(path for result in loaded for path in result.files_loaded),
            files_unchanged=len(found) - len(loaded),
            files_vanished=tuple(entry.file.path for entry in vanished),
            rows_by_month=tuple(item for result in loaded for item in result.rows_by_month),
            columns_added=tuple(column for result in loaded for column in result.columns_added),
            data_until=_data_until([entry.file for entry in entries.values() if entry.has_rows]),
        )

    def _load_each(
        self, wanted: list[FoundFile], *, full: bool, report: Report
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
                    results.append(self._load_one(path, fetched, checksum, full=full))
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
        if (file.bytes or 0) < WATCHED_BYTES:
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

    def _load_one(self, path: Path, file: FoundFile, checksum: Callable[[], str], *, full: bool) -> LoadResult:
        # Two runs that see the same new file would both insert it, and inserts never conflict: hence the lock.
        with self.lake.lock(f"{self.asset}/{file.month or file.path}", wait_seconds=LOCK_WAIT_SECONDS) as held:
            if not held:
                raise SourceUnavailable(
                    f"Loading {self.asset}: another run has been loading {file.path} for {LOCK_WAIT_SECONDS} s. "
                    "Wait for it or stop it."
                )
            entries = self.ledger.entries()
            entry = entries.get(file.path)
            if entry and entry.has_rows and not full and entry.checksum == checksum():
                self._note([replace(entry, file=file, status="loaded")])
                return LoadResult(self.source, self.stream.name)
            obsolete = [
                other
                for other in entries.values()
                if other.file.path == file.path
                or (other.has_rows and other.file.month is not None and other.file.month == file.month)
                or (other.has_rows and other.file.path in self.vanished and other.checksum == checksum())
            ]
            try:
                return self.lake.in_transaction(
                    lambda: self._replace(path, file, checksum, obsolete), asset=self.asset, run_id=self.run_id
                )
            finally:
                self.lake.connection.execute("SET preserve_insertion_order = true")

    def _replace(self, path: Path, file: FoundFile, checksum: Callable[[], str], obsolete: list[Entry]) -> LoadResult:
        """Replace the rows of the *obsolete* files by those of *path*, inside the transaction."""
        started = time.monotonic()
        connection = self.lake.connection
        before = path.stat()
        present = columns_of(self.lake, self.table)
        added_before = self.lake.connection.execute(
            "SELECT column_name FROM ingest.schema_changes WHERE source = ? AND stream = ?",
            [self.source, self.stream.name],
        ).fetchall()
        plan = read_plan(self.lake, path, file.path, self.stream, present, added={column for (column,) in added_before})
        if self.is_whole and any(
            name in present and not fits(kind, present[name]) for name, kind in plan.columns.items()
        ):
            obsolete = self._drop_table()
        added = fit_table(
            self.lake, self.source, self.stream.name, plan.columns, audit=FILE_COLUMNS, run_id=self.run_id
        )
        for old in obsolete:
            for table in (self.table, f"{self.table}__rejects"):
                connection.execute(f"DELETE FROM raw.{sql_name(table)} WHERE _file = ?", [old.file.path])
        with reading(path, file.path):
            rows, rejects = self._insert(file, plan)
        for name in plan.temporary:
            connection.execute(f"DROP TABLE temp.{name}")
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise SourceUnavailable(f"Loading {self.asset}: {file.path} was written to meanwhile; run again.")
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
            if old.file.path != file.path:
                self.ledger.write(replace(old, rows=0, rejects=0, status="replaced"))
        self.ledger.write(Entry(file, checksum(), rows, rejects, "loaded"))
        record_load(self.lake, result, month=file.month, run_id=self.run_id)
        return result

    def _drop_table(self) -> list[Entry]:
        """Make way for a table of other types, and return the files whose rows it had: this load brings them all back,
        and if it is killed, the next one.
        """
        if self.vanished:
            gone = ", ".join(sorted(self.vanished)[:10])
            raise SourceRejected(
                f"Loading {self.asset}: the declared types are not the table's, and it cannot be made anew: it has rows of "
                f"files that are gone ({gone}). Put them back, or give the column with the new type another name."
            )
        for table in (self.table, f"{self.table}__rejects"):
            self.lake.connection.execute(f"DROP TABLE raw.{sql_name(table)}")
        return [entry for entry in self.ledger.entries().values() if entry.has_rows]

    def _insert(self, file: FoundFile, plan: Plan) -> tuple[int, int]:
        """Rows and rejects that came in."""
        connection = self.lake.connection
        origin = f"{literal(file.path)} AS _file, {literal(datetime.now(UTC).isoformat())}::TIMESTAMPTZ AS _loaded_at"
        connection.execute(f"SET preserve_insertion_order = {str(plan.is_ordered).lower()}")
        (rows,) = connection.execute(
            f"INSERT INTO raw.{sql_name(self.table)} BY NAME "
            f"SELECT *, {origin}, {literal(file.month)}::VARCHAR AS _month FROM ({plan.select})"
        ).fetchone() or (0,)
        if plan.examine:
            plan.examine()
        if plan.rejects is None:
            return rows, 0
        (rejects,) = connection.execute(
            f"INSERT INTO raw.{sql_name(self.table + '__rejects')} BY NAME "
            f"SELECT *, {origin}, {literal(self.run_id)} AS _run_id FROM ({plan.rejects})"
        ).fetchone() or (0,)
        if rejects:
            first = connection.execute(f"SELECT _row, reason FROM ({plan.rejects}) ORDER BY _row LIMIT 1").fetchone()
            assert first
            check_rejects(
                self.source,
                self.stream.name,
                rows=rows,
                rejects=rejects,
                share=self.stream.max_reject_share,
                first=f"{file.path}, line {first[0]}: {first[1]}",
            )
        return rows, rejects

    def _note(self, entries: list[Entry]) -> None:
        def work() -> None:
            for entry in entries:
                self.ledger.write(entry)

        if entries:
            self.lake.in_transaction(work, asset=self.asset, run_id=self.run_id)


def _is_loaded(file: FoundFile, entries: Mapping[str, Entry]) -> bool:
    entry = entries.get(file.path)
    return entry is not None and entry.status == "loaded" and file.is_same(entry.file)


def _vanished(entries: Mapping[str, Entry], found: list[FoundFile], months: frozenset[str] | None) -> list[Entry]:
    """The files that were there once, are not now, and did not come under another name."""
    paths, found_months = {file.path for file in found}, {file.month for file in found if file.month}
    return [
        entry
        for path, entry in entries.items()
        if entry.has_rows
        and path not in paths
        and entry.file.month not in found_months
        and (months is None or entry.file.month in months)
    ]


def _data_until(held: list[FoundFile]) -> datetime | None:
    """The end of the newest month of the files *held*, at most now; without months their newest change, if it is told."""
    if months := [file.month for file in held if file.month]:
        last_day = datetime.fromisoformat(month_values(max(months))["month_end"]).replace(tzinfo=UTC)
        return min(last_day + timedelta(days=1), datetime.now(UTC))
    return max((file.modified_at for file in held if file.modified_at), default=None)


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


def _combined(asset: str, errors: list[SourceError], *, of: int) -> SourceError:
    if of == 1:
        return errors[0]
    kind = SourceUnavailable if any(error.is_transient for error in errors) else SourceRejected
    listed = "\n".join(f"- {error}" for error in errors)
    rest = "; the others are in the table" if len(errors) < of else ""
    return kind(f"Loading {asset}: {len(errors)} of {of} files failed{rest}.\n{listed}")
