"""Where things are and how much they may use: every environment variable, read once.

What exists (sources, models, schedules) is in the project folder, not here. Secrets come in by the standard ``AWS_*``
variables, the ``${NAME}`` references of source files, and the settings of type ``SecretStr``: each of those also from the
file that ``MILLRACE_<NAME>_FILE`` names.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.cgroup import memory_limit
from pipeline.errors import ConfigError

BUNDLED_PROJECT = Path(__file__).parent / "projects" / "nyc"
FULL_TAG = "millrace/full"  # of a run that loads every file and rebuilds every model: "true"
MEMORY_TAG, CPU_TAG = "millrace/memory", "millrace/cpu"  # of a run, or of an asset for every run of it
PROFILES_DIR = Path(__file__).parent / "transform"
GIB = 1 << 30
FASTEST_BURN = 14.4  # of the error budget, in multiples of the rate that would last (deploy/rules/slo.yaml)
EMBEDDED_WEBHOOK_URL = "http://localhost:3000/api/v1/alerts"
HOST_AND_PORT = re.compile(
    r"(\[(?P<v6>[0-9A-Fa-f:]+)\]|(?P<host>[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?))(:(?P<port>[1-9]\d{0,4}))?"
)
MAX_CERTIFICATE_HOSTS = 20
LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Role = Literal["millrace", "lake_reader", "exporter"]


class Schedules(BaseModel):
    """Cron expressions, UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    daily_dbt_build: str = Field("0 2 * * *", description="Load every source, build every model, check both.")
    maintain_lake: str = Field("0 4 * * 0", description="Compact files, expire snapshots, remove orphans.")
    purge_history: str = Field("0 3 * * *", description="Remove logs and run history past the retention.")
    monitor_health: str = Field(
        "*/15 * * * *", description="Record the services' health as assets. Off until turned on."
    )


class Limit(BaseModel):
    """CPU and memory of the runs of some assets, or of a job, where each run is a pod; on one machine it does nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    assets: str = Field("", description="Asset keys, with `*`: raw/tlc/*")
    job: str = Field("", description="A job's name.")
    memory: str = Field(
        "", pattern=r"^(\d+(\.\d+)?([KMGT]i?)?)?$", description="Request and limit, as Kubernetes writes it: 4Gi"
    )
    cpu: str = Field("", pattern=r"^(\d+(\.\d+)?|\d+m)?$", description="Request: 2, 500m")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.assets) == bool(self.job):
            raise ValueError("give either `assets` or `job`")
        if not (self.memory or self.cpu):
            raise ValueError("give `memory`, `cpu` or both")
        return self

    @property
    def tags(self) -> dict[str, str]:
        """What the launcher of the cluster reads, on an asset or a run."""
        return {tag: amount for tag, amount in ((MEMORY_TAG, self.memory), (CPU_TAG, self.cpu)) if amount}


class Project(BaseModel):
    """A project's ``millrace.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    generate: str = Field(
        "", pattern=r"^([\w.]+:\w+)?$", description="module:function that writes example data into a folder."
    )
    schedules: Schedules = Schedules()
    limits: tuple[Limit, ...] = ()

    @classmethod
    def load(cls, directory: Path) -> "Project":
        """The project in *directory*.

        Raises:
            ConfigError: naming the file and each key that is missing, unknown or unusable.
        """
        path = directory / "millrace.yaml"
        import yaml

        try:
            return cls.model_validate(yaml.safe_load(path.read_text()) or {})
        except FileNotFoundError:
            raise ConfigError(
                f"{path}: there is no such file. Set MILLRACE_PROJECT_DIR to a project, or make one with `millrace init DIR`."
            ) from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise ConfigError(f"{path}: {wrong}") from None


class SecretFiles(EnvSettingsSource):
    """The secrets that variables ``MILLRACE_<NAME>_FILE`` name a file of, as orchestrators mount them."""

    def __call__(self) -> dict[str, Any]:
        found = {}
        for name, field in self.settings_cls.model_fields.items():
            variable = f"{self.env_prefix}{name}".upper()
            path = os.environ.get(f"{variable}_FILE")
            if not path or SecretStr not in (field.annotation, *get_args(field.annotation)):
                continue
            if os.environ.get(variable):
                raise ConfigError(f"{variable} and {variable}_FILE are both set. Unset one.")
            try:
                found[name] = Path(path).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"{variable}_FILE: {path} cannot be read: {error}. Correct the path or the file's rights."
                ) from error
        return found


class Settings(BaseSettings):
    """One process's view of its surroundings. Build it with `load`, pass it down, never read ``os.environ``."""

    model_config = SettingsConfigDict(env_prefix="MILLRACE_", frozen=True, extra="ignore")

    project_dir: Path = Field(BUNDLED_PROJECT, description="Folder with millrace.yaml, sources/ and dbt/.")
    state_dir: Path = Field(
        Path(".millrace"), description="Everything that is made: embedded database, lake, logs, dbt target."
    )
    database_url: SecretStr | None = Field(
        None, description="postgresql://user:password@host:port/ of the server; unset: the embedded one."
    )
    lake_data: str = Field("", description="Folder or s3://bucket/prefix of the lake's files; empty: <state>/lake.")
    data_dir: Path | None = Field(None, description="Folder that file sources read instead of their public addresses.")
    compute_logs: str = Field(
        "", description="Folder or s3://bucket/prefix of what runs print; empty: <state>/logs/compute."
    )
    instance_dir: Path | None = Field(
        None,
        description="Folder of a dagster.yaml and workspace.yaml made by others; unset: <state>/dagster, made here.",
    )
    connectors_dir: Path | None = Field(
        None, description="Environments of PyAirbyte and of the connectors; unset: <state>/connectors."
    )
    dbt_parsed_dir: Path | None = Field(
        None, description="Folder of an image in which the dbt project is kept parsed; unset: <state>/dbt/target."
    )
    scratch_dir: Path | None = Field(None, description="Downloads and spill files; unset: <state>/scratch.")
    memory_limit_gib: PositiveFloat | None = Field(
        None,
        description="DuckDB's memory limit, GiB; unset: half the cgroup's limit, else a quarter of the machine's memory, 2 at most.",
    )
    threads: PositiveInt | None = Field(None, description="DuckDB threads; unset: one per available core, 8 at most.")
    s3_endpoint: str = Field("", description="host:port or URL of an S3 server other than AWS.")
    s3_region: str = Field("us-east-1", description="Region of the lake's bucket.")
    partitions_per_run: PositiveInt | None = Field(
        None, description="Months of a backfill that one run loads; unset: all in a single run."
    )
    retention_days: PositiveInt = Field(30, description="Days that logs and run history are kept.")
    ui_port: PositiveInt = Field(3001, description="Port of the Dagster UI.")
    code_server_port: PositiveInt = Field(4000, description="Port of the code server.")
    metrics_port: PositiveInt = Field(9464, description="Port of the exporter.")
    metrics_interval_seconds: PositiveFloat = Field(15, description="How often the exporter reads what is new.")
    monitor_interval_seconds: PositiveFloat = Field(
        30, description="How often the monitor takes a sample; not oftener than the exporter reads."
    )
    monitor_retention_days: PositiveInt = Field(7, description="Days that the monitor's samples are kept.")
    webserver_url: str = Field(
        "", description="Where the exporter asks for jobs and schedules; empty: the UI's port here."
    )
    alert_failure_ratio: PositiveFloat = Field(0.10, description="An alert fires above this share of failed runs.")
    alert_slow_run_seconds: PositiveFloat = Field(300, description="A run that takes longer is slow.")
    alert_memory_ratio: PositiveFloat = Field(0.80, description="An alert fires above this share of a memory limit.")
    alert_unavailable_seconds: PositiveFloat = Field(
        120, description="A service that is away for longer is unavailable."
    )
    alert_daemon_silent_seconds: float = Field(
        180,
        ge=60,
        description="A daemon without a heartbeat for longer is down. One comes every 30 s; Dagster itself waits for 1800.",
    )
    alertmanager_url: str = Field("", description="Alertmanager that is asked for silences; empty: they are kept here.")
    alerts_evaluate: bool = Field(
        default_factory=lambda read: read.get("database_url") is None and not read.get("alertmanager_url"),
        description="The exporter evaluates the required alerts itself and notifies; unset: with the embedded database "
        "and no Alertmanager, so that nobody is told twice.",
    )
    alert_labels: str = Field(
        "",
        description="Labels that tell this installation's alerts from others' in the same Alertmanager, as "
        "namespace=data,release=millrace: silences are for those alone.",
    )
    notify_localhost: bool = Field(
        default_factory=lambda read: read.get("database_url") is None,
        description="Without a webhook what listens on port 3000 here, if anything does, is one; unset: with the "
        "embedded database.",
    )
    notify_webhook_url: SecretStr = Field(
        default_factory=lambda read: SecretStr(EMBEDDED_WEBHOOK_URL if read.get("notify_localhost") else ""),
        description="Gets alerts and messages as Alertmanager sends them; unset: see notify_localhost; empty: there is none.",
    )
    notify_webhook_token: SecretStr | None = Field(None, description="Bearer token for the webhook.")
    notify_slack_url: SecretStr | None = Field(None, description="Incoming webhook of a Slack channel.")
    notify_teams_url: SecretStr | None = Field(None, description="Workflow webhook of a Teams channel.")
    notify_email_to: str = Field("", description="Addresses that get alerts and messages, with commas between.")
    notify_email_from: str = Field("", description="Their sender; empty: smtp_user, else millrace@ and this host.")
    smtp_host: str = Field("", description="Mail server that takes them.")
    smtp_port: PositiveInt | None = Field(
        None, description="Its port; unset: 587 for starttls, 465 for tls, 25 for none."
    )
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="How the connection is encrypted; none: only for a server that wants no password."
    )
    smtp_user: str = Field("", description="Who logs in to the mail server; empty: nobody.")
    smtp_password: SecretStr | None = Field(None, description="Its password.")
    price_cpu_hour: NonNegativeFloat = Field(
        0.04048,
        description="Money for an hour of a core, for `millrace advise`; default: AWS Fargate, Linux/x86, us-east-1, June 2026.",
    )
    price_gib_hour: NonNegativeFloat = Field(0.004445, description="Money for an hour of a GiB of memory, likewise.")
    price_currency: str = Field("USD", description="What the two prices are in.")
    slo_success_ratio: float = Field(
        0.99,
        gt=0,
        lt=1,
        description="Share of runs that are to succeed: alerts fire at the rate at which the rest is used up. At least 0.9306.",
    )
    backup_max_age_seconds: NonNegativeInt = Field(
        0, description="An alert fires if the last backup that succeeded is older; 0: none are expected."
    )
    certificate_hosts: str = Field(
        "", description="host or host:port, with commas between: the exporter tells until when their certificates hold."
    )
    service_memory_gib: PositiveFloat = Field(2.0, description="Memory cap of each process of `millrace up`, GiB.")
    commit: str = Field("", description="Commit that an image was built from.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then variables, then the files that variables name."""
        return init_settings, env_settings, SecretFiles(settings_cls)

    @field_validator(
        "project_dir",
        "state_dir",
        "data_dir",
        "instance_dir",
        "connectors_dir",
        "dbt_parsed_dir",
        "scratch_dir",
        mode="after",
    )
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and Path(os.path.abspath(path.expanduser()))  # noqa: PTH100  (resolve() would follow symlinks)

    @field_validator("slo_success_ratio", mode="after")
    @classmethod
    def _can_burn(cls, ratio: float) -> float:
        if FASTEST_BURN * (1 - ratio) >= 1:
            raise ValueError(
                f"{ratio:g} leaves so much that not even runs that all fail use it up {FASTEST_BURN:g} times as fast as they may, "
                f"at which the first alert fires: at least {1 - 1 / FASTEST_BURN:.4f} is wanted"
            )
        return ratio

    @field_validator("certificate_hosts", mode="after")
    @classmethod
    def _readable(cls, hosts: str) -> str:
        _addresses_of(hosts)
        return hosts

    @field_validator("alert_labels", mode="after")
    @classmethod
    def _paired(cls, labels: str) -> str:
        _labels_of(labels)
        return labels

    @classmethod
    def load(cls) -> "Settings":
        """The settings of this process's environment.

        Raises:
            ConfigError: naming the variable that has an unusable value.
        """
        try:
            return cls()
        except ValidationError as error:
            wrong = "; ".join(
                f"MILLRACE_{'_'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()
            )
            raise ConfigError(f"Reading the environment: {wrong}. Correct or unset the variable.") from None

    # Derived places. Each is made by who writes there.

    @property
    def is_embedded(self) -> bool:
        """True if the database is the one this platform starts itself."""
        return self.database_url is None

    @property
    def lake_path(self) -> str:
        """Folder (absolute) or ``s3://`` prefix of the lake's Parquet files, ending in a slash."""
        return f"{self.lake_data or self.state_dir / 'lake'}".rstrip("/") + "/"

    @property
    def connectors_path(self) -> Path:
        """Folder of the connector environments."""
        return self.connectors_dir or self.state_dir / "connectors"

    @property
    def scratch_path(self) -> Path:
        """Folder of downloads and spill files."""
        return self.scratch_dir or self.state_dir / "scratch"

    @property
    def extensions_path(self) -> Path:
        """DuckDB's extension directory, for processes that load extensions by name (dbt)."""
        return self.state_dir / "duckdb_extensions"

    @property
    def dbt_target_path(self) -> Path:
        """Where dbt writes manifest.json and its caches for this project."""
        return self.state_dir / "dbt" / "target"

    @property
    def dagster_home(self) -> Path:
        """DAGSTER_HOME: dagster.yaml and workspace.yaml."""
        return self.instance_dir or self.state_dir / "dagster"

    @property
    def compute_log_path(self) -> str:
        """Folder (absolute) or ``s3://`` prefix of the runs' compute logs, without a slash at its end."""
        return f"{self.compute_logs or self.log_path / 'compute'}".rstrip("/")

    @property
    def log_path(self) -> Path:
        """Folder of the services' logs, and by default of the runs' compute logs."""
        return self.state_dir / "logs"

    @property
    def memory_limit_bytes(self) -> int:
        """DuckDB's memory limit. A process needs about twice as much in all, hence half of the cgroup's limit."""
        if self.memory_limit_gib is not None:
            return int(self.memory_limit_gib * GIB)
        limit = memory_limit()
        if limit is not None:
            return limit // 2
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return min(total // 4, 2 * GIB)

    @property
    def certificate_addresses(self) -> dict[str, tuple[str, int]]:
        """Host and port of each of `certificate_hosts`, by what is written there."""
        return _addresses_of(self.certificate_hosts)

    @property
    def own_labels(self) -> dict[str, str]:
        """Name and value of each of `alert_labels`."""
        return _labels_of(self.alert_labels)

    @property
    def thread_count(self) -> int:
        """DuckDB's threads."""
        if self.threads is not None:
            return self.threads
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(available, 8)

    # The one database address, as each kind of child wants it.

    def libpq(self, database: str, role: Role | None = None) -> dict[str, str]:
        """libpq keywords (host, port, user, password, sslmode …) for *database*; *role* replaces the user.

        Raises:
            ConfigError: if no database is configured, or its address cannot be read.
        """
        if self.database_url is None:
            raise ConfigError(
                "No database: MILLRACE_DATABASE_URL is not set. Run the command under `millrace env`, "
                "which starts the embedded PostgreSQL, or set it to postgresql://user:password@host:port/."
            )
        import psycopg2.extensions  # 20 ms, and most commands do not need it

        try:
            parts: dict[str, str] = psycopg2.extensions.parse_dsn(self.database_url.get_secret_value())
        except psycopg2.ProgrammingError:
            raise ConfigError(
                "MILLRACE_DATABASE_URL is not a PostgreSQL address. "
                "It looks like postgresql://user:password@host:port/?sslmode=require."
            ) from None
        parts["dbname"] = database
        parts.setdefault("user", "millrace")
        if role is not None and role != parts["user"]:
            parts["user"] = role
            password = os.environ.get(f"MILLRACE_{role.upper()}_PASSWORD")
            parts.pop("password", None)
            if password:
                parts["password"] = password
        return parts

    def s3_options(self) -> dict[str, Any]:
        """The server of buckets, as obstore's ``S3Store`` takes it."""
        options: dict[str, Any] = {"region": self.s3_region}
        if self.s3_endpoint:
            options["endpoint"] = self.s3_endpoint if "://" in self.s3_endpoint else f"https://{self.s3_endpoint}"
            options["virtual_hosted_style_request"] = False
        return options

    def libpq_environment(self, database: str = "lake", role: Role | None = None) -> dict[str, str]:
        """``PG*`` variables: what DuckDB's catalogue connection, dbt and psql read. Never put into arguments."""
        names = {"dbname": "PGDATABASE", "host": "PGHOST", "port": "PGPORT", "user": "PGUSER",
                 "password": "PGPASSWORD", "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT",
                 "connect_timeout": "PGCONNECT_TIMEOUT"}  # fmt: skip
        parts = {"port": "5432", "connect_timeout": "10", **self.libpq(database, role)}
        return {names[key]: value for key, value in parts.items() if key in names}

    def project_environment(self) -> dict[str, str]:
        """What tells a child process where the project and its output are. It needs no database."""
        return {
            "MILLRACE_PROJECT_DIR": str(self.project_dir),
            "MILLRACE_STATE_DIR": str(self.state_dir),
            "MILLRACE_LAKE_DATA": self.lake_path,
            "MILLRACE_LAKE_MEMORY": f"{self.memory_limit_bytes // (1 << 20)}MiB",
            "MILLRACE_LAKE_THREADS": str(self.thread_count),
            "MILLRACE_DUCKDB_EXTENSIONS": str(self.extensions_path),
            "MILLRACE_SCRATCH_DIR": str(self.scratch_path),
            "MILLRACE_CONNECTORS_DIR": str(self.connectors_path),
            "MILLRACE_S3_REGION": self.s3_region,
            **({"MILLRACE_S3_ENDPOINT": self.s3_endpoint} if self.s3_endpoint else {}),
            **({"MILLRACE_DATA_DIR": str(self.data_dir)} if self.data_dir else {}),
            **({"MILLRACE_DBT_PARSED_DIR": str(self.dbt_parsed_dir)} if self.dbt_parsed_dir else {}),
            "DAGSTER_HOME": str(self.dagster_home),
            "DBT_PROJECT_DIR": str(self.project_dir / "dbt"),
            "DBT_PROFILES_DIR": str(PROFILES_DIR),
            "DBT_TARGET_PATH": str(self.dbt_target_path),
            "DBT_LOG_PATH": str(self.log_path / "dbt"),
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        }

    def child_environment(self) -> dict[str, str]:
        """What a child process (dbt, dagster, psql) needs on top of this process's environment.

        Raises:
            ConfigError: if there is no database.
        """
        pg = self.libpq("dagster")
        is_socket = pg.get("host", "").startswith("/")
        return {
            **self.project_environment(),
            **self.libpq_environment(),
            "MILLRACE_DATABASE_URL": self.database_url.get_secret_value() if self.database_url else "",
            # Empty for a socket: libpq then takes PGHOST, and dagster.yaml is the same everywhere.
            "DAGSTER_PG_HOST": "" if is_socket else pg.get("host", ""),
            "DAGSTER_PG_PORT": pg.get("port", "5432"),
            "DAGSTER_PG_USERNAME": pg["user"],
            "DAGSTER_PG_PASSWORD": pg.get("password", ""),
            "DAGSTER_PG_DB": "dagster",
            # To a child the embedded database is one with an address: what follows from it would be lost.
            "MILLRACE_ALERTS_EVALUATE": str(self.alerts_evaluate).lower(),
            "MILLRACE_NOTIFY_LOCALHOST": str(self.notify_localhost).lower(),
        }


def _addresses_of(hosts: str) -> dict[str, tuple[str, int]]:
    """Each of *hosts* as it is written → name or address, and port.

    Raises:
        ValueError: naming the one that is neither a host nor host:port.
    """
    found = {}
    for name in filter(None, map(str.strip, hosts.split(","))):
        parts = HOST_AND_PORT.fullmatch(name)
        if not parts or int(parts["port"] or 443) > 65535:
            raise ValueError(f"{name!r} is neither a host nor host:port")
        found[name] = (parts["v6"] or parts["host"], int(parts["port"] or 443))
    if len(found) > MAX_CERTIFICATE_HOSTS:
        raise ValueError(f"{len(found)} hosts, of which {MAX_CERTIFICATE_HOSTS} are asked at most")
    return found


def _labels_of(text: str) -> dict[str, str]:
    """``a=x,b=y`` as a mapping. Raises ValueError naming the part that is no label with its value."""
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = part.partition("=")
        if not (LABEL.fullmatch(name) and value) or name in found:
            raise ValueError(f"{part!r} is no NAME=VALUE of a label, or its name comes twice")
        found[name] = value
    return found


@contextmanager
def process_environment(values: Mapping[str, str]) -> Iterator[None]:
    """*values* as this process's environment variables within the block, for libraries that read nothing else."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
