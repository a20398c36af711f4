"""What lies at a target: backups, each with its manifest, and copied data files.

A backup is a folder ``<target>/<UTC time>/`` with ``dagster.dump``, ``lake.dump`` and, written last, ``backup.json``:
without it there is no backup but what a killed process left. ``<target>/files/`` holds copied data files of all of them.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import BackupError, ConfigError
from pipeline.operate.store import Store, open_store
from pipeline.settings import Settings

# Dagster first: whatever its events say was loaded is then in the lake that is dumped after it.
DATABASES = ("dagster", "lake")
MANIFEST, FILES = "backup.json", "files"
NAME = re.compile(r"\d{8}T\d{6}Z")
NAME_FORMAT = "%Y%m%dT%H%M%SZ"


class Dump(BaseModel):
    """One dump's file."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """A ``backup.json``."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    millrace: str
    dagster: str
    ducklake: str
    schema_version: str  # of the tables in the database dagster
    server: str  # PostgreSQL's version
    pg_dump: str  # its version
    started_at: datetime
    finished_at: datetime
    dumps: dict[str, Dump]  # by database
    lake_path: str
    snapshot_id: int | None  # None: there was no lake yet
    data_files: int  # to which the catalogue refers, those of deletions too
    data_bytes: int
    has_files: bool  # copied to the target

    @property
    def dump_bytes(self) -> int:
        """Bytes of both dumps."""
        return sum(dump.bytes for dump in self.dumps.values())


class Checked:
    """The blocks of a dump as they pass, counted and hashed."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self.blocks, self.bytes, self._hash = blocks, 0, hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for block in self.blocks:
            self.bytes += len(block)
            self._hash.update(block)
            yield block

    @property
    def dump(self) -> Dump:
        """What has passed so far."""
        return Dump(bytes=self.bytes, sha256=self._hash.hexdigest())


def open_target(target: str, settings: Settings) -> Store:
    """The place *target*.

    Raises:
        ConfigError: if it is none, or inside the lake, where maintenance would take its files for orphans.
    """
    store = open_store(target, settings, private=True)
    if f"{store.location}/".startswith(settings.lake_path):
        raise ConfigError(
            f"The target {store.location} is inside the lake's own path, {settings.lake_path}, where maintenance deletes "
            "what it does not know. Choose another."
        )
    return store


def names(store: Store) -> list[str]:
    """Every backup in *store*, oldest first."""
    return sorted(name for name in folders(store) if f"{name}/{MANIFEST}" in store.sizes(name))


def load(store: Store, name: str) -> Manifest:
    """The manifest of the backup *name*.

    Raises:
        BackupError: if it is damaged or of a newer format.
    """
    try:
        return Manifest.model_validate_json(b"".join(store.read(f"{name}/{MANIFEST}")))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise BackupError(
            f"{store.location}/{name}/{MANIFEST} cannot be read: {wrong}. It is damaged, or was made by a newer Millrace."
        ) from None


def listing(settings: Settings, target: str) -> list[tuple[str, Manifest | None]]:
    """Every backup at *target* with its manifest, oldest first; None for a manifest that cannot be read.

    Raises:
        ConfigError: if the target cannot be used.
        BackupError: if the bucket does not answer.
    """
    store = open_target(target, settings)
    found: list[tuple[str, Manifest | None]] = []
    for name in names(store):
        try:
            found.append((name, load(store, name)))
        except BackupError:
            found.append((name, None))
    return found


def chosen(store: Store, name: str | None) -> str:
    """*name*, or the newest backup.

    Raises:
        ConfigError: if there is none; names what there is.
    """
    there = names(store)
    if not there:
        raise ConfigError(f"{store.location} holds no backup. Make one with `millrace backup --to {store.location}`.")
    if name is not None and name not in there:
        raise ConfigError(f"{store.location} holds no backup {name}. There are: {', '.join(there)}.")
    return name or there[-1]


def files_store(store: Store, settings: Settings) -> Store:
    """Where *store* keeps copies of the lake's data files."""
    return open_store(f"{store.location}/{FILES}", settings, private=True)


def folders(store: Store) -> list[str]:
    """The name of each backup, whole or not."""
    return [name for name in store.folders() if NAME.fullmatch(name)]
