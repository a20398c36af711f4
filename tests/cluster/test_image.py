"""The image, looked at from within a pod and from the node."""

import json
import os

from tests.cluster.release import Release, size_on_node

NOT_COMPILED = """
import json, pathlib, sysconfig
site = pathlib.Path(sysconfig.get_paths()["purelib"])
sources = [path for path in site.rglob("*.py") if "node_modules" not in path.parts]
print(json.dumps([len(sources), [str(path) for path in sources
    if not list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc"))]]))
"""


def test_everything_is_compiled(release: Release):
    found, missing = json.loads(release.execute("code", "python", "-c", NOT_COMPILED))

    assert found > 5000
    unreadable = [path for path in missing if "/tests/" not in path and "/templates/" not in path]
    assert unreadable == []  # what is left is no Python of this version, and never imported


def test_it_runs_as_nobody_special_and_cannot_change_itself(release: Release):
    assert release.execute("code", "id", "-u").strip() == "10001"
    refused = release.execute("code", "sh", "-c", "touch /opt/millrace/x /usr/x 2>&1; echo; ls /opt/millrace")
    assert refused.count("Read-only file system") == 2


def test_connectors_and_the_parsed_project_are_in_it(release: Release):
    assert "PyAirbyte: installed" in release.execute("code", "millrace", "sources", "install")
    assert "16 models" in release.execute("code", "millrace", "check")
    assert (
        release.execute("code", "sh", "-c", "ls /var/lib/millrace/dbt/target 2>/dev/null || true") == ""
    )  # nothing was parsed again


def test_it_says_what_it_is(release: Release):
    said = release.execute("code", "millrace", "version")

    assert said.startswith("millrace 0.1.0")
    assert "dagster 1.13.27" in said
    assert "duckdb 1.5.5" in said


def test_it_is_no_larger_than_it_may_be(release: Release):
    assert size_on_node(os.environ["MILLRACE_TEST_IMAGE"]) < 2.3e9
