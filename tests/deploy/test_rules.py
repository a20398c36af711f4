"""The alert rules that ship: valid, tested loud and quiet, made of metrics that there are, each with a runbook."""

import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pipeline.cli import main
from pipeline.exporter.database import Database
from pipeline.exporter.exporter import Exporter
from pipeline.exporter.metrics import Registry
from pipeline.exporter.topics import build_topics
from pipeline.settings import Settings
from tests.tools import tool

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(path for path in (DEPLOY / "rules").glob("*.yaml") if not path.name.endswith(".test.yaml"))
HEADINGS = ["## Meaning", "## Impact", "## Diagnosis", "## Fix"]


def alerts(file: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"] if "alert" in rule]


# One alert may have several rules, which differ in how bad it is or over which window.
ALERTS = sorted({rule["alert"] for file in FILES for rule in alerts(file)})


@pytest.fixture
def promtool() -> str:
    return tool("promtool")


@pytest.mark.tools
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_promtool_finds_the_rules_right_and_their_tests_pass(promtool: str, file: Path):
    tests = file.with_name(f"{file.stem}.test.yaml")
    for command in (["check", "rules", str(file)], ["test", "rules", str(tests)]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_alert_is_tested_loud_and_quiet(file: Path):
    loud: dict[str, set[bool]] = defaultdict(set)
    for test in yaml.safe_load(file.with_name(f"{file.stem}.test.yaml").read_text())["tests"]:
        for case in test.get("alert_rule_test", ()):
            loud[case["alertname"]].add(bool(case.get("exp_alerts")))

    for rule in alerts(file):
        wanted = {True} if rule["alert"] == "MillraceWatchdog" else {True, False}
        found = loud[rule["alert"]]
        # A case that expects one alert of several series is quiet for the others.
        assert found == wanted or (found == {True} and _has_a_quiet_series(file, rule["alert"])), rule["alert"]


def _has_a_quiet_series(file: Path, alert: str) -> bool:
    for test in yaml.safe_load(file.with_name(f"{file.stem}.test.yaml").read_text())["tests"]:
        for case in test.get("alert_rule_test", ()):
            if case["alertname"] == alert:
                jobs = {
                    tuple(sorted(re.findall(r'(?:job_name|asset_key)="([^"]+)"', each["series"])))
                    for each in test["input_series"]
                }
                if len(jobs - {()}) > len(case.get("exp_alerts") or ()):
                    return True
    return False


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_alert_ends_because_the_exporter_starts_again(file: Path):
    for rule in alerts(file):
        assert rule.get("keep_firing_for") == (None if rule["alert"] == "MillraceWatchdog" else "2m"), rule["alert"]


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_runbook_with_all_its_parts(alert: str):
    page = (DEPLOY / "runbooks" / f"{alert}.md").read_text()

    assert page.startswith(f"# {alert}\n")
    assert re.findall(r"^## .*", page, re.MULTILINE) == HEADINGS
    assert all(part.strip() for part in re.split(r"^## .*$", page, flags=re.MULTILINE))


def test_there_is_no_runbook_for_an_alert_that_there_is_not():
    assert {path.stem for path in (DEPLOY / "runbooks").glob("*.md")} == set(ALERTS)


def test_two_rules_of_an_alert_differ_in_their_labels_and_stand_in_one_file():
    rules = [(file, rule) for file in FILES for rule in alerts(file)]

    assert len({(rule["alert"], *sorted(rule["labels"].items())) for _, rule in rules}) == len(rules)
    assert len({(rule["alert"], file) for file, rule in rules}) == len(ALERTS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_metric_of_a_rule_is_one_of_the_exporters(file: Path, tmp_path: Path):
    settings, registry = Settings(state_dir=tmp_path), Registry()
    Exporter(registry, Database(settings), build_topics(registry, settings, lambda _: {}))
    there = {metric.name for metric in registry}

    assert metrics_of(file) <= there


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_metric_of_a_rule_is_told_in_a_test_of_the_exporter(file: Path):
    tests = "\n".join(path.read_text() for path in (Path(__file__).parents[1] / "exporter").glob("test_*.py"))

    both = tests.replace("{what}", "job") + tests.replace("{what}", "asset")
    assert {name for name in metrics_of(file) if name not in both} == set()


def metrics_of(file: Path) -> set[str]:
    """Names of the metrics that the file's rules use; a histogram's own, not those of its parts."""
    expressions = "\n".join(
        rule["expr"] for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]
    )
    used = re.findall(r"(?<![:\w])(?:dagster|millrace)_\w+", expressions)
    return {re.sub(r"_(bucket|count|sum)$", "", name) if "_seconds_" in name else name for name in used}


@pytest.mark.tools
def test_promtool_refuses_a_rule_that_is_broken_and_names_its_file_and_line(promtool: str, tmp_path: Path):
    text = (
        (DEPLOY / "rules" / "runs.yaml")
        .read_text()
        .replace("by (code_location, job_name) (increase", "by (code_location, job_name (increase", 1)
    )
    broken = tmp_path / "runs.yaml"
    broken.write_text(text)
    line = 1 + next(number for number, each in enumerate(text.splitlines()) if "job_name (increase" in each)

    done = subprocess.run([promtool, "check", "rules", str(broken)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"{broken}: {line}:" in done.stderr, done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_alert_says_how_bad_it_is_and_what_it_is_about(file: Path):
    for rule in alerts(file):
        assert rule["alert"].startswith("Millrace")
        assert rule["labels"]["severity"] in ("critical", "warning", "info", "none")
        assert "{{" not in rule["annotations"]["summary"]  # it groups
        assert rule["annotations"].keys() == {"summary", "description"}


def test_every_command_of_a_runbook_is_one_of_ours():
    text = "\n".join(path.read_text() for path in (DEPLOY / "runbooks").glob("*.md"))
    used = set(re.findall(r"(?<![\w.-])millrace ((?:alerts |lake |sources )?[a-z-]+)", text))

    known = set()
    for name, command in main.commands.items():
        known |= {f"{name} {below}" for below in command.commands} if isinstance(command, click.Group) else {name}
    assert used
    assert used <= known


def test_no_command_of_a_runbook_is_for_one_release_alone():
    """Their objects are found by label, or have RELEASE in their names."""
    for page in (DEPLOY / "runbooks").glob("*.md"):
        assert re.findall(r"\b(?:deploy|deployment|cronjob|service|sts|job)/millrace\S*", page.read_text()) == [], (
            page.stem
        )


def test_the_readme_names_every_alert_that_ships():
    table = (DEPLOY.parent / "README.md").read_text().partition("## What watches it")[2].partition("\n## ")[0]
    names = {rule["alert"].removeprefix("Millrace") for file in FILES for rule in alerts(file)}

    assert {name for name in names if not re.search(rf"\b{name}\b", table)} == set()
    assert table.strip().startswith(f"{len(names)} alerts")
