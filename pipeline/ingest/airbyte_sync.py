"""One run of a connector: its messages in order, and what of its records goes into the lake when.

A stream that is replaced (full refresh) is committed whole at the end; an incremental one when a state covers enough
of it. Rows and state are one transaction, and no state is saved before the rows it covers.
"""

import json
import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, SourceError, SourceRejected, SourceUnavailable
from pipeline.ingest.airbyte_commits import StreamLoad, Writer, added
from pipeline.ingest.airbyte_connectors import Connector
from pipeline.ingest.airbyte_messages import SHOWN_LINES, Splitter, Spool
from pipeline.ingest.airbyte_process import Child, ends_on_sigterm, private_folder
from pipeline.ingest.airbyte_state import ALL_STREAMS, State, saved_states, state_file, stream_of
from pipeline.ingest.raw import LoadResult
from pipeline.ingest.spec import ConnectorStream, normalised
from pipeline.lake.connection import Lake
from pipeline.progress import Progress, Report
from pipeline.settings import Settings

log = logging.getLogger(__name__)

COMMIT_BYTES = 64 << 20  # a commit costs about 0.1 s whatever it holds
COMMIT_SECONDS = 30.0
REPORT_SECONDS = 0.5
_LEVELS = {"FATAL": logging.ERROR, "ERROR": logging.ERROR, "WARN": logging.WARNING}


class Sync:
    """One run of *connector* for the *loads*; records arrive while `read` is iterated."""

    def __init__(self, connector: Connector, loads: Sequence[StreamLoad], scratch: Path) -> None:
        self.connector, self.loads, self.scratch = connector, list(loads), scratch
        self.source = connector.source
        self.doing = f"Loading {self.source.name} by connector {connector.label}"
        self._by_name = {load.connector_name: load for load in self.loads}
        self._global: State | None = None
        self._trace: Mapping[str, Any] | None = None
        self._logged = 0
        self._writer: Writer | None = None

    def into(self, lake: Lake, run_id: str, report: Report, *, full: bool) -> list[LoadResult]:
        """Load everything into *lake*.

        Raises:
            SourceError: after what the states cover has been committed.
        """
        self._writer = Writer(lake, self.source.name, run_id, full=full)
        incremental = [load.connector_name for load in self.loads if not load.is_replaced]
        states = {} if full or not incremental else saved_states(lake, self.source.name)
        failure: SourceError | None = None
        started, reported = time.monotonic(), 0.0
        try:
            with closing(self.read(state_file(states, incremental))) as blocks:
                for _ in blocks:
                    if time.monotonic() - reported >= REPORT_SECONDS:
                        reported = time.monotonic()
                        self._report(report)
        except SourceError as error:
            failure = error
        self._commit_rest(failure)
        self._report(report)
        errors = [load.error for load in self.loads if load.error and load.error is not failure]
        if failure or errors:
            raise self._combined([*([failure] if failure else []), *errors])
        return [replace(load.result, seconds=time.monotonic() - started) for load in self.loads]

    def read(self, state: Any) -> Generator[None, None, None]:
        """Run the connector from *state*; yields after each block of its output.

        Raises:
            SourceError: if it fails, hangs or breaks the protocol.
        """
        files = {"config": self.connector.run_config(), "catalog": self._catalogue(), "state": state}
        command = [str(self.connector.program), "read"]
        for name, content in files.items():
            if content is not None:
                (self.scratch / f"{name}.json").write_text(json.dumps(content))
                command += [f"--{name}", str(self.scratch / f"{name}.json")]
        with (
            ends_on_sigterm(),
            Child(
                command,
                doing=self.doing,
                scratch=self.scratch,
                masked=self.connector.masked,
                idle_timeout_seconds=self.source.idle_timeout_seconds,
                timeout_seconds=self.source.timeout_seconds,
            ) as child,
        ):
            spools = {load.connector_name: load.spool for load in self.loads}
            self._splitter = Splitter(spools, self._on_message, doing=self.doing, hide=child.hide)
            for block in child.blocks():
                self._splitter.feed(block)
                yield
            if child.exit_code == 0:
                self._splitter.finish()  # else the last line may be cut off
            self._refuse_failure(child)

    def _catalogue(self) -> dict[str, Any]:
        streams = []
        for load in self.loads:
            offered, stream = load.offered, load.stream
            modes = offered.get("supported_sync_modes") or ["full_refresh"]
            is_incremental = stream.sync != "full_refresh" or "full_refresh" not in modes
            properties = {item.column: item.name for item in load.fields}
            streams.append(
                {
                    "stream": offered,
                    "sync_mode": "incremental" if is_incremental else "full_refresh",
                    "destination_sync_mode": "overwrite" if load.is_replaced
                    else "append_dedup" if stream.sync == "incremental_deduped" else "append",
                    "cursor_field": [stream.cursor_field] if stream.cursor_field else offered.get("default_cursor_field") or [],
                    "primary_key": offered.get("source_defined_primary_key")
                    or [[properties.get(key, key)] for key in stream.primary_key],
                }
            )  # fmt: skip
        return {"streams": streams}

    def _refuse_failure(self, child: Child) -> None:
        words = child.last_words()
        if self._trace is not None:
            said = self._trace.get("message") or self._trace.get("internal_message") or "no reason"
            inner = self._trace.get("internal_message")
            detail = f" ({child.hide(inner)[:500]})" if inner and inner != said else ""
            is_config = self._trace.get("failure_type") == "config_error"
            raise (SourceRejected if is_config else SourceUnavailable)(
                f"{self.doing}: it reports: {child.hide(said)[:1000]}{detail}."
                f"{' Correct its configuration.' if is_config else ' If it stays so, look at the source or its limits.'}{words}"
            )
        if child.exit_code:
            raise SourceUnavailable(
                f"{self.doing}: it ended with code {child.exit_code} and no reason.{words} Run `millrace sources check`."
            )
        if not self._splitter.messages:
            found = f"only lines that are no messages, such as {self._splitter.first_garbage!r}"
            raise SourceRejected(
                f"{self.doing}: it sent {found if self._splitter.garbage else 'nothing at all'}.{words} "
                "It does not speak the Airbyte protocol; correct the connector."
            )

    # Messages

    def _on_message(self, message: dict[str, Any]) -> None:
        try:
            match message["type"]:
                case "STATE":
                    self._on_state(message["state"])
                case "TRACE":
                    self._on_trace(message["trace"])
                case "LOG":
                    self._log(_LEVELS.get(message["log"]["level"], logging.INFO), message["log"]["message"])
                case "CONTROL":
                    self._log(
                        logging.WARNING, "it changed its configuration, which is not kept: the source file stands"
                    )
        except (KeyError, TypeError, AttributeError) as error:
            shown = self._splitter.hide(json.dumps(message))[:200]
            raise SourceRejected(
                f"{self.doing}: a message that breaks the protocol ({error!r}): {shown}. Use another version of the connector."
            ) from error

    def _on_trace(self, trace: Mapping[str, Any]) -> None:
        if trace["type"] == "ERROR" and self._trace is None:
            self._trace = trace["error"]
        elif trace["type"] == "STREAM_STATUS" and trace["stream_status"]["status"] == "COMPLETE":
            load = self._by_name.get(trace["stream_status"]["stream_descriptor"]["name"])
            if load:
                load.is_complete = True

    def _log(self, level: int, text: str) -> None:
        self._logged += 1
        if self._logged <= SHOWN_LINES or (level >= logging.WARNING and self._logged <= 10 * SHOWN_LINES):
            log.log(level, "%s: %s", self.doing, self._splitter.hide(str(text))[:1000])

    def _on_state(self, state: State) -> None:
        name = stream_of(state)
        if name == ALL_STREAMS:
            self._global, covered = state, self.loads
        elif name in self._by_name:
            covered = [self._by_name[name]]
            covered[0].state = state
        else:
            return  # of a stream that is not part of this sync
        covered = [load for load in covered if not load.is_replaced]
        for load in covered:
            load.spool.cover()
        now = time.monotonic()
        if self._writer and any(
            load.spool.rows and (load.spool.bytes >= COMMIT_BYTES or now - load.committed_at >= COMMIT_SECONDS)
            for load in covered
        ):
            self._commit(covered)

    # Commits

    def _commit(self, loads: list[StreamLoad]) -> None:
        """Commit the covered rows of *loads* and their states; one whose rows are refused is given up, not the others."""
        loads = [load for load in loads if not load.error]
        if not loads or not self._writer:
            return
        try:
            written = self._writer.commit(loads, self._global)
        except SourceError as error:
            for load in loads:
                load.error = error
            if all(load.error for load in self.loads):
                raise
            return
        for load, item in zip(loads, written, strict=True):
            load.result = added(load.result, item)
            load.spool.clear()
            load.state, load.committed_at = None, time.monotonic()

    def _commit_rest(self, failure: SourceError | None) -> None:
        """After the connector has ended: the replaced streams, and what is left of the others."""
        ready = []
        for load in self.loads:
            if load.error:
                continue
            if load.is_replaced:
                if failure and not load.is_complete:
                    continue
                load.error = self._refused_empty(load)
                load.spool.cover()
            elif failure:
                load.spool.drop_uncovered()
                if not load.spool.rows:
                    continue  # a state alone would be ahead of rows that are still to come
            elif load.spool.rows > load.spool.covered_rows:
                load.error = SourceRejected(
                    f"{self.doing}: stream {load.stream.name} ended without a state after its last "
                    f"{load.spool.rows - load.spool.covered_rows:,} records; they and the state before them are not committed. "
                    "Say `sync: full_refresh` for the stream, or use another version of the connector."
                )
            ready.append(load)
        for group in [ready] if self._global else [[load] for load in ready]:
            self._commit_last(group, failure)

    def _commit_last(self, group: list[StreamLoad], failure: SourceError | None) -> None:
        try:
            self._commit(group)
        except SourceError as error:
            if failure is None:
                for load in group:
                    load.error = error

    def _refused_empty(self, load: StreamLoad) -> SourceRejected | None:
        if load.spool.rows or not load.stream.rows.min:
            return None
        return SourceRejected(
            f"{self.doing}: stream {load.stream.name} has no records; the table keeps what it has. If nothing can be right, "
            "say `rows: {min: 0}` for the stream."
        )

    def _combined(self, errors: list[SourceError]) -> SourceError:
        done = [f"{load.result.rows:,} rows of {load.stream.name}" for load in self.loads if load.result.rows]
        kept = f" Committed before: {', '.join(done)}; the next sync goes on from there." if done else ""
        kind = SourceUnavailable if any(error.is_transient for error in errors) else SourceRejected
        return kind("\n".join(map(str, errors)) + kept)

    def _report(self, report: Report) -> None:
        for load in self.loads:
            rows = load.spool.rows_before + load.spool.rows
            report(Progress(f"{self.source.name}/{load.stream.name}", rows=rows, bytes_done=load.spool.bytes_in_all))


@contextmanager
def sync_of(
    connector: Connector, streams: Sequence[ConnectorStream], settings: Settings, *, full: bool
) -> Iterator[Sync]:
    """A sync of *streams*, ready to run; its files are gone after the block.

    Raises:
        ConfigError: if the connector does not offer a stream, or not in the way that is asked for.
    """
    described = connector.describe()
    source = connector.source.name
    with private_folder(settings.scratch_path) as scratch:
        loads = [
            StreamLoad(
                stream,
                _offered(connector, described.streams, stream),
                Spool(f"{source}/{stream.name}", scratch / f"{stream.name}.ndjson"),
                is_replaced=full or stream.sync == "full_refresh",
                result=LoadResult(source, stream.name),
            )
            for stream in streams
        ]
        try:
            yield Sync(connector, loads, scratch)
        finally:
            for load in loads:
                load.spool.close()


def _offered(connector: Connector, offers: Sequence[dict[str, Any]], stream: ConnectorStream) -> dict[str, Any]:
    for offer in offers:
        if stream.name in (offer["name"], normalised(offer["name"])):
            if stream.sync != "full_refresh" and "incremental" not in (offer.get("supported_sync_modes") or ()):
                raise ConfigError(
                    f"{connector.file.path}: stream {stream.name}: the connector offers it as full_refresh only, not as "
                    f"{stream.sync}. Say `sync: full_refresh`."
                )
            return offer
    names = ", ".join(sorted(normalised(offer["name"]) for offer in offers))
    raise ConfigError(f"{connector.file.path}: the connector has no stream {stream.name!r}; it offers {names}.")
