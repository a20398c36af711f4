"""Where a stream's files are: finds them in a folder, behind http(s) or in S3, and brings one to local disk.

What is in a file is `readers`; what of it is loaded already is `files`.
"""

import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import stamina

from pipeline.errors import ConfigError, SourceRejected, SourceUnavailable
from pipeline.ingest.spec import MONTH, FileSource, FileStream, month_range, month_values, resolved
from pipeline.settings import Settings

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)

HEAD_WORKERS = 16  # requests at once when asking which months exist
TIMEOUT_SECONDS = 60
ATTEMPTS = 4
BLOCK = 1 << 20
_GROUPS = {
    "month": r"(?P<month>\d{4}-(?:0[1-9]|1[0-2]))",
    "yyyymm": r"(?P<yyyymm>\d{4}(?:0[1-9]|1[0-2]))",
    "month_start": r"\d{4}-\d{2}-\d{2}",
    "month_end": r"\d{4}-\d{2}-\d{2}",
}


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
    else:
        found = _find_local(paths, Path(location))
    if stream.months:
        first, last = stream.months.first, stream.months.last or "9999-12"
        found = [file for file in found if file.month and first <= file.month <= last]
    if months is not None and stream.is_monthly:
        found = [file for file in found if file.month in months]
    return sorted(set(found), key=lambda file: (file.month or "", file.path))


def _pattern(template: str) -> tuple[str, re.Pattern[str]]:
    """A glob that covers *template*, and the expression that tells its month."""
    glob = MONTH.sub("*", template)
    parts: list[str] = []
    seen: set[str] = set()
    for piece in re.split(r"(\{\w+\}|\*|\?)", template):
        name = piece.strip("{}")
        if piece.startswith("{") and name in _GROUPS:
            parts.append(_GROUPS[name] if name not in seen else f"(?P={name})")
            seen.add(name)
        elif piece == "*":
            parts.append("[^/]*")
        elif piece == "?":
            parts.append("[^/]")
        else:
            parts.append(re.escape(piece))
    return glob, re.compile("".join(parts) + r"\Z")


def _month_of(match: re.Match[str]) -> str | None:
    groups = match.groupdict()
    if groups.get("month"):
        return str(groups["month"])
    if groups.get("yyyymm"):
        return f"{groups['yyyymm'][:4]}-{groups['yyyymm'][4:]}"
    return None


def _find_local(paths: tuple[str, ...], folder: Path) -> list[FoundFile]:
    if not folder.is_dir():
        raise SourceRejected(f"Looking for files: there is no folder {folder}. Make it, or correct the location.")
    found = []
    for template in paths:
        glob, expression = _pattern(template)
        for path in folder.glob(glob):
            name = path.relative_to(folder).as_posix()
            match = expression.match(name)
            if match and path.is_file():
                stat = path.stat()
                modified = datetime.fromtimestamp(stat.st_mtime, UTC)
                found.append(FoundFile(name, str(path), _month_of(match), stat.st_size, "", modified))
    return found


def _find_s3(paths: tuple[str, ...], location: str, settings: Settings) -> list[FoundFile]:
    store, prefix = _s3_store(location, settings)
    found = []
    for template in paths:
        glob, expression = _pattern(template)
        fixed = re.split(r"[*?]", glob)[0]
        try:
            pages = store.list(prefix=f"{prefix}{fixed}".rpartition("/")[0] or None)
            objects = [item for page in pages for item in page]
        except Exception as error:  # obstore raises its own tree and OSError
            raise _s3_error(f"Listing {location}", error) from error
        for item in objects:
            name = str(item["path"]).removeprefix(prefix)
            match = expression.match(name)
            if match:
                found.append(
                    FoundFile(
                        name,
                        f"{location}/{name}",
                        _month_of(match),
                        item["size"],
                        item["e_tag"] or "",
                        item["last_modified"],
                    )
                )
    return found


def _s3_store(location: str, settings: Settings) -> tuple[Any, str]:
    from obstore.store import S3Store

    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    options: dict[str, Any] = {"region": settings.s3_region}
    if settings.s3_endpoint:
        options["endpoint"] = settings.s3_endpoint
        options["virtual_hosted_style_request"] = False
    if not os.environ.get("AWS_ACCESS_KEY_ID"):
        options["skip_signature"] = True  # public buckets, which most providers have
    store = S3Store(bucket, **options, client_options={"allow_http": True, "timeout": f"{TIMEOUT_SECONDS}s"})
    return store, f"{prefix.rstrip('/')}/" if prefix else ""


def _s3_error(doing: str, error: Exception) -> SourceUnavailable | SourceRejected:
    name, text = type(error).__name__, str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, FileNotFoundError) or name in (
        "NotFoundError",
        "PermissionDeniedError",
        "UnauthenticatedError",
    ):
        return SourceRejected(f"{doing}: {name}: {text}. Correct the location or the AWS_* variables.")
    return SourceUnavailable(f"{doing}: {name}: {text}")


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
    with _http_client() as client, ThreadPoolExecutor(HEAD_WORKERS) as pool:
        answers = pool.map(partial(_head, client, location), wanted)
        return [answer for answer in answers if answer is not None]


def _http_client() -> "httpx2.Client":
    import httpx2

    return httpx2.Client(timeout=TIMEOUT_SECONDS, follow_redirects=True, headers={"User-Agent": "millrace"})


def _head(client: "httpx2.Client", location: str, wanted: tuple[str, str | None]) -> FoundFile | None:
    path, month = wanted
    address = f"{location}/{path}"
    for attempt in stamina.retry_context(on=SourceUnavailable, attempts=ATTEMPTS, wait_initial=0.5, wait_max=10):
        with attempt, _http_errors(f"Asking for {without_query(address)}"):
            response = client.head(address)
            if response.status_code in (403, 404):  # buckets that may not be listed say 403 for what is not there
                return None
            headers = dict(response.headers)
            if response.status_code in (400, 405, 501):
                headers = {}  # an API that answers GET only: the checksum will tell whether it changed
            else:
                response.raise_for_status()
            modified, length = headers.get("last-modified"), headers.get("content-length")
            return FoundFile(
                path=without_query(path) if "?" in path else path,
                address=address,
                month=month,
                bytes=int(length) if length and not headers.get("content-encoding") else None,
                etag=headers.get("etag", ""),
                modified_at=parsedate_to_datetime(modified) if modified else None,
            )
    raise AssertionError("unreachable")


@contextmanager
def _http_errors(doing: str) -> Iterator[None]:
    import httpx2

    try:
        yield
    except httpx2.HTTPStatusError as error:
        status = error.response.status_code
        if status in (408, 425, 429) or status >= 500:
            raise SourceUnavailable(f"{doing}: the server answered {status}. A later run may succeed.") from error
        raise SourceRejected(f"{doing}: the server answered {status}. Correct the location or the path.") from error
    except httpx2.HTTPError as error:
        raise SourceUnavailable(f"{doing}: {type(error).__name__}: {error}") from error


def without_query(address: str) -> str:
    """*address* as it may be shown and kept: a query can hold a key."""
    return address if "://" not in address and "?" not in address else urlsplit(address)._replace(query="").geturl()


@contextmanager
def local_copy(file: FoundFile, settings: Settings) -> Iterator[tuple[Path, FoundFile, str]]:
    """The file on local disk, what is now known of it, and its sha256. A download is removed afterwards.

    A ``.zip`` is unpacked to its one member.

    Raises:
        SourceUnavailable: if it could not be fetched whole, or changed meanwhile.
        SourceRejected: if it cannot be had at all.
    """
    folder = (
        settings.scratch_path / "downloads" / f"{os.getpid()}-{hashlib.sha256(file.path.encode()).hexdigest()[:12]}"
    )
    try:
        path = Path(file.address)
        if "://" in file.address:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / Path(without_query(file.path)).name
            file = _download(file, path, settings)
        checksum = _checksum(path)
        if path.suffix == ".zip":
            folder.mkdir(parents=True, exist_ok=True)
            path = _unzipped(path, folder)
        yield path, file, checksum
    except OSError as error:
        if error.errno == 28:
            raise SourceUnavailable(
                f"Fetching {file.path}: the disk with {settings.scratch_path} is full. Free space or set MILLRACE_SCRATCH_DIR."
            ) from error
        raise SourceRejected(f"Reading {file.path}: {error.strerror or error}.") from error
    finally:
        if folder.exists():
            for left in folder.iterdir():
                left.unlink()
            folder.rmdir()


def _download(file: FoundFile, path: Path, settings: Settings) -> FoundFile:
    for attempt in stamina.retry_context(on=SourceUnavailable, attempts=ATTEMPTS, wait_initial=0.5, wait_max=10):
        with attempt:
            if file.address.startswith("s3://"):
                store, prefix = _s3_store(file.address.removesuffix("/" + file.path), settings)
                try:
                    with path.open("wb") as out:
                        for block in store.get(f"{prefix}{file.path}").stream(min_chunk_size=BLOCK):
                            out.write(block)
                except OSError:
                    raise
                except Exception as error:
                    raise _s3_error(f"Fetching {file.address}", error) from error
            else:
                _download_http(file, path)
            size = path.stat().st_size
            if file.bytes is not None and size != file.bytes:
                raise SourceUnavailable(f"Fetching {file.path}: {size:,} bytes came of {file.bytes:,}.")
            return replace(file, bytes=size)
    raise AssertionError("unreachable")


def _download_http(file: FoundFile, path: Path) -> None:
    doing = f"Fetching {without_query(file.address)}"
    with _http_errors(doing), _http_client() as client, client.stream("GET", file.address) as response:
        response.raise_for_status()
        with path.open("wb") as out:
            for block in response.iter_bytes(BLOCK):
                out.write(block)


def _checksum(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _unzipped(path: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                item for item in archive.infolist() if not item.is_dir() and not item.filename.startswith("__MACOSX/")
            ]
            if len(members) != 1:
                raise SourceRejected(f"Unpacking {path.name}: {len(members)} files inside, expected one.")
            target = folder / f"unpacked-{Path(members[0].filename).name}"
            with archive.open(members[0]) as source, target.open("wb") as out:
                while block := source.read(BLOCK):
                    out.write(block)
    except zipfile.BadZipFile as error:
        raise SourceRejected(f"Unpacking {path.name}: {error}. The file is damaged; have it sent again.") from error
    return target
