"""Few database sessions instead of one for every query, in the processes of a cluster.

Dagster opens a session for each query, 55 in a run of two assets.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dagster import DagsterInstance
from dagster._cli.utils import get_instance_for_cli
from dagster._daemon import cli as daemon_cli
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import QueuePool

STATEMENT_MILLISECONDS = 60_000
RECYCLE_SECONDS = 3600
AT_ONCE = 20  # beyond the one that each of the three storages keeps; closed after use


def pool(instance: DagsterInstance) -> None:
    """Let *instance* keep a session for each of its storages, and make a new one for a session that has ended."""
    instance.optimize_for_webserver(
        statement_timeout=STATEMENT_MILLISECONDS, pool_recycle=RECYCLE_SECONDS, max_overflow=AT_ONCE
    )
    outlive_the_server()


def outlive_the_server() -> None:
    """Let no query of this process fail because the server has ended a session that was kept."""
    if not event.contains(QueuePool, "checkout", _check):
        event.listen(QueuePool, "checkout", _check)


def install() -> None:
    """Let the daemon that this process starts do so."""
    daemon_cli.get_instance_for_cli = _pooled  # type: ignore[attr-defined, assignment]


@contextmanager
def _pooled(**options: Any) -> Iterator[DagsterInstance]:
    with get_instance_for_cli(**options) as instance:
        pool(instance)
        yield instance


def _check(session: Any, *_: object) -> None:
    """Called as a session is taken: one that the server has ended is replaced, and no query fails for it."""
    try:
        with session.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Exception as error:
        raise DisconnectionError from error
