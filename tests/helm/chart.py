"""Renders the chart and reads what came out: pods, references, Dagster's files, the Job of a run."""

import functools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm" / "millrace"
SCENARIOS = sorted(path.stem for path in (CHART / "ci").glob("*.yaml"))
Manifest = dict[str, Any]
OTHER_IMAGES = ("postgresql", "volume", "pgbouncer", "prometheus", "alertmanager")  # containers that are not of ours


class Loader(yaml.CSafeLoader):  # in C, ten times as fast
    """YAML as Kubernetes reads it: `=`, the name of a matcher, is a text."""


Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: loader.construct_scalar(node))


@dataclass(frozen=True)
class Rendered:
    """What helm made of one scenario."""

    objects: tuple[Manifest, ...]

    def of_kind(self, *kinds: str) -> list[Manifest]:
        return [item for item in self.objects if item["kind"] in kinds]

    def named(self, kind: str, name: str) -> Manifest:
        (found,) = (item for item in self.of_kind(kind) if item["metadata"]["name"] == name)
        return found

    def pods(self) -> dict[str, Manifest]:
        """Every pod template (metadata and spec) by kind/name, that of a run included."""
        found = {}
        for item in (*self.objects, self.run_job()):
            name = f"{item['kind']}/{item['metadata']['name']}"
            if item["kind"] == "Pod":
                found[name] = item
            elif item["kind"] == "CronJob":
                found[name] = item["spec"]["jobTemplate"]["spec"]["template"]
            elif item["kind"] in ("Deployment", "StatefulSet", "Job"):
                found[name] = item["spec"]["template"]
        return found

    def containers(self) -> Iterator[tuple[str, Manifest]]:
        for name, pod in self.pods().items():
            for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
                yield f"{name}/{container['name']}", container

    def containers_of_ours(self) -> Iterator[tuple[str, Manifest]]:
        return ((name, each) for name, each in self.containers() if each["name"] not in OTHER_IMAGES)

    def file(self, name: str) -> Manifest:
        """dagster.yaml or workspace.yaml, parsed."""
        found = [item for item in self.of_kind("ConfigMap") if name in item["data"]]
        config = next(item for item in found if "-migration-" not in item["metadata"]["name"])
        content: Manifest = yaml.safe_load(config["data"][name])
        return content

    def run_job(self, tags: dict[str, str] | None = None) -> Manifest:
        """The Job that Dagster's own code makes of a run with *tags*, from the launcher's configuration."""
        from tests.helm.launching import run_job

        return run_job(self.file("dagster.yaml")["run_launcher"]["config"], tags or {})


def helm(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["helm", *args], capture_output=True, text=True, check=False)


@functools.cache
def render(
    scenario: str = "", *settings: str, release: str = "millrace", namespace: str = "data", upgrade: bool = False
) -> Rendered:
    """The objects of ci/*scenario*.yaml, or ``example``, with *settings* (as for ``--set``) on top."""
    result = _template(scenario, settings, release, namespace, upgrade)
    assert result.returncode == 0, result.stderr
    return Rendered(parse(result.stdout))


def parse(manifests: str) -> tuple[Manifest, ...]:
    """What helm printed, parsed."""
    return tuple(filter(None, yaml.load_all(manifests, Loader)))


def refusal(*settings: str, scenario: str = "", extra: tuple[str, ...] = ()) -> str:
    """What helm says when it does not render."""
    result = _template(scenario, settings, "millrace", "data", False, extra)
    assert result.returncode != 0, "it rendered"
    return result.stderr


def _template(
    scenario: str, settings: tuple[str, ...], release: str, namespace: str, upgrade: bool, extra: tuple[str, ...] = ()
) -> "subprocess.CompletedProcess[str]":
    file = CHART / ("ci" if scenario in SCENARIOS else ".") / f"{scenario}.yaml"
    values = ["--values", str(file)] if scenario else []
    sets = [part for setting in settings for part in ("--set", setting)]
    flags = ["--is-upgrade"] if upgrade else []
    return helm("template", release, str(CHART), "--namespace", namespace, *values, *sets, *flags, *extra)
