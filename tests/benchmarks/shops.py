"""The code location of the history that `exporter` measures: what ``dagster-webserver -m`` loads."""

from tests.exporter.history import SHOPS, definitions

defs = definitions(SHOPS)
