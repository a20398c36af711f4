"""The dashboards in the chart: as they are in deploy/dashboards, where a Grafana's sidecar looks for them."""

import json
import tarfile
from pathlib import Path

import kubernetes_validate
import pytest

from tests.helm.chart import CHART, helm, parse, render

pytestmark = pytest.mark.tools
FILES = sorted((CHART.parents[1] / "deploy" / "dashboards").glob("*.json"))
ON = "monitoring.dashboards.enabled=true"
RUNBOOKS = "https://example.org/runbooks"


def test_there_are_none_unless_they_are_wanted():
    assert [each for each in render().of_kind("ConfigMap") if "-dashboard-" in each["metadata"]["name"]] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_dashboard_arrives_as_it_is_with_its_runbooks_where_they_are_published(file: Path):
    rendered = render(
        "", ON, f"monitoring.runbookBaseUrl={RUNBOOKS}/", "monitoring.dashboards.annotations.grafana_folder=Data"
    )
    config = rendered.named("ConfigMap", f"millrace-dashboard-{file.stem}")

    kubernetes_validate.validate(config, "1.34", strict=True)
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config["metadata"]["annotations"] == {"grafana_folder": "Data"}
    ((name, text),) = config["data"].items()
    assert name == f"millrace-{file.name}"
    assert text == file.read_text().replace("https://runbooks.example.com", RUNBOOKS)
    assert len(text) < 2**20


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_where_runbooks_are_not_published_no_dashboard_links_to_them(file: Path):
    (text,) = render("", ON).named("ConfigMap", f"millrace-dashboard-{file.stem}")["data"].values()
    shipped, arrived = json.loads(file.read_text()), json.loads(text)

    assert "runbook" not in text.lower().replace("the runbook", "")
    assert [each["title"] for each in arrived["panels"]] == [each["title"] for each in shipped["panels"]]
    assert [each.get("targets") for each in arrived["panels"]] == [each.get("targets") for each in shipped["panels"]]
    assert arrived["links"] == shipped["links"]  # to the other dashboards


def test_a_chart_that_was_packaged_brings_them_too(tmp_path: Path):
    """In the repository they are behind a symbolic link."""
    assert helm("package", str(CHART), "--destination", str(tmp_path)).returncode == 0
    (package,) = tmp_path.glob("*.tgz")

    with tarfile.open(package) as archive:
        assert {f"millrace/files/dashboards/{file.name}" for file in FILES} <= set(archive.getnames())
    result = helm("template", "millrace", str(package), "--set", ON)
    assert len([each for each in parse(result.stdout) if "-dashboard-" in each["metadata"]["name"]]) == len(FILES)
