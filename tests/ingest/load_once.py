"""A process that loads one source and says how it goes: started by tests, which then end it as they like.

Prints ``ready``, waits for a line, then ``done N`` for each file and waits again if asked to, then ``rows N``.
"""

import sys
from pathlib import Path

from pipeline.errors import MillraceError
from pipeline.ingest.files import load_files
from pipeline.ingest.spec import FileStream, load_source
from pipeline.lake.connection import Lake
from pipeline.progress import Progress
from pipeline.settings import Settings


def main(source: str, run_id: str, months: str, stops: str) -> int:
    settings = Settings.load()
    file = load_source(Path(source))
    (stream,) = file.source.streams
    assert isinstance(stream, FileStream)

    def tell(step: Progress) -> None:
        print(f"done {step.items_done}", flush=True)
        if str(step.items_done) in stops.split(","):
            sys.stdin.readline()

    try:
        with Lake.open(settings) as lake:
            print("ready", flush=True)
            sys.stdin.readline()
            asked = frozenset(filter(None, months.split(","))) or None
            result = load_files(lake, file, stream, settings=settings, run_id=run_id, months=asked, report=tell)
    except MillraceError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 75 if error.is_transient else 1
    print(f"rows {result.rows}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
