"""New projects, and the example data that a project can make for itself."""

import importlib
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.settings import Project, Settings

_FILES = {
    "millrace.yaml": "name: {name}\n",
    "sources/example.yaml": """\
# One file a source. `millrace check` names file and line of what is wrong in it.
name: example
kind: files
owner: team:data
description: Two rows to start from; replace it by your own.
location: data          # folder (relative to the project), http(s):// or s3://bucket/prefix
streams:
  - name: cities
    path: cities.csv
    primary_key: [city]
    columns:
      - {{name: city}}
      - {{name: population, type: BIGINT}}
""",
    "data/cities.csv": "city,population\nNew York,8336817\nJersey City,292449\n",
    "dbt/dbt_project.yml": """\
name: {name}
version: "1.0"
profile: millrace  # the platform's own: `millrace env` says where it is
model-paths: [models]
macro-paths: [macros]
test-paths: [tests]
flags:
  send_anonymous_usage_stats: false
models:
  {name}:
    +pre-hook: "{{{{ record_run() }}}}"
    +meta: {{dagster: {{owners: ["team:data"]}}}}
    staging: {{+schema: staging, +materialized: view}}
    marts: {{+schema: marts, +materialized: table}}
""",
    "dbt/models/sources.yml": """\
sources:
  - name: example
    schema: raw
    database: lake
    tables:
      - name: cities
        identifier: example__cities
""",
    "dbt/models/staging/stg_example__cities.sql": "select city, population from {{{{ source('example', 'cities') }}}}\n",
    "dbt/models/staging/stg_example__cities.yml": """\
models:
  - name: stg_example__cities
    description: One row a city.
    columns:
      - name: city
        description: Its name.
        data_tests: [unique, not_null]
      - name: population
        description: People who live there.
""",
    "dbt/models/marts/dim_city.sql": """\
select city, population, population > 1000000 as is_large from {{{{ ref('stg_example__cities') }}}}
""",
    "dbt/macros/generate_schema_name.sql": """\
{{# Schemas are called staging and marts, not <target>_staging. #}}
{{% macro generate_schema_name(custom_schema_name, node) -%}}
    {{{{ custom_schema_name or target.schema }}}}
{{%- endmacro %}}
""",
    "dbt/macros/record_run.sql": """\
{{# The snapshot of each model names the run that built it, as every other commit to the lake does. #}}
{{% macro record_run() -%}}
    {{%- set run_id = env_var('MILLRACE_RUN_ID', '') if execute else '' -%}}
    {{%- set asset = this.schema ~ '/' ~ this.name -%}}
    call {{{{ this.database }}}}.set_commit_message(
        'dbt', '{{{{ asset }}}} by {{{{ run_id or "hand" }}}}',
        extra_info => '{{"asset": "{{{{ asset }}}}", "run_id": "{{{{ run_id }}}}"}}')
{{%- endmacro %}}
""",
    ".gitignore": ".millrace/\n",
}


def write_project(directory: Path) -> list[Path]:
    """Make a project that runs, in *directory*, which must be empty or not exist; returns the files.

    Raises:
        ConfigError: if it holds something, or cannot be written.
    """
    name = "".join(c if c.isalnum() else "_" for c in directory.resolve().name.lower()).strip("_")
    if not name[:1].isalpha():
        name = f"project_{name}".rstrip("_")
    try:
        if directory.exists() and any(directory.iterdir()):
            raise ConfigError(f"Starting a project in {directory}: it is not empty. Name a new folder.")
        texts = {path: text.format(name=name) for path, text in _FILES.items()}
        for path, text in texts.items():
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    except OSError as error:
        raise ConfigError(f"Starting a project in {directory}: {error.filename}: {error.strerror}.") from error
    return [directory / path for path in texts]


def generate(settings: Settings, directory: Path) -> list[Path]:
    """Have the project write its example data into *directory*; returns the files.

    Raises:
        ConfigError: if the project names no generator, or one that cannot be imported.
    """
    project = Project.load(settings.project_dir)
    if not project.generate:
        raise ConfigError(
            f"{settings.project_dir / 'millrace.yaml'}: the project has no example data: `generate: module:function` is not set."
        )
    module, _, function = project.generate.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{settings.project_dir / 'millrace.yaml'}: generate: {project.generate}: {error}") from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return list(make(directory))
    except OSError as error:
        raise ConfigError(f"Writing example data into {directory}: {error.strerror or error}.") from error
