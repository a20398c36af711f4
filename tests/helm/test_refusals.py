"""What helm refuses, and what it says then: each message names the value and what to change."""

import pytest

from tests.helm.chart import SCENARIOS, refusal, render

pytestmark = pytest.mark.tools
ELSEWHERE = "runs.namespace=runs,lake.type=s3,lake.url=s3://l,computeLogs.type=none"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("webserver.replicaz=2", "at '/webserver': additional properties 'replicaz' not allowed"),
        ("codeLocation=x", "at '': additional properties 'codeLocation' not allowed"),
        ("codeLocations[0].name=a,codeLocations[0].modul=b", "at '/codeLocations/0'"),
        ("runs.maxConcurrent=many", "at '/runs/maxConcurrent': got string, want integer"),
        ("lake.type=volum", "at '/lake/type': value must be one of 'volume', 's3'"),
        ("image.digest=latest", "at '/image/digest'"),
        ("webserver.pathPrefix=millrace/", "at '/webserver/pathPrefix'"),
        ("daemon.resources.limits.memory=1GB", "at '/daemon/resources/limits/memory'"),
        ("codeLocations[0].name=My_Shop,codeLocations[0].module=a", "at '/codeLocations/0/name'"),
        (
            "monitoring.thresholds.daemonSilentSeconds=30",
            "at '/monitoring/thresholds/daemonSilentSeconds': minimum: got 30, want 60",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_place(setting: str, message: str):
    assert message in refusal(setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "ingress.enabled=true,ingress.host=h.test,ingress.unauthenticated=true,httpRoute.enabled=true",
            "ingress.enabled and httpRoute.enabled are both true: the UI is published by one of them.",
        ),
        (
            "ingress.enabled=true,ingress.host=h.test",
            "Set ingress.auth, or ingress.readOnly, or spell out ingress.unauthenticated: true.",
        ),
        (
            "httpRoute.enabled=true,httpRoute.parentRefs[0].name=g",
            "Set httpRoute.auth, or httpRoute.readOnly, or spell out httpRoute.unauthenticated: true.",
        ),
        ("ingress.enabled=true,ingress.host=h.test,ingress.readOnly=true", "Set webserver.readOnly.enabled to true."),
        ("ingress.enabled=true,ingress.unauthenticated=true", "ingress.host is empty"),
        ("httpRoute.enabled=true,httpRoute.unauthenticated=true", "httpRoute.parentRefs is empty"),
        (
            "postgresql.enabled=false",
            "database.existingSecret is empty: there is no database. Name the Secret of your server.",
        ),
        ("database.tls.mode=verify-full", "Name the Secret whose ca.crt signed the server's certificate."),
        ("lake.type=s3", 'lake.type is s3 and lake.url is "". Set s3://bucket/prefix.'),
        (
            "computeLogs.type=s3,computeLogs.url=https://b/x",
            'computeLogs.url is "https://b/x". Set s3://bucket/prefix.',
        ),
        ("backup.type=s3,backup.enabled=true", 'backup.url is "". Set s3://bucket/prefix.'),
        ("runs.namespace=runs", "a volume claim cannot be used from another namespace. Set lake.type to s3."),
        ("runs.limitRange[0].type=Container", "in the release's namespace it would bind the services too"),
        (
            "codeLocations[0].name=a,codeLocations[0].module=m,codeLocations[1].name=a,codeLocations[1].module=n",
            "codeLocations has two of the name a.",
        ),
        (
            "lake.type=s3,lake.url=s3://b/x/lake,computeLogs.type=s3,computeLogs.url=s3://b/x",
            "lake is in the place of computeLogs (s3://b/x): each deletes what it does not know or what is old.",
        ),
        (
            "lake.type=s3,lake.url=s3://b,backup.enabled=true,backup.type=s3,backup.url=s3://b/backup",
            "backup is in the place of lake (s3://b)",
        ),
        (
            "lake.type=s3,lake.url=s3://b/x,computeLogs.type=s3,computeLogs.url=s3://b/x/",
            "Give each its own.",
        ),
        ("lake.volume.existingClaim=mine,computeLogs.volume.existingClaim=mine", "(mine): each deletes"),
        (
            f"{ELSEWHERE},networkPolicy.database.to[0].podSelector.matchLabels.app=postgres",
            "networkPolicy.database.to has a podSelector without a namespaceSelector: for the runs it would mean pods of runs.",
        ),
        (
            "runs.maxConcurrent=20",
            "runs.maxConcurrent of 20 may open 220 connections, and postgresql.maxConnections is 200.",
        ),
    ],
)
def test_what_would_not_work_is_refused_with_what_to_change(settings: str, message: str):
    assert message in refusal(settings)


@pytest.mark.parametrize(
    "settings",
    [
        "lake.type=s3,lake.url=s3://b/lake,computeLogs.type=s3,computeLogs.url=s3://b",  # which means s3://b/compute-logs
        "lake.type=s3,lake.url=s3://b/lake,backup.enabled=true,backup.type=s3,backup.url=s3://b/lake-backup",
        "lake.volume.existingClaim=mine,computeLogs.volume.existingClaim=mine-too",
    ],
)
def test_places_beside_one_another_are_fine(settings: str):
    assert render("default", settings)


@pytest.mark.parametrize("version", ["1.29.9", "1.25.0"])
def test_an_old_kubernetes_is_refused(version: str):
    message = refusal(extra=("--kube-version", version))

    assert f"chart requires kubeVersion: >=1.30.0-0 which is incompatible with Kubernetes v{version}" in message


@pytest.mark.parametrize(
    ("scenario", "service"),
    [
        ("production", "millrace-webserver"),
        ("ui-path", "millrace-webserver"),
        ("gateway", "millrace-webserver-read-only"),
    ],
)
def test_the_ui_is_published_once_told_who_may(scenario: str, service: str):
    rendered = render(scenario)
    (published,) = rendered.of_kind("Ingress", "HTTPRoute")

    (rule,) = published["spec"]["rules"]
    backends = (
        [path["backend"]["service"]["name"] for path in rule["http"]["paths"]]
        if "http" in rule
        else [backend["name"] for backend in rule["backendRefs"]]
    )
    assert backends == [service]


def test_the_question_who_it_is_reaches_the_controller():
    (ingress,) = render("production").of_kind("Ingress")

    assert ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/auth-url"].startswith("https://login.")


@pytest.mark.parametrize("scenario", sorted({*SCENARIOS} - {"production", "ui-path", "gateway"}))
def test_the_ui_is_not_published_unless_asked(scenario: str):
    assert render(scenario).of_kind("Ingress", "HTTPRoute") == []
