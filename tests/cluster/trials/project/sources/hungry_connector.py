#!/usr/bin/env python3
"""An Airbyte source that takes memory, as big as its configuration says, before its one record."""

import json
import os
import sys
import time

STREAM = {
    "name": "records",
    "json_schema": {"type": "object", "properties": {"id": {"type": "integer"}}},
    "supported_sync_modes": ["full_refresh"],
}


def say(kind: str, **content: object) -> None:
    print(json.dumps({"type": kind, **content}), flush=True)


action, arguments = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2], strict=False))
if action == "spec":
    say("SPEC", spec={"connectionSpecification": {"type": "object", "properties": {"mib": {"type": "string"}}}})
elif action == "check":
    say("CONNECTION_STATUS", connectionStatus={"status": "SUCCEEDED"})
elif action == "discover":
    say("CATALOG", catalog={"streams": [STREAM]})
elif action == "read":
    with open(arguments["--config"]) as handle:  # noqa: PTH123
        wanted = int(json.load(handle)["mib"])
    food = [bytearray(os.urandom(1 << 20)) for _ in range(wanted)]
    time.sleep(1)
    say("RECORD", record={"stream": "records", "data": {"id": len(food)}, "emitted_at": 1})
