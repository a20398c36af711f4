"""A stand-in for the Kubernetes API server that answers what a test wants, faults included; the real one is in tests/cluster."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

NAMESPACE = "data"
Object = dict[str, Any]


@dataclass
class ApiServer:
    """Jobs, pods and events of one namespace. *faults* are answered first, one a request: a status, or seconds to be silent."""

    port: int = 0
    jobs: dict[str, Object] = field(default_factory=dict)
    pods: list[Object] = field(default_factory=list)
    events: list[Object] = field(default_factory=list)
    faults: list[int | float] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, body: Object) -> tuple[int, Object]:
        kind, _, name = path.removeprefix(f"/apis/batch/v1/namespaces/{NAMESPACE}/").partition("/")
        if kind == "jobs" and method == "POST":
            name = body["metadata"]["name"]
            if name in self.jobs:
                return 409, {}
            self.jobs[name] = body
            return 201, body
        if kind == "jobs" and method == "DELETE":
            return (200, self.jobs.pop(name)) if name in self.jobs else (404, {})
        if kind == "jobs" and name:
            name = name.removesuffix("/status")
            return (200, self.jobs[name]) if name in self.jobs else (404, {})
        if kind == "jobs":
            return 200, {"kind": "JobList", "metadata": {}, "items": list(self.jobs.values())}
        if path.endswith("/pods"):
            return 200, {"kind": "PodList", "metadata": {}, "items": self.pods}
        if path.endswith("/events"):
            return 200, {"kind": "EventList", "metadata": {}, "items": self.events}
        return 404, {}

    def kubeconfig(self, folder: Path) -> Path:
        file = folder / "kubeconfig"
        server = {"name": "it", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"name": "it", "context": {"cluster": "it", "user": "me"}}
        content = {
            "current-context": "it",
            "clusters": [server],
            "contexts": [context],
            "users": [{"name": "me", "user": {}}],
        }
        file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **content}))
        return file


@contextmanager
def serving() -> Iterator[ApiServer]:
    """An API server that answers until the block ends."""
    state = ApiServer()

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.close_connection = True
            super().handle_one_request()

        def _respond(self) -> None:
            path, _, query = self.path.partition("?")
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            state.queries.append(query)
            status, content = 0, {}
            if state.faults:
                fault = state.faults.pop(0)
                if isinstance(fault, float):
                    time.sleep(fault)
                    return
                status = fault
            if not status:
                status, content = state.answer(self.command, path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _respond  # noqa: N815  (http.server looks for these names)

        def log_message(self, *_: Any) -> None:
            """Nothing: the test asserts."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield state
        server.shutdown()


def job(run_id: str, **status: Any) -> Object:
    return {"metadata": {"name": f"dagster-run-{run_id}", "labels": {"dagster/run-id": run_id}}, "status": status}


def pod(*, phase: str = "Running", state: Object | None = None, limit: str = "512Mi", **status: Any) -> Object:
    """A run's pod with one container in *state*."""
    containers = [
        {
            "name": "dagster",
            "image": "millrace:7",
            "resources": {"limits": {"memory": limit}, "requests": {"cpu": "250m"}},
        }
    ]
    statuses = (
        [{"name": "dagster", "image": "millrace:7", "imageID": "", "ready": False, "restartCount": 0, "state": state}]
        if state
        else []
    )
    return {
        "metadata": {"name": "dagster-run-x", "namespace": NAMESPACE},
        "spec": {"containers": containers},
        "status": {"phase": phase, "containerStatuses": statuses, **status},
    }
