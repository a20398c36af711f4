"""Whether a backup would restore: its dumps are whole, and the data files to which its catalogue refers are there.

Nothing but the backup and the files is needed, no server.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import BackupError, MillraceError
from pipeline.operate.backup_catalogue import Catalogue, read_catalogue
from pipeline.operate.backup_manifest import Checked, Manifest, chosen, files_store, load, names, open_target
from pipeline.operate.backup_programs import Programs, newest_programs
from pipeline.operate.store import Store, open_store
from pipeline.settings import Settings

LISTED = 50  # missing files of one backup


@dataclass(frozen=True)
class Verdict:
    """One backup: a sentence about what was looked at, and a line for each thing that is wrong."""

    name: str
    detail: str
    problems: tuple[str, ...]


def verify(settings: Settings, target: str, name: str | None = None, *, every: bool = False) -> list[Verdict]:
    """Look at one backup, the newest unless *name* says which, or at *every* one.

    Raises:
        ConfigError: if there is no such backup, or no pg_restore.
        BackupError: if the bucket does not answer.
    """
    store = open_target(target, settings)
    newest = chosen(store, name)
    programs = newest_programs()
    listed: dict[str, dict[str, int]] = {}

    def sizes(location: str) -> dict[str, int]:
        if location not in listed:
            listed[location] = open_store(location, settings).sizes()
        return listed[location]

    copies = files_store(store, settings).location
    return [
        _verdict(store, programs, one, lambda manifest: (sizes(manifest.lake_path), sizes(copies)))
        for one in (names(store) if every else [newest])
    ]


def _verdict(
    store: Store, programs: Programs, name: str, places: Callable[[Manifest], tuple[dict[str, int], dict[str, int]]]
) -> Verdict:
    try:
        manifest = load(store, name)
    except BackupError as error:
        return Verdict(name, "", (str(error),))
    problems = []
    for database, expected in manifest.dumps.items():
        file = f"{name}/{database}.dump"
        checked = Checked(store.read(file))
        try:
            for _ in checked:
                pass
            if checked.dump != expected:
                problems.append(f"{database}.dump is damaged: {_difference(checked.bytes, expected.bytes)}")
            programs.contents(store.read(file))
        except MillraceError as error:
            problems.append(f"{database}.dump cannot be read: {error}")
    if problems:
        return Verdict(name, "", (*problems, "the data files were not looked at, for this reason"))
    catalogue = read_catalogue(programs, store.read(f"{name}/lake.dump"))
    in_lake, copied = places(manifest)
    return Verdict(name, _detail(manifest, catalogue), _missing(catalogue, in_lake, copied))


def _difference(found: int, expected: int) -> str:
    if found != expected:
        return f"{expected:,} bytes were written, {found:,} are there."
    return f"its {found:,} bytes are not those that were written."


def _missing(catalogue: Catalogue, in_lake: dict[str, int], copied: dict[str, int]) -> tuple[str, ...]:
    lines: list[str] = []
    more = 0
    for file, size in sorted(catalogue.files.items()):
        if size in (in_lake.get(file), copied.get(file)):
            continue
        if len(lines) == LISTED:
            more += 1
            continue
        found = in_lake.get(file, copied.get(file))
        lines.append(f"data file {file} of {size:,} bytes " + ("is missing" if found is None else f"has {found:,} now"))
    return (*lines, *([f"and {more:,} data files more"] if more else []))


def _detail(manifest: Manifest, catalogue: Catalogue) -> str:
    place = "copied" if manifest.has_files else f"not copied: they are in {manifest.lake_path} alone"
    detail = f"both dumps, {manifest.dump_bytes / 1e6:,.1f} MB; {len(catalogue.files):,} data files, {place}"
    if catalogue.elsewhere:
        detail += f"; {len(catalogue.elsewhere):,} elsewhere were not looked at, the first is {catalogue.elsewhere[0]}"
    return detail
