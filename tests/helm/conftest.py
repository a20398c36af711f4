"""Every test here needs helm."""

import os
import shutil

import pytest


@pytest.fixture(scope="session", autouse=True)
def _helm() -> None:
    if not shutil.which("helm"):
        missing = "helm is not on PATH"
        pytest.fail(missing) if os.environ.get("MILLRACE_REQUIRE_TOOLS") == "1" else pytest.skip(missing)
