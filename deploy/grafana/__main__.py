"""Writes ``deploy/dashboards/*.json``; a test compares them with what the code makes."""

from pathlib import Path

from deploy.grafana import assets, cost, lake, overview, runs, services, slo
from deploy.grafana.pages import printed

FOLDER = Path(__file__).parents[1] / "dashboards"
PAGES = {
    "overview": overview.dashboard,
    "runs": runs.dashboard,
    "assets": assets.dashboard,
    "services": services.dashboard,
    "lake": lake.dashboard,
    "cost": cost.dashboard,
    "slo": slo.dashboard,
}


def write() -> None:
    """Every dashboard as a file."""
    for name, dashboard in PAGES.items():
        (FOLDER / f"{name}.json").write_text(printed(dashboard()))


if __name__ == "__main__":
    write()
