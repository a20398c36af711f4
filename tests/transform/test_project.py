"""The dbt folder's child processes."""

import subprocess
import sys
from pathlib import Path

from pipeline.settings import Settings
from pipeline.transform.project import invocation


def test_the_dbt_of_a_run_that_was_killed_is_ended_before_the_next(settings: Settings) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as killed:
        pass
    left = settings.scratch_path / "dbt" / f"some-run-{killed.pid}"
    (left / "target").mkdir(parents=True)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        subprocess.Popen(command, env={"DBT_TARGET_PATH": str(left / "target")}) as orphan,
        invocation(settings, "next") as environment,
    ):
        assert orphan.poll() is not None
        assert not left.exists()
        assert Path(environment["DBT_TARGET_PATH"]).parent.exists()
