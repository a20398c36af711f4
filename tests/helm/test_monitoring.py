"""Exporter, rules and Alertmanager as the chart sets them up: valid to those who read them, and doing what they say."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import psycopg2
import pyarrow
import pytest
import yaml
from dagster._daemon.daemon import MonitoringDaemon, SchedulerDaemon
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from pipeline.settings import Settings
from tests.conftest import administrators_url
from tests.helm.chart import CHART, Loader, Manifest, Rendered, helm, parse, refusal, render
from tests.tools import lacks, tool

pytestmark = pytest.mark.tools

DEPLOY = CHART.parents[1] / "deploy"
CRDS = CHART.parents[2] / "shared" / "cluster" / "addons" / "monitoring.d" / "crds.yaml.zst"
RULES = [path for path in (DEPLOY / "rules").glob("*.yaml") if not path.name.endswith(".test.yaml")]
ALERTS = {
    rule["alert"]: rule["labels"]["severity"]
    for path in RULES
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
OF_THE_OPERATOR = ("ServiceMonitor", "PrometheusRule", "AlertmanagerConfig")
MAIL = (
    "monitoring.alertmanager.email.to=a@b.test,monitoring.alertmanager.email.from=c@d.test,"
    "monitoring.alertmanager.email.smarthost=mail.test:587"
)
Labels = dict[str, str]


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([tool(command[0]), *command[1:]], capture_output=True, text=True, check=False)


# Objects of the operator


@pytest.fixture(scope="session")
def schemas() -> dict[str, jsonschema.Draft202012Validator]:
    """By kind, the schemas of the operator's own CRDs, closed to what they do not name as the API server is."""
    if not CRDS.exists():
        lacks(f"no CRDs in {CRDS}")
    text = pyarrow.input_stream(str(CRDS), compression="zstd").read()
    found = {}
    for item in yaml.load_all(text, Loader):
        if item["kind"] == "CustomResourceDefinition":
            (version,) = item["spec"]["versions"]
            schema = version["schema"]["openAPIV3Schema"]
            schema["properties"]["metadata"] = {"type": "object", "additionalProperties": True}
            found[item["spec"]["names"]["kind"]] = jsonschema.Draft202012Validator(_closed(schema))
    return found


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    if node.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    return closed


@pytest.mark.parametrize("settings", ["", "monitoring.alertmanager.watchdog.urlFromSecret=false"])
def test_what_the_operator_reads_is_valid_to_its_own_schemas(
    schemas: dict[str, jsonschema.Draft202012Validator], settings: str
):
    objects = render("operator", *filter(None, [settings])).of_kind(*OF_THE_OPERATOR)

    assert {item["kind"] for item in objects} == set(OF_THE_OPERATOR)
    for item in objects:
        schemas[item["kind"]].validate(item)
        assert item["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_a_field_that_the_operator_does_not_know_is_found(schemas: dict[str, jsonschema.Draft202012Validator]):
    (config,) = render("operator").of_kind("AlertmanagerConfig")
    config = json.loads(json.dumps(config))
    config["spec"]["receivers"][0]["webhookConfigs"][0]["urll"] = "x"

    with pytest.raises(jsonschema.ValidationError, match="urll"):
        schemas["AlertmanagerConfig"].validate(config)


def test_the_service_monitor_selects_the_service_of_the_exporter_alone():
    rendered = render("operator")
    (monitor,) = rendered.of_kind("ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    selected = [item for item in rendered.of_kind("Service") if wanted <= item["metadata"]["labels"].items()]

    assert [item["metadata"]["name"] for item in selected] == ["millrace-exporter"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert [port["name"] for port in selected[0]["spec"]["ports"]] == [endpoint["port"]]
    assert selected[0]["spec"]["publishNotReadyAddresses"]


def test_without_a_mode_there_is_the_exporter_and_nothing_else():
    rendered = render("default")

    assert rendered.named("Deployment", "millrace-exporter")
    assert rendered.of_kind(*OF_THE_OPERATOR) == []
    names = {item["metadata"]["name"] for item in rendered.objects}
    assert not names & {"millrace-rules", "millrace-prometheus", "millrace-alertmanager"}


def test_the_exporter_can_be_left_out():
    rendered = render("bare")

    assert not [item for item in rendered.objects if "exporter" in item["metadata"]["name"]]


# Rules


def groups(rendered: Rendered) -> list[Manifest]:
    """All groups of rules, whichever way they are delivered."""
    files = [item["spec"] for item in rendered.of_kind("PrometheusRule")]
    for item in rendered.of_kind("ConfigMap"):
        if item["metadata"]["name"].endswith("-rules"):
            files += [yaml.safe_load(text) for text in item["data"].values()]
    return [group for file in files for group in file["groups"]]


def alerts(rendered: Rendered) -> dict[str, Manifest]:
    return {rule["alert"]: rule for group in groups(rendered) for rule in group["rules"] if "alert" in rule}


@pytest.fixture(params=["operator", "plain"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_rule_that_ships_is_rendered_and_promtool_finds_it_right(mode: str, tmp_path: Path):
    rendered = render(mode)
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": groups(rendered)}))

    checked = run("promtool", "check", "rules", str(tmp_path / "rules.yaml"))

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert alerts(rendered).keys() == (
        ALERTS.keys() - {"MillraceJobSlower"} | {"ShopIsQuiet"} if mode == "operator" else ALERTS.keys()
    )


def test_every_alert_says_where_its_runbook_is_and_whose_it_is(mode: str):
    """By an address, where the values tell one: a path would be resolved against the page that shows it."""
    where, base = {
        "operator": ("runbook_url", "https://git.example.test/millrace/deploy/runbooks"),
        "plain": ("runbook", "deploy/runbooks"),
    }[mode]
    for name, rule in alerts(render(mode)).items():
        assert (rule["labels"]["namespace"], rule["labels"]["release"]) == ("data", "millrace")
        if name in ALERTS:
            assert {key: text for key, text in rule["annotations"].items() if key.startswith("runbook")} == {
                where: f"{base}/{name}.md"
            }
            assert (DEPLOY / "runbooks" / f"{name}.md").exists()


def test_the_words_of_a_rule_are_prometheuss_and_not_helms():
    described = alerts(render("plain"))["MillraceAssetLate"]["annotations"]["description"]

    assert described == "{{ $labels.asset_key }} was made {{ $value | humanizeDuration }} ago."


def test_values_change_an_alert_or_leave_it_out():
    shipped, changed = alerts(render("plain")), alerts(render("operator"))

    assert (shipped["MillraceRunSlow"]["for"], shipped["MillraceRunSlow"]["labels"]["severity"]) == ("1m", "warning")
    assert (changed["MillraceRunSlow"]["for"], changed["MillraceRunSlow"]["labels"]["severity"]) == ("10s", "critical")
    assert [each["MillraceRunSlow"]["keep_firing_for"] for each in (shipped, changed)] == ["2m", "30s"]
    assert "MillraceJobSlower" in shipped
    assert "MillraceJobSlower" not in changed


def test_rules_of_ones_own_keep_their_words_and_get_the_labels_that_lead_them_on():
    rule = alerts(render("operator"))["ShopIsQuiet"]

    assert rule["expr"] == "shop:orders:rate5m == 0"
    assert rule["annotations"] == {"summary": "No orders at {{ $labels.shop }}."}
    assert rule["labels"] == {"severity": "warning", "namespace": "data", "release": "millrace"}


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.stem)
def test_rendered_rules_pass_the_tests_of_those_that_ship(file: Path, tmp_path: Path):
    """With the labels that the scrape gives to every series: they must not keep the sides of an operation apart."""
    rendered = render("plain").named("ConfigMap", "millrace-rules")["data"]
    rules = yaml.safe_load(rendered[file.name])
    for rule in (rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule):
        rule["labels"]["cluster"] = ""  # which an alert has or has not, and nobody asks for
    (tmp_path / file.name).write_text(json.dumps(rules))
    written = file.with_name(f"{file.stem}.test.yaml").read_text()
    tests = yaml.load(written, yaml.CBaseLoader)  # noqa: S506 - texts alone: 0x20 is not 32
    for test in tests["tests"]:
        for series in test.get("input_series", ()):
            name, _, rest = series["series"].partition("{")
            labels = filter(None, [rest.removesuffix("}"), 'namespace="data", release="millrace", cluster="c"'])
            series["series"] = f"{name}{{{', '.join(labels)}}}"
        for case in test.get("alert_rule_test", ()):
            for expected in case.get("exp_alerts") or ():
                expected["exp_labels"] |= {"namespace": "data", "release": "millrace"}
                expected["exp_annotations"]["runbook"] = f"deploy/runbooks/{case['alertname']}.md"
        test.pop("promql_expr_test", None)
    (tmp_path / "test.yaml").write_text(json.dumps(tests))

    done = run("promtool", "test", "rules", str(tmp_path / "test.yaml"))

    assert done.returncode == 0, done.stdout + done.stderr


TWO_RELEASES = """
rule_files: [rules.yaml]
evaluation_interval: 1m
tests:
  - name: the exporter of one release is away, and that of another is not
    interval: 1m
    input_series:
      - { series: 'up{job="millrace-exporter", namespace="two", release="etl"}', values: 1x30 }
      - { series: 'dagster_exporter_build_info{job="millrace-exporter", namespace="two", release="etl"}', values: 1x30 }
    alert_rule_test:
      - eval_time: 5m
        alertname: MillraceServiceUnavailable
        exp_alerts:
          - exp_labels: { severity: critical, service: exporter, namespace: one, release: etl }
            exp_annotations: &said
              summary: A service does not answer.
              description: The exporter does not answer.
              runbook: deploy/runbooks/MillraceServiceUnavailable.md
  - name: an exporter that cannot be scraped, and whose figures are gone with that, is one alert of its release
    interval: 1m
    input_series:
      - { series: 'up{job="millrace-exporter", namespace="one", release="etl"}', values: 0x30 }
      - { series: 'up{job="millrace-exporter", namespace="two", release="etl"}', values: 1x30 }
      - { series: 'dagster_exporter_build_info{namespace="one", release="etl"}', values: 1 stale }
      - { series: 'dagster_exporter_build_info{namespace="two", release="etl"}', values: 1x30 }
    alert_rule_test:
      - eval_time: 5m
        alertname: MillraceServiceUnavailable
        exp_alerts:
          - exp_labels: { severity: critical, service: exporter, namespace: one, release: etl }
            exp_annotations: *said
  - name: the same job in two releases, each with its own failures and its own threshold
    interval: 1m
    input_series:
      - { series: 'dagster_runs_completed_total{code_location="x", job_name="j", status="failure", namespace="one", release="etl"}', values: 0+1x120 }
      - { series: 'dagster_runs_completed_total{code_location="x", job_name="j", status="success", namespace="one", release="etl"}', values: 0+3x120 }
      - { series: 'dagster_runs_completed_total{code_location="x", job_name="j", status="failure", namespace="two", release="etl"}', values: 0+1x120 }
      - { series: 'dagster_runs_completed_total{code_location="x", job_name="j", status="success", namespace="two", release="etl"}', values: 0+3x120 }
      - { series: 'millrace_threshold_failure_ratio{namespace="one", release="etl"}', values: 0.1x120 }
      - { series: 'millrace_threshold_failure_ratio{namespace="two", release="etl"}', values: 0.5x120 }
    alert_rule_test:
      - eval_time: 20m
        alertname: MillraceFailureRateHigh
        exp_alerts:
          - exp_labels: { severity: warning, code_location: x, job_name: j, namespace: one, release: etl }
            exp_annotations:
              summary: A job fails too often.
              description: 25% of the runs of j (x) failed.
              runbook: deploy/runbooks/MillraceFailureRateHigh.md
"""


def test_of_two_releases_in_one_cluster_neither_hides_or_counts_the_other(tmp_path: Path):
    """By their names alone nobody could tell them from other software."""
    both = [groups(render("plain", release="etl", namespace=namespace)) for namespace in ("one", "two")]
    for group in both[1]:
        group["name"] += ".two"
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": both[0] + both[1]}))
    (tmp_path / "test.yaml").write_text(TWO_RELEASES)

    done = run("promtool", "test", "rules", str(tmp_path / "test.yaml"))

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("release", ["millrace", "etl"])
def test_what_is_scraped_has_the_labels_that_the_rules_ask_for(release: str):
    wanted = {"job": "millrace-exporter", "namespace": "data", "release": release}
    (monitor,) = render("operator", release=release).of_kind("ServiceMonitor")
    by_operator = {
        each.get("targetLabel"): each.get("replacement") for each in monitor["spec"]["endpoints"][0]["relabelings"]
    }
    (scrape,) = scrape_configs(render("plain", release=release))
    by_hand = {each["target_label"]: each["replacement"] for each in scrape["relabel_configs"]}

    assert by_operator.items() >= wanted.items()
    assert by_hand == wanted
    assert scrape["static_configs"] == [{"targets": [f"{release}-exporter.data.svc:9464"]}]
    (asked,) = re.findall(
        r"\bup\{([^}]*)\}", alerts(render("plain", release=release))["MillraceServiceUnavailable"]["expr"]
    )
    matchers = dict(re.findall(r'(\w+)=~?"([^"]*)"', asked))
    assert all(re.fullmatch(matchers[name], wanted[name]) for name in matchers)


def test_whether_a_pod_answers_is_told_of_each_and_what_it_tells_is_the_releases():
    """One that ends is still asked. Were both one target, its `up` would be 1 and 0 by turns."""
    (monitor,) = render("operator").of_kind("ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]

    assert "instance" not in {each.get("targetLabel") for each in endpoint["relabelings"]}
    assert endpoint["metricRelabelings"] == [{"targetLabel": "instance", "replacement": "millrace-exporter"}]


def test_no_label_of_the_scrape_is_one_of_a_figure():
    """Prometheus would rename the figure's own: `service` of a figure is one of ours."""
    (monitor,) = render("operator").of_kind("ServiceMonitor")
    (dropped,) = (each["regex"] for each in monitor["spec"]["endpoints"][0]["relabelings"] if "regex" in each)

    assert {"pod", "container", "endpoint", "service"} == set(dropped.split("|"))


# Files for a Prometheus without an operator


def scrape_configs(rendered: Rendered) -> list[Manifest]:
    found: list[Manifest] = yaml.safe_load(
        rendered.named("ConfigMap", f"{_release(rendered)}-prometheus")["data"]["scrape.yaml"]
    )["scrape_configs"]
    return found


def _release(rendered: Rendered) -> str:
    return str(rendered.of_kind("Deployment")[0]["metadata"]["labels"]["app.kubernetes.io/instance"])


def test_promtool_finds_the_bundled_prometheus_right(tmp_path: Path):
    """Each file where its pod has it."""
    rendered = render("trial")
    (pod,) = (pod for name, pod in rendered.pods().items() if name == "Deployment/millrace-prometheus")
    for name, path in _mounts(pod).items():
        volume = next(each for each in pod["spec"]["volumes"] if each["name"] == name)
        if "configMap" in volume:
            folder = tmp_path / path.strip("/")
            folder.mkdir(parents=True)
            for file, text in rendered.named("ConfigMap", volume["configMap"]["name"])["data"].items():
                (folder / file).write_text(text.replace("/etc/", f"{tmp_path}/etc/"))

    checked = run("promtool", "check", "config", str(tmp_path / "etc/prometheus/prometheus.yml"))

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(RULES)} rule files found" in checked.stdout
    config = yaml.safe_load((tmp_path / "etc/prometheus/prometheus.yml").read_text())
    ((target,),) = (
        each["targets"] for manager in config["alerting"]["alertmanagers"] for each in manager["static_configs"]
    )
    host, port = target.split(":")
    assert rendered.named("Service", host)["spec"]["ports"][0]["port"] == int(port)


def _mounts(pod: Manifest) -> dict[str, str]:
    return {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}


# Alertmanager


def alertmanager_yml(rendered: Rendered) -> str:
    return str(rendered.named("Secret", "millrace-alertmanager")["stringData"]["alertmanager.yml"])


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """A file with the configuration of a scenario."""

    def write(scenario: str, *settings: str) -> Path:
        path = tmp_path / "alertmanager.yml"
        path.write_text(alertmanager_yml(render(scenario, *settings)))
        return path

    return write


PLAIN = "monitoring.mode=plain"
RECEIVERS = {
    "everything but Teams": ("operator", PLAIN, "monitoring.alertmanager.msteams.enabled=false"),
    "mail and pages": ("trial",),
    "a webhook": ("plain",),
    "none": ("default", PLAIN),
}


@pytest.mark.parametrize("settings", RECEIVERS.values(), ids=RECEIVERS)
def test_amtool_finds_the_configuration_right(config: Callable[..., Path], settings: tuple[str, ...]):
    checked = run("amtool", "check-config", str(config(*settings)))

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_an_amtool_that_knows_teams_finds_it_right(config: Callable[..., Path]):
    version = re.search(r"version (\d+)\.(\d+)", run("amtool", "--version").stdout)
    assert version
    if (int(version[1]), int(version[2])) < (0, 28):
        lacks("amtool before 0.28 does not know msteamsv2_configs")

    checked = run("amtool", "check-config", str(config("operator", PLAIN)))

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("labels", "all_receivers", "few"),
    [
        ("severity=critical alertname=MillraceDaemonStale", "pagerduty,email,webhook,slack,console", "pagerduty,email,console"),
        ("severity=warning alertname=MillraceRunSlow job_name=j", "email,webhook,slack,console", "email,console"),
        ("severity=info alertname=MillraceJobSlower", "console", "console"),
        ("severity=none alertname=MillraceWatchdog", "watchdog", "null"),
        ("alertname=NobodySaidHowBad", "console", "console"),
    ],
    ids=["critical", "warning", "info", "the watchdog", "no severity"],
)  # fmt: skip
def test_each_severity_is_told_to_whom_it_concerns(
    config: Callable[..., Path], labels: str, all_receivers: str, few: str
):
    for wanted, settings in ((all_receivers, RECEIVERS["everything but Teams"]), (few, RECEIVERS["mail and pages"])):
        command = ("amtool", "config", "routes", "test", f"--config.file={config(*settings)}")
        right = run(*command, f"--verify.receivers={wanted}", *labels.split())
        wrong = run(*command, "--verify.receivers=somebody", *labels.split())

        assert right.returncode == 0, right.stdout + right.stderr
        assert wrong.returncode == 1


def test_both_modes_say_the_same():
    """By the names of receivers, their routes, and what inhibits what."""
    (by_operator,) = render("operator").of_kind("AlertmanagerConfig")
    spec = by_operator["spec"]
    plain = yaml.safe_load(alertmanager_yml(render("operator", PLAIN)))

    assert plain.keys() == {"route", "receivers", "inhibit_rules"}
    assert [each["name"] for each in spec["receivers"]] == [each["name"] for each in plain["receivers"]]
    assert spec["route"]["groupBy"] == plain["route"]["group_by"] == ["alertname", "code_location", "job_name"]
    for one, other in zip(spec["route"]["routes"], plain["route"]["routes"], strict=True):
        assert (one["receiver"], one.get("continue")) == (other["receiver"], other.get("continue"))
        assert [f'{m["name"]}{m["matchType"]}"{m["value"]}"' for m in one["matchers"]] == other["matchers"]
    for one, other in zip(spec["inhibitRules"], plain["inhibit_rules"], strict=True):
        assert one.get("equal") == other.get("equal")
        assert [_written(one[f"{side}Match"]) for side in ("source", "target")] == [
            other[f"{side}_matchers"] for side in ("source", "target")
        ]


def _written(matchers: list[Manifest]) -> list[str]:
    """The operator's matchers as alertmanager.yml has them."""
    return [f'{m["name"]}{m["matchType"]}"{m["value"]}"' for m in matchers]


@pytest.mark.parametrize(
    ("labels", "ours"),
    [
        ({"alertname": "MillraceRunSlow", "namespace": "data", "release": "millrace"}, True),
        ({"alertname": "MillraceRunSlow", "namespace": "data", "release": "another"}, False),
        ({"alertname": "MillraceRunSlow", "namespace": "another", "release": "millrace"}, False),
        ({"alertname": "KubeJobFailed", "namespace": "data", "severity": "warning"}, False),
    ],
)
def test_the_operators_alertmanager_hands_over_the_alerts_of_the_release_alone(labels: Labels, ours: bool):
    """Its first route is one of many; that of a file takes whatever comes, and admits no matchers."""
    (config,) = render("operator").of_kind("AlertmanagerConfig")

    assert _holds(_written(config["spec"]["route"]["matchers"]), labels) is ours
    assert "matchers" not in yaml.safe_load(alertmanager_yml(render("operator", PLAIN)))["route"]


@pytest.mark.parametrize("base", ["https://git.example.test/runbooks", ""])
def test_slack_is_told_what_is_the_matter_and_where_the_runbook_is(tmp_path: Path, base: str):
    (config,) = render("operator", f"monitoring.runbookBaseUrl={base}").of_kind("AlertmanagerConfig")
    ((slack,),) = (each["slackConfigs"] for each in config["spec"]["receivers"] if each["name"] == "slack")
    runbook = {"runbook_url" if base else "runbook": f"{base or 'deploy/runbooks'}/MillraceAssetLate.md"}
    alerts = [{"annotations": {"description": f"{key} was made 3h ago.", **runbook}} for key in ("a", "b")]
    data = {"alerts": alerts, "commonAnnotations": runbook, "externalURL": "https://alertmanager.example.test"}
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "none.tmpl").write_text('{{ define "slack.default.titlelink" }}{{ .ExternalURL }}{{ end }}')

    def said(template: str) -> str:
        rendered = run(
            "amtool", "template", "render", f"--template.glob={tmp_path}/none.tmpl",
            f"--template.data={tmp_path}/data.json", f"--template.text={template}",
        )  # fmt: skip
        assert rendered.returncode == 0, rendered.stderr
        return rendered.stdout

    assert said(slack["text"]).split("\n")[:2] == ["a was made 3h ago.", "b was made 3h ago."]
    assert said(slack["titleLink"]).strip() == (runbook["runbook_url"] if base else data["externalURL"])
    assert ("Runbook: deploy/runbooks/MillraceAssetLate.md" in said(slack["text"])) is (base == "")


def test_times_are_values():
    route = yaml.safe_load(alertmanager_yml(render("plain")))["route"]

    assert (route["group_wait"], route["group_interval"], route["repeat_interval"]) == ("5s", "10s", "4h")


def test_every_secret_is_a_file_that_the_pod_has():
    rendered = render("trial")
    (pod,) = (pod for name, pod in rendered.pods().items() if name == "Deployment/millrace-alertmanager")
    files = re.findall(r"_file: (\S+)", alertmanager_yml(rendered))

    assert sorted(files) == [
        f"/etc/alertmanager/secrets/receivers/{key}" for key in ("email-password", "pagerduty-key")
    ]
    assert {str(Path(file).parent) for file in files} <= set(_mounts(pod).values())


def test_the_console_is_the_exporter():
    (console,) = (
        each
        for each in yaml.safe_load(alertmanager_yml(render("ui-path", PLAIN)))["receivers"]
        if each["name"] == "console"
    )
    service = render("ui-path").named("Service", "millrace-exporter")

    assert console["webhook_configs"] == [
        {"url": "http://millrace-exporter.data.svc:9464/alerts", "send_resolved": True}
    ]
    assert service["spec"]["ports"][0]["port"] == 9464


def _holds(matchers: list[str], labels: Labels) -> bool:
    for matcher in matchers:
        found = re.fullmatch(r'(\w+)(=~|!~|!=|=)"(.*)"', matcher)
        assert found, matcher
        name, operator, value = found.groups()
        here = labels.get(name, "")
        equal = bool(re.fullmatch(value, here)) if "~" in operator else value == here
        if equal is operator.startswith("!"):
            return False
    return True


def _inhibits(source: Labels, target: Labels) -> bool:
    """As Alertmanager decides it."""
    return any(
        _holds(rule["source_matchers"], source)
        and _holds(rule["target_matchers"], target)
        and all(source.get(name, "") == target.get(name, "") for name in rule.get("equal", ()))
        for rule in yaml.safe_load(alertmanager_yml(render("plain")))["inhibit_rules"]
    )


def alert(name: str, /, **labels: str) -> Labels:
    severity = ALERTS[f"Millrace{name}"]
    return {"alertname": f"Millrace{name}", "severity": severity, "namespace": "data", "release": "millrace", **labels}


DATABASE, EXPORTER = alert("ServiceUnavailable", service="database"), alert("ServiceUnavailable", service="exporter")
WEBSERVER = alert("ServiceUnavailable", service="webserver")
BROKEN = alert("CodeLocationBroken", code_location="shop")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (DATABASE, alert("DaemonStale", daemon_type="SENSOR")),
        (DATABASE, alert("ExporterBlind", collector="runs")),
        (DATABASE, WEBSERVER),
        (EXPORTER, alert("AssetLate", asset_key="a")),
        (BROKEN, alert("ScheduleMissed", code_location="shop", name="daily")),
        (BROKEN, alert("RunStuckQueued", code_location="shop", job_name="j")),
        (alert("DaemonStale", daemon_type="SCHEDULER"), alert("ScheduleMissed", code_location="shop", name="daily")),
        (alert("DaemonStale", daemon_type="QUEUED_RUN_COORDINATOR"), alert("RunStuckQueued", code_location="shop", job_name="j")),
        (alert("DaemonStale", daemon_type="MONITORING"), alert("RunStuckStarting", code_location="shop", job_name="j")),
        ({**alert("RunSlow", code_location="shop", job_name="j"), "severity": "critical"}, alert("RunSlow", code_location="shop", job_name="j")),
        ({**alert("VolumeFilling", volume="lake"), "severity": "critical"}, {**alert("VolumeFilling", volume="lake"), "severity": "warning"}),
    ],
)  # fmt: skip
def test_what_follows_from_another_alert_is_not_told_too(source: Labels, target: Labels):
    assert _inhibits(source, target)
    assert not _inhibits(target, source)
    for other in ({"namespace": "another"}, {"release": "another"}):
        assert not _inhibits(source, {**target, **other})
        assert not _inhibits({**source, **other}, {**target, **other}), "somebody else's to say"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (DATABASE, DATABASE),
        (DATABASE, alert("Watchdog")),
        ({**alert("VolumeFilling", volume="lake"), "severity": "critical"}, {**alert("VolumeFilling", volume="logs"), "severity": "warning"}),
        ({**alert("CertificateExpiring", host="one"), "severity": "critical"}, {**alert("CertificateExpiring", host="two"), "severity": "warning"}),
        (WEBSERVER, alert("DaemonStale", daemon_type="SENSOR")),
        (alert("DaemonStale", daemon_type="FRESHNESS_DAEMON"), alert("ScheduleMissed", code_location="shop", name="daily")),
        (alert("DaemonStale", daemon_type="SCHEDULER"), alert("RunStuckQueued", code_location="shop", job_name="j")),
        (BROKEN, alert("ScheduleMissed", code_location="other", name="daily")),
        (BROKEN, alert("RunMemoryHigh", code_location="shop", job_name="j")),
        (BROKEN, alert("CodeLocationBroken", code_location="other")),
        (alert("RunLaunchFailing", code_location="shop", job_name="j"), alert("RunSlow", code_location="shop", job_name="k")),
    ],
)  # fmt: skip
def test_what_does_not_follow_is_told(source: Labels, target: Labels):
    assert not _inhibits(source, target)


def test_every_daemon_that_inhibits_is_one_of_dagsters():
    text = alertmanager_yml(render("plain"))
    named = {name for matcher in re.findall(r'daemon_type[=!~]+"([^"]+)"', text) for name in matcher.split("|")}

    there = {SchedulerDaemon, MonitoringDaemon, QueuedRunCoordinatorDaemon}
    assert named == {daemon.daemon_type() for daemon in there}


def test_every_alert_that_inhibits_or_is_inhibited_exists():
    text = alertmanager_yml(render("plain"))
    names = {name for matcher in re.findall(r'alertname[=!~]+"([^"]+)"', text) for name in matcher.split("|")}

    assert names - {"Millrace.+"} <= ALERTS.keys()


def test_the_example_of_the_documentation_works_with_the_secret_it_shows(tmp_path: Path):
    page = (DEPLOY / "README.md").read_text()
    (block,) = re.findall(r"```yaml\n(monitoring:.*?)```", page, re.DOTALL)
    (tmp_path / "values.yaml").write_text(block)

    result = helm("template", "millrace", str(CHART), "--values", str(tmp_path / "values.yaml"))

    assert result.returncode == 0, result.stderr
    (config,) = Rendered(parse(result.stdout)).of_kind("AlertmanagerConfig")
    read = set(re.findall(r"'key': '([^']+)', 'name': 'millrace-receivers'", str(config)))
    assert read == set(re.findall(r"--from-literal=([a-z-]+)=…", page))


def test_what_assets_say_goes_where_the_documentation_has_it_go():
    page = (DEPLOY / "README.md").read_text()
    (value,) = re.findall(r"`extraEnvFrom: ([^`]*)`", page)
    variables = set(re.findall(r"--from-literal=(MILLRACE_\w+)=", page))

    assert {name.removeprefix("MILLRACE_").lower() for name in variables} <= Settings.model_fields.keys()
    (source,) = yaml.safe_load(value)
    rendered = render("default", f"extraEnvFrom[0].secretRef.name={source['secretRef']['name']}")
    ours = list(rendered.containers_of_ours())
    assert len(ours) > 3
    assert all(source in each["envFrom"] for _, each in ours)


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("monitoring.mode=prometheus", "at '/monitoring/mode'"),
        ("monitoring.thresholds.failureRatio=10", "at '/monitoring/thresholds/failureRatio'"),
        ("monitoring.alertmanager.groupWait=30", "at '/monitoring/alertmanager/groupWait'"),
        ("monitoring.mode=plain,exporter.enabled=false", "monitoring.mode is plain and exporter.enabled is false: there is nothing to watch."),
        ("monitoring.mode=operator,monitoring.bundled.enabled=true", "monitoring.bundled.enabled is true and monitoring.mode is operator. Set the mode to plain."),
        ("monitoring.alertmanager.email.to=a@b.test", 'monitoring.alertmanager.email.from is "", which is no address.'),
        ("monitoring.alertmanager.email.to=a@b.test,monitoring.alertmanager.email.from=c@d.test", 'monitoring.alertmanager.email.smarthost is "". Set host:port of the mail server.'),
        (f"{MAIL},monitoring.alertmanager.email.smarthost=mail.test", 'email.smarthost is "mail.test". Set host:port'),
        (f"{MAIL},monitoring.alertmanager.email.to=nobody", 'monitoring.alertmanager.email.to has "nobody", which is no address.'),
        ("monitoring.alertmanager.email.smarthost=mail.test:587", "and no receiver. Set monitoring.alertmanager.email.to to an address."),
        (f"{MAIL},monitoring.alertmanager.email.username=u", "need email-password, and monitoring.alertmanager.existingSecret is empty."),
        ("monitoring.alertmanager.webhook.url=hooks.test/x", 'monitoring.alertmanager.webhook.url is "hooks.test/x", which is no URL. Set http://… or https://….'),
        ("monitoring.alertmanager.webhook.url=http://h/a b", "which is no URL"),
        ("monitoring.alertmanager.watchdog.url=http://h/x,monitoring.alertmanager.watchdog.urlFromSecret=true", "monitoring.alertmanager.watchdog has url and urlFromSecret. Set one of the two."),
        ("monitoring.alertmanager.webhook.tokenFromSecret=true", "there is no URL to send the token to"),
        ("monitoring.alertmanager.pagerduty.enabled=true", "need pagerduty-key, and monitoring.alertmanager.existingSecret is empty."),
        ("monitoring.mode=plain,monitoring.bundled.enabled=true,monitoring.alertmanager.existingSecret=s,monitoring.alertmanager.msteams.enabled=true", "monitoring.alertmanager.msteams.enabled needs Alertmanager 0.28.0, and monitoring.bundled.alertmanager.image.tag is v0.25.0. Set a newer one."),
        ("monitoring.runbookBaseUrl=deploy/runbooks", 'monitoring.runbookBaseUrl is "deploy/runbooks", which is no URL. Set http://… or https://…, or leave it empty.'),
        ('monitoring.runbookBaseUrl=https://h/"x', "which is no URL"),
        ("monitoring.alerts.MillraceRunSlo.for=1m", "monitoring.alerts names MillraceRunSlo, and there is no such alert. There are: MillraceAssetFailing,"),
        ("monitoring.alerts.MillraceRunSlow.for=1 minute", "at '/monitoring/alerts/MillraceRunSlow/for'"),
        ("monitoring.extraRules[0].rules[0].alert=A", "monitoring.extraRules[0] is not a group of rules."),
        ("monitoring.extraRules[0].name=millrace.runs,monitoring.extraRules[0].rules[0].alert=A", "has the name millrace.runs, which another group has."),
        ("monitoring.extraRules[0].name=g,monitoring.extraRules[0].rules[0].alert=A", "monitoring.extraRules[0].rules[0] (A of group g) has no expression. Set `expr` to PromQL."),
        ("monitoring.extraRules[0].name=g,monitoring.extraRules[0].rules[0].expr=up", "monitoring.extraRules[0].rules[0] (without a name of group g) has to have either `alert` or `record`."),
        ("monitoring.extraRules[0].name=g,monitoring.extraRules[0].rules[0].alert=A,monitoring.extraRules[0].rules[0].expr=up,monitoring.extraRules[0].rules[0].four=5m", "(A of group g) has four, which Prometheus does not know."),
        ("monitoring.extraRules[0].name=g,monitoring.extraRules[0].rules[0].alert=A,monitoring.extraRules[0].rules[0].expr=up,monitoring.extraRules[0].rules[0].for=soon", "(A of group g) has `for: soon`, which is no duration."),
        ("monitoring.extraRules[0].name=g,monitoring.extraRules[0].rules[0].alert=A,monitoring.extraRules[0].rules[0].expr=up", '(A of group g) has the severity "", by which nobody is told.'),
    ],
)  # fmt: skip
def test_what_would_tell_nobody_is_refused_with_what_to_change(settings: str, message: str):
    assert message in refusal(settings)


# The exporter


def _environment(rendered: Rendered, secrets: dict[str, str]) -> dict[str, str]:
    """What Kubernetes makes of the exporter's variables: of its ConfigMap, of *secrets* by key, of one another."""
    (container,) = rendered.named("Deployment", "millrace-exporter")["spec"]["template"]["spec"]["containers"]
    (source,) = container["envFrom"]
    found: dict[str, str] = dict(rendered.named("ConfigMap", source["configMapRef"]["name"])["data"])
    for variable in container["env"]:
        if "value" in variable:
            text = re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], variable["value"])
        else:
            text = secrets[variable["valueFrom"]["secretKeyRef"]["key"]]
        found[variable["name"]] = text
    return found


@pytest.fixture
def exporter(settings: Settings, tmp_path: Path) -> Iterator[str]:
    """The address of one that has the variables of its pod, and no other."""
    server = settings.libpq("dagster")
    keys = {"host": server["host"], "port": server["port"], "exporter-password": "x", "lake-reader-password": "y"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {"MILLRACE_STATE_DIR": str(tmp_path), "MILLRACE_METRICS_PORT": port, "PATH": os.environ["PATH"]}
    environment = _environment(render("operator", "webserver.pathPrefix=/millrace,exporter.intervalSeconds=1"), keys)
    assert environment["MILLRACE_WEBSERVER_URL"] == "http://millrace-webserver:3001/millrace"
    environment["MILLRACE_WEBSERVER_URL"] = "http://127.0.0.1:9"  # nobody answers there
    assert (environment["MILLRACE_EXPORTER_PASSWORD"], environment["MILLRACE_LAKE_READER_PASSWORD"]) == ("x", "y")
    process = subprocess.Popen([sys.executable, "-m", "pipeline", "serve", "metrics"], env={**environment, **here})
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait(20)


def _get(url: str) -> "httpx2.Response | None":
    try:
        return httpx2.get(url, timeout=5)
    except httpx2.HTTPError:
        return None


def test_the_exporter_needs_no_more_than_its_pod_has_and_is_not_the_owner(exporter: str, settings: Settings):
    deadline = time.monotonic() + 60
    while not (page := _get(f"{exporter}/metrics")) or page.status_code != 200:
        assert time.monotonic() < deadline, page and page.text
        time.sleep(0.2)

    assert "millrace_threshold_failure_ratio 0.05\n" in page.text
    assert "dagster_storage_relation_bytes" in page.text
    with closing(psycopg2.connect(administrators_url(settings), dbname="postgres")) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name = 'millrace-exporter'")
        assert {role for (role,) in cursor.fetchall()} == {"exporter", "lake_reader"}
    alive, ready = (_get(f"{exporter}{path}") for path in ("/healthz", "/readyz"))
    assert alive is not None
    assert alive.status_code == 200
    assert ready is not None
    assert ready.status_code == 503  # the webserver does not answer, and that is no reason to be restarted


def test_the_exporter_holds_no_password_of_the_owner_and_none_of_the_store():
    names = set()
    for _, container in render("object-store").containers():
        if container["name"] == "exporter":
            names = {variable["name"] for variable in container["env"]}

    assert {name for name in names if re.search("PASSWORD|KEY|SECRET", name)} == {
        "MILLRACE_LAKE_READER_PASSWORD",
        "MILLRACE_EXPORTER_PASSWORD",
    }


def test_the_roles_may_have_a_secret_of_their_own():
    """An operator's secret has no room for further keys."""
    by_variable: dict[str, set[str]] = {}
    for _, container in render("production").containers_of_ours():
        for variable in container["env"]:
            if "secretKeyRef" in variable.get("valueFrom", {}):
                by_variable.setdefault(variable["name"], set()).add(variable["valueFrom"]["secretKeyRef"]["name"])

    assert (
        by_variable["MILLRACE_EXPORTER_PASSWORD"] == by_variable["MILLRACE_LAKE_READER_PASSWORD"] == {"millrace-roles"}
    )
    assert by_variable["DATABASE_HOST"] == by_variable["DAGSTER_PG_HOST"] == {"millrace-postgres-app"}
    migration = render("production").named("Job", "millrace-migration-1")["spec"]["template"]["spec"]["containers"][0]
    assert "MILLRACE_EXPORTER_PASSWORD" in {variable["name"] for variable in migration["env"]}


@pytest.mark.parametrize(
    ("scenario", "settings", "hosts", "ports"),
    [
        (
            "production",
            "exporter.certificateHosts={login.example.test:8443}",
            "data.example.test,login.example.test:8443",
            {443, 8443},
        ),
        ("production", "ingress.enabled=false", None, set()),
        ("default", "exporter.certificateHosts={a.test}", "a.test", {443}),
        ("default", "exporter.certificateHosts={[::1]:9443},networkPolicy.certificates.ports={10443}", "[::1]:9443", {9443, 10443}),
    ],
)  # fmt: skip
def test_the_certificate_of_the_ingress_is_watched(scenario: str, settings: str, hosts: str | None, ports: set[int]):
    rendered = render(scenario, settings)
    (container,) = rendered.named("Deployment", "millrace-exporter")["spec"]["template"]["spec"]["containers"]
    policy = rendered.named("NetworkPolicy", "millrace-exporter")["spec"]["egress"]

    assert (
        next((each["value"] for each in container["env"] if each["name"] == "MILLRACE_CERTIFICATE_HOSTS"), None)
        == hosts
    )
    anywhere = {port["port"] for rule in policy if "to" not in rule for port in rule["ports"]}
    assert anywhere >= ports
    assert (443 in anywhere) is (443 in ports)


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ("monitoring.mode=plain,monitoring.bundled.enabled=true", "http://millrace-alertmanager:9093"),
        (
            "monitoring.alertmanager.url=http://alertmanager.monitoring.svc:9093",
            "http://alertmanager.monitoring.svc:9093",
        ),
        ("monitoring.mode=plain", None),
    ],
)
def test_the_exporter_knows_the_alertmanager_whose_silences_hold(settings: str, url: str | None):
    (container,) = render("default", settings).named("Deployment", "millrace-exporter")["spec"]["template"]["spec"][
        "containers"
    ]

    assert (
        next((each["value"] for each in container["env"] if each["name"] == "MILLRACE_ALERTMANAGER_URL"), None) == url
    )


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ("backup.enabled=true", "129600"),
        ("backup.enabled=true,backup.maxAgeSeconds=7000000", "7000000"),
        ("backup.enabled=false", None),
    ],
)
def test_the_exporter_knows_how_old_a_backup_may_be_where_they_are_made(settings: str, seconds: str | None):
    (container,) = render("default", settings).named("Deployment", "millrace-exporter")["spec"]["template"]["spec"][
        "containers"
    ]

    found = {each["name"]: each.get("value") for each in container["env"]}
    assert found.get("MILLRACE_BACKUP_MAX_AGE_SECONDS") == seconds


def test_the_exporter_is_restarted_for_silence_alone():
    (container,) = render("default").named("Deployment", "millrace-exporter")["spec"]["template"]["spec"]["containers"]

    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    alive = container["livenessProbe"]
    assert alive["httpGet"]["path"] == "/healthz"
    assert alive["periodSeconds"] * alive["failureThreshold"] >= 120


def test_the_thresholds_are_settings_that_there_are():
    names = _environment(
        render("default"), dict.fromkeys(("host", "port", "lake-reader-password", "exporter-password"), "")
    )
    given = {name.removeprefix("MILLRACE_").lower() for name in names if name.startswith("MILLRACE_ALERT_")}

    thresholds = {"alert_failure_ratio", "alert_slow_run_seconds", "alert_memory_ratio", "alert_unavailable_seconds",
                  "alert_daemon_silent_seconds"}  # fmt: skip
    assert given == {*thresholds, "alert_labels"}
    assert given <= Settings.model_fields.keys()


def test_a_silence_holds_the_alerts_of_its_own_release():
    """Those that the exporter is told to put on it are those that its alerts carry."""
    rendered = render("plain", release="etl", namespace="two")
    (container,) = rendered.named("Deployment", "etl-exporter")["spec"]["template"]["spec"]["containers"]
    (told,) = (each["value"] for each in container["env"] if each["name"] == "MILLRACE_ALERT_LABELS")

    labels = dict(each.split("=") for each in told.split(","))
    assert labels == {"namespace": "two", "release": "etl"}
    assert all(rule["labels"].items() >= labels.items() for rule in alerts(rendered).values())
