"""What no pod may be or hold, whichever component it is of, and what each may do and reach."""

import json
from typing import Any

import pytest

from tests.helm.chart import SCENARIOS, Rendered, render

pytestmark = pytest.mark.tools

READ_AND_REMOVE = [
    (["batch"], ["jobs/status"], ["get"]),
    ([""], ["pods"], ["list", "get", "delete"]),
    ([""], ["pods/log"], ["get"]),
    ([""], ["events"], ["list"]),
]
WITH_TOKEN = {"Deployment/millrace-daemon", "Deployment/millrace-webserver"}
DATABASE, DNS, PUBLIC = "postgresql:5432", "dns", "public:443"


@pytest.fixture(params=SCENARIOS)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return render(request.param)


def test_every_pod_meets_the_restricted_standard(rendered: Rendered):
    """What Kubernetes' pod security standard `restricted` asks, and a root file system that cannot be written."""
    for name, pod in rendered.pods().items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        for volume in spec.get("volumes", ()):
            assert not volume.keys() - {"name", "configMap", "emptyDir", "secret", "persistentVolumeClaim"}, name
    for name, container in rendered.containers():
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert security["readOnlyRootFilesystem"] is True, name
        assert not {"privileged", "procMount", "runAsUser", "seccompProfile"} & security.keys(), name
        assert not [port for port in container.get("ports", ()) if "hostPort" in port], name


def test_every_container_has_requests_and_a_memory_limit(rendered: Rendered):
    """No CPU limit: it would throttle the imports of every run and probe."""
    for name, container in rendered.containers():
        resources = container["resources"]
        assert resources["requests"].keys() >= {"cpu", "memory"}, name
        assert "memory" in resources["limits"], name


def test_only_daemon_and_webserver_hold_a_token(rendered: Rendered):
    with_token = {name for name, pod in rendered.pods().items() if pod["spec"]["automountServiceAccountToken"]}
    accounts = rendered.of_kind("ServiceAccount")

    assert with_token == WITH_TOKEN
    assert all(account["automountServiceAccountToken"] is False for account in accounts)


def test_every_pod_has_an_account_of_its_component(rendered: Rendered):
    components: dict[str, set[str]] = {}
    for pod in rendered.pods().values():
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        components.setdefault(pod["spec"]["serviceAccountName"], set()).add(component)

    assert all(len(names) == 1 for names in components.values())
    assert "default" not in components


def test_rights_are_exactly_what_the_launcher_needs(rendered: Rendered):
    rules = {
        item["metadata"]["name"]: [(rule["apiGroups"], rule["resources"], rule["verbs"]) for rule in item["rules"]]
        for item in rendered.of_kind("Role")
    }

    assert rules == {
        "millrace-daemon": [(["batch"], ["jobs"], ["create", "list", "get", "delete"]), *READ_AND_REMOVE],
        "millrace-webserver": [(["batch"], ["jobs"], ["list", "get", "delete"]), *READ_AND_REMOVE],
    }
    assert rendered.of_kind("ClusterRole", "ClusterRoleBinding") == []
    for binding in rendered.of_kind("RoleBinding"):
        name = binding["metadata"]["name"]
        assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": "data"}]


def test_the_launchers_rights_are_where_the_runs_are():
    rendered = render("production")

    assert {item["metadata"]["namespace"] for item in rendered.of_kind("Role", "RoleBinding")} == {"millrace-runs"}
    assert rendered.run_job()["metadata"]["namespace"] == "millrace-runs"


@pytest.mark.parametrize("upgrade", [False, True], ids=["install", "upgrade"])
def test_the_generated_passwords_stand_in_their_secret_alone(upgrade: bool):
    rendered = render("default", upgrade=upgrade)
    (secret,) = rendered.of_kind("Secret")
    passwords = {value for key, value in secret["stringData"].items() if key.endswith("password")}
    others = json.dumps([item for item in rendered.objects if item is not secret] + [rendered.run_job()])

    assert len(passwords) == 3
    assert all(len(password) == 32 and password not in others for password in passwords)


def test_no_variable_or_argument_is_a_literal_secret(rendered: Rendered):
    """By its name: a password comes from a Secret or it is not there."""
    suspicious = ("PASSWORD", "SECRET", "TOKEN", "KEY", "DATABASE_URL")
    for name, container in rendered.containers():
        for variable in container.get("env", ()):
            if variable == {"name": "MILLRACE_DATABASE_URL", "value": "host=$(DATABASE_HOST) port=$(DATABASE_PORT)"}:
                continue  # the exporter's, whose roles have their own passwords
            if any(part in variable["name"] for part in suspicious):
                assert "value" not in variable, f"{name}: {variable['name']}"
                assert "secretKeyRef" in variable["valueFrom"], f"{name}: {variable['name']}"
        assert "://" not in json.dumps(container.get("args", [])), name
    for config in rendered.of_kind("ConfigMap"):
        assert not [key for key in config["data"] if any(part in key.upper() for part in suspicious)]
        assert "postgresql://" not in json.dumps(config["data"])


def test_an_existing_secret_leaves_none_to_make(rendered: Rendered):
    names = {item["metadata"]["name"] for item in rendered.of_kind("Secret")} - {"millrace-alertmanager"}
    used = {
        variable["valueFrom"]["secretKeyRef"]["name"]
        for _, container in rendered.containers()
        for variable in container.get("env", ())
        if variable["name"] in ("DATABASE_HOST", "DAGSTER_PG_PASSWORD", "POSTGRES_PASSWORD")
    }

    assert len(used) == 1
    assert names in (used, set())


def test_no_probe_starts_dagster(rendered: Rendered):
    """Such a probe costs a second of CPU each time."""
    for name, container in rendered.containers():
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            command = container.get(probe, {}).get("exec", {}).get("command", ["pg_isready"])
            assert command[0] == "pg_isready", name


PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def test_servers_are_probed_where_they_answer():
    rendered = render("gateway")
    (code,) = rendered.named("Deployment", "millrace-code-millrace")["spec"]["template"]["spec"]["containers"]
    (ui,) = rendered.named("Deployment", "millrace-webserver")["spec"]["template"]["spec"]["containers"]

    assert {probe: code[probe]["grpc"]["port"] for probe in PROBES} == dict.fromkeys(PROBES, 4000)
    assert {probe: ui[probe]["httpGet"]["path"] for probe in PROBES} == dict.fromkeys(PROBES, "/data/runs/server_info")
    assert ui["command"][-2:] == ["--path-prefix", "/data/runs"]


def test_a_rollout_never_lacks_a_server_and_never_doubles_the_daemon(rendered: Rendered):
    for deployment in rendered.of_kind("Deployment"):
        spec, pod = deployment["spec"], deployment["spec"]["template"]["spec"]
        name = deployment["metadata"]["name"].removeprefix("millrace-")
        if name in ("daemon", "exporter", "prometheus", "alertmanager"):
            assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
        else:
            assert spec["strategy"] == {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
            assert pod["containers"][0]["lifecycle"]["preStop"] == {"sleep": {"seconds": 5}}
        if name == "daemon" or name.startswith(("code", "webserver")):
            assert pod["terminationGracePeriodSeconds"] >= 70  # a code server drains for 60 s


def test_a_disruption_budget_is_for_several_and_lets_one_go(rendered: Rendered):
    replicas = {item["metadata"]["name"]: item["spec"]["replicas"] for item in rendered.of_kind("Deployment")}
    budgets = {item["metadata"]["name"]: item["spec"] for item in rendered.of_kind("PodDisruptionBudget")}

    assert budgets.keys() == {name for name, count in replicas.items() if count > 1}
    assert all(budget["maxUnavailable"] == 1 for budget in budgets.values())


def test_runs_are_below_the_services():
    rendered = render("default")
    values = {item["metadata"]["name"]: item["value"] for item in rendered.of_kind("PriorityClass")}
    pods = {name: pod["spec"] for name, pod in rendered.pods().items() if not name.startswith("Job/millrace-migration")}
    run, *services = (values[spec["priorityClassName"]] for spec in reversed(pods.values()))

    assert run < 0 < min(services)


def test_the_components_of_a_release_spread_over_nodes(rendered: Rendered):
    for deployment in rendered.of_kind("Deployment"):
        constraints = deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
        for constraint in constraints:
            assert constraint["labelSelector"]["matchLabels"] == deployment["spec"]["selector"]["matchLabels"]
    assert (
        render("bare")
        .named("Deployment", "millrace-daemon")["spec"]["template"]["spec"]
        .keys()
        .isdisjoint({"topologySpreadConstraints"})
    )


def test_placement_and_pull_secrets_reach_every_pod():
    rendered = render("everything")
    for name, pod in rendered.pods().items():
        where = "runs" if name.startswith("Job/dagster-run") else "services"
        assert pod["spec"]["nodeSelector"] == {"pool": where}, name
        assert pod["spec"]["tolerations"] == [{"key": where, "operator": "Exists"}], name
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}], name


def test_extras_reach_every_millrace_container():
    for name, container in render("everything").containers_of_ours():
        variables = {variable["name"] for variable in container["env"]}
        assert {"MILLRACE_PARTITIONS_PER_RUN", "SHOP_TOKEN"} <= variables, name
        assert {"configMapRef": {"name": "site-environment"}} in container["envFrom"], name
        mount = {"name": "project", "mountPath": "/srv/project", "readOnly": True}
        assert (mount in container["volumeMounts"]) is not name.startswith("Job/millrace-migration"), name


def test_every_millrace_container_has_the_environment_and_folders_of_the_image(rendered: Rendered):
    for name, container in rendered.containers_of_ours():
        variables = {variable["name"] for variable in container["env"]}
        paths = {mount["mountPath"] for mount in container["volumeMounts"]}
        of_dagster = {f"DAGSTER_PG_{part}" for part in ("HOST", "PORT", "USERNAME", "PASSWORD")}
        assert "MILLRACE_DATABASE_URL" in variables, name
        assert variables & of_dagster == (set() if container["name"] == "exporter" else of_dagster), name
        assert paths >= {"/tmp", "/var/lib/millrace", "/opt/millrace/dagster"}, name  # noqa: S108
    for config in rendered.of_kind("ConfigMap"):
        if config["metadata"]["name"] == "millrace-environment":
            assert config["data"]["MILLRACE_STATE_DIR"] == "/var/lib/millrace"
            assert config["data"]["DAGSTER_HOME"] == "/opt/millrace/dagster"
            assert int(config["data"]["DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS"]) > 60  # the daemon reads it


@pytest.mark.parametrize(
    ("scenario", "data"),
    [("default", "/var/lib/millrace-lake"), ("object-store", "s3://lake")],
    ids=["volume", "bucket"],
)
def test_who_works_on_the_lake_finds_it(scenario: str, data: str):
    rendered = render(scenario, "backup.enabled=true")
    on_volume = {
        name
        for name, pod in rendered.pods().items()
        if {"name": "lake", "persistentVolumeClaim": {"claimName": "millrace-lake"}} in pod["spec"]["volumes"]
    }
    keys = [each["env"] for _, each in rendered.containers_of_ours() if each["name"] != "exporter"]

    assert rendered.named("ConfigMap", "millrace-environment")["data"]["MILLRACE_LAKE_DATA"] == data
    if data.startswith("/"):
        assert {name.split("/")[1].split("-run-")[0] for name in on_volume} == {
            "millrace-code-millrace", "millrace-backup", "millrace-backup-1", "millrace-restore", "dagster",
        }  # fmt: skip
    else:
        assert on_volume == set()
        assert all({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= {v["name"] for v in env} for env in keys)


def test_the_pooler_serves_dagster_and_not_the_migration():
    rendered = render("pooled")
    hosts = {
        name: next(v for v in container["env"] if v["name"] == "DAGSTER_PG_HOST").get("value", "secret")
        for name, container in rendered.containers_of_ours()
        if container["name"] != "exporter"  # to the server too, see below
    }

    assert {name.split("/")[1] for name, host in hosts.items() if host == "secret"} == {"millrace-migration-1"}
    assert set(hosts.values()) == {"secret", "millrace-pgbouncer.data"}


def test_network_flows_are_exactly_these():
    """Whom each component admits, and what it reaches: everything else is denied."""
    rendered = render(
        "pooled",
        "webserver.readOnly.enabled=true,ingress.enabled=true,ingress.host=h.test,ingress.unauthenticated=true",
        "monitoring.mode=plain,monitoring.bundled.enabled=true",
    )
    pool = "pgbouncer:6432"

    assert {
        item["metadata"]["name"].removeprefix("millrace-"): _flows(item) for item in rendered.of_kind("NetworkPolicy")
    } == {
        "default-deny": ([], []),
        "code": (["daemon:4000", "webserver-read-only:4000", "webserver:4000"], [DNS, pool, DATABASE, "public:443,80"]),
        "daemon": ([], ["any:443,6443", "code:4000", DNS, pool, DATABASE]),
        "webserver": (
            ["exporter:3001", "ingress-nginx:3001", "test:3001"],
            ["any:443,6443", "code:4000", DNS, pool, DATABASE],
        ),
        "webserver-read-only": (["test:3001"], ["code:4000", DNS, pool, DATABASE]),
        "run-worker": ([], [DNS, pool, DATABASE, "public:443,80"]),
        "migration-1": ([], [DNS, pool, DATABASE]),
        "backup": ([], [DNS, pool, DATABASE]),
        "pgbouncer": (["release:6432"], [DNS, pool, DATABASE]),
        "postgresql": (["release:5432"], [DNS]),
        "test": ([], [DNS, "webserver:3001"]),
        "exporter": (
            ["alertmanager:9464", "monitoring:9464", "prometheus:9464"],
            ["alertmanager:9093", DNS, DATABASE, "webserver:3001"],
        ),
        "prometheus": (["monitoring:9090"], ["alertmanager:9093", DNS, "exporter:9464"]),
        "alertmanager": (["exporter:9093", "prometheus:9093"], [DNS, "exporter:9464", "public:443,587"]),
    }


def test_an_external_server_and_a_bucket_are_reached_by_who_needs_them():
    flows = {
        item["metadata"]["name"].removeprefix("millrace-"): _flows(item)[1]
        for item in render("production").of_kind("NetworkPolicy")
    }
    server = "millrace-postgres:5432"

    assert flows["run-worker"] == [DNS, server, PUBLIC, "public:443,80"]
    assert flows["backup"] == [DNS, server, PUBLIC]
    assert flows["exporter"] == ["any:443", DNS, server, "webserver:3001"]  # the ingress, for its certificate
    assert flows["daemon"] == ["10.41.0.1/32:6443", "code:4000", DNS, server, PUBLIC]


def test_every_pod_has_a_policy_and_the_default_is_none(rendered: Rendered):
    policies = rendered.of_kind("NetworkPolicy")
    for name, pod in rendered.pods().items() if policies else ():
        labels = pod["metadata"]["labels"].items()
        selecting = [
            p["metadata"]["name"] for p in policies if p["spec"]["podSelector"]["matchLabels"].items() <= labels
        ]
        assert len(set(selecting)) == 2, f"{name}: {selecting}"
    assert all(policy["spec"]["policyTypes"] == ["Ingress", "Egress"] for policy in policies)


def test_public_is_nowhere_in_the_cluster():
    (rule,) = [
        rule
        for rule in render("default").named("NetworkPolicy", "millrace-run-worker")["spec"]["egress"]
        if {"port": 80} in rule["ports"]
    ]
    blocks = {peer["ipBlock"]["cidr"]: set(peer["ipBlock"]["except"]) for peer in rule["to"]}

    assert blocks["0.0.0.0/0"] >= {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"}
    assert blocks["::/0"] >= {"fc00::/7", "fe80::/10"}


def _flows(policy: dict[str, Any]) -> tuple[list[str], list[str]]:
    """A policy as words: who comes in, where it goes."""
    found = []
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        words = []
        for rule in policy["spec"].get(direction, []):
            ports = ",".join(str(port["port"]) for port in rule["ports"] if port.get("protocol") != "UDP")
            words += [DNS if ports == "53" else f"{_peer(peer)}:{ports}" for peer in rule.get(peers, [{}])]
        found.append(sorted(set(words)))
    return found[0], found[1]


def _peer(peer: dict[str, Any]) -> str:
    if "ipBlock" in peer:
        return "public" if "except" in peer["ipBlock"] else str(peer["ipBlock"]["cidr"])
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    if "cnpg.io/cluster" in labels:
        return str(labels["cnpg.io/cluster"])
    if labels:
        return str(labels.get("app.kubernetes.io/component", "release"))
    return str(peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name", "any"))


def test_old_compute_logs_are_deleted_where_they_are_written_and_nowhere_else():
    rendered = render("object-store")
    written = rendered.file("dagster.yaml")["compute_logs"]["config"]
    (environment,) = (
        item for item in rendered.of_kind("ConfigMap") if item["metadata"]["name"] == "millrace-environment"
    )

    assert environment["data"]["MILLRACE_COMPUTE_LOGS"] == f"s3://{written['bucket']}/{written['prefix']}"
    assert written["prefix"]


@pytest.mark.parametrize(
    ("settings", "reached"),
    [
        ("ingress.enabled=true,ingress.host=h.test,ingress.unauthenticated=true", "millrace-webserver"),
        ("ingress.enabled=true,ingress.host=h.test,ingress.readOnly=true", "millrace-webserver-read-only"),
        ("ingress.enabled=false", ""),
    ],
)
def test_the_controller_reaches_the_published_ui_alone(settings: str, reached: str):
    policies = render("default", f"webserver.readOnly.enabled=true,{settings}").of_kind("NetworkPolicy")
    controller = {"kubernetes.io/metadata.name": "ingress-nginx"}
    admitting = [
        policy["metadata"]["name"]
        for policy in policies
        for rule in policy["spec"].get("ingress", ())
        for peer in rule.get("from", ())
        if peer.get("namespaceSelector", {}).get("matchLabels") == controller
    ]

    assert admitting == ([reached] if reached else [])


def test_a_cloud_role_is_of_those_that_use_the_bucket_alone():
    accounts = render("production", "backup.enabled=true").of_kind("ServiceAccount")
    with_role = {
        account["metadata"]["name"].removeprefix("millrace-")
        for account in accounts
        if "annotations" in account["metadata"]
    }

    assert with_role == {"backup", "code", "daemon", "run", "webserver"}


@pytest.mark.parametrize(
    ("settings", "together"),
    [
        ("lake.type=volume", True),
        ("lake.volume.accessModes={ReadWriteMany},computeLogs.type=none", False),
        ("lake.volume.accessModes={ReadWriteMany}", True),
        ("lake.type=s3,lake.url=s3://b/l,computeLogs.type=none", False),
    ],
)
def test_pods_that_share_a_volume_of_one_node_are_kept_together(settings: str, together: bool):
    """By themselves they would land on many nodes and wait for the volume for ever."""
    pods = render("default", settings).pods()
    for name, pod in pods.items():
        shared = [volume for volume in pod["spec"]["volumes"] if volume["name"] in ("lake", "logs")]
        if not shared:
            continue
        terms = (
            pod["spec"]
            .get("affinity", {})
            .get("podAffinity", {})
            .get("requiredDuringSchedulingIgnoredDuringExecution", [])
        )
        assert bool(terms) is together, name
        for term in terms:
            (component,) = term["labelSelector"]["matchExpressions"]
            labels = pod["metadata"]["labels"]
            assert labels["app.kubernetes.io/component"] in component["values"], name
            assert term["labelSelector"]["matchLabels"].items() <= labels.items(), name
