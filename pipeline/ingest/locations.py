"""Where a stream's files are: finds them in a folder, behind http(s) or in S3, and brings one to local disk.

What is in a file is `readers`; what of it is loaded already is `ledger`.
"""

import errno
import fcntl
import gzip
import hashlib
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import stamina

from pipeline.errors import ConfigError, SourceRejected, SourceUnavailable
from pipeline.ingest import http_files, s3_files
from pipeline.ingest.spec import MONTH, FileSource, FileStream, month_range, month_values, resolved
from pipeline.settings import Settings

if TYPE_CHECKING:
    import httpx2

HEAD_WORKERS = 16  # requests at once when asking which months exist
ATTEMPTS = 4
BLOCK = 1 << 20
_MONTH = r"\d{4}-(?:0[1-9]|1[0-2])"


@dataclass(frozen=True)
class FoundFile:
    """A file of a stream. `path`, relative to the location, is its name in the ledger and in ``_file``."""

    path: str
    address: str
    month: str | None = None
    bytes: int | None = None
    etag: str = ""
    modified_at: datetime | None = None

    def is_same(self, other: "FoundFile") -> bool:
        """True if nothing the provider tells of the two differs, and it tells enough to say so."""
        told = self.bytes is not None and (self.etag or self.modified_at)
        return bool(told) and (self.bytes, self.etag, self.modified_at) == (other.bytes, other.etag, other.modified_at)


def location_of(source: FileSource, settings: Settings, project_dir: Path) -> str:
    """Folder or address that *source* is read from: MILLRACE_DATA_DIR if set, else its own location."""
    if settings.data_dir is not None:
        return str(settings.data_dir)
    location = str(resolved(source.location, where=f"source {source.name}: location")).rstrip("/")
    if "://" in location:
        return location
    return str((project_dir / location).resolve())


def find_files(
    stream: FileStream, location: str, settings: Settings, *, months: frozenset[str] | None = None
) -> list[FoundFile]:
    """The stream's files at *location*, oldest month first; of *months* only, if given.

    Raises:
        SourceUnavailable: if the place does not answer.
        SourceRejected: if it does not exist or must not be read.
        ConfigError: if the stream's path cannot be searched for there.
    """
    paths = stream.local_paths if settings.data_dir is not None else stream.paths
    if location.startswith(("http://", "https://")):
        found = _find_http(stream, paths, location, months)
    elif location.startswith("s3://"):
        found = _find_s3(paths, location, settings)
    elif "://" in location:
        raise ConfigError(f"Looking for files in {location}: only a folder, http(s):// and s3:// can be read.")
    else:
        found = _find_local(paths, Path(location))
    if stream.months:
        first, last = stream.months.first, stream.months.last or "9999-12"
        found = [file for file in found if file.month and first <= file.month <= last]
    if months is not None and stream.is_monthly:
        found = [file for file in found if file.month in months]
    return sorted(set(found), key=lambda file: (file.month or "", file.path))


def template_expression(template: str) -> re.Pattern[str]:
    """What the names made from *template* look like; its groups ``month`` or ``yyyymm`` tell the month."""
    parts: list[str] = []
    seen: set[str] = set()
    for piece in re.split(r"(\{\w+\}|\*\*/|\*|\?)", template):
        name = {"{month}": "month", "{month_start}": "month", "{yyyymm}": "yyyymm"}.get(piece)
        if name:
            digits = _MONTH if name == "month" else _MONTH.replace("-", "", 1)
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{digits})")
            parts.append("-01" if piece == "{month_start}" else "")
            seen.add(name)
        else:
            wild = {"{month_end}": r"\d{4}-\d{2}-\d{2}", "**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
            parts.append(wild.get(piece, re.escape(piece)))
    return re.compile("".join(parts) + r"\Z")


def _month_of(match: re.Match[str]) -> str | None:
    groups = match.groupdict()
    compact = groups.get("yyyymm")
    return groups.get("month") or (f"{compact[:4]}-{compact[4:]}" if compact else None)


def _find_local(paths: tuple[str, ...], folder: Path) -> list[FoundFile]:
    found = []
    try:
        if not folder.is_dir():
            raise SourceRejected(f"Looking for files: there is no folder {folder}. Make it, or correct the location.")
        for template in paths:
            expression = template_expression(template)
            # A placeholder beside a star makes two, which pathlib takes for folders; brackets mean themselves.
            wildcards = re.sub(r"(?<=[^/*])\*{2,}|\*{2,}(?!/)", "*", MONTH.sub("*", template)).replace("[", "[[]")
            for path in folder.glob(wildcards):
                name = path.relative_to(folder).as_posix()
                match = expression.match(name)
                if match and path.is_file():
                    stat = path.stat()
                    modified = datetime.fromtimestamp(stat.st_mtime, UTC)
                    found.append(FoundFile(name, str(path), _month_of(match), stat.st_size, "", modified))
    except OSError as error:
        raise SourceRejected(f"Looking for files in {folder}: {error.strerror} ({error.filename}).") from error
    return found


def _find_s3(paths: tuple[str, ...], location: str, settings: Settings) -> list[FoundFile]:
    found = []
    for template in paths:
        expression = template_expression(template)
        folder = re.split(r"[*?{]", template)[0].rpartition("/")[0]
        for item in s3_files.listing(location, folder, settings):
            match = expression.match(item.name)
            if match:
                address = f"{location}/{item.name}"
                found.append(FoundFile(item.name, address, _month_of(match), item.bytes, item.etag, item.modified_at))
    return found


def _find_http(
    stream: FileStream, paths: tuple[str, ...], location: str, months: frozenset[str] | None
) -> list[FoundFile]:
    """Ask for every month that could exist: http has no listing. A missing month is not an error."""
    wanted: list[tuple[str, str | None]] = []
    for template in paths:
        if "*" in template:
            raise ConfigError(f"stream {stream.name}: path {template!r}: `*` cannot be searched for over http.")
        if stream.months and MONTH.search(template):
            last = stream.months.last or datetime.now(UTC).strftime("%Y-%m")
            for month in month_range(stream.months.first, last):
                if months is None or month in months:
                    values = month_values(month)
                    wanted.append((MONTH.sub(lambda m, v=values: v[m[1]], template), month))  # type: ignore[misc]
        else:
            wanted.append((template, None))
    pool = ThreadPoolExecutor(HEAD_WORKERS)
    try:
        with http_files.client() as client:
            answers = pool.map(partial(_asked_for, client, location), wanted)
            return [answer for answer in answers if answer is not None]
    finally:
        pool.shutdown(cancel_futures=True)  # after one failure the other months need not be asked for


def _asked_for(client: "httpx2.Client", location: str, wanted: tuple[str, str | None]) -> FoundFile | None:
    path, month = wanted
    address = f"{location}/{path}"
    for attempt in stamina.retry_context(on=SourceUnavailable, attempts=ATTEMPTS, wait_initial=0.5, wait_max=10):
        with attempt:
            told = http_files.ask(client, address)
            if told is None:
                return None
            bare, _, query = path.partition("?")
            # The query tells months apart, but it can hold a key: its digest stands for it.
            name = f"{bare}?{hashlib.sha256(query.encode()).hexdigest()[:8]}" if query else bare
            return FoundFile(name, address, month, told.bytes, told.etag, told.modified_at)
    raise AssertionError("unreachable")


@contextmanager
def local_copy(file: FoundFile, settings: Settings) -> Iterator[tuple[Path, FoundFile, Callable[[], str]]]:
    """The file on local disk, what is now known of it, and its sha256, for which the call may have to wait.

    What was made for it is removed afterwards.

    A ``.zip`` is unpacked to its one member, a ``.gz`` to what is in it: DuckDB would read one that is cut off
    without a word.

    Raises:
        SourceUnavailable: if it could not be fetched whole.
        SourceRejected: if it cannot be had at all, or does not unpack.
    """
    try:
        with _scratch(settings.scratch_path / "downloads") as folder, ThreadPoolExecutor(1) as pool:
            path = Path(file.address)
            if "://" in file.address:
                path = folder / (Path(file.path.partition("?")[0]).name or "file")
                file = _download(file, path, settings)
            with path.open("rb") as handle:  # digested beside the load: a twentieth of its time otherwise
                digest = pool.submit(hashlib.file_digest, handle, "sha256")
                yield _unpacked(path, file.path, folder), file, lambda: digest.result().hexdigest()
    except OSError as error:
        raise _disk_error(file, error, settings) from error


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A folder for as long as the block runs. What killed processes left there goes with the next one that is alone."""
    parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(parent, os.O_RDONLY)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in parent.iterdir():
                shutil.rmtree(left)
        fcntl.flock(handle, fcntl.LOCK_SH)
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            yield Path(folder)
    finally:
        os.close(handle)


def _disk_error(file: FoundFile, error: OSError, settings: Settings) -> SourceUnavailable | SourceRejected:
    what = f"Fetching {file.path}: {error.filename or settings.scratch_path}: {error.strerror or error}."
    if error.errno == errno.ENOSPC:
        return SourceUnavailable(f"{what} Free space there, or set MILLRACE_SCRATCH_DIR to another disk.")
    if error.errno == errno.ENOENT:
        return SourceUnavailable(f"{what} It was there a moment ago; run again.")
    return SourceRejected(f"{what} Correct its permissions.")


def _download(file: FoundFile, path: Path, settings: Settings) -> FoundFile:
    for attempt in stamina.retry_context(on=SourceUnavailable, attempts=ATTEMPTS, wait_initial=0.5, wait_max=10):
        with attempt:
            if file.address.startswith("s3://"):
                s3_files.fetch(file.address.removesuffix("/" + file.path), file.path, path, settings)
            else:
                http_files.fetch(file.address, path)
            size = path.stat().st_size
            if file.bytes is not None and size != file.bytes:
                raise SourceUnavailable(f"Fetching {file.path}: {size:,} bytes came of {file.bytes:,}.")
            return replace(file, bytes=size)
    raise AssertionError("unreachable")


def _unpacked(path: Path, name: str, folder: Path) -> Path:
    """*path*, or what is in it."""
    kind = path.suffix.lower()
    if kind not in (".gz", ".zip"):
        return path
    target = folder / f"unpacked-{path.stem}"
    try:
        if kind == ".gz":
            with gzip.open(path) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, BLOCK)
            return target
        with zipfile.ZipFile(path) as archive:
            members = [
                item for item in archive.infolist() if not item.is_dir() and not item.filename.startswith("__MACOSX/")
            ]
            if len(members) != 1:
                raise SourceRejected(f"Unpacking {name}: {len(members)} files inside, expected one.")
            target = folder / f"unpacked-{Path(members[0].filename).name}"
            with archive.open(members[0]) as member, target.open("wb") as out:
                shutil.copyfileobj(member, out, BLOCK)
            return target
    except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, RuntimeError, NotImplementedError) as error:
        raise SourceRejected(
            f"Unpacking {name}: {error}. The file is damaged or its ending is wrong; have it sent again."
        ) from error
