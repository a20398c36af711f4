"""One sync in a process of its own, to be killed. Arguments: source file, bytes from which a state is committed."""

import sys
from pathlib import Path

from pipeline.ingest import airbyte_sync
from pipeline.ingest.airbyte import sync
from pipeline.ingest.spec import load_source
from pipeline.lake.connection import Lake
from pipeline.settings import Settings

settings = Settings.load()
airbyte_sync.COMMIT_BYTES = int(sys.argv[2])
with Lake.open(settings) as lake:
    sync(lake, load_source(Path(sys.argv[1])), None, settings=settings, run_id="killed")
