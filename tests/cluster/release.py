"""A release as its users see it: helm, kubectl, the UI's GraphQL through the ingress, SQL."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2

CHART = Path(__file__).parents[2] / "helm" / "millrace"
INGRESS = os.environ.get("MILLRACE_TEST_INGRESS", "127.0.0.1")  # host:port that the ingress controller answers on
OVER = ("SUCCESS", "FAILURE", "CANCELED")
T = TypeVar("T")

LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { runId } } ... on Error { message } ... on RunConfigValidationInvalid { errors { message } } } }"""
LOCATION = """query($name: String!) { workspaceLocationEntryOrError(name: $name) { ... on WorkspaceLocationEntry {
  locationOrLoadError { __typename } } } }"""
RUN = """query($id: ID!) { runOrError(runId: $id) { ... on Run { runId status jobName creationTime startTime endTime
  tags { key value } parentRunId } } }"""
RUNS = """query($filter: RunsFilter!) { runsOrError(filter: $filter) { ... on Runs { results {
  runId status jobName creationTime startTime endTime tags { key value } parentRunId } } } }"""
LOGS = """query($id: ID!, $cursor: String) { logsForRun(runId: $id, afterCursor: $cursor) { ... on EventConnection { cursor hasMore
  events { __typename ... on MessageEvent { message timestamp stepKey }
           ... on LogsCapturedEvent { fileKey } ... on ErrorEvent { error { message causes { message } } }
           ... on MaterializationEvent { assetKey { path } } } } } }"""


def kubectl(*args: str, stdin: str | None = None, check: bool = True, timeout: float = 120) -> str:
    """What kubectl prints.

    Raises:
        AssertionError: with what it says, if it fails and *check*.
    """
    done = subprocess.run(["kubectl", *args], input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0 or not check, f"kubectl {' '.join(args)}: {done.stderr}"
    return done.stdout


def until(look: Callable[[], T], *, seconds: float, what: str, every: float = 0.5) -> T:
    """The first true answer of *look*; what raises counts as not yet. Who has waited for long asks less often.

    The processes that ask take CPU from what they wait for: a sixth of a node of two cores at two questions a second.
    """
    start, last = time.monotonic(), ""
    deadline = start + seconds
    while True:
        try:
            if answer := look():
                return answer
            last = ""
        except (AssertionError, OSError, LookupError, StopIteration, ValueError, httpx2.HTTPError) as error:
            last = f"{type(error).__name__}: {error}"
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still not: {what}. {last}"
        time.sleep(max(every, min((time.monotonic() - start) / 20, 2)))


def size_on_node(image: str) -> int:
    """Bytes of *image* on the cluster's node, unpacked. The node tells of a new one within a minute."""

    def look() -> int:
        (node, *_) = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
        found = (each for each in node["status"]["images"] if any(name.endswith(image) for name in each["names"]))
        return int(next(found)["sizeBytes"])

    return until(look, seconds=90, what=f"image {image} on the node")


def image_value(name: str) -> dict[str, str]:
    """As the chart's values name the image *name*."""
    repository, _, tag = name.rpartition(":")
    return {"repository": repository, "tag": tag}


@dataclass
class Release:
    """One release in a namespace of its own."""

    namespace: str
    name: str = "millrace"
    values: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"{self.name}.{self.namespace}.example.test"

    # Helm

    def helm(self, command: str, *args: str, timeout: float = 240) -> str:
        """What ``helm COMMAND NAME CHART …`` prints."""
        repository, _, tag = os.environ["MILLRACE_TEST_IMAGE"].rpartition(":")
        ingress = f"ingress.enabled=true,ingress.unauthenticated=true,ingress.host={self.host}"
        call = ["helm", command, self.name, str(CHART), "--namespace", self.namespace, "--wait", "--timeout", f"{timeout:.0f}s",
                "--set", f"image.repository={repository},image.tag={tag},{ingress}", *self.values, *args]  # fmt: skip
        done = subprocess.run(call, capture_output=True, text=True, timeout=timeout + 60, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{self.describe()}"
        return done.stdout

    def install(self, *args: str, timeout: float = 240) -> str:
        """Make the namespace, with the strictest pod security there is, and install."""
        kubectl("create", "namespace", self.namespace)
        kubectl("label", "namespace", self.namespace, "pod-security.kubernetes.io/enforce=restricted")
        return self.helm("install", *args, timeout=timeout)

    def upgrade(self, *args: str, timeout: float = 240) -> str:
        return self.helm("upgrade", *args, timeout=timeout)

    def remove(self) -> None:
        """The namespace and all in it, at once."""
        kubectl("delete", "namespace", self.namespace, "--wait=false", check=False)
        classes = kubectl("get", "priorityclass", "-o", "name", check=False).split()
        for each in classes:
            if f"/{self.namespace}-{self.name}-" in each:
                kubectl("delete", each, check=False)

    def describe(self) -> str:
        """What a person would look at if something is wrong."""
        return kubectl("-n", self.namespace, "get", "pods,jobs,events", check=False)

    # Kubernetes

    def get(self, kind: str, *args: str) -> list[dict[str, Any]]:
        """Objects of *kind* (``pods``) that *args* (``-l …``) select."""
        items: list[dict[str, Any]] = json.loads(kubectl("-n", self.namespace, "get", kind, "-o", "json", *args))[
            "items"
        ]
        return items

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Those of this release's *component* that are not on their way out."""
        found = self.get(
            "pods", "-l", f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"
        )
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    def pod(self, component: str) -> str:
        """Name of a ready one."""

        def ready() -> str:
            for pod in self.pods(component):
                if {"type": "Ready", "status": "True"}.items() <= {
                    (key, each[key])
                    for each in pod["status"]["conditions"]
                    for key in ("type", "status")
                    if each["type"] == "Ready"
                }:
                    return str(pod["metadata"]["name"])
            return ""

        return until(ready, seconds=120, what=f"a ready pod of {component}")

    def run_pod(self, run_id: str) -> dict[str, Any]:
        """The pod of a run, once it is there."""
        return until(
            lambda: self.get("pods", "-l", f"dagster/run-id={run_id}")[0], seconds=60, what=f"a pod of run {run_id}"
        )

    def kill(self, pod: str) -> None:
        """As a node that dies: no grace."""
        kubectl("-n", self.namespace, "delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")

    def execute(self, component: str, *command: str, container: str | None = None, check: bool = True) -> str:
        chosen = ["-c", container] if container else []
        return kubectl("-n", self.namespace, "exec", self.pod(component), *chosen, "--", *command, check=check)

    def database(self, query: str, database: str = "dagster", *, check: bool = True) -> list[list[str]]:
        """Rows of the bundled PostgreSQL."""
        psql = ["psql", "-U", "millrace", "-d", database, "-AtF", "\t", "-c", query]
        out = self.execute("postgresql", *psql, check=check)
        return [line.split("\t") for line in out.splitlines()]

    def lake(self, query: str) -> list[dict[str, Any]]:
        """Rows of the lake, by the command that people use."""
        rows: list[dict[str, Any]] = json.loads(self.execute("code", "millrace", "sql", "--format", "json", query))
        return rows

    # Dagster

    def http(self, path: str, body: Any = None, *, timeout: float = 30) -> httpx2.Response:
        """The answer of the ingress controller, whatever it is."""
        return httpx2.request(
            "GET" if body is None else "POST",
            f"http://{INGRESS}{path}",
            json=body,
            headers={"Host": self.host},
            timeout=timeout,
        )

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of an answer of the UI's own API."""
        answer = self.http("/graphql", {"query": query, "variables": variables}).raise_for_status().json()
        assert "errors" not in answer, answer["errors"]
        data: dict[str, Any] = answer["data"]
        return data

    def launch(
        self,
        job: str = "__ASSET_JOB",
        assets: Iterable[str] = (),
        *,
        tags: Mapping[str, str] | None = None,
        location: str = "millrace",
    ) -> str:
        """Launch as the UI does, once the UI has the location; returns the run's id."""
        until(lambda: self.has_location(location), seconds=120, what=f"the UI has code location {location}")
        selector: dict[str, Any] = {
            "repositoryLocationName": location,
            "repositoryName": "__repository__",
            "pipelineName": job,
        }
        if assets:
            selector |= {"assetSelection": [{"path": asset.split("/")} for asset in assets], "assetCheckSelection": []}
        metadata = {"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]}
        params = {"selector": selector, "executionMetadata": metadata, "runConfigData": {}, "mode": "default"}
        answer = self.graphql(LAUNCH, params=params)["launchRun"]
        assert "run" in answer, answer
        return str(answer["run"]["runId"])

    def has_location(self, name: str) -> bool:
        """Whether the UI has read the code location; it is ready without: a location may be broken."""
        entry = self.graphql(LOCATION, name=name)["workspaceLocationEntryOrError"] or {}
        return (entry.get("locationOrLoadError") or {}).get("__typename") == "RepositoryLocation"

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.graphql(RUN, id=run_id)["runOrError"]
        found["tags"] = {tag["key"]: tag["value"] for tag in found["tags"]}
        return found

    def runs(self, **only: Any) -> list[dict[str, Any]]:
        """Newest first; *only* is a RunsFilter."""
        found: list[dict[str, Any]] = self.graphql(RUNS, filter=only)["runsOrError"]["results"]
        for each in found:
            each["tags"] = {tag["key"]: tag["value"] for tag in each["tags"]}
        return found

    def wait(self, run_id: str, *statuses: str, seconds: float = 240) -> dict[str, Any]:
        """The run, once it is over, or in one of *statuses*.

        Raises:
            AssertionError: if it is over in another one or not in time, with its log.
        """

        def look() -> dict[str, Any] | None:
            run = self.run(run_id)
            return run if run["status"] in (*statuses, *OVER) else None

        try:
            run = until(look, seconds=seconds, what=f"run {run_id} {statuses or 'over'}")
            assert not statuses or run["status"] in statuses, f"run {run_id} is {run['status']}, not {statuses}"
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.messages(run_id)[-20:]])) from None
        return run

    def retry_of(self, run_id: str, *, seconds: float = 120) -> dict[str, Any]:
        """The run that the daemon started in the place of a failed one."""
        return until(
            lambda: next((run for run in self.runs() if run["parentRunId"] == run_id), None),
            seconds=seconds,
            what=f"a retry of {run_id}",
        )

    def events(self, run_id: str) -> list[dict[str, Any]]:
        found, cursor = [], None
        while True:
            page = self.graphql(LOGS, id=run_id, cursor=cursor)["logsForRun"]
            found += page["events"]
            cursor = page["cursor"]
            if not page["hasMore"]:
                return found

    def messages(self, run_id: str) -> list[str]:
        """Every line of the run's log, with errors and what caused them."""
        lines = []
        for event in self.events(run_id):
            error = event.get("error") or {}
            causes = [error, *error.get("causes", ())]
            lines.append(" ".join([event["message"], *(each.get("message", "") for each in causes)]).strip())
        return lines
