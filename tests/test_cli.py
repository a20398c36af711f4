"""The command line as a person meets it: whole processes, their output and exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.operate.scaffold import write_project
from pipeline.settings import Settings

MILLRACE = str(Path(sys.executable).with_name("millrace"))


@pytest.fixture
def shop(settings: Settings, tmp_path: Path, parsed: Path) -> dict[str, str]:
    """Environment of a small project with an empty lake."""
    write_project(tmp_path / "shop")
    assert settings.database_url
    return {
        **os.environ,
        "MILLRACE_PROJECT_DIR": str(tmp_path / "shop"),
        "MILLRACE_STATE_DIR": str(settings.state_dir),
        "MILLRACE_DBT_PARSED_DIR": str(parsed),
        "MILLRACE_DATABASE_URL": settings.database_url.get_secret_value(),
    }


def millrace(environment: dict[str, str], *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [MILLRACE, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_every_command_has_help() -> None:
    groups = {"": ["advise", "alerts", "backup", "backups", "check", "down", "env", "generate-data", "init", "lake", "migrate", "monitor",
                   "restore", "run", "serve", "sources", "sql", "status", "up", "verify", "version", "wait-database"]}  # fmt: skip
    groups["alerts"] = ["list", "silence", "silences", "test", "unsilence"]
    groups["sources"] = ["check", "discover", "install", "list", "preview"]
    groups["lake"] = ["catalog", "maintain", "profile"]
    for group, commands in groups.items():
        arguments = [group] if group else []
        text = millrace(dict(os.environ), *arguments, "--help").stdout
        listed = re.findall(r"^  ([a-z-]+)  +\S", text.partition("Commands:")[2], re.MULTILINE)
        assert listed == commands


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, pipeline.cli; print([m for m in ('dagster', 'duckdb', 'pydantic', 'rich', 'yaml') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_new_project_runs_and_can_be_read(shop: dict[str, str]) -> None:
    summary = json.loads(millrace(shop, "run", "--json").stdout)
    assert summary["succeeded"]
    assert summary["assets"]["marts/dim_city"]["rows"] == 2

    rows = json.loads(
        millrace(shop, "sql", "--format", "json", "SELECT city FROM marts.dim_city WHERE is_large").stdout
    )
    assert rows == [{"city": "New York"}]

    catalog = millrace(shop, "lake", "catalog").stdout
    assert re.search(r"raw\.example__cities\s+│\s+table\s+│\s+2", catalog)
    profile = millrace(shop, "lake", "profile", "raw.example__cities").stdout
    assert "8336817" in profile.replace(",", "")
    maintained = millrace(shop, "lake", "maintain").stdout
    assert "orphans removed" in maintained
    assert "cities" in millrace(shop, "sources", "list").stdout
    assert "yes" in millrace(shop, "sources", "check").stdout
    assert "Jersey City" in millrace(shop, "sources", "preview", "example").stdout
    assert "cities.csv" in millrace(shop, "sources", "discover", "example").stdout


def test_plain_lines_tell_the_progress_where_there_is_no_terminal(shop: dict[str, str]) -> None:
    done = millrace(shop, "run", "--select", "raw/example/cities")

    assert "example/cities: 1/1 files, 2 rows" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "built" in done.stdout


def test_a_failed_run_says_why_and_exits_with_1(shop: dict[str, str]) -> None:
    Path(shop["MILLRACE_PROJECT_DIR"], "data", "cities.csv").write_text("city,people\nNew York,1\n")

    done = millrace(shop, "run", code=1)

    assert "column population is not in the file, which has city, people" in done.stdout
    assert "skipped, because what they are built of failed: marts/dim_city" in done.stdout


def test_sql_refuses_what_is_not_reading_the_lake(shop: dict[str, str]) -> None:
    millrace(shop, "run", "--select", "raw/example/cities")

    for statement in (
        "DELETE FROM raw.example__cities",
        "SELECT * FROM read_text('/etc/passwd')",
        "ATTACH ':memory:' AS m",
    ):
        assert millrace(shop, "sql", statement, code=1).stderr.startswith("Error: Refused")


def test_sql_shows_names_and_small_numbers_as_they_are_and_says_what_it_leaves_out(shop: dict[str, str]) -> None:
    millrace(shop, "run", "--select", "raw/example/*")

    shown = millrace(shop, "sql", 'SELECT 0.0000004::DOUBLE AS "[/x]", 123456.1234567::DOUBLE AS "[red]y"').stdout
    wide = ", ".join(f"repeat('x', 60) AS c{number}" for number in range(6))
    cut = millrace(shop, "sql", f"SELECT {wide} FROM range(10)").stdout

    assert "[/x]" in shown
    assert "[red]y" in shown
    assert "4e-07" in shown
    assert "123,456.1234567" in shown
    assert "6 more rows" in cut


def test_check_names_file_and_line_of_each_mistake(shop: dict[str, str]) -> None:
    source = Path(shop["MILLRACE_PROJECT_DIR"], "sources", "example.yaml")
    source.write_text(source.read_text().replace("primary_key", "primarykey"))
    model = Path(shop["MILLRACE_PROJECT_DIR"], "dbt", "models", "marts", "dim_city.sql")
    model.write_text("select * from {{ ref('nowhere') }}\n")

    done = millrace(shop, "check", code=1)

    assert re.search(r"example\.yaml:\d+: streams\.0\.primarykey: unknown key", done.stderr)
    assert "nowhere" in done.stderr
    assert "2 of the project's parts must be corrected" in done.stderr


def test_check_names_a_table_that_models_read_and_no_source_fills(shop: dict[str, str]) -> None:
    path = Path(shop["MILLRACE_PROJECT_DIR"]) / "sources" / "example.yaml"
    path.write_text(path.read_text().replace("name: cities", "name: towns"))

    said = millrace(shop, "check", code=1)

    assert "read raw/example/cities, which no source fills" in said.stdout + said.stderr


def test_check_accepts_a_new_project(shop: dict[str, str]) -> None:
    done = millrace(shop, "check")

    assert "2 models, 2 tests" in done.stdout
    assert "10 assets" in done.stdout


def test_init_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")

    done = millrace(dict(os.environ), "init", str(tmp_path), code=1)

    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_env_prints_what_plain_dbt_dagster_and_psql_need(shop: dict[str, str]) -> None:
    millrace(shop, "run", "--select", "raw/example/cities")
    exported = millrace(shop, "env").stdout
    assert "export DAGSTER_HOME=" in exported
    assert "export PGHOST=" in exported

    assert "PASS=" in millrace(shop, "env", "--", "dbt", "--no-use-colors", "build").stdout
    answer = millrace(shop, "env", "--", "psql", "-Atc", "SELECT count(*) > 0 FROM ducklake_table").stdout
    assert answer.strip() == "t"
    done = millrace(shop, "env", "--", "dagster", "asset", "list", "-m", "pipeline.definitions")
    assert "raw/example/cities" in done.stdout


def test_an_unusable_setting_is_named(shop: dict[str, str]) -> None:
    done = millrace({**shop, "MILLRACE_UI_PORT": "many"}, "status", code=1)

    assert done.stderr.startswith("Error: Reading the environment: MILLRACE_UI_PORT")


def test_a_project_that_is_not_there_is_named(shop: dict[str, str], tmp_path: Path) -> None:
    done = millrace({**shop, "MILLRACE_PROJECT_DIR": str(tmp_path / "nowhere")}, "check", code=1)

    assert "nowhere/millrace.yaml: there is no such file" in done.stderr
