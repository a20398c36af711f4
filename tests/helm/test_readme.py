"""Documentation of the chart: every key has its sentence, in values.yaml, in the schema and in the README."""

import json
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.helm.chart import CHART, helm, parse, render

pytestmark = pytest.mark.tools
VALUES = (CHART / "values.yaml").read_text()
FREE = {
    "affinity",
    "nodeSelector",
    "serviceAccountAnnotations",
    "podAnnotations",
    "annotations",
    "auth",
    "labels",
    "quota",
    "resources",
}

table = runpy.run_path(str(CHART / "values_table.py"))


def test_the_table_of_the_readme_is_up_to_date():
    """If this fails: `python helm/millrace/values_table.py`."""
    text = (CHART / "README.md").read_text()

    assert table["readme"](text, VALUES) == text


def test_every_key_is_described():
    described = table["comments"](VALUES).keys()

    assert [key for key in _leaves(yaml.safe_load(VALUES)) if key not in described] == []


def test_a_key_without_a_comment_is_found():
    assert "webserver.extra" not in table["comments"](VALUES.replace("webserver:\n", "webserver:\n  extra: 1\n\n"))


def test_the_schema_knows_exactly_the_keys_of_the_values():
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(_properties(schema, schema)) - {"global"}  # helm's own
    items = {key for key in known if "[]" in key}

    assert known - items == set(_leaves(yaml.safe_load(VALUES)))


def test_the_schema_is_closed_and_refers_to_nothing_outside():
    text = (CHART / "values.schema.json").read_text()

    assert set(re.findall(r'"\$ref": "([^"]{2})', text)) == {"#/"}
    for node in _nodes(json.loads(text)):
        if "properties" in node:
            assert node["additionalProperties"] is False, node


def test_no_key_is_dead():
    """Each stands in a template, by its own name."""
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    names = {key.rsplit(".", 1)[-1] for key in _leaves(yaml.safe_load(VALUES))}

    assert {name for name in names if not re.search(rf"\.{name}\b|\"{name}\"", templates)} == set()


def test_the_readmes_production_values_render():
    (block,) = re.findall(r"```yaml\n# values\.yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    values = yaml.safe_load(block.replace("sha256:…", "sha256:" + "0" * 64))
    settings = [f"{path}={value}" for path, value in _settings(values)]

    assert render("", ",".join(settings)).of_kind("Deployment")


def test_the_further_component_of_the_readme_is_all_it_takes(tmp_path: Path):
    """Its pod is held to what every pod is held to, without a change to any other template."""
    (template,) = re.findall(r"```yaml\n# templates/api\.yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    chart = Path(shutil.copytree(CHART, tmp_path / "millrace"))
    (chart / "templates" / "api.yaml").write_text(template)
    with (chart / "values.yaml").open("a") as values:
        values.write("api: { resources: { requests: { cpu: 20m, memory: 96Mi }, limits: { memory: 192Mi } } }\n")
    schema = json.loads((chart / "values.schema.json").read_text())
    schema["properties"]["api"] = {"$ref": "#/$defs/component"}
    (chart / "values.schema.json").write_text(json.dumps(schema))

    result = helm("template", "millrace", str(chart), "--show-only", "templates/api.yaml")

    assert result.returncode == 0, result.stderr
    objects = {item["kind"]: item for item in parse(result.stdout)}
    assert objects.keys() == {"Deployment", "ServiceAccount", "NetworkPolicy"}
    for item in objects.values():
        kubernetes_validate.validate(item, "1.34", strict=True)
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    assert pod["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"] == "millrace-api"


def test_the_notes_say_how_to_reach_the_ui(tmp_path: Path):
    """As helm prints them after an install; a dry run needs no cluster."""
    shown = helm(
        "install", "millrace", str(CHART), "--namespace", "data", "--dry-run=client", "--set", "webserver.pathPrefix=/x"
    ).stdout

    assert "kubectl -n data port-forward service/millrace-webserver 3001" in shown
    assert "http://localhost:3001/x" in shown


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value and key not in FREE:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def _properties(node: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[str]:
    if "$ref" in node:
        target: Any = schema
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    for name, child in node.get("properties", {}).items():
        inner = list(_properties(child, schema, f"{path}{name}.")) if name not in FREE else []
        yield from inner or [f"{path}{name}"]


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(child)


def _settings(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", json.dumps(value) if isinstance(value, bool) else str(value)
