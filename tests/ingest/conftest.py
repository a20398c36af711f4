"""Connector stand-ins as sources, and PyAirbyte's real environment, built once for the session."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.ingest.airbyte_connectors import install
from pipeline.ingest.spec import SourceFile, load_source
from pipeline.settings import Settings
from tests.conftest import LENT_CONNECTORS

STAND_INS = Path(__file__).with_name("connectors")

SHOP = """
name: shop
owner: team:data
kind: airbyte
executable: {executable}
config: {config}
idle_timeout_seconds: {idle}
timeout_seconds: {total}
streams:
{streams}
"""


@pytest.fixture(scope="session")
def connectors_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with PyAirbyte's environment; stand-ins' catalogues are kept there, so PyAirbyte starts once for all."""
    folder = Path(LENT_CONNECTORS) if LENT_CONNECTORS else tmp_path_factory.mktemp("connectors")
    os.environ["STAND_IN_TOKEN"] = "s3cret-token"
    home = tmp_path_factory.mktemp("source")
    (home / "shop.yaml").write_text(shop_yaml("- {name: items}"))
    install(Settings(state_dir=home, connectors_dir=folder), [load_source(home / "shop.yaml")])
    return folder


@pytest.fixture
def connected(settings: Settings, connectors_dir: Path) -> Settings:
    """The test's settings, with the session's connector environments."""
    os.environ["STAND_IN_TOKEN"] = "s3cret-token"
    return settings.model_copy(update={"connectors_dir": connectors_dir})


@pytest.fixture
def shop(tmp_path: Path) -> Callable[..., SourceFile]:
    """Writes a source file whose connector is the stand-in, and says what the stand-in shall do."""

    def write(
        streams: str = "- {name: items, sync: incremental_append}", *, plan: dict | None = None, **values: object
    ) -> SourceFile:
        os.environ["AIRBYTE_STAND_IN"] = json.dumps(plan or {})
        path = tmp_path / "project" / "sources" / "shop.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(shop_yaml(streams, **values))
        return load_source(path)

    return write


def shop_yaml(
    streams: str,
    *,
    config: str = '{token: "${STAND_IN_TOKEN}"}',
    executable: str = str(STAND_INS / "source_items.py"),
    idle: float = 20,
    total: float = 60,
) -> str:
    return SHOP.format(streams=streams, config=config, executable=executable, idle=idle, total=total)
