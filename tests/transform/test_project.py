"""The dbt folder's child processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.operate.scaffold import write_project
from pipeline.settings import PROFILES_DIR, Settings
from pipeline.transform.project import dbt_executable, invocation, manifest


@pytest.fixture
def shop(tmp_path: Path) -> Settings:
    write_project(tmp_path / "shop")
    return Settings(project_dir=tmp_path / "shop", state_dir=tmp_path / "state")


def models(settings: Settings) -> set[str]:
    return {name for name in manifest(settings)["nodes"] if name.startswith("model.")}


def test_processes_that_parse_at_once_read_whole_files_and_one_of_them_does_the_work(shop: Settings) -> None:
    folder = shop.project_dir / "dbt" / "models" / "marts"
    models(shop)
    (folder / "dim_more.sql").write_text("select 1 as number")
    ask = "from pipeline.settings import Settings; from pipeline.transform.project import manifest; print(len(manifest(Settings.load())['nodes']))"
    environment = {**shop.project_environment(), "PATH": ""}

    def written() -> tuple[int, int]:
        found = (shop.dbt_target_path / "manifest.json").stat()
        return found.st_ino, found.st_mtime_ns

    seen = {written()}

    children = [
        subprocess.Popen([sys.executable, "-c", ask], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    while any(child.poll() is None for child in children):
        seen.add(written())
        json.loads((shop.dbt_target_path / "manifest.json").read_bytes())
        time.sleep(0.005)  # a core is theirs

    assert {child.communicate()[0] for child in children} == {f"{len(manifest(shop)['nodes'])}\n"}
    assert len(seen | {written()}) == 2
    assert len(models(shop)) == 3


def test_what_a_killed_parse_left_is_removed_and_a_project_that_does_not_parse_keeps_the_last_one(
    shop: Settings,
) -> None:
    models(shop)
    left = shop.dbt_target_path / "parse-killed"
    left.mkdir()
    broken = shop.project_dir / "dbt" / "models" / "marts" / "broken.sql"
    broken.write_text("select * from {{ ref('nothing') }}")

    with pytest.raises(ConfigError, match="depends on a node named 'nothing'"):
        manifest(shop)
    broken.unlink()

    assert len(models(shop)) == 2
    assert not left.exists()


def test_a_parse_that_does_not_end_is_not_taken_for_the_project_as_it_was(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    models(shop)
    more = shop.project_dir / "dbt" / "models" / "marts" / "dim_more.sql"
    more.write_text("select 1 as number")

    def full(path: Path, text: str) -> int:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            manifest(shop)
    more.unlink()

    assert len(models(shop)) == 2


@pytest.fixture
def nyc(settings: Settings, parsed: Path) -> Settings:
    return settings.model_copy(update={"dbt_parsed_dir": parsed})


def test_a_pod_parses_nothing_again_though_run_lake_and_limits_are_others(
    nyc: Settings, shop: Settings, tmp_path: Path
) -> None:
    manifest(nyc)
    elsewhere = {"state_dir": tmp_path / "pod", "lake_data": "s3://company/lake", "memory_limit_gib": 3.0, "threads": 3}
    with invocation(nyc.model_copy(update=elsewhere), "a-new-run") as environment:
        folder, environment = nyc.project_dir / "dbt", os.environ | environment
        said = subprocess.check_output([dbt_executable(), "--debug", "parse"], cwd=folder, env=environment, text=True)

    assert "no changes found, skipping parsing" in said
    macro = "dbt/macros/record_run.sql"  # what names the run: new projects have the same
    assert (shop.project_dir / macro).read_text() == (nyc.project_dir / macro).read_text()


def test_dbt_without_the_variables_of_the_platform_says_where_they_are(nyc: Settings) -> None:
    folder = str(nyc.state_dir / "dbt")
    environment = os.environ | {
        "DBT_PROFILES_DIR": str(PROFILES_DIR),
        "DBT_TARGET_PATH": folder,
        "DBT_LOG_PATH": folder,
    }
    command = [dbt_executable(), "show", "--inline", "select 1"]

    finished = subprocess.run(command, cwd=nyc.project_dir / "dbt", env=environment, capture_output=True, text=True)

    assert finished.returncode != 0
    assert (
        "MILLRACE_DUCKDB_EXTENSIONS is not set. Run dbt with the variables that `millrace env` prints"
        in finished.stdout
    )


def test_the_dbt_of_a_run_that_was_killed_is_ended_before_the_next(nyc: Settings) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as killed:
        pass
    left = nyc.scratch_path / "dbt" / f"some-run-{killed.pid}"
    (left / "target").mkdir(parents=True)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        subprocess.Popen(command, env={"DBT_TARGET_PATH": str(left / "target")}) as orphan,
        invocation(nyc, "next") as environment,
    ):
        assert orphan.poll() is not None
        assert not left.exists()
        assert Path(environment["DBT_TARGET_PATH"]).parent.exists()
