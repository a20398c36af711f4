"""Connectors' states, append-only in ``ingest.connector_state``: the newest line of a stream counts.

A state of all streams (GLOBAL, or the LEGACY form) stands under the stream name ''.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.lake.connection import Lake

ALL_STREAMS = ""

State = dict[str, Any]


def stream_of(message: Mapping[str, Any]) -> str:
    """The connector's name of the stream that a STATE message's *message* is about; '' for all."""
    if message.get("type") == "STREAM":
        return str(message["stream"]["stream_descriptor"]["name"])
    return ALL_STREAMS


def saved_states(lake: Lake, source: str) -> dict[str, State]:
    """Stream → its newest state."""
    rows = lake.query(
        "SELECT stream, arg_max(state, sequence) FROM ingest.connector_state WHERE source = ? GROUP BY stream", [source]
    )
    return {stream: json.loads(state) for stream, state in rows}


def save_state(lake: Lake, source: str, stream: str, state: State, *, run_id: str) -> None:
    """Append a state. Call it inside the transaction that brings the rows it covers."""
    if state.get("type") == "GLOBAL":
        state = _merged(saved_states(lake, source).get(ALL_STREAMS), state)
    lake.connection.execute(
        "INSERT INTO ingest.connector_state SELECT ?, ?, coalesce(max(sequence), 0) + 1, ?, ?, ? "
        "FROM ingest.connector_state WHERE source = ? AND stream = ?",
        [source, stream, json.dumps(state), datetime.now(UTC), run_id, source, stream],
    )


def _merged(before: State | None, now: State) -> State:
    """*now*, with what *before* says of streams that were not part of this sync."""
    if not before or before.get("type") != "GLOBAL":
        return now
    of = {_key(item): item for item in before["global"].get("stream_states") or ()}
    of |= {_key(item): item for item in now["global"].get("stream_states") or ()}
    return {**now, "global": {**now["global"], "stream_states": list(of.values())}}


def _key(item: Mapping[str, Any]) -> tuple[str, str]:
    descriptor = item["stream_descriptor"]
    return descriptor.get("namespace") or "", descriptor["name"]


def state_file(states: Mapping[str, State], streams: Iterable[str]) -> Any:
    """What the connector is given: the states of *streams* (the connector's names) and of all; None if there is none."""
    given = [states[name] for name in (*streams, ALL_STREAMS) if name in states]
    if len(given) == 1 and given[0].get("type") not in ("STREAM", "GLOBAL"):
        return given[0].get("data")  # the form before there were typed states
    return given or None
