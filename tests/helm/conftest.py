"""Every test here needs helm."""

import pytest

from tests.tools import tool


@pytest.fixture(scope="session", autouse=True)
def _helm() -> None:
    tool("helm")
