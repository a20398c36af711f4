#!/usr/bin/env python3
"""A connector stand-in that is never the bottleneck: ready-made blocks of records, whose ids are patched in place.

Configuration: ``count`` records in all; a state follows every 100,000. Ten fields, about 300 bytes a record.
"""

import json
import os
import sys
from pathlib import Path

BLOCK = 2000  # records
ID_DIGITS = 9
STREAM = {
    "name": "items",
    "json_schema": {
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "customer": {"type": "string"},
            "amount": {"type": "number"},
            "quantity": {"type": "integer"},
            "is_paid": {"type": "boolean"},
            "created_at": {"type": "string", "format": "date-time"},
            "day": {"type": "string", "format": "date"},
            "note": {"type": ["null", "string"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "address": {"type": "object", "properties": {"street": {"type": "string"}, "zip": {"type": "string"}}},
        },
    },
    "supported_sync_modes": ["full_refresh", "incremental"],
    "source_defined_cursor": True,
    "default_cursor_field": ["id"],
    "source_defined_primary_key": [["id"]],
}


def record(place: int) -> bytes:
    data = {
        "customer": f"customer number {place}",
        "amount": place * 0.25,
        "quantity": place % 7,
        "is_paid": place % 3 == 0,
        "created_at": "2021-03-04T05:06:07.123Z",
        "day": "2021-03-04",
        "note": "left at the door",
        "tags": ["new", "web"],
        "address": {"street": "Main", "zip": "10001"},
    }
    rest = json.dumps(data, separators=(",", ":"))[1:]
    return b'{"type":"RECORD","record":{"stream":"items","data":{"id":1%0*d,%s,"emitted_at":1600000000000}}\n' % (
        ID_DIGITS, 0, rest.encode(),
    )  # fmt: skip


def read(count: int, last: int) -> None:
    lines = [record(place) for place in range(BLOCK)]
    block = bytearray(b"".join(lines))
    at = lines[0].index(b'"id":1') + 6
    places = []
    offset = 0
    for line in lines:
        places.append(offset + at)
        offset += len(line)
    for number in range(last, count, BLOCK):
        # Of the id only the leading digits change from block to block: the last three are the place's own for good.
        for place, where in enumerate(places):
            block[where : where + ID_DIGITS] = b"%0*d" % (ID_DIGITS, number + place)
        view = memoryview(block)[: sum(map(len, lines[: count - number]))] if count - number < BLOCK else block
        write(view)
        done = min(number + BLOCK, count)
        if done % 100_000 == 0 or done == count:
            stream_state = {"stream_descriptor": {"name": "items"}, "stream_state": {"id": done}}
            write(json.dumps({"type": "STATE", "state": {"type": "STREAM", "stream": stream_state}}).encode() + b"\n")


def write(data: bytes | bytearray | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def main() -> None:
    command, options = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2], strict=False))
    if command == "spec":
        answer = {
            "type": "SPEC",
            "spec": {"connectionSpecification": {"type": "object", "properties": {"count": {"type": "integer"}}}},
        }
    elif command == "check":
        answer = {"type": "CONNECTION_STATUS", "connectionStatus": {"status": "SUCCEEDED"}}
    elif command == "discover":
        answer = {"type": "CATALOG", "catalog": {"streams": [STREAM]}}
    else:
        states = json.loads(Path(options["--state"]).read_text()) if "--state" in options else []
        last = states[0]["stream"]["stream_state"]["id"] if states else 0
        read(json.loads(Path(options["--config"]).read_text())["count"], last)
        return
    write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
