"""`make demo` and `make dev`: the bundled project on generated files, its weather API on this machine.

``python -m pipeline.projects.nyc.demo run|up`` calls the `millrace` command as a person would.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ConfigError, MillraceError
from pipeline.operate.scaffold import generate
from pipeline.settings import Settings


@contextmanager
def example_data(settings: Settings) -> Iterator[dict[str, str]]:
    """Variables that make the sources read generated files and a local stand-in of the weather API."""
    folder = settings.state_dir / "example"
    if not (folder / "complete").exists():
        generate(settings, folder)
        (folder / "complete").touch()
    with weather_api(folder) as address:
        yield {
            "MILLRACE_DATA_DIR": str(folder),
            "MILLRACE_STATE_DIR": str(settings.state_dir),
            "OPEN_METEO_URL": address,
            "OPEN_METEO_START_DATE": "2021-03-01",
            "OPEN_METEO_END_DATE": "2021-04-14",
        }


@contextmanager
def weather_api(folder: Path) -> Iterator[str]:
    """Address of the stand-in. It keeps its port: what is known of a connector is kept for one configuration."""
    address_file = folder / "open_meteo_address"
    known = address_file.read_text().rpartition(":")[2] if address_file.exists() else "0"
    for port in (known, "0"):
        command = [sys.executable, "-m", "pipeline.projects.nyc.open_meteo", "--data", str(folder), "--port", port]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as api:
            try:
                assert api.stdout
                address = api.stdout.readline().strip()
                if not address:
                    continue  # another program has the port now
                address_file.write_text(address)
                yield address
                return
            finally:
                api.terminate()
    raise ConfigError(
        f"Starting the weather API's stand-in over {folder}: it ended at once. Remove the folder and run again."
    )


def main() -> int:
    """Run the command that `make` asks for; returns its exit code."""
    started = time.monotonic()
    settings = Settings.load()
    millrace = str(Path(sys.executable).with_name("millrace"))
    with example_data(settings) as variables:
        environment = {**os.environ, **variables}
        made = time.monotonic() - started
        commands = [[millrace, "sources", "install"], [millrace, "run"]]
        if sys.argv[1:] == ["up"]:
            commands = [[millrace, "sources", "install"], [millrace, "up", "--foreground"]]
        spent = [f"example data {made:.1f} s"]
        for command in commands:
            began = time.monotonic()
            code = subprocess.run(command, env=environment, check=False).returncode
            if code:
                return code
            spent.append(f"{' '.join(command[1:])} {time.monotonic() - began:.1f} s")
    sys.stdout.write(
        f"\nin all {time.monotonic() - started:.1f} s ({', '.join(spent)})\n\n"
        "Look around (after `source .venv/bin/activate`, or with .venv/bin/ in front):\n"
        "  millrace lake catalog                                  every table, its size and the run behind it\n"
        "  millrace lake profile marts.fct_trips                  its columns: nulls, range, quantiles, top values\n"
        '  millrace sql "SELECT * FROM marts.fct_hourly_mobility LIMIT 5"\n'
        "  make dev                                               the UI on http://localhost:%d\n"
        "  millrace down                                          stop the embedded database\n" % settings.ui_port
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MillraceError as problem:
        sys.exit(f"Error: {problem}")
