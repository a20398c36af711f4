"""Where backups, the lake's files and runs' logs lie: a folder or a bucket, read, written and listed alike.

Names are relative to the location, with ``/`` between their parts. What the files mean is their owner's business.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import BackupError, ConfigError
from pipeline.settings import Settings

BLOCK_BYTES = 1 << 20
PART_BYTES = 16 << 20  # S3 takes 10,000 parts of one object: 160 GB
COPIES_AT_ONCE = 4
PARTIAL = ".partial"
RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=120)}


class Store(Protocol):
    """A place for files. Every method raises ConfigError or BackupError, which name the location and what it said."""

    location: str

    def exists(self) -> bool:
        """False if there is no such folder; a bucket is asked by the first call that needs it."""

    def make(self) -> None:
        """Make the folder; a bucket must be there."""

    def room(self) -> tuple[int, int] | None:
        """Free and total bytes of the file system; None of a bucket."""

    def folders(self) -> list[str]:
        """The names of its folders, not of those inside them."""

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Name and bytes of every file below *folder*."""

    def unchanged_since(self, moment: datetime) -> list[str]:
        """Names of the files that were last written before *moment*."""

    def read(self, name: str) -> Iterator[bytes]:
        """The content of one file, in blocks."""

    def write(self, name: str, blocks: Iterable[bytes]) -> None:
        """Make or replace one file, whole or not at all; what *blocks* raises is passed on."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove these files, as far as they are there."""


def open_store(location: str, settings: Settings, *, private: bool = False) -> Store:
    """The folder or ``s3://bucket/prefix`` *location*; files made in a *private* folder are closed to other users.

    Raises:
        ConfigError: if it is neither.
    """
    if location.startswith("s3://"):
        return _Bucket(location.rstrip("/"), settings)
    if "://" in location or not location:
        raise ConfigError(f"{location!r} is no place for files. Give a folder, or s3://bucket/prefix.")
    return _Folder(Path(os.path.abspath(Path(location).expanduser())), 0o600 if private else 0o666)  # noqa: PTH100


def copy(wanted: dict[str, int], source: Store, destination: Store) -> tuple[int, dict[str, int]]:
    """Copy the files *wanted* (name → bytes) that *destination* has not yet.

    Returns:
        The bytes copied, and what of *wanted* is in neither place.
    """
    there = destination.sizes()
    absent = {name: size for name, size in wanted.items() if there.get(name) != size}
    offered = source.sizes() if absent else {}
    found = {name: size for name, size in absent.items() if offered.get(name) == size}

    def one(name: str) -> None:
        destination.write(name, source.read(name))

    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        try:
            for _ in pool.map(one, found):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sum(found.values()), {name: size for name, size in absent.items() if name not in found}


class _Folder:
    def __init__(self, path: Path, mode: int) -> None:
        self.path, self.location, self.mode = path, str(path), mode

    def exists(self) -> bool:
        return self.path.is_dir()

    def make(self) -> None:
        with self._errors("Making a folder"):
            self.path.mkdir(parents=True, exist_ok=True)

    def room(self) -> tuple[int, int]:
        with self._errors("Asking for the room"):
            usage = shutil.disk_usage(self.path)
        return usage.free, usage.total

    def folders(self) -> list[str]:
        with self._errors("Listing"):
            return [path.name for path in self.path.iterdir() if path.is_dir()] if self.exists() else []

    def sizes(self, folder: str = "") -> dict[str, int]:
        found = {}
        with self._errors("Listing"):
            for parent, _, files in os.walk(self.path / folder, onerror=_raise_unless_missing):
                for file in files:
                    path = Path(parent, file)
                    with suppress(FileNotFoundError):
                        found[path.relative_to(self.path).as_posix()] = path.stat().st_size
        return found

    def unchanged_since(self, moment: datetime) -> list[str]:
        def is_older(name: str) -> bool:
            with self._errors("Listing"), suppress(FileNotFoundError):
                return (self.path / name).stat().st_mtime < moment.timestamp()
            return False

        return [name for name in self.sizes() if is_older(name)]

    def read(self, name: str) -> Iterator[bytes]:
        with self._errors("Reading"), (self.path / name).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block

    def write(self, name: str, blocks: Iterable[bytes]) -> None:
        path = self.path / name
        partial = path.with_name(path.name + PARTIAL)
        with self._errors("Writing"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb", opener=lambda file, flags: os.open(file, flags, self.mode)) as file:
                for block in blocks:
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name too survives a power failure
            finally:
                os.close(folder)

    def delete(self, names: Iterable[str]) -> None:
        with self._errors("Deleting"):
            for name in names:
                path = self.path / name
                path.unlink(missing_ok=True)
                for folder in path.parents:
                    if folder == self.path:
                        break
                    with suppress(OSError):  # not empty
                        folder.rmdir()

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"{doing} in {self.location}: {error.filename or ''}: {error.strerror or error}. "
                "Make room, permit this user to use the folder, or choose another."
            ) from error


class _Bucket:
    def __init__(self, location: str, settings: Settings) -> None:
        from obstore.store import S3Store

        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        limits: Any = {"allow_http": True, "timeout": "300s", "connect_timeout": "10s"}
        self.location, self.prefix = location, f"{prefix}/" if prefix else ""
        self.store = S3Store(bucket, **settings.s3_options(), client_options=limits, retry_config=RETRIES)

    def exists(self) -> bool:
        return True

    def make(self) -> None:
        pass

    def room(self) -> None:
        return None

    def folders(self) -> list[str]:
        with self._errors("Listing"):
            found = self.store.list_with_delimiter(prefix=self.prefix or None)["common_prefixes"]
            return [path.removeprefix(self.prefix).rstrip("/") for path in found]

    def sizes(self, folder: str = "") -> dict[str, int]:
        with self._errors("Listing"):
            pages = self.store.list(prefix=f"{self.prefix}{folder}" or None)
            return {item["path"].removeprefix(self.prefix): item["size"] for page in pages for item in page}

    def unchanged_since(self, moment: datetime) -> list[str]:
        with self._errors("Listing"):
            pages = self.store.list(prefix=self.prefix or None)
            found = [item for page in pages for item in page if item["last_modified"] < moment]
            return [item["path"].removeprefix(self.prefix) for item in found]

    def read(self, name: str) -> Iterator[bytes]:
        with self._errors("Reading"):
            for block in self.store.get(f"{self.prefix}{name}").stream(min_chunk_size=BLOCK_BYTES):
                yield bytes(block)

    def write(self, name: str, blocks: Iterable[bytes]) -> None:
        from obstore import open_writer

        # An upload that is not closed leaves no object. put() with an iterator cannot read from a bucket meanwhile.
        with self._errors("Writing"):
            writer = open_writer(self.store, f"{self.prefix}{name}", buffer_size=PART_BYTES, max_concurrency=2)
        for block in blocks:
            with self._errors("Writing"):
                writer.write(block)
        with self._errors("Writing"):
            writer.close()

    def delete(self, names: Iterable[str]) -> None:
        with self._errors("Deleting"):
            if paths := [f"{self.prefix}{name}" for name in names]:
                self.store.delete(paths)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            text = (str(error).splitlines() or [""])[0][:500]
            raise BackupError(
                f"{doing} in {self.location}: {type(error).__name__}: {text}. Correct the bucket, MILLRACE_S3_ENDPOINT "
                "or the AWS_* variables, or repeat it when the server answers."
            ) from error


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
