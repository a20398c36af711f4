"""Loading a connector's streams: rows and state commit in one lake transaction, so a kill loses and doubles nothing.

Which program runs is `airbyte_connectors`, how it is kept in bounds `airbyte_process`, what its lines mean
`airbyte_messages`, how they become rows `airbyte_tables`.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError, SourceError, SourceRejected, SourceUnavailable
from pipeline.ingest.airbyte_connectors import Connector
from pipeline.ingest.airbyte_process import Child, private_folder
from pipeline.ingest.airbyte_sync import sync_of
from pipeline.ingest.airbyte_tables import fields_of
from pipeline.ingest.raw import LoadResult, prepare
from pipeline.ingest.spec import AirbyteSource, ConnectorStream, SourceFile, normalised
from pipeline.lake.connection import Lake
from pipeline.progress import Report, silent
from pipeline.settings import Settings

LOCK_WAIT_SECONDS = 10
PROBE_SECONDS = 60.0


@dataclass(frozen=True)
class DiscoveredStream:
    """A stream that a connector offers; `name` is what the source file calls it, `fields` column → DuckDB type."""

    name: str
    connector_name: str
    fields: dict[str, str]
    primary_key: tuple[str, ...]
    cursor_field: str | None
    sync_modes: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """Whether a connector reaches its source with the configuration it has."""

    source: str
    connector: str
    succeeded: bool
    message: str
    is_transient: bool = False
    seconds: float = 0.0


def check(file: SourceFile, settings: Settings) -> Checked:
    """Let the connector try its configuration. What it finds wrong is the answer, not an error.

    Raises:
        ConfigError: for a missing environment or variable, or a secret in the file.
    """
    started = time.monotonic()
    connector = Connector(file, settings)
    succeeded, message, is_transient = True, "reachable", False
    try:
        connector.refuse_literal_secrets(connector.ask("check")["spec"])
    except SourceError as error:
        succeeded, message, is_transient = False, str(error), error.is_transient
    seconds = time.monotonic() - started
    return Checked(file.source.name, connector.label, succeeded, message, is_transient, seconds)


def discover(file: SourceFile, settings: Settings) -> list[DiscoveredStream]:
    """Every stream the connector offers, asked now.

    Raises:
        ConfigError: for a missing environment or variable, or a secret in the file.
        SourceError: if the connector cannot tell.
    """
    return [_discovered(stream) for stream in Connector(file, settings).describe(fresh=True).streams]


def preview(file: SourceFile, stream: str, settings: Settings, *, limit: int = 10) -> list[dict[str, Any]]:
    """The first *limit* records of a stream, as the connector sends them; it is ended then. Nothing is written.

    Raises:
        ConfigError: for a missing environment or variable, or an unknown stream.
        SourceError: if the connector fails before that.
    """
    with sync_of(Connector(file, settings), [_declared(file, stream)], settings, full=True) as running:
        spool = running.loads[0].spool
        with closing(running.read(None)) as blocks:
            for _ in blocks:
                if spool.rows >= limit:
                    break
        with spool.path.open("rb") as lines:
            return [json.loads(line)["record"]["data"] for line, _ in zip(lines, range(limit), strict=False)]


def sync(
    lake: Lake,
    file: SourceFile,
    streams: Sequence[str] | None,
    *,
    settings: Settings,
    run_id: str,
    full: bool = False,
    report: Report = silent,
) -> list[LoadResult]:
    """Load *streams* (all, if None) of a source; with *full* from the start, replacing the tables.

    Incremental streams are committed as their states come, the others whole at the end. After an error, what a state
    covers is in the lake and the next sync goes on from there.

    Raises:
        ConfigError: for a missing environment or variable, a secret in the file, or an unknown stream.
        SourceError: saying what the connector did and what was committed.
        LakeError: if the lake does not take the rows.
    """
    source = file.source
    assert isinstance(source, AirbyteSource)
    names = [stream.name for stream in source.streams] if streams is None else list(dict.fromkeys(streams))
    chosen = [_declared(file, name) for name in names]
    prepare(lake)
    with ExitStack() as locks:
        for name in sorted(names):
            locks.enter_context(_locked(lake, source.name, name))
        with sync_of(Connector(file, settings), chosen, settings, full=full) as running:
            return running.into(lake, run_id, report, full=full)


@contextmanager
def _locked(lake: Lake, source: str, stream: str) -> Iterator[None]:
    with lake.lock(f"raw/{source}/{stream}", wait_seconds=LOCK_WAIT_SECONDS) as held:
        if not held:
            raise SourceUnavailable(
                f"Loading {source}/{stream}: another run has been loading it for more than {LOCK_WAIT_SECONDS} s. "
                "Wait for it or stop it."
            )
        yield


def _declared(file: SourceFile, name: str) -> ConnectorStream:
    source = file.source
    assert isinstance(source, AirbyteSource)
    for stream in source.streams:
        if stream.name == name:
            return stream
    known = ", ".join(stream.name for stream in source.streams)
    raise ConfigError(f"{file.path}: no stream {name!r}; it declares {known}.")


def _discovered(offer: Mapping[str, Any]) -> DiscoveredStream:
    cursor = offer.get("default_cursor_field") or [None]
    return DiscoveredStream(
        name=normalised(offer["name"]),
        connector_name=offer["name"],
        fields={field.column: field.type for field in fields_of(offer.get("json_schema") or {})},
        primary_key=tuple(".".join(map(normalised, path)) for path in offer.get("source_defined_primary_key") or ()),
        cursor_field=cursor[-1],
        sync_modes=tuple(offer.get("supported_sync_modes") or ("full_refresh",)),
    )


def probe(file: SourceFile, settings: Settings) -> None:
    """Let the connector itself check its connection: what `check` does, without the seconds that PyAirbyte needs.

    Raises:
        ConfigError: for a missing environment or variable.
        SourceError: saying why the source cannot be reached.
    """
    source = file.source
    assert isinstance(source, AirbyteSource)
    connector = Connector(file, settings)
    doing = f"Checking {source.name} ({connector.label})"
    with private_folder(settings.scratch_path / "connectors") as scratch:
        config = scratch / "config.json"
        config.write_text(json.dumps(connector.run_config()))
        command = [str(connector.program), "check", "--config", str(config)]
        with Child(
            command,
            doing=doing,
            scratch=scratch,
            masked=connector.masked,
            idle_timeout_seconds=PROBE_SECONDS,
            timeout_seconds=PROBE_SECONDS,
        ) as child:
            answer = b"".join(child.blocks())
            failed = child.exit_code != 0
        answers = (_status(line) for line in answer.splitlines())
        status: dict[str, Any] = next((found["connectionStatus"] for found in answers if found), {})
        if status.get("status") != "SUCCEEDED":
            reason = child.hide(str(status.get("message") or "")) or f"exit code {child.exit_code}.{child.last_words()}"
            kind = SourceRejected if status and not failed else SourceUnavailable
            raise kind(f"{doing}: {reason}")


def _status(line: bytes) -> dict[str, Any] | None:
    if b"CONNECTION_STATUS" not in line:
        return None
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and message.get("type") == "CONNECTION_STATUS" else None
