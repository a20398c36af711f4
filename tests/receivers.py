"""Who is notified in tests: a real HTTP server and a real mail server on this machine, which do as they are told."""

import base64
import datetime as dt
import email
import email.policy
import json
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def wait_until(wanted: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def certificate(folder: Path) -> Path:
    """A key with a certificate for localhost that it signed itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1)).add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "localhost.pem"
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


# Webhooks


@dataclass
class Post:
    path: str
    headers: dict[str, str]
    body: Any


class Webhook(ThreadingHTTPServer):
    """Keeps what is posted. `answers` are the next ones, status and body; after them it is 200 always."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _PostHandler)
        self.posts: list[Post] = []
        self.answers: list[tuple[int, str]] = []
        self.headers: dict[str, str] = {}  # of every answer
        self.url = f"http://127.0.0.1:{self.server_port}"

    @property
    def bodies(self) -> list[Any]:
        return [post.body for post in self.posts]


class _PostHandler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = cast(Webhook, self.server)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, text = server.answers.pop(0) if server.answers else (200, "ok")
        server.posts.append(Post(self.path, dict(self.headers), body))
        self.send_response(status)
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@contextmanager
def webhook(port: int = 0) -> Iterator[Webhook]:
    with Webhook(port) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


# Mail


@dataclass
class Mail:
    sender: str
    recipients: list[str]
    message: EmailMessage
    is_encrypted: bool
    user: str


class MailServer(socketserver.ThreadingTCPServer):
    """Takes mail by SMTP. `answers` are by command (``RCPT``, ``.`` for the end of a mail), each given once; empty: as ever."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *, tls: ssl.SSLContext | None, is_implicit: bool, logins: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _MailHandler)
        self.port: int = self.server_address[1]
        self.tls, self.is_implicit, self.logins = tls, is_implicit, logins
        self.mails: list[Mail] = []
        self.answers: dict[str, list[str]] = {}


@dataclass
class _Session:
    sender: str = ""
    recipients: list[str] = field(default_factory=list)


class _MailHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.mail_server = cast(MailServer, self.server)
        self.user = ""
        self.file = self.request.makefile("rb")
        with suppress(OSError):
            self._talk()
        self.file.close()
        self.request.close()

    def _talk(self) -> None:
        if self.mail_server.is_implicit:
            self._encrypt()
            self._open()
        self._say("220 localhost ESMTP")
        session = _Session()
        while line := self.file.readline(4096).decode(errors="replace").strip():
            verb, _, rest = line.partition(" ")
            verb = verb.upper()
            if (planned := self.mail_server.answers.get(verb)) and (answer := planned.pop(0)):
                self._say(answer)
            elif verb == "EHLO":
                self._greet()
            elif verb == "STARTTLS" and self.mail_server.tls:
                self._say("220 go ahead")
                self._encrypt()
                self._open()
            elif verb == "AUTH":
                self._log_in(rest)
            elif verb == "MAIL":
                session = _Session(_address(rest))
                self._say("250 ok")
            elif verb == "RCPT":
                session.recipients.append(_address(rest))
                self._say("250 ok")
            elif verb == "DATA":
                self._say("354 go on")
                self._take(session)
            elif verb == "QUIT":
                self._say("221 bye")
                return
            else:
                self._say("250 ok" if verb in ("RSET", "NOOP") else "502 unknown")

    def _encrypt(self) -> None:
        assert self.mail_server.tls
        self.request = self.mail_server.tls.wrap_socket(self.request, server_side=True)

    def _open(self) -> None:
        self.file.close()
        self.file = self.request.makefile("rb")

    def _say(self, text: str) -> None:
        if text == "hang up":
            raise ConnectionAbortedError
        self.request.sendall(f"{text}\r\n".encode())

    def _greet(self) -> None:
        is_encrypted = isinstance(self.request, ssl.SSLSocket)
        offers = ["STARTTLS"] * bool(self.mail_server.tls and not is_encrypted)
        offers += ["AUTH PLAIN"] * bool(self.mail_server.logins and is_encrypted)
        lines = ["localhost", *offers]
        self._say("\r\n".join(f"250{' ' if line == lines[-1] else '-'}{line}" for line in lines))

    def _log_in(self, rest: str) -> None:
        _, user, password = base64.b64decode(rest.partition(" ")[2]).decode().split("\0")
        if self.mail_server.logins.get(user) == password:
            self.user = user
            self._say("235 welcome")
        else:
            self._say("535 5.7.8 bad credentials")

    def _take(self, session: _Session) -> None:
        lines = []
        while (line := self.file.readline()) != b".\r\n":
            lines.append(line.removeprefix(b"."))
        if planned := self.mail_server.answers.get("."):
            self._say(planned.pop(0))
            return
        message = cast(EmailMessage, email.message_from_bytes(b"".join(lines), policy=email.policy.default))
        is_encrypted = isinstance(self.request, ssl.SSLSocket)
        self.mail_server.mails.append(Mail(session.sender, session.recipients, message, is_encrypted, self.user))
        self._say("250 queued")


def _address(text: str) -> str:
    return text.partition("<")[2].partition(">")[0]


@contextmanager
def mail_server(
    *, file: Path | None = None, is_implicit: bool = False, logins: dict[str, str] | None = None
) -> Iterator[MailServer]:
    """With the certificate in *file* it offers STARTTLS, or speaks TLS from the first byte on."""
    context = None
    if file:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
    with MailServer(tls=context, is_implicit=is_implicit, logins=logins or {}) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()
