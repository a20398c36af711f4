"""Airbyte connectors as programs: building their environments, and asking PyAirbyte about them.

Environments are made by `install` and nowhere else. What a connector's catalogue says is kept on disk, because
importing PyAirbyte costs seconds; it is asked again when connector, manifest or configuration change.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError, SourceError, SourceRejected, SourceUnavailable
from pipeline.ingest.airbyte_environments import (
    INSTALL_SECONDS,
    build_pyairbyte,
    building,
    is_finished,
    lock_checksum,
    pyairbyte_python,
)
from pipeline.ingest.airbyte_process import Child, ends_on_sigterm, private_folder
from pipeline.ingest.spec import REFERENCE, AirbyteSource, SourceFile, resolved
from pipeline.settings import Settings

log = logging.getLogger(__name__)

DRIVER = Path(__file__).with_name("pyairbyte_driver.py")
ASK_SECONDS = 600
ANSWER_BYTES = 64 << 20


@dataclass(frozen=True)
class Description:
    """What PyAirbyte learned from a connector: the JSON schema of its configuration, and its streams."""

    spec: dict[str, Any]
    streams: tuple[dict[str, Any], ...]


class Connector:
    """The connector of one source file: its program, its configuration, what PyAirbyte knows of it."""

    def __init__(self, file: SourceFile, settings: Settings) -> None:
        assert isinstance(file.source, AirbyteSource)
        self.file, self.settings, self.source = file, settings, file.source

    @property
    def label(self) -> str:
        """The connector as messages name it."""
        return self.source.manifest or self.source.package or self.source.executable

    @property
    def name(self) -> str:
        """The connector's name in Airbyte's world, ``source-…``."""
        if self.source.package:
            return self.source.package.split("==")[0].removeprefix("airbyte-")
        return f"source-{self.source.name.replace('_', '-')}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration with its references filled in.

        Raises:
            ConfigError: naming a variable that is not set.
        """
        value: dict[str, Any] = resolved(self.source.config, where=f"{self.file.path}: config")
        return value

    @cached_property
    def masked(self) -> tuple[str, ...]:
        """Values that no message may show: those of references without a default, and what the connector calls secret."""
        names = {
            name for text in _texts(self.source.config) for name, default in REFERENCE.findall(text) if not default
        }
        kept = self._kept()
        secrets = [_at(self.config, path) for path in _secret_paths(kept.spec)] if kept else []
        found = {*(os.environ.get(name, "") for name in names), *(str(value) for value in secrets if value)}
        return tuple(sorted((text for text in found if len(text) >= 4), key=len, reverse=True))

    @cached_property
    def program(self) -> Path:
        """The file to run.

        Raises:
            ConfigError: if it is not there, saying how it comes there.
        """
        if self.source.manifest:
            return pyairbyte_python(self.settings).with_name("source-declarative-manifest")
        if self.source.package:
            return self._environment() / f".venv-{self.name}" / "bin" / self.name
        beside = self.file.path.parent / self.source.executable
        found = str(beside) if beside.is_file() else shutil.which(self.source.executable)
        if found is None or not os.access(found, os.X_OK):
            raise ConfigError(
                f"{self.file.path}: executable {self.source.executable!r} is not an executable file beside the source file, "
                "nor on PATH. Correct the name, or make the file executable (chmod +x)."
            )
        return Path(found).absolute()

    def _environment(self) -> Path:
        folder = self.environment_path
        if not is_finished(folder, self.source.package):
            raise ConfigError(
                f"Source {self.source.name}: connector {self.source.package} is not installed in {folder}. "
                "Run `millrace sources install`."
            )
        return folder

    @property
    def environment_path(self) -> Path:
        """Where the environment of a package belongs."""
        return self.settings.connectors_path / self.source.package.replace("==", "-")

    @cached_property
    def manifest(self) -> Path:
        """The declarative manifest.

        Raises:
            ConfigError: if it is not there or not a mapping.
        """
        path = self.file.path.parent / self.source.manifest
        try:
            document = yaml.safe_load(path.read_text())
        except OSError as error:
            raise ConfigError(f"{self.file.path}: manifest {path}: {error.strerror}. Correct the name.") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not YAML: {error}") from error
        if not isinstance(document, dict) or "streams" not in document:
            raise ConfigError(f"{path}: not a declarative manifest: it has no `streams`.")
        return path

    def run_config(self) -> dict[str, Any]:
        """What the program gets as its configuration file."""
        if not self.source.manifest:
            return self.config
        return {**self.config, "__injected_declarative_manifest": yaml.safe_load(self.manifest.read_text())}

    # What PyAirbyte says

    def describe(self, *, fresh: bool = False) -> Description:
        """Specification and streams: as kept on disk, or asked now if there is nothing or *fresh*.

        Raises:
            ConfigError: if a value that the connector calls secret stands in the file, or an environment is missing.
            SourceError: if the connector cannot say.
        """
        described = None if fresh else self._kept()
        if described is None:
            reply = self.ask("discover")
            described = Description(reply["spec"], tuple(reply["streams"]))
            self._keep(described)
        self.refuse_literal_secrets(described.spec)
        return described

    def ask(self, action: str) -> dict[str, Any]:
        """PyAirbyte's answer about this connector. Nothing of ours is in its environment or arguments.

        Raises:
            ConfigError: if PyAirbyte is not installed.
            SourceError: with what PyAirbyte or the connector said.
        """
        request: dict[str, Any] = {"action": action, "name": self.name}
        if action == "install":
            request |= {"package": self.source.package, "install_root": str(self.environment_path)}
        elif self.source.manifest:
            request["manifest"] = str(self.manifest)
        else:
            request["executable"] = str(self.program)
        if action in ("check", "discover"):
            request["config"] = self.config
        doing = f"Source {self.source.name}: {action} of connector {self.label}"
        environment = {"PATH": f"{pyairbyte_python(self.settings).parent}:{os.environ.get('PATH', '')}"}
        if action == "install":  # uv and pip need to be told of mirrors and proxies
            told = {name: value for name, value in os.environ.items() if name.startswith(("UV_", "PIP_"))}
            environment |= {**told, "UV_COMPILE_BYTECODE": "1"}
        limit = INSTALL_SECONDS if action == "install" else ASK_SECONDS
        with private_folder(self.settings.scratch_path) as scratch, ends_on_sigterm():
            given = scratch / "request.json"
            given.write_text(json.dumps(request))
            with Child(
                [str(pyairbyte_python(self.settings)), "-I", str(DRIVER)],
                doing=doing,
                scratch=scratch,
                environment=environment,
                given=given,
                masked=self.masked,
                idle_timeout_seconds=limit,
                timeout_seconds=limit,
            ) as child:
                return _answer(child)

    def refuse_literal_secrets(self, spec: Mapping[str, Any]) -> None:
        """Raises ConfigError for each value in the source file that the connector's *spec* calls secret."""
        literal = [
            ".".join(path)
            for path in _secret_paths(spec)
            if (value := _at(self.source.config, path)) and not REFERENCE.search(str(value))
        ]
        if literal:
            raise ConfigError(
                f"{self.file.path}: config.{', config.'.join(literal)}: the connector calls this a secret, and it stands in "
                "the file. Put it into an environment variable, write ${NAME} here, and change the secret: it was seen."
            )

    def _kept(self) -> Description | None:
        try:
            document = json.loads(self._keeping_place.read_text())
        except (OSError, ValueError):
            return None
        return Description(document["spec"], tuple(document["streams"]))

    def _keep(self, described: Description) -> None:
        partial = self._keeping_place.with_suffix(f".{os.getpid()}")
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"spec": described.spec, "streams": described.streams}))
            partial.rename(self._keeping_place)
        except OSError as error:  # a read-only image: slower, not wrong
            log.warning(
                "The catalogue of source %s is not kept in %s: %s", self.source.name, partial.parent, error.strerror
            )

    @cached_property
    def _keeping_place(self) -> Path:
        if self.source.manifest:
            version = self.manifest.read_text() + lock_checksum()
        elif self.source.package:
            version = self.source.package
        else:
            with self.program.open("rb") as handle:
                version = hashlib.file_digest(handle, "sha256").hexdigest()
        key = hashlib.sha256(json.dumps([version, self.config], sort_keys=True).encode()).hexdigest()[:16]
        return self.settings.connectors_path / "catalogues" / f"{self.source.name}-{key}.json"


def _answer(child: Child) -> dict[str, Any]:
    text = bytearray()
    for block in child.blocks():
        text += block
        if len(text) > ANSWER_BYTES:
            raise SourceRejected(f"{child.doing}: the answer is larger than {ANSWER_BYTES >> 20} MiB.")
    try:
        reply: dict[str, Any] = json.loads(text)
    except ValueError:
        raise SourceUnavailable(
            f"{child.doing}: PyAirbyte ended with code {child.exit_code} and no answer.{child.last_words()}"
        ) from None
    if "error" in reply:
        said = child.hide(reply["message"])[:3000]
        raise SourceRejected(
            f"{child.doing} failed ({reply['error']}): {said}. Correct the configuration or the connector."
        )
    return reply


def install(settings: Settings, files: Iterable[SourceFile], progress: Callable[[str], None] = lambda _: None) -> None:
    """Build what the sources need and lack: PyAirbyte's environment and one for each package. Safe to repeat or kill.

    Raises:
        ConfigError: if a source file holds a literal secret.
        SourceError: if an environment cannot be built, with the installer's words.
    """
    connectors = [Connector(file, settings) for file in files if isinstance(file.source, AirbyteSource)]
    if not connectors:
        progress("no source needs a connector")
        return
    folder = settings.connectors_path / "pyairbyte"
    with building(folder, lock_checksum(), "PyAirbyte", progress) as is_needed:
        if is_needed:
            build_pyairbyte(folder)
    for connector in connectors:
        if connector.source.package:
            where = connector.environment_path
            with building(where, connector.source.package, connector.source.package, progress) as is_needed:
                if is_needed:
                    connector.ask("install")
        try:
            connector.describe()  # kept, so that a run need not start PyAirbyte
        except SourceError as error:  # the source may be out of reach where an image is built
            progress(f"{connector.source.name}: its streams are not known yet: {str(error).splitlines()[0]}")
            connector.refuse_literal_secrets(connector.ask("spec")["spec"])


# Secrets


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _secret_paths(schema: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a specification says ``airbyte_secret``, through every alternative it offers."""
    if schema.get("airbyte_secret"):
        yield path
    for name, inner in (schema.get("properties") or {}).items():
        yield from _secret_paths(inner, (*path, name))
    for choice in ("oneOf", "anyOf", "allOf"):
        for inner in schema.get(choice) or ():
            yield from _secret_paths(inner, path)


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
