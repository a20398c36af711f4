"""TLS to a PostgreSQL server for programs that were built without it, as the pg_dump of the embedded server's wheel is."""

import asyncio
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from pipeline.errors import BackupError

ENCRYPTED = ("require", "verify-ca", "verify-full")
SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")  # PostgreSQL's protocol, "SSLRequest"
SASL = (10).to_bytes(4, "big")  # "AuthenticationSASL", before the names of the ways that there are
CONNECT_SECONDS = 10.0
BLOCK_BYTES = 1 << 16


class Tunnel:
    """A socket of this user's alone in `folder`; what connects there talks to *host* over TLS as libpq would.

    `failures` are what kept connections from being made.
    """

    def __init__(self, host: str, port: str, mode: str, root_certificate: str) -> None:
        self._host, self._port = host, port
        self._context = ssl.create_default_context(cafile=root_certificate or None)
        self._context.check_hostname = mode == "verify-full"
        if mode == "require" and not root_certificate:
            self._context.verify_mode = ssl.CERT_NONE
        self.folder = tempfile.TemporaryDirectory(prefix="millrace-")
        self.failures: list[str] = []
        self.ready = threading.Event()

    def run(self) -> None:
        """Serve until `stop`."""
        asyncio.run(self._serve())

    def stop(self) -> None:
        """End what is left of the connections. Called by another thread."""
        self._loop.call_soon_threadsafe(self._end.set)

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        path = os.path.join(self.folder.name, f".s.PGSQL.{self._port}")  # noqa: PTH118
        async with await asyncio.start_unix_server(self._connect, path):
            self.ready.set()
            await self._end.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            try:
                plain = await asyncio.to_thread(self._ask_for_tls)
                name = self._host if self._context.check_hostname else ""
                answers, server = await asyncio.open_connection(sock=plain, ssl=self._context, server_hostname=name)
            except (OSError, ssl.SSLError) as error:
                self.failures.append(str(error))
                return
            with closing(server):
                await asyncio.gather(_pump(reader, server), _answer(answers, writer))

    def _ask_for_tls(self) -> socket.socket:
        plain = socket.create_connection((self._host, int(self._port)), CONNECT_SECONDS)
        plain.sendall(SSL_REQUEST)
        if plain.recv(1) != b"S":
            plain.close()
            raise ConnectionError("the server does not offer TLS")
        plain.setblocking(False)
        return plain


@contextmanager
def tunnel(host: str, port: str, mode: str, root_certificate: str = "") -> Iterator[Tunnel]:
    """A `Tunnel` for the time of the block. *mode* is one of `ENCRYPTED`, with libpq's meaning."""
    made = Tunnel(host, port, mode, root_certificate)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    if not made.ready.wait(CONNECT_SECONDS):
        raise BackupError(
            f"Connecting to {host} by TLS ({mode}): no socket could be made in {made.folder.name}. Set TMPDIR to a shorter path."
        )
    try:
        yield made
    finally:
        made.stop()
        thread.join(CONNECT_SECONDS)
        made.folder.cleanup()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on what the server says, but not its offer to bind a password to TLS: who has none takes that for an attack."""
    with suppress(asyncio.IncompleteReadError, OSError):
        head = await reader.readexactly(5)  # kind, and length with its own four bytes
        body = await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
        if head[:1] == b"R" and body.startswith(SASL):
            body = body.replace(b"SCRAM-SHA-256-PLUS\0", b"")
        writer.write(head[:1] + (len(body) + 4).to_bytes(4, "big") + body)
    await _pump(reader, writer)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while block := await reader.read(BLOCK_BYTES):
            writer.write(block)
            await writer.drain()
    writer.close()
