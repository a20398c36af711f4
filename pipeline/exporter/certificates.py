"""Certificates of the addresses under which the platform is reached: until when they hold, and whether a client takes them."""

import logging
import socket
import ssl
import threading
from dataclasses import dataclass

from pipeline.exporter.database import Database
from pipeline.exporter.metrics import Registry
from pipeline.exporter.topic import Topic
from pipeline.settings import Settings

log = logging.getLogger(__name__)

EVERY_SECONDS = 3600.0
RETRY_SECONDS = 300.0  # while one of the hosts does not answer
CONNECT_SECONDS = 10.0  # of a connection, and again of its handshake


@dataclass(frozen=True)
class Certificate:
    """What a server presents. *expires_at* in epoch seconds; *refused* is why a client would not take it, empty if it would."""

    expires_at: float
    refused: str = ""


class Certificates(Topic):
    """Asked every hour by a thread of its own: what a host takes its time for holds up no poll, and no scrape."""

    name = "certificates"

    def __init__(self, registry: Registry, settings: Settings) -> None:
        host = ("host",)
        self.expiry = registry.gauge(
            "millrace_certificate_expiry_timestamp_seconds", "Until when the host's certificate holds.", host
        )
        self.valid = registry.gauge(
            "millrace_certificate_valid", "1 if a client takes the certificate for the host's, else 0.", host
        )
        self.reachable = registry.gauge(
            "millrace_certificate_reachable", "1 if the host answered with a certificate, else 0.", host
        )
        self._hosts = settings.certificate_addresses
        self._asked_at = 0.0
        self._found: dict[str, Certificate | None] = {}
        self._thread: threading.Thread | None = None

    def poll(self, database: Database, now: float) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        if self._thread is not None:
            self._thread = None
            self._show()
        wait = EVERY_SECONDS if all(self._found.get(name) for name in self._hosts) else RETRY_SECONDS
        if self._hosts and not 0 <= now - self._asked_at < wait:
            self._asked_at = now
            self._thread = threading.Thread(target=self._ask, name="certificates", daemon=True)
            self._thread.start()

    def _ask(self) -> None:
        for name, (host, port) in self._hosts.items():
            try:
                self._found[name] = certificate_of(host, port)
            except (OSError, ValueError) as error:  # no answer, none in TLS, or no certificate
                self._found[name] = None
                log.warning("Asking %s for its certificate: %s", name, error)

    def _show(self) -> None:
        for name, found in self._found.items():
            self.reachable.set(float(found is not None), name)
            if found is not None:  # else what it presented last is still the best guess
                if found.refused and self.valid.series.get((name,)) != 0.0:
                    log.warning("The certificate of %s is refused: %s", name, found.refused)
                self.expiry.set(found.expires_at, name)
                self.valid.set(float(not found.refused), name)


def certificate_of(host: str, port: int) -> Certificate:
    """What the server at *host* presents to a client that asks for *host*.

    It is taken if the authorities of the system (or of SSL_CERT_FILE) vouch for it, for this name and today.

    Raises:
        OSError: if nobody answers within the time, or not in TLS.
        ValueError: if what it presents is no certificate.
    """
    try:
        return Certificate(_expiry(_presented(host, port, ssl.create_default_context())))
    except ssl.SSLCertVerificationError as error:
        refused = error.verify_message
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    return Certificate(_expiry(_presented(host, port, unverified)), refused)


def _presented(host: str, port: int, context: ssl.SSLContext) -> bytes:
    with (
        socket.create_connection((host, port), CONNECT_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        return secure.getpeercert(binary_form=True) or b""


def _expiry(certificate: bytes) -> float:
    from cryptography import x509  # 13 MB, and most installations have no host to ask

    return x509.load_der_x509_certificate(certificate).not_valid_after_utc.timestamp()
