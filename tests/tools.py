"""Programs and files that some tests need and not every machine has."""

import os
import shutil
from typing import NoReturn

import pytest


def lacks(missing: str) -> NoReturn:
    """Skip the test; fail it where MILLRACE_REQUIRE_TOOLS=1 says that everything is there, as CI does."""
    if os.environ.get("MILLRACE_REQUIRE_TOOLS") == "1":
        pytest.fail(missing)
    pytest.skip(missing)


def tool(name: str) -> str:
    """Path of the program *name*, if it is there."""
    return shutil.which(name) or lacks(f"{name} is not on PATH")
