"""The lake as a Dagster resource."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from pipeline.lake.connection import Lake
from pipeline.settings import Settings


def build_lake_resource(settings: Settings) -> dg.ResourceDefinition:
    """One open `Lake` for the length of a run (in-process executor) or step."""

    @contextmanager
    def open_lake(_: dg.InitResourceContext) -> Iterator[Lake]:
        with Lake.open(settings) as lake:
            yield lake

    return dg.ResourceDefinition(resource_fn=open_lake, description="The lake, attached read-write.")
