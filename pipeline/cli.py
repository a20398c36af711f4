"""The command `millrace`: parse, one call, print. Everything heavy is imported inside the commands."""

import atexit
import contextlib
import gc
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.ingest.spec import SourceFile
    from pipeline.lake.connection import Lake
    from pipeline.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Group):
    """A group that turns our errors into one line on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            from pipeline.errors import MillraceError

            if isinstance(error, MillraceError):
                raise click.ClickException(str(error)) from error
            raise


@click.group(cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--project", type=click.Path(file_okay=False, path_type=Path), help="Project folder (MILLRACE_PROJECT_DIR)."
)
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), help="State folder (MILLRACE_STATE_DIR).")
def main(project: Path | None, state: Path | None) -> None:
    """Millrace: sources → lake → models, on one machine or a cluster."""
    atexit.register(gc.freeze)  # a last collection of all that Dagster has loaded takes 0.7 s
    # A shell's background job ignores SIGINT; Dagster gives SIGTERM the same handler, and `millrace run &` could not
    # be ended, nor its dbt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if project:
        os.environ["MILLRACE_PROJECT_DIR"] = str(project.resolve())
    if state:
        os.environ["MILLRACE_STATE_DIR"] = str(state.resolve())


def _settings(*, database: bool = True) -> "Settings":
    from pipeline.settings import Settings

    settings = Settings.load()
    if database:
        from pipeline.operate.database import with_database

        settings = with_database(settings)
    return settings


@contextlib.contextmanager
def _lake(*, read_only: bool = False) -> Iterator["Lake"]:
    from pipeline.lake.connection import Lake

    with Lake.open(_settings(), read_only=read_only) as lake:
        yield lake


def _console(*, error: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=error, highlight=False, soft_wrap=True)


def _print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None, vertical: bool = True
) -> None:
    from rich.table import Table
    from rich.text import Text

    console = _console()
    if not console.is_terminal:
        console.width = 160
    cut = 0
    widths = [max([len(name), *(len(_shown(row[i])) for row in rows[:100])]) + 3 for i, name in enumerate(columns)]
    if (
        vertical and rows and len(columns) > 5 and sum(widths) > console.width
    ):  # too wide to read: one line a column instead
        shown = rows[: max(1, min(len(rows), 4))]
        cut = len(rows) - len(shown)
        rows = [[name, *(row[i] for row in shown)] for i, name in enumerate(columns)]
        columns = ["column", *(f"row {number}" for number in range(1, len(shown) + 1))]
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float) or row[i] is None for row in rows)
        for i in range(len(columns))
    ]
    table = Table(title=Text(title) if title else None, title_justify="left", title_style="bold", header_style="bold")
    for name, is_number in zip(columns, numeric, strict=True):
        table.add_column(Text(name), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(value)) for value in row))
    console.print(table)
    if cut:
        console.print(f"{cut:,} more rows: widen the terminal, or send the output to a file or pager")


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.15g}"
    return str(value)


# run


@main.command()
@click.option("--select", default="*", show_default=True, help="Asset keys: raw/tlc/*,+marts/fct_trips")
@click.option("--partition", help="A month (2021-01) or a range (2021-01...2021-03); default: what is new or changed.")
@click.option("--full", is_flag=True, help="Load every file again and rebuild every model.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def run(select: str, partition: str | None, full: bool, as_json: bool) -> None:
    """Load sources, build models, check both, here and now."""
    from pipeline.operate.console import progress, show_summary
    from pipeline.operate.run import run as run_assets

    settings = _settings()
    with progress(_console(error=True)) as (report, log):
        summary = run_assets(settings, select=select, partition=partition, full=full, report=report, log=log)
    if as_json:
        click.echo(json.dumps(summary.as_dict(), indent=2, default=str))
    else:
        show_summary(_console(), summary)
    sys.exit(0 if summary.succeeded else 1)


@main.command()
@click.option("--days", default=14.0, show_default=True, type=click.FloatRange(1, 366), help="How far to look back.")
@click.option("--job", help="Look at the runs of this job alone.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON on stdout.")
def advise(days: float, job: str | None, as_json: bool) -> None:
    """Say what to change to save time and money, with the evidence, and what each asset costs."""
    import time

    from pipeline.operate.advise import advise as look
    from pipeline.operate.advise import show

    report = look(_settings(), days=days, now=time.time(), job=job)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        show(_console(), report)


# services


@main.command()
@click.option("--foreground", is_flag=True, help="Stay, and stop the services when interrupted.")
def up(foreground: bool) -> None:
    """Start code server, daemon, UI and exporter."""
    from pipeline.operate import services

    services.up(_settings(), foreground=foreground, echo=click.echo)


@main.command()
def down() -> None:
    """Stop everything that `up` started, and the embedded database."""
    from pipeline.operate import services

    services.down(_settings(database=False), echo=click.echo)


@main.command()
def status() -> None:
    """Show the services and their health; exit 1 unless all are healthy."""
    from pipeline.operate import services

    found = services.status(_settings(database=False))
    _print_table(["service", "state", "detail"], [[item.name, item.state, item.detail] for item in found])
    sys.exit(0 if all(item.state == "healthy" for item in found) else 1)


@main.command()
@click.option("--hours", default=24.0, show_default=True, help="How far back to look.")
@click.option("--json", "as_json", is_flag=True, help="Print the exporter's whole answer.")
def monitor(hours: float, as_json: bool) -> None:
    """Show services, runs and assets, as the exporter sees them; exit 1 if a service is down."""
    from pipeline.operate.console import show_monitor
    from pipeline.operate.monitor import ask_exporter

    answer = ask_exporter(_settings(database=False), "/monitor", dict, hours=hours)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        show_monitor(_console(), answer)
    sys.exit(1 if any(service["state"] == "down" for service in answer["services"]) else 0)


@main.command()
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def env(command: tuple[str, ...]) -> None:
    """Print the variables for plain dbt, dagster and psql, or run COMMAND with them.

    \b
    eval "$(millrace env)"
    millrace env -- dbt build
    """
    from pipeline.lake.connection import install_extensions
    from pipeline.operate.database import postgres_bin
    from pipeline.operate.instance import ensure_instance

    settings = _settings()
    install_extensions(settings.extensions_path)
    variables = settings.child_environment()
    os.environ.update(variables)
    ensure_instance(settings)
    settings.scratch_path.mkdir(parents=True, exist_ok=True)
    folders = [str(Path(sys.executable).parent)]
    with contextlib.suppress(Exception):
        folders.append(str(postgres_bin()))
    path = os.pathsep.join([*folders, os.environ.get("PATH", "")])
    if command:
        os.environ["PATH"] = path
        try:
            os.execvp(command[0], command)  # noqa: S606
        except OSError as error:
            raise click.ClickException(f"Starting {command[0]}: {error.strerror}.") from error
    for name, value in sorted(variables.items()):
        click.echo(f"export {name}={shlex.quote(value)}")
    click.echo(f"export PATH={shlex.quote(path)}")


# cluster


@main.command()
def version() -> None:
    """Print what this installation consists of."""
    from importlib.metadata import version as version_of

    commit = _settings(database=False).commit
    click.echo(f"millrace {version_of('millrace')}{f' (commit {commit})' if commit else ''}")
    click.echo(f"python {sys.version.split()[0]}")
    for name in ("dagster", "dbt-core", "dbt-duckdb", "duckdb", "duckdb-extension-ducklake"):
        click.echo(f"{name} {version_of(name)}")


@main.command("wait-database")
@click.option("--tables", is_flag=True, help="Wait for tables of this version or a newer one too.")
@click.option("--timeout", default=600.0, show_default=True, help="Seconds.")
def wait_database(tables: bool, timeout: float) -> None:
    """Wait until the database answers, and say what is missing meanwhile."""
    from pipeline.operate.schema import wait_until_ready

    wait_until_ready(_settings(), tables=tables, timeout_seconds=timeout, echo=click.echo)


@main.command()
def migrate() -> None:
    """Make databases, roles and tables as far as they are missing, and bring them to this version."""
    from pipeline.operate.schema import migrate as make_tables
    from pipeline.operate.schema import schema_version

    settings = _settings()
    changed = make_tables(settings)
    click.echo(f"The tables are {'now ' if changed else ''}those of {schema_version(settings)}.")


THEIR_OPTIONS = {"ignore_unknown_options": True, "help_option_names": ["--help"]}  # -h is the host to them


@main.group()
def serve() -> None:
    """Run one service of a cluster, until it is told to stop."""


@serve.command()
def daemon() -> None:
    """Run Dagster's daemon: few sessions, retries that wait for code locations, and beside it the reaper of run Jobs."""
    from dagster._daemon.cli import run_command

    from pipeline.launch import reaper, retries, sessions
    from pipeline.operate import service_memory

    settings = _settings(database=False)
    retries.install()
    sessions.install()
    reaper.start()
    service_memory.start(settings, "daemon")
    workspace = settings.dagster_home / "workspace.yaml"
    run_command.main(["-w", str(workspace)], prog_name="dagster-daemon run")


@serve.command("code-server", context_settings=THEIR_OPTIONS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def code_server(arguments: tuple[str, ...]) -> None:
    """Run a code location; ARGUMENTS are those of `dagster code-server start`."""
    from dagster._cli.code_server import start_command

    from pipeline.operate import service_memory

    service_memory.start(_settings(database=False), "code-server")
    start_command.main(list(arguments), prog_name="dagster code-server start")


@serve.command(context_settings=THEIR_OPTIONS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def webserver(arguments: tuple[str, ...]) -> None:
    """Run Dagster's UI; ARGUMENTS are those of `dagster-webserver`."""
    from dagster_webserver.cli import dagster_webserver

    from pipeline.launch import sessions
    from pipeline.operate import service_memory

    sessions.outlive_the_server()
    service_memory.start(_settings(database=False), "webserver")
    dagster_webserver.main(list(arguments), prog_name="dagster-webserver")


@serve.command()
@click.option("--host", default="", help="Address to listen on; empty: all.")
@click.option("--backfill", "hours", default=0.0, help="Hours of the past to count at the very first start.")
def metrics(host: str, hours: float) -> None:
    """Run the exporter: figures for Prometheus, read from the database."""
    import time
    from importlib.metadata import version as version_of

    from pipeline.exporter.alerts import Alerts
    from pipeline.exporter.database import Database
    from pipeline.exporter.exporter import Exporter
    from pipeline.exporter.metrics import Registry
    from pipeline.exporter.monitor import Monitor
    from pipeline.exporter.outbox import Outbox
    from pipeline.exporter.service import Service, end_on_signals
    from pipeline.exporter.topics import build_topics
    from pipeline.exporter.workspace import ask_webserver

    settings, registry = _settings(), Registry()
    ask = ask_webserver(settings.webserver_url or f"http://127.0.0.1:{settings.ui_port}")
    monitor = Monitor(registry, settings)
    alerts = Alerts(registry, Outbox(settings)) if settings.alerts_evaluate else None
    # These are the last, so that they see what the others have just read.
    topics = [*build_topics(registry, settings, ask), monitor, *([alerts] if alerts else [])]
    exporter = Exporter(registry, Database(settings), topics, version=version_of("millrace"))
    service = Service(
        exporter,
        monitor,
        alerts,
        host=host,
        port=settings.metrics_port,
        interval_seconds=settings.metrics_interval_seconds,
    )
    end_on_signals(service)
    service.run(since=time.time() - hours * 3600 if hours else None)


# alerts


@main.group()
def alerts() -> None:
    """See which alerts there are, silence some, try who is told."""


@alerts.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON on stdout.")
def list_alerts(as_json: bool) -> None:
    """List the alerts that the exporter on this machine knows of."""
    from pipeline.operate.monitor import ask_exporter

    found = ask_exporter(_settings(database=False), "/alerts", list)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    _print_table(
        ["alert", "state", "severity", "since", "labels", "description", "muted by"],
        [
            [item["alert"], item["state"], item["severity"], item["since"], _pairs(item["labels"]),
             item["description"], item["muted_by"]]
            for item in found
        ],
        vertical=False,
    )  # fmt: skip


@alerts.command()
@click.argument("name")
@click.option("--for", "how_long", default="2h", show_default=True, help="90m, 2h, 1d12h.")
@click.option("--label", "labels", multiple=True, help="Only alerts with this label: job_name=load.")
@click.option("--comment", default="", help="Why.")
def silence(name: str, how_long: str, labels: tuple[str, ...], comment: str) -> None:
    """Tell nobody of the alert NAME (RunSlow, or MillraceRunSlow) for a while. It still shows in `alerts list`."""
    from pipeline.operate.alerts import duration
    from pipeline.operate.silences import silences as kept

    wanted = dict(label.partition("=")[::2] for label in labels if label.partition("=")[2])
    if len(wanted) != len(labels):
        raise click.BadParameter("each is NAME=VALUE, and a name comes once", param_hint="--label")
    made = kept(_settings()).add(name, wanted, duration=duration(how_long), comment=comment)
    click.echo(f"Silence {made} for {how_long}; `millrace alerts unsilence {made}` ends it.")


@alerts.command()
def silences() -> None:
    """List the silences that hold."""
    from pipeline.notify import shown_time
    from pipeline.operate.silences import silences as kept

    _print_table(
        ["id", "alert", "labels", "until", "by", "comment"],
        [
            [
                item.id,
                item.alert,
                _pairs(item.labels),
                shown_time(item.ends_at),
                item.created_by,
                item.comment,
            ]
            for item in kept(_settings()).list()
        ],
        vertical=False,
    )


@alerts.command()
@click.argument("silence_id", metavar="ID")
def unsilence(silence_id: str) -> None:
    """End the silence ID now."""
    from pipeline.operate.silences import silences as kept

    kept(_settings()).remove(silence_id)
    click.echo(f"Silence {silence_id} has ended.")


@alerts.command("test")
@click.argument("channel")
def test_channel(channel: str) -> None:
    """Send a test message by CHANNEL: console, email, webhook, slack or teams."""
    from pipeline.operate.alerts import send_test

    send_test(_settings(database=False), channel)
    click.echo(f"Sent by {channel}.", err=True)


def _pairs(labels: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in labels.items())


# backup


@main.command()
@click.option("--to", "target", required=True, help="Folder or s3://bucket/prefix, of this installation alone.")
@click.option("--keep", default=7, show_default=True, type=click.IntRange(1), help="Backups that stay, this one too.")
@click.option("--files", is_flag=True, help="Copy the lake's data files too, those that are not there yet.")
def backup(target: str, keep: int, files: bool) -> None:
    """Dump both databases, and keep the lake's data files from being deleted as long as the dumps exist.

    For 90 days at most: older backups can be restored if their files were copied, or nothing has removed them.
    """
    from pipeline.operate.backup import backup as make_backup

    made = make_backup(_settings(), target, keep=keep, files=files, report=lambda text: click.echo(text, err=True))
    snapshot = "no lake yet" if made.manifest.snapshot_id is None else f"lake snapshot {made.manifest.snapshot_id}"
    removed = f"; removed {', '.join(made.removed)}" if made.removed else ""
    click.echo(f"{made.name}: {made.manifest.dump_bytes / 1e6:,.1f} MB, {snapshot}{removed}")
    _require_no_missing_files(made.missing, "The backup is made, but")


@main.command()
@click.option("--at", "target", required=True, help="Folder or s3://bucket/prefix.")
def backups(target: str) -> None:
    """List the backups that are there."""
    from pipeline.operate.backup_manifest import listing

    _print_table(
        ["name", "finished", "dumps, bytes", "snapshot", "data files", "their bytes", "copied", "millrace"],
        [
            [name, f"{item.finished_at:%Y-%m-%d %H:%M:%S}", item.dump_bytes, item.snapshot_id, item.data_files,
             item.data_bytes, item.has_files, item.millrace]
            if item else [name, "damaged: see `millrace verify`", *[None] * 6]
            for name, item in listing(_settings(database=False), target)
        ],
        vertical=False,
    )  # fmt: skip


@main.command()
@click.option("--at", "target", required=True, help="Folder or s3://bucket/prefix.")
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Every backup, not only the newest.")
def verify(target: str, name: str | None, every: bool) -> None:
    """Look whether the newest backup (or NAME) is whole and its data files are there; exit 1 if not."""
    from pipeline.operate.verify import verify as look

    verdicts = look(_settings(database=False), target, name, every=every)
    for verdict in verdicts:
        if verdict.problems:
            click.echo("\n".join(f"✗ {verdict.name}: {problem}" for problem in verdict.problems), err=True)
        else:
            click.echo(f"✓ {verdict.name}: {verdict.detail}")
    if broken := [verdict.name for verdict in verdicts if verdict.problems]:
        raise click.ClickException(f"{len(broken)} of {len(verdicts)} backups would not restore whole.")


@main.command()
@click.option("--from", "target", required=True, help="Folder or s3://bucket/prefix.")
@click.argument("name", required=False)
@click.option("--replace", is_flag=True, help="Also where there are runs or tables: they are renamed, not removed.")
def restore(target: str, name: str | None, replace: bool) -> None:
    """Make both databases what they were at the newest backup (or NAME). Nothing else may be connected."""
    from pipeline.operate.restore import restore as put_back

    done = put_back(_settings(), target, name, replace=replace, report=lambda text: click.echo(text, err=True))
    click.echo(f"Restored {done.name}, begun at {done.manifest.started_at:%Y-%m-%d %H:%M:%S}Z.")
    if done.before:
        click.echo(f"The databases from before are {' and '.join(done.before)}. To remove them, in psql:")
        click.echo("  " + " ".join(f"DROP DATABASE {database};" for database in done.before))
    _require_no_missing_files(done.missing, "It is restored, but")


def _require_no_missing_files(missing: dict[str, int], what: str) -> None:
    if missing:
        click.echo(
            "\n".join(f"✗ missing: {file}, {size:,} bytes" for file, size in sorted(missing.items())[:50]), err=True
        )
        raise click.ClickException(
            f"{what} {len(missing):,} data files are neither in the lake's path nor copied: what is in them cannot be read. "
            "Put them back from a snapshot of the volume or the bucket's versions, or load their tables anew."
        )


# project


@main.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def init(directory: Path) -> None:
    """Start a new project in DIRECTORY."""
    from pipeline.operate.scaffold import write_project

    for path in write_project(directory):
        click.echo(f"wrote {path}")
    click.echo(f"Next: millrace --project {directory} check && millrace --project {directory} run")


@main.command()
def check() -> None:
    """Validate the whole project: every source, the dbt project, the definitions."""
    from pipeline.operate.project_check import check_project

    problems = 0
    for subject, detail, problem in check_project(_settings(database=False)):
        if problem:
            problems += 1
            click.echo(f"✗ {subject}\n{problem}", err=True)
        else:
            click.echo(f"✓ {subject}: {detail}")
    if problems:
        raise click.ClickException(f"{problems} of the project's parts must be corrected.")


@main.command("generate-data")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def generate_data(directory: Path) -> None:
    """Write the project's example data into DIRECTORY."""
    from pipeline.operate.scaffold import generate

    files = generate(_settings(database=False), directory)
    size = sum(path.stat().st_size for path in files)
    click.echo(f"{len(files)} files, {size / 1e6:.1f} MB in {directory}")


# sources


@main.group()
def sources() -> None:
    """Look at the project's sources and their connectors."""


def _sources(settings: "Settings") -> "list[SourceFile]":
    from pipeline.ingest.spec import load_sources

    return load_sources(settings.project_dir / "sources")


def _source(settings: "Settings", name: str) -> "SourceFile":
    found = {file.source.name: file for file in _sources(settings)}
    if name not in found:
        raise click.ClickException(f"There is no source {name!r}. There are: {', '.join(found)}")
    return found[name]


@sources.command("list")
def list_sources() -> None:
    """List sources and streams as declared; nothing is contacted."""
    rows = [
        [
            file.source.name,
            stream.name,
            file.source.kind,
            file.source.owner,
            stream.description or file.source.description,
        ]
        for file in _sources(_settings(database=False))
        for stream in file.source.streams
    ]
    _print_table(["source", "stream", "kind", "owner", "description"], rows)


@sources.command("check")
@click.argument("names", nargs=-1)
def check_sources(names: tuple[str, ...]) -> None:
    """Ask each source (or NAMES) whether it can be reached."""
    from pipeline.ingest.airbyte import probe
    from pipeline.ingest.health import check_sources as look
    from pipeline.lake.connection import Lake

    settings = _settings()
    files = [_source(settings, name) for name in names] or _sources(settings)
    with Lake.open(settings) as lake:
        found = look(lake, files, settings, probe=lambda file: probe(file, settings))
    _print_table(
        ["source", "stream", "reachable", "seconds", "last change", "last load", "error"],
        [
            [
                item.source,
                item.stream,
                item.reachable,
                round(item.latency_seconds, 3),
                item.last_change,
                item.last_load,
                item.error,
            ]
            for item in found
        ],
        vertical=False,
    )
    sys.exit(0 if all(item.reachable for item in found) else 1)


@sources.command()
@click.argument("name")
@click.option("--stream", help="Default: the first.")
@click.option("--limit", default=5, show_default=True, type=click.IntRange(1, 1000))
def preview(name: str, stream: str | None, limit: int) -> None:
    """Show the first rows of a source, straight from it."""
    from pipeline.ingest.preview import preview as look

    settings = _settings()
    answer = look(_source(settings, name), stream, settings, limit=limit)
    _print_table(answer.columns, answer.rows, title=answer.title)


@sources.command()
@click.argument("name")
def discover(name: str) -> None:
    """Show what a source offers: its files, or its connector's streams and fields."""
    from pipeline.ingest.preview import discover as look

    settings = _settings()
    for answer in look(_source(settings, name), settings):
        _print_table(answer.columns, answer.rows, title=answer.title)


@sources.command()
def install() -> None:
    """Build the connectors' environments, each of the version its source pins."""
    from pipeline.ingest.airbyte_connectors import install as install_connectors

    settings = _settings(database=False)
    install_connectors(settings, _sources(settings), click.echo)


# lake


@main.command()
@click.argument("statement")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds.")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1, 1_000_000), help="Rows at most.")
@click.option("--format", "style", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def sql(statement: str, timeout: float, limit: int, style: str) -> None:
    """Run one SELECT on a locked connection that can read the lake and nothing else."""
    from pipeline.lake.reader import Reader

    with Reader.open(_settings()) as reader:
        answer = reader.query(statement, timeout_seconds=timeout, max_rows=limit)
    if style == "json":
        click.echo(json.dumps([dict(zip(answer.columns, row, strict=True)) for row in answer.rows], default=str))
    elif style == "csv":
        import csv

        writer = csv.writer(sys.stdout)
        writer.writerow(answer.columns)
        writer.writerows(answer.rows)
    else:
        _print_table(answer.columns, answer.rows)
    if answer.truncated:
        click.echo(f"Only the first {len(answer.rows):,} rows; see --limit.", err=True)


@main.group()
def lake() -> None:
    """Look at the lake and keep it tidy."""


@lake.command()
def catalog() -> None:
    """List every table: rows, bytes, files, last change and the run behind it."""
    from pipeline.lake.catalogue import tables

    with _lake(read_only=True) as opened:
        found = tables(opened)
    _print_table(
        ["table", "kind", "rows", "bytes", "files", "columns", "snapshot", "changed", "by"],
        [
            [item.name, item.kind, *((item.statistics.rows, item.statistics.bytes, item.statistics.files) if item.statistics else (None,) * 3),
             len(item.columns), item.snapshot_id, item.changed_at and f"{item.changed_at:%Y-%m-%d %H:%M:%S}", item.run_id[:8]]
            for item in found
        ],
        vertical=False,
    )  # fmt: skip


@lake.command()
@click.argument("table")
def profile(table: str) -> None:
    """Profile the columns of TABLE (schema.table): nulls, distinct, range, quantiles, top values."""
    from pipeline.lake.profile import profile as look

    with _lake(read_only=True) as opened:
        found = look(opened, table)
    _print_table(
        ["column", "type", "nulls", "distinct", "minimum", "maximum", "quantiles", "top values"],
        [
            [item.name, item.type, item.nulls, item.distinct, item.minimum, item.maximum, ", ".join(item.quantiles),
             ", ".join(f"{top.value} ({top.rows:,})" for top in item.top_values[:3])]
            for item in found.columns
        ],
        title=f"{table}: {found.rows:,} rows",
        vertical=False,
    )  # fmt: skip


@lake.command()
@click.option("--older-than-days", default=30, show_default=True, type=click.IntRange(1), help="Snapshots to expire.")
def maintain(older_than_days: int) -> None:
    """Compact files, expire old snapshots, remove what nothing refers to. Safe beside running loads."""
    from pipeline.lake.maintenance import maintain as maintain_lake
    from pipeline.operate.backup import lake_pin

    with _lake() as opened:
        pin = lake_pin(opened.settings)
        done = maintain_lake(
            opened,
            older_than_days=older_than_days,
            keep_since=pin,
            report=lambda text: click.echo(text, err=True),
        )
    click.echo(
        f"live data: {done.before.live_files:,} files, {done.before.live_bytes / 1e6:,.1f} MB before; "
        f"{done.after.live_files:,} files, {done.after.live_bytes / 1e6:,.1f} MB now; {done.snapshots_expired:,} snapshots expired, "
        f"{done.orphans_deleted:,} orphans removed, {done.seconds:.1f} s"
    )
