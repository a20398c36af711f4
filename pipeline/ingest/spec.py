"""What a source file may say: ``sources/<name>.yaml``, one file a source.

Reading data is `files` and `airbyte`; this module knows no network and no lake.
"""

import os
import re
from collections.abc import Iterator
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from pipeline.errors import ConfigError

NAME = r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$"
TYPES = r"^(VARCHAR|BOOLEAN|TINYINT|SMALLINT|INTEGER|BIGINT|FLOAT|DOUBLE|DATE|TIME|TIMESTAMP|TIMESTAMPTZ|JSON|DECIMAL\(\d+,\s*\d+\))$"
MONTH = re.compile(r"\{(month|yyyymm|month_start|month_end)\}")
PLACEHOLDER = re.compile(r"\{(\w*)\}")
MONTH_NAMES = {"month", "yyyymm", "month_start", "month_end"}
REFERENCE = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)(?::-([^}]*))?\}")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]  # one name may stand without brackets


class Column(_Model):
    """One column of the raw table, and the names it has had in the provider's files."""

    name: str = Field(pattern=NAME)
    type: str = Field("VARCHAR", pattern=TYPES, description="DuckDB type of the raw column.")
    aliases: Names = Field((), description="Other headers of the same column, any case.")
    optional: bool = Field(False, description="Some generations of the file do not have it; it is then null.")
    description: str = ""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        places = [int(number) for number in re.findall(r"\d+", self.type)]
        if places and not (1 <= places[0] <= 38 and places[1] <= places[0]):
            raise ValueError(f"{self.type}: a DECIMAL has 1 to 38 digits, and no more of them after the point")
        return self


class Rows(_Model):
    """How many rows the table should hold after a load."""

    min: NonNegativeInt = 1
    max: PositiveInt | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"`max` {self.max} is less than `min` {self.min}")
        return self


class Months(_Model):
    """The months that exist upstream; the last is open unless given."""

    first: str = Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")
    last: str | None = Field(None, pattern=r"^\d{4}-(0[1-9]|1[0-2])$")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.last is not None and self.last < self.first:
            raise ValueError(f"`last` {self.last} is before `first` {self.first}")
        return self


class Stream(_Model):
    """What file and connector streams share: a table, and what must be true of it."""

    name: str = Field(pattern=NAME)
    description: str = ""
    primary_key: Names = ()
    rows: Rows = Rows()
    max_age_hours: PositiveFloat | None = Field(None, description="Older than this since the last load is late.")
    max_reject_share: float = Field(0.0, ge=0, le=1, description="More rejected rows than this fail the load.")


def _searchable(template: str) -> str:
    unknown = sorted(set(PLACEHOLDER.findall(template)) - MONTH_NAMES)
    if unknown:
        raise ValueError(
            f"{template!r}: {{{unknown[0]}}} is unknown; there are {{month}}, {{yyyymm}}, {{month_start}}, {{month_end}}"
        )
    if not template or template.startswith("/") or "://" in template:
        raise ValueError(f"{template!r}: give it relative to the location")
    if any("**" in part and part != "**" for part in template.split("/")):
        raise ValueError(f"{template!r}: `**` stands for folders, alone between slashes")
    if set(MONTH.findall(template)) == {"month_end"}:
        raise ValueError(
            f"{template!r}: {{month_end}} does not stand alone; add {{month}}, {{yyyymm}} or {{month_start}}"
        )
    return template


Templates = Annotated[tuple[Annotated[str, AfterValidator(_searchable)], ...], BeforeValidator(_as_tuple)]


class FileStream(Stream):
    """A table loaded from files; incremental by file."""

    path: Templates = Field(
        min_length=1,
        description="File name(s) under the location: glob characters, {month} 2024-01, {yyyymm} 202401, {month_start} and {month_end} as dates.",
    )
    local_path: Templates = Field((), description="The same under MILLRACE_DATA_DIR, where it differs.")
    format: Literal["parquet", "csv", "json", "ndjson"] | None = Field(
        None, description="Default: from the file's ending."
    )
    records: str = Field("", description="JSON only: dotted path to the array of records; empty: the document itself.")
    delimiter: str = Field(",", pattern=r'^[^"\r\n]$', description="CSV only; one character.")
    months: Months | None = None
    columns: tuple[Column, ...] = Field((), description="Empty: as the first file has them.")

    @property
    def paths(self) -> tuple[str, ...]:
        """Path templates under the source's location."""
        return self.path

    @property
    def local_paths(self) -> tuple[str, ...]:
        """Path templates under MILLRACE_DATA_DIR."""
        return self.local_path or self.path

    @property
    def is_monthly(self) -> bool:
        """True if every file belongs to one month."""
        return bool(MONTH.search(self.paths[0]))

    @model_validator(mode="after")
    def _consistent(self) -> "FileStream":
        if len({bool(MONTH.search(path)) for path in (*self.paths, *self.local_paths)}) > 1:
            raise ValueError("either all of `path` and `local_path` carry a month or none does")
        if self.is_monthly and self.months is None:
            raise ValueError("a path with a month needs `months: {first: YYYY-MM}`")
        if self.months and not self.is_monthly:
            raise ValueError("`months` needs a path with {month} or {yyyymm}")
        names = [column.name for column in self.columns]
        headers = [
            header
            for column in self.columns
            for header in {normalised(name) or name.lower() for name in (column.name, *column.aliases)}
        ]
        twice = sorted({header for header in headers if headers.count(header) > 1})
        if twice:
            raise ValueError(f"two of `columns` have the name or alias {twice[0]!r}")
        if names and not set(self.primary_key) <= set(names):
            raise ValueError(
                f"`primary_key` names a column that `columns` lacks: {sorted(set(self.primary_key) - set(names))}"
            )
        return self


class ConnectorStream(Stream):
    """A table loaded from an Airbyte connector's stream."""

    sync: Literal["full_refresh", "incremental_append", "incremental_deduped"] = "full_refresh"
    cursor_field: str | None = Field(None, description="Where the connector does not define one.")

    @model_validator(mode="after")
    def _consistent(self) -> "ConnectorStream":
        if self.sync == "incremental_deduped" and not self.primary_key:
            raise ValueError("sync incremental_deduped needs `primary_key`")
        return self


class _Source(_Model):
    name: str = Field(pattern=NAME)
    description: str = ""
    owner: str = Field(description="team:<name> or an e-mail address.", pattern=r"^(team:[\w-]+|[^@\s]+@[^@\s]+)$")
    homepage: str = ""
    licence: str = Field("", description="Terms under which the provider gives the data.")
    streams: tuple[Stream, ...]

    @model_validator(mode="after")
    def _streams_differ(self) -> Self:
        names = [stream.name for stream in self.streams]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two streams are called {twice[0]!r}")
        return self


class FileSource(_Source):
    """Files in a folder, behind http(s) or in an S3 bucket."""

    kind: Literal["files"]
    location: str = Field(description="Folder (relative to the project), http(s):// address or s3://bucket/prefix.")
    streams: tuple[FileStream, ...] = Field(min_length=1)


class AirbyteSource(_Source):
    """A connector that speaks the Airbyte protocol; exactly one of manifest, package, executable."""

    kind: Literal["airbyte"]
    manifest: str = Field("", description="Declarative manifest, relative to this file.")
    package: str = Field("", description="name==version of a Python connector.", pattern=r"^([\w.-]+==[\w.+!-]+)?$")
    executable: str = Field("", description="Program, relative to this file or on PATH.")
    config: dict[str, Any] = Field({}, description="The connector's configuration; secrets as ${ENV_NAME}.")
    idle_timeout_seconds: PositiveFloat = Field(
        300, description="A connector silent for so long is ended; to start it has a minute more."
    )
    timeout_seconds: PositiveFloat = Field(6 * 3600, description="A sync that takes longer is ended.")
    streams: tuple[ConnectorStream, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_connector(self) -> "AirbyteSource":
        if sum(map(bool, (self.manifest, self.package, self.executable))) != 1:
            raise ValueError("give exactly one of `manifest`, `package`, `executable`")
        return self


Source = Annotated[FileSource | AirbyteSource, Field(discriminator="kind")]


class SourceFile(_Model):
    """A source together with the file it was read from (for relative paths and messages)."""

    path: Path
    source: Source

    @cached_property
    def project_dir(self) -> Path:
        """The project the file belongs to."""
        return self.path.parent.parent


def normalised(header: str) -> str:
    """The column name a provider's *header* gets: lower case, every other run of characters an underscore."""
    return re.sub(r"[^a-z0-9]+", "_", header.strip().lower()).strip("_")


def table_name(source: str, stream: str) -> str:
    """The raw table of a stream, without its schema."""
    return f"{source}__{stream}"


def load_sources(directory: Path) -> list[SourceFile]:
    """Every ``*.yaml`` of *directory* that declares a source, in name order.

    ``*.manifest.yaml`` files are connectors' manifests, not sources.

    Raises:
        ConfigError: naming file and line of everything that is wrong with them.
    """
    paths = [path for path in sorted(directory.glob("*.y*ml")) if not path.name.endswith(".manifest.yaml")]
    files, problems = [], []
    for path in paths:
        try:
            files.append(load_source(path))
        except ConfigError as error:
            problems.append(str(error))
    seen: dict[str, Path] = {}
    for file in files:
        first = seen.setdefault(file.source.name, file.path)
        if first != file.path:
            problems.append(
                f"{file.path}: source {file.source.name!r} is declared in {first.name} already; rename one."
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return files


def load_source(path: Path) -> SourceFile:
    """The source of one file.

    Raises:
        ConfigError: naming file and line of each key that is unknown, missing or has an unusable value.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.CSafeLoader)  # libyaml's: definitions are imported by every run
        document = yaml.load(text, Loader=yaml.CSafeLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise ConfigError(f"{path}: not YAML: {error}") from error
    twice = [f"{path}:{line}: {key}: given twice; remove one" for key, line in _repeated(node)]
    if twice:
        raise ConfigError("\n".join(twice))
    if not isinstance(document, dict):
        raise ConfigError(f"{path}:1: a source file is a mapping that starts with `name:` and `kind:`.")
    try:
        return SourceFile.model_validate({"path": path, "source": document})
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}:{problem}" for problem in _problems(error, node))) from None


def _problems(error: ValidationError, node: yaml.Node | None) -> Iterator[str]:
    """``line: key: what is wrong`` for each mistake; not for what only follows from another one."""
    found = []
    for item in error.errors():
        location = list(item["loc"][1:])
        if location and location[0] in ("files", "airbyte"):  # which of the two models it was, not a key
            del location[0]
        found.append((location, item))
    for location, item in found:
        size = len(location)
        if item["type"] == "too_short" and any(other[:size] == location != other for other, _ in found):
            continue  # the only stream is wrong, which is said already
        if item["type"].startswith("union_tag"):
            location = ["kind"]
        message = {
            "extra_forbidden": "unknown key; remove it or correct its spelling",
            "union_tag_not_found": "missing; it is `files` or `airbyte`",
            "union_tag_invalid": f"{item.get('ctx', {}).get('tag')!r} is neither `files` nor `airbyte`",
            "missing": "missing",
        }.get(item["type"], item["msg"].removeprefix("Value error, "))
        yield f"{_line(node, location)}: {'.'.join(map(str, location)) or 'source'}: {message}"


def _repeated(node: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Keys that a mapping has twice, of which YAML would take the last, and the line of the second."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)


def _line(node: yaml.Node | None, location: list[Any]) -> int:
    """1-based line of the key or item at *location*; of the nearest parent that exists."""
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            match = [(key, value) for key, value in node.value if key.value == str(part)]
            if not match:
                return line
            line, node = match[0][0].start_mark.line + 1, match[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def resolved(value: Any, *, where: str) -> Any:
    """*value* with ``${NAME}`` and ``${NAME:-default}`` replaced from the environment, at any depth.

    Raises:
        ConfigError: naming the variable that is not set, and where it is asked for.
    """
    if isinstance(value, dict):
        return {key: resolved(item, where=f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolved(item, where=where) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name) or default
        if found is None:
            raise ConfigError(
                f"{where}: the environment variable {name} is not set. Set it; its value never goes into a file."
            )
        return found

    return REFERENCE.sub(replace, value)


def month_range(first: str, last: str) -> Iterator[str]:
    """Every month from *first* to *last* as YYYY-MM, both included."""
    year, month = map(int, first.split("-"))
    while f"{year:04}-{month:02}" <= last:
        yield f"{year:04}-{month:02}"
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)


def month_values(month: str) -> dict[str, str]:
    """What the placeholders of a path stand for in *month* (YYYY-MM)."""
    year, number = map(int, month.split("-"))
    following = date(year + number // 12, number % 12 + 1, 1)
    last_day = date.fromordinal(following.toordinal() - 1)
    return {
        "month": month,
        "yyyymm": month.replace("-", ""),
        "month_start": f"{month}-01",
        "month_end": last_day.isoformat(),
    }
