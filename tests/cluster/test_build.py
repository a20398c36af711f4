"""Images made from the Dockerfile: what a change of code rebuilds, an image without connectors, a user's own project."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.operate.scaffold import write_project
from tests.cluster.release import Release, kubectl, size_on_node

ROOT = Path(__file__).parents[2]
COMMAND = os.environ.get("MILLRACE_TEST_BUILD", "")
pytestmark = pytest.mark.skipif(
    not COMMAND, reason="needs MILLRACE_TEST_BUILD, a command that takes what `docker build` does and loads the result"
)
LAYERS = {
    "buildah": ["buildah", "inspect", "--type", "image", "--format", "{{.OCIv1.RootFS.DiffIDs}}"],
    "docker": ["docker", "image", "inspect", "--format", "{{.RootFS.Layers}}"],
}


def build(folder: Path, name: str, *args: str) -> None:
    command = [*shlex.split(COMMAND), "-t", name, *args, "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def layers(image: str) -> list[str]:
    """Digests of its layers, the lowest first."""
    program = next(name for name in LAYERS if shutil.which(name))
    done = subprocess.run([*LAYERS[program], image], capture_output=True, text=True, check=True)
    return done.stdout.strip().strip("[]").split()


def test_a_change_of_our_code_alone_leaves_the_layers_of_dependencies_and_connectors_as_they_are(
    needs_a_cluster: None, tmp_path: Path
):
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.rstrip("\0").split("\0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    with (tmp_path / "pipeline" / "cli.py").open("a") as code:
        code.write("\n# changed\n")
    build(tmp_path, "millrace:changed", "-f", "docker/Dockerfile")

    before, after = layers(os.environ["MILLRACE_TEST_IMAGE"]), layers("millrace:changed")
    kept = [digest for digest in after if digest in before]
    assert len(before) == len(after)
    assert kept == before[: len(kept)]  # the lowest ones
    assert len(after) - len(kept) == 2  # our code, and what is made of it: the connector's spec and the parsed project


def test_an_image_without_connectors_is_smaller(needs_a_cluster: None):
    build(ROOT, "millrace:without", "-f", "docker/Dockerfile", "--build-arg", "CONNECTORS=without")

    assert size_on_node("millrace:without") < 1.3e9


def test_a_project_of_ones_own_is_an_image_that_starts_from_ours(release: Release, tmp_path: Path):
    write_project(tmp_path / "shop")
    (tmp_path / "shop" / "Dockerfile").write_text(
        f"FROM {os.environ['MILLRACE_TEST_IMAGE']}\nCOPY . /srv/project\nENV MILLRACE_PROJECT_DIR=/srv/project\n"
        "RUN millrace sources install && millrace check\n"
    )
    build(tmp_path / "shop", "shop:test", "-f", "Dockerfile")

    namespace = "millrace-shop"
    shop = Release(namespace, values=["--set", "image.repository=shop,image.tag=test"])
    kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=120s")
    shop.install()
    try:
        assets = ["raw/example/cities", "staging/stg_example__cities"]
        shop.wait(shop.launch(assets=assets), "SUCCESS")
        assert shop.lake("SELECT count(*) AS n FROM staging.stg_example__cities") == [{"n": 2}]
    finally:
        shop.remove()
