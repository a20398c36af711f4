"""`millrace check`: the whole project validated in one go; nothing is contacted and nothing is built."""

from collections.abc import Callable, Iterator

from pipeline.errors import ConfigError
from pipeline.settings import Project, Settings


def check_project(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """(part, what it holds, what is wrong) of each part; the last is empty where all is well.

    Later parts are tried even if an earlier one is wrong, so that one call shows everything.
    """
    directory = settings.project_dir
    failed = False
    for subject, question in (
        (str(directory / "millrace.yaml"), lambda: _project(settings)),
        (str(directory / "sources"), lambda: _sources(settings)),
        (str(directory / "dbt"), lambda: _dbt(settings)),
    ):
        detail, problem = _asked(question)
        failed = failed or bool(problem)
        yield subject, detail, problem
    if not failed:  # they are made of the parts above, and would only repeat their errors
        yield "definitions", *_asked(lambda: _definitions(settings))


def _asked(question: Callable[[], str]) -> tuple[str, str]:
    try:
        return question(), ""
    except ConfigError as error:
        return "", str(error)


def _project(settings: Settings) -> str:
    return f"project {Project.load(settings.project_dir).name}"


def _sources(settings: Settings) -> str:
    from pipeline.ingest.spec import load_sources

    files = load_sources(settings.project_dir / "sources")
    return f"{len(files)} sources, {sum(len(file.source.streams) for file in files)} streams"


def _dbt(settings: Settings) -> str:
    from pipeline.transform.project import manifest

    if not (settings.project_dir / "dbt" / "dbt_project.yml").exists():
        return "no dbt project"
    kinds = [node["resource_type"] for node in manifest(settings)["nodes"].values()]
    return f"{kinds.count('model')} models, {kinds.count('test')} tests"


def _definitions(settings: Settings) -> str:
    import warnings

    from dagster import DagsterError

    warnings.simplefilter("ignore")
    from pipeline.definitions import build

    try:
        definitions = build(settings)
        graph = definitions.resolve_asset_graph()
        definitions.resolve_all_job_defs()
        unfilled = sorted(
            key.to_user_string()
            for key in graph.get_all_asset_keys() - graph.executable_asset_keys
            if key.path[0] == "raw"
        )
    except DagsterError as error:
        raise ConfigError(f"Dagster refuses the definitions: {error}") from error
    if unfilled:
        raise ConfigError(
            f"The models read {', '.join(unfilled)}, which no source fills. Correct dbt's sources or the source files."
        )
    return f"{len(graph.executable_asset_keys)} assets, {len(graph.asset_check_keys)} checks"
