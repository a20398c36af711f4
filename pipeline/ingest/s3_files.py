"""Files in an S3 bucket: listing them and fetching one. Which ones are a stream's is `locations`."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.aws import has_role
from pipeline.errors import SourceRejected, SourceUnavailable
from pipeline.settings import Settings

TIMEOUT_SECONDS = 60
RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}  # obstore's own waits three minutes
PERMANENT = ("NotFoundError", "PermissionDeniedError", "UnauthenticatedError")
REFUSED = re.compile(r"status code: 4(?!08|29)\d\d")  # a listing's errors have no class of their own


class Object(NamedTuple):
    """An object of a bucket; `name` is relative to the location."""

    name: str
    bytes: int
    etag: str
    modified_at: datetime


def listing(location: str, folder: str, settings: Settings) -> Iterator[Object]:
    """Every object below *folder* of ``s3://bucket/prefix``, in pages of a thousand.

    Raises:
        SourceUnavailable: if the server does not answer.
        SourceRejected: if there is no such bucket or it must not be listed.
    """
    store, prefix = _store(location, settings)
    with _errors(f"Listing {location}"):
        for page in store.list(prefix=f"{prefix}{folder}" or None):
            for item in page:
                name = str(item["path"]).removeprefix(prefix)
                yield Object(name, item["size"], item["e_tag"] or "", item["last_modified"])


def fetch(location: str, name: str, path: Path, settings: Settings) -> None:
    """Write the object *name* of *location* to *path*.

    Raises:
        SourceUnavailable: if it did not come whole.
        SourceRejected: if it is gone or must not be read.
        OSError: if *path* cannot be written.
    """
    store, prefix = _store(location, settings)
    with path.open("wb") as out:
        with _errors(f"Fetching {location}/{name}"):
            blocks = store.get(f"{prefix}{name}").stream()
        while True:
            with _errors(f"Fetching {location}/{name}"):
                block = next(blocks, None)
            if block is None:
                return
            out.write(block)


def _store(location: str, settings: Settings) -> tuple[Any, str]:
    from obstore.store import S3Store

    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    options = settings.s3_options()
    if not (os.environ.get("AWS_ACCESS_KEY_ID") or has_role()):
        options["skip_signature"] = True  # public buckets, which most providers have
    limits: Any = {"allow_http": True, "timeout": f"{TIMEOUT_SECONDS}s", "connect_timeout": "10s"}
    store = S3Store(bucket, **options, client_options=limits, retry_config=RETRIES)
    return store, f"{prefix.rstrip('/')}/" if prefix else ""


@contextmanager
def _errors(doing: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        name, text = type(error).__name__, (str(error).splitlines() or [""])[0]
        if isinstance(error, FileNotFoundError | PermissionError) or name in PERMANENT or REFUSED.search(text):
            raise SourceRejected(f"{doing}: {name}: {text}. Correct the location or the AWS_* variables.") from error
        raise SourceUnavailable(f"{doing}: {name}: {text}") from error
