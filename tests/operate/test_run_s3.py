"""A whole run whose lake is on a real S3 server: files, dbt, checks."""

from pathlib import Path

from pipeline.lake.connection import Lake
from pipeline.operate.run import run
from pipeline.operate.scaffold import write_project
from pipeline.settings import Settings


def test_sources_and_models_are_built_in_a_bucket(settings: Settings, bucket: str, tmp_path: Path) -> None:
    write_project(tmp_path / "shop")
    on_s3 = settings.model_copy(
        update={"project_dir": tmp_path / "shop", "lake_data": "s3://company/lake", "s3_endpoint": bucket}
    )

    summary = run(on_s3, report=lambda _: None, log=lambda _: None)

    assert summary.succeeded, summary.errors
    with Lake.open(on_s3) as lake:
        assert lake.query("SELECT city FROM marts.dim_city WHERE is_large") == [("New York",)]
        files = lake.query("SELECT data_file FROM ducklake_list_files('lake', 'dim_city', schema => 'marts')")
        assert all(path.startswith("s3://company/lake/") for (path,) in files)
    log = "".join(path.read_text(errors="replace") for path in on_s3.state_dir.rglob("*.log"))
    assert "geheim" not in log
