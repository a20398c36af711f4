"""`millrace run`, in this process, on a small project of its own: real PostgreSQL, DuckLake, Dagster and dbt."""

from pathlib import Path

import dagster as dg
import pytest

from pipeline.errors import ConfigError
from pipeline.lake.catalogue import tables
from pipeline.lake.connection import Lake
from pipeline.operate.instance import open_instance
from pipeline.operate.run import Summary, run
from pipeline.progress import Progress
from pipeline.settings import Settings


def go(settings: Settings, **options: object) -> Summary:
    return run(settings, report=lambda _: None, log=lambda _: None, **options)  # type: ignore[arg-type]


def counts(settings: Settings, *tables: str) -> list[int]:
    with Lake.open(settings) as lake:
        return [lake.scalar(f"SELECT count(*) FROM {table}") for table in tables]


def test_one_run_loads_builds_and_checks_everything(project: Settings) -> None:
    heard: list[Progress] = []

    summary = run(project, report=heard.append, log=lambda _: None)

    assert summary.succeeded, summary.errors
    assert {name: item.status for name, item in summary.assets.items()} == {
        "health/sources": "built",
        "marts/dim_city": "built",
        "marts/fct_sales": "built",
        "raw/example/cities": "built",
        "raw/second/sales": "built",
        "staging/stg_example__cities": "built",
    }
    assert summary.assets["raw/second/sales"].rows == 6
    assert summary.assets["marts/fct_sales"].rows == 6
    assert summary.checks["staging/stg_example__cities: unique_stg_example__cities_city"].status == "passed"
    assert summary.checks["raw/second/sales: primary_key_is_unique"].status == "passed"
    assert counts(project, "raw.second__sales", "marts.fct_sales", "marts.dim_city") == [6, 6, 2]
    assert any(step.task == "second/sales" and step.items_done == 3 for step in heard)
    with Lake.open(project) as lake:
        owners = {item.name: (item.asset, item.run_id) for item in tables(lake)}
    assert owners["marts.fct_sales"] == ("marts/fct_sales", summary.run_ids[0])
    assert owners["raw.second__sales"] == ("raw/second/sales", summary.run_ids[0])
    with open_instance(project) as instance:
        (record,) = instance.get_run_records()
        assert record.dagster_run.status == dg.DagsterRunStatus.SUCCESS
        months = instance.get_materialized_partitions(dg.AssetKey(["raw", "second", "sales"]))
        assert months == {"2021-01", "2021-02", "2021-03"}
        event = instance.get_latest_materialization_event(dg.AssetKey(["marts", "fct_sales"]))
        assert event
        assert event.asset_materialization
        metadata = event.asset_materialization.metadata
        assert metadata["dagster/row_count"].value == 6
        assert [column.name for column in metadata["dagster/column_schema"].value.columns] == ["id", "city", "amount"]
        assert metadata["dagster/column_lineage"].value.deps_by_column["city"] == [
            dg.TableColumnDep(dg.AssetKey(["raw", "second", "sales"]), "city")
        ]


def test_a_second_run_loads_nothing_again(project: Settings) -> None:
    go(project, select="raw/second/sales")
    summary = go(project, select="raw/second/sales")

    assert summary.assets["raw/second/sales"].rows_loaded == 0
    assert counts(project, "raw.second__sales") == [6]


def test_a_partition_loads_its_month_only_and_a_range_its_months(project: Settings) -> None:
    go(project, select="raw/second/sales", partition="2021-02")
    assert counts(project, "raw.second__sales") == [2]

    go(project, select="raw/second/sales", partition="2021-02...2021-03")

    assert counts(project, "raw.second__sales") == [4]
    with open_instance(project) as instance:
        months = instance.get_materialized_partitions(dg.AssetKey(["raw", "second", "sales"]))
        assert months == {"2021-02", "2021-03"}


def test_what_does_not_depend_on_a_failed_source_is_built_all_the_same(project: Settings) -> None:
    (project.project_dir / "data" / "sales_2021-01.csv").unlink()
    (project.project_dir / "data" / "sales_2021-02.csv").unlink()
    (project.project_dir / "data" / "sales_2021-03.csv").unlink()

    summary = go(project)

    assert not summary.succeeded
    status = {name: item.status for name, item in summary.assets.items()}
    assert status["raw/second/sales"] == "failed"
    assert status["marts/fct_sales"] == "skipped"
    assert status["marts/dim_city"] == "built"
    assert counts(project, "marts.dim_city") == [2]
    assert len(summary.errors) == 1
    assert "no file matches sales_{month}.csv" in summary.errors[0]


def test_a_failed_blocking_check_holds_the_models_back(project: Settings) -> None:
    path = project.project_dir / "data" / "sales_2021-01.csv"
    path.write_text(path.read_text() + "1,New York,9\n")

    summary = go(project)

    assert not summary.succeeded
    assert summary.checks["raw/second/sales: primary_key_is_unique"].status == "failed"
    assert "duplicate_keys 1" in summary.checks["raw/second/sales: primary_key_is_unique"].detail
    assert summary.assets["marts/fct_sales"].status == "skipped"
    assert summary.assets["marts/dim_city"].status == "built"


def two_streams(project: Settings, *, key: str = "id") -> None:
    """A second stream beside ``sales``, of a file that is no CSV of its columns."""
    path = project.project_dir / "sources" / "second.yaml"
    text = path.read_text().replace("primary_key: [id]", f"primary_key: [{key}]").replace("columns:", "#")
    path.write_text(text + "  - {name: broken, path: broken.csv, columns: [{name: no_such}]}\n")
    (project.project_dir / "data" / "broken.csv").write_text("a\n1\n")


def test_a_stream_that_fails_keeps_no_other_from_being_checked(project: Settings) -> None:
    two_streams(project)
    path = project.project_dir / "data" / "sales_2021-01.csv"
    path.write_text(path.read_text() + "1,New York,9\n")

    summary = go(project)

    assert summary.assets["raw/second/broken"].status == "failed"
    assert summary.checks["raw/second/sales: primary_key_is_unique"].status == "failed"
    assert summary.assets["marts/fct_sales"].status == "skipped"
    assert summary.assets["marts/dim_city"].status == "built"


def test_a_blocking_check_that_could_not_be_made_holds_the_models_back(project: Settings) -> None:
    two_streams(project, key="no_such_column")

    summary = go(project)

    assert summary.assets["raw/second/sales"].status == "built"
    assert summary.assets["marts/fct_sales"].status == "skipped"
    assert summary.assets["marts/dim_city"].status == "built"
    assert any("no_such_column" in error for error in summary.errors)


@pytest.mark.parametrize(
    ("partition", "select"),
    [("2021-13", "*"), ("2021-01..2021-03", "*"), ("2021-03...2021-01", "*"), ("2021-01", "raw/example/*")],
)
def test_a_partition_that_is_none_is_refused(project: Settings, partition: str, select: str) -> None:
    with pytest.raises(ConfigError, match="--partition"):
        go(project, select=select, partition=partition)


def test_what_fails_a_run_as_a_whole_is_said(project: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    summary = go(project.model_copy(update={"scratch_dir": tmp_path / "file"}), select="raw/example/*")

    assert not summary.succeeded
    assert str(tmp_path / "file") in summary.errors[0]


def test_a_file_that_is_gone_is_reported(project: Settings) -> None:
    go(project, select="raw/second/sales")
    (project.project_dir / "data" / "sales_2021-01.csv").unlink()

    summary = go(project, select="raw/second/sales")

    assert "sales_2021-01.csv" in summary.assets["raw/second/sales"].detail
    assert counts(project, "raw.second__sales") == [6]


def test_a_model_that_fails_does_not_undo_the_others(project: Settings) -> None:
    (project.project_dir / "dbt" / "models" / "marts" / "fct_sales.sql").write_text(
        "select no_such_column from {{ source('second', 'sales') }}\n"
    )

    summary = go(project)

    assert not summary.succeeded
    assert summary.assets["marts/fct_sales"].status == "failed"
    assert summary.assets["marts/dim_city"].status == "built"
    assert any("no_such_column" in error for error in summary.errors)


def test_full_loads_every_file_again_without_doubling(project: Settings) -> None:
    go(project, select="raw/second/sales")

    summary = go(project, select="raw/second/sales", full=True)

    assert summary.assets["raw/second/sales"].rows_loaded == 6
    assert counts(project, "raw.second__sales") == [6]


def test_a_selection_that_matches_nothing_names_what_there_is(project: Settings) -> None:
    with pytest.raises(ConfigError, match=r"matches no asset\. There are: .*raw/example/cities"):
        go(project, select="raw/exmaple/*")
