"""PyAirbyte as a program: one request as JSON on standard input, one answer as JSON on standard output.

It is run by the Python of PyAirbyte's own environment, so it imports nothing of this package. The record stream is
not here: PyAirbyte parses record by record, and runs manifests without their state.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Both before the import: the first keeps it off its registry, the second off its telemetry.
os.environ.update(AIRBYTE_OFFLINE_MODE="1", DO_NOT_TRACK="1")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do ``action``: install (a package), spec, check or discover (spec and catalogue)."""
    warnings.simplefilter("ignore")  # Google's packages announce the end of Python versions
    import airbyte  # type: ignore[import-not-found]

    kind: dict[str, Any] = {"install_if_missing": False}
    if "manifest" in request:
        kind["source_manifest"] = Path(request["manifest"])
    elif "executable" in request:
        kind["local_executable"] = Path(request["executable"])
    else:
        kind = {
            "pip_url": request["package"],
            "install_root": Path(request["install_root"]),
            "use_python": Path(sys.executable),
        }
    source = airbyte.get_source(request["name"], **kind)
    result: dict[str, Any] = {"spec": source.config_spec}
    if request["action"] in ("check", "discover"):
        source.set_config(request["config"], validate=True)
    if request["action"] == "check":
        source.check()
    if request["action"] == "discover":
        result["streams"] = [
            json.loads(stream.model_dump_json(exclude_none=True)) for stream in source.discovered_catalog.streams
        ]
    return result


def _said(error: BaseException | None) -> Iterator[str]:
    """What an error and its causes say, outermost first; PyAirbyte keeps the telling part in fields of its own."""
    while error is not None:
        context = getattr(error, "context", None) or {}
        get_message = getattr(error, "get_message", lambda said=error: f"{type(said).__name__}: {said}")
        log = getattr(error, "log_text", None) or ""
        parts = [
            get_message(),
            *(context.get(key) for key in ("failure_reason", "error_message")),
            (log if isinstance(log, str) else "\n".join(log))[-1500:],
        ]
        yield from (str(part).strip() for part in parts if part)
        error = getattr(error, "original_exception", None) or error.__cause__


def main() -> None:
    """Answer, and end at once: connectors' threads may hang an ordinary exit."""
    out = os.dup(1)
    os.dup2(2, 1)  # PyAirbyte and connectors print
    request = json.load(sys.stdin)
    try:
        reply = answer(request)
    except Exception as error:  # noqa: BLE001  (whatever it is, the platform has to say it)
        reply = {"error": type(error).__name__, "message": "; ".join(dict.fromkeys(_said(error)))}
    with os.fdopen(out, "w") as answers:
        json.dump(reply, answers)
    os._exit(0)


if __name__ == "__main__":
    main()
