"""Files behind http(s): asking whether one exists, and fetching it. Which ones to ask for is `locations`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.errors import SourceRejected, SourceUnavailable

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS = 10
TIMEOUT_SECONDS = 60  # of silence
GRACE_SECONDS = 60  # before a trickle counts as silence
SLOWEST_BYTES_PER_SECOND = 10_000
ABSENT = (403, 404, 410)  # buckets that may not be listed say 403 for what is not there
NO_HEAD = (400, 405, 501)  # an API that answers GET only


@dataclass(frozen=True)
class Told:
    """What a server tells of a file without sending it."""

    bytes: int | None = None
    etag: str = ""
    modified_at: datetime | None = None


def client() -> "httpx2.Client":
    """A client for many requests; it asks for files as they are, since their size is checked."""
    import httpx2

    return httpx2.Client(
        timeout=httpx2.Timeout(TIMEOUT_SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=True,
        headers={"User-Agent": "millrace", "Accept-Encoding": "identity"},
    )


def ask(http: "httpx2.Client", address: str) -> Told | None:
    """What the server tells of *address*; None if nothing is there.

    Raises:
        SourceUnavailable: if a later attempt may get an answer.
        SourceRejected: if none can.
    """
    with _errors(f"Asking for {without_query(address)}"):
        response = http.head(address)
        if response.status_code in ABSENT:
            return None
        if response.status_code in NO_HEAD:
            return Told()  # the checksum will tell whether it changed
        response.raise_for_status()
        headers = response.headers
        length = "" if headers.get("content-encoding") else headers.get("content-length", "")
        return Told(
            bytes=int(length) if length.isdigit() else None,
            etag=headers.get("etag", ""),
            modified_at=_time(headers.get("last-modified", "")),
        )


def fetch(address: str, path: Path) -> None:
    """Write what is at *address* to *path*.

    Raises:
        SourceUnavailable: if it did not come whole.
        SourceRejected: if it cannot be had.
        OSError: if *path* cannot be written.
    """
    doing = f"Fetching {without_query(address)}"
    started, size = time.monotonic(), 0
    with _errors(doing), client() as http, http.stream("GET", address) as response, path.open("wb") as out:
        response.raise_for_status()
        # A .gz that the server calls "encoded" is meant to stay one.
        for block in response.iter_raw() if path.suffix == ".gz" else response.iter_bytes():
            size += out.write(block)
            seconds = time.monotonic() - started
            if seconds > GRACE_SECONDS + size / SLOWEST_BYTES_PER_SECOND:
                raise SourceUnavailable(f"{doing}: only {size:,} bytes came in {seconds:.0f} s.")


def without_query(address: str) -> str:
    """*address* as it may be shown: a query can hold a key."""
    return urlsplit(address)._replace(query="").geturl()


def _time(header: str) -> datetime | None:
    try:
        time = parsedate_to_datetime(header)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


@contextmanager
def _errors(doing: str) -> Iterator[None]:
    import httpx2

    try:
        yield
    except httpx2.HTTPStatusError as error:
        status = error.response.status_code
        if status in (408, 425, 429) or status >= 500:
            raise SourceUnavailable(f"{doing}: the server answered {status}. A later run may succeed.") from error
        raise SourceRejected(f"{doing}: the server answered {status}. Correct the location or the path.") from error
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise SourceRejected(f"{doing}: {error}. Correct the location.") from error
    except httpx2.HTTPError as error:
        raise SourceUnavailable(f"{doing}: {type(error).__name__}: {error}") from error
