#!/usr/bin/env python3
"""A connector stand-in: streams of items in the order of their ids; the cursor is the last id sent.

What it is to do stands as JSON in AIRBYTE_STAND_IN, so that its configuration, and with it the kept catalogue, is the
same in every test. Each key is explained where it is read.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

PLAN = json.loads(os.environ.get("AIRBYTE_STAND_IN", "{}"))
PROPERTIES = {
    "id": {"type": "integer"},
    "Name": {"type": ["null", "string"]},
    "amount": {"type": ["null", "number"]},
    "is active": {"type": ["null", "boolean"]},
    "created_at": {"type": ["null", "string"], "format": "date-time"},
    "local_time": {"type": "string", "format": "date-time", "airbyte_type": "timestamp_without_timezone"},
    "day": {"type": ["null", "string"], "format": "date"},
    "tags": {"type": ["null", "array"], "items": {"type": "string"}},
    "address": {"type": "object", "properties": {"zip": {"type": "string"}}},
    "anything": {},
}
SPEC = {
    "type": "object",
    "required": ["token"],
    "properties": {
        "token": {"type": "string", "airbyte_secret": True},
        "region": {"type": "string"},
        "properties": {"type": "object", "description": "Replaces the properties of the streams' schema."},
    },
}


def streams(config: dict) -> list[dict]:
    schema = {"type": "object", "properties": config.get("properties", PROPERTIES)}
    modes = {
        "items": ["full_refresh", "incremental"],
        "Other Items": ["full_refresh", "incremental"],
        "plain": ["full_refresh"],
    }
    return [
        {
            "name": name,
            "json_schema": schema,
            "supported_sync_modes": supported,
            "source_defined_cursor": True,
            "default_cursor_field": ["id"],
            "source_defined_primary_key": [["id"]],
        }
        for name, supported in modes.items()
    ]


def emit(message: dict, separators: tuple[str, str] = (",", ":")) -> None:
    sys.stdout.write(json.dumps(message, separators=separators) + "\n")


def record(stream: str, number: int) -> str:
    data = {
        "id": number,
        "Name": f"item {number}",
        "amount": number / 2,
        "is active": number % 2 == 0,
        "created_at": "2021-03-04T05:06:07.5+02:00",
        "local_time": "2021-03-04T05:06:07",
        "day": "2021-03-04",
        "tags": ["a", "b"],
        "address": {"zip": "10001"},
        "anything": None,
    }
    # break: {"<id>": {"column": value}} replaces values of that record
    data |= PLAN.get("break", {}).get(str(number), {})
    message = {"type": "RECORD", "record": {"stream": stream, "data": data, "emitted_at": 1}}
    if PLAN.get("layout") == "keys reversed":
        message = {"record": {"emitted_at": 1, "data": data, "stream": stream}, "type": "RECORD"}
    return json.dumps(message, separators=(", ", ": ") if PLAN.get("layout") == "spaces" else (",", ":")) + "\n"


def state(stream: str, number: int, all_streams: dict[str, int]) -> None:
    one = {"stream_descriptor": {"name": stream}, "stream_state": {"id": number}}
    kind = PLAN.get("state_type", "STREAM")
    if kind == "GLOBAL":
        each = [
            {"stream_descriptor": {"name": name}, "stream_state": {"id": last}} for name, last in all_streams.items()
        ]
        emit(
            {
                "type": "STATE",
                "state": {"type": "GLOBAL", "global": {"shared_state": {"lsn": number}, "stream_states": each}},
            }
        )
    elif kind == "LEGACY":
        emit({"type": "STATE", "state": {"data": {name: {"id": last} for name, last in all_streams.items()}}})
    else:
        emit({"type": "STATE", "state": {"type": "STREAM", "stream": one}})


def given_state(path: str | None) -> dict[str, int]:
    states = json.loads(Path(path).read_text()) if path else []
    if isinstance(states, dict):
        return {name: value["id"] for name, value in states.items()}
    found = {}
    for item in states:
        for part in [item["stream"]] if item["type"] == "STREAM" else item["global"]["stream_states"]:
            found[part["stream_descriptor"]["name"]] = part["stream_state"]["id"]
    return found


def misbehave(number: int) -> None:
    """At record *number*, the fault that the plan has for it: {"<id>": "exit" | "hang" | …}."""
    fault = PLAN.get("at", {}).get(str(number))
    if fault is None:
        return
    sys.stdout.flush()
    if fault == "exit":
        print("the database went away, token was", json.loads(CONFIG)["token"], file=sys.stderr, flush=True)
        os._exit(1)
    elif fault == "hang":
        time.sleep(3600)
    elif fault == "long line":
        sys.stdout.write("x" * (20 << 20))
    elif fault == "garbage":
        sys.stdout.write("Downloading the internet...\n")
    elif fault == "broken record":
        sys.stdout.write('{"type":"RECORD","record":{"stream":"items","data":{"id":\n')
    elif fault == "stranger":
        sys.stdout.write(record("strangers", number))
    elif fault == "broken state":
        emit({"type": "STATE"})
    elif fault == "stderr flood":
        for _ in range(100):
            sys.stderr.write("w" * (1 << 20) + "\n")
    elif fault in ("config_error", "transient_error"):
        error = {"message": "the API said no to " + json.loads(CONFIG)["token"], "failure_type": fault}
        emit({"type": "TRACE", "trace": {"type": "ERROR", "emitted_at": 1, "error": error}})
        sys.stdout.flush()
        os._exit(1)


def read(catalogue: dict, last: dict[str, int]) -> None:
    # chatter: LOG lines and lines that are no messages; garbage_only: nothing else at all; silent: not even those;
    # mute: nor an end
    if PLAN.get("mute"):
        time.sleep(3600)
    if PLAN.get("garbage_only"):
        print("hello\nthis is not a connector")
        return
    if PLAN.get("silent"):
        return
    emit({"type": "LOG", "log": {"level": "INFO", "message": f"starting after {last}"}})
    if PLAN.get("pid_file"):
        Path(PLAN["pid_file"]).write_text(str(os.getpid()))
    names = [item["stream"]["name"] for item in catalogue["streams"]]
    count, every = PLAN.get("count", 10), PLAN.get("state_every", 5)
    first = {item["stream"]["name"]: last.get(item["stream"]["name"], 0) if item["sync_mode"] == "incremental" else 0
             for item in catalogue["streams"]}  # fmt: skip
    reread = PLAN.get("reread", 0)  # sends so many of the last records again, as a closed interval does
    now = {name: first[name] for name in names}
    if PLAN.get("state_first"):
        for name in names:
            state(name, count, dict.fromkeys(names, count))
    for number in range(1, count + 1):  # streams take turns
        for name in names:
            if number <= first[name] - reread:
                continue
            misbehave(number)
            sys.stdout.write(record(name, number))
            now[name] = number
            if (number % every == 0 or number == count) and not PLAN.get("state_first") and not PLAN.get("stateless"):
                state(name, number, now)
                if PLAN.get("pause"):  # lets the reader take it in
                    sys.stdout.flush()
                    time.sleep(PLAN["pause"])
    for name in names:
        if PLAN.get("count", 10) <= first[name] and not PLAN.get("stateless"):
            state(name, first[name], now)
        status = {"stream_descriptor": {"name": name}, "status": "COMPLETE"}
        emit({"type": "TRACE", "trace": {"type": "STREAM_STATUS", "emitted_at": 1, "stream_status": status}})
    misbehave(count + 1)


def main() -> None:
    global CONFIG
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["spec", "check", "discover", "read"])
    for option in ("--config", "--catalog", "--state"):
        parser.add_argument(option)
    args = parser.parse_args()
    CONFIG = Path(args.config).read_text() if args.config else "{}"
    if args.command == "spec":
        emit({"type": "SPEC", "spec": {"connectionSpecification": SPEC}})
    elif args.command == "check":
        wrong = json.loads(CONFIG)["token"] == "wrong-token"
        status = {"status": "FAILED", "message": "401: the token is not known"} if wrong else {"status": "SUCCEEDED"}
        emit({"type": "CONNECTION_STATUS", "connectionStatus": status})
    elif args.command == "discover":
        emit({"type": "CATALOG", "catalog": {"streams": streams(json.loads(CONFIG))}})
    else:
        read(json.loads(Path(args.catalog).read_text()), given_state(args.state))


if __name__ == "__main__":
    main()
