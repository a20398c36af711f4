"""The exporter's sessions: a connection that is made anew once it is gone, every statement bounded."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pipeline.errors import ServiceError
from pipeline.settings import Role, Settings

if TYPE_CHECKING:
    import psycopg2.extensions

STATEMENT_SECONDS = 5
CONNECT_SECONDS = 10
# A server, or a client, whose host is gone does not say so. Either side finds out within half a minute: this one to connect
# to who took over, the server to free the lock for the exporter that stands by. On a Unix socket none of it counts.
CLIENT = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
SERVER = "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
# Every statement on a table of Dagster's that grows is bounded by an index. The planner is not asked whether reading all of it
# would do: while its figures are older than the table it thinks so, and a poll costs as much as the history is long.
PLANS = {"dagster": "-c enable_seqscan=off -c enable_bitmapscan=off -c jit=off"}
READERS: dict[str, Role] = {"dagster": "exporter", "lake": "lake_reader"}
Row = tuple[Any, ...]


class Database:
    """Reads the database *name* of *settings* as the role that is there for it. For one thread."""

    def __init__(self, settings: Settings, name: str = "dagster") -> None:
        self._settings, self._name = settings, name
        self._open: psycopg2.extensions.connection | None = None
        self.sessions = 0  # so far; what one held is lost with it
        self._not_before, self._refusal = 0.0, ""

    def session(self) -> int:
        """Which of its sessions it is in, which is a new one if the last was lost. Raises as `rows`."""
        with self._session():
            return self.sessions

    def rows(self, statement: str, *values: Any) -> list[Row]:
        """All rows of a query.

        Raises:
            ServiceError: if the server does not answer, takes too long or refuses; the next call connects anew.
        """
        with self._session() as connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return list(cursor.fetchall())

    def write(self, statement: str, *values: Any) -> None:
        """Run and commit one statement. Raises as `rows`."""
        with self._session() as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN READ WRITE")
            cursor.execute(statement, values)
            cursor.execute("COMMIT")

    def try_lock(self, name: str) -> bool:
        """Hold the lock *name* of all sessions for as long as this connection lives; False if another has it."""
        ((held,),) = self.rows("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", name)
        return bool(held)

    def close(self) -> None:
        """End the session."""
        if self._open is not None:
            with suppress(Exception):
                self._open.close()
            self._open = None

    @contextmanager
    def _session(self) -> "Iterator[psycopg2.extensions.connection]":
        import psycopg2

        try:
            if self._open is None:
                self._open = self._connect()
            yield self._open
        except psycopg2.Error as error:
            self.close()
            raise ServiceError(f"Reading the database {self._name}: {str(error).strip()}") from error
        except BaseException:
            self.close()  # in the middle of an answer
            raise

    def _connect(self) -> "psycopg2.extensions.connection":
        """A new session. Who waited in vain is refused at once for as long again: every topic of a poll would else wait."""
        import psycopg2

        if (began := time.monotonic()) < self._not_before:
            raise psycopg2.OperationalError(self._refusal)
        keywords: dict[str, Any] = {
            "connect_timeout": CONNECT_SECONDS,
            "application_name": "millrace-exporter",
            "options": f"-c statement_timeout={STATEMENT_SECONDS}s -c default_transaction_read_only=on -c timezone=UTC "
            f"{SERVER} {PLANS.get(self._name, '')}",
            **CLIENT,
            **self._settings.libpq(self._name, READERS[self._name]),
        }
        try:
            connection: psycopg2.extensions.connection = psycopg2.connect(**keywords)
        except psycopg2.OperationalError as error:
            now = time.monotonic()
            self._not_before, self._refusal = now + (now - began), str(error)
            raise
        connection.autocommit = True
        self.sessions += 1
        return connection
