"""Certificates as real TLS servers present them."""

import datetime as dt
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.errors import ConfigError
from pipeline.exporter import certificates
from pipeline.settings import Settings
from tests.exporter.conftest import Watched

DAY = 86_400.0


@dataclass
class Authority:
    """Signs certificates; the system vouches for it."""

    folder: Path

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of the test")])
        own = self._certificate(self.name, self.key.public_key(), days=3650)
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.file = self.folder / "authority.pem"
        self.file.write_bytes(own.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def certify(self, name: str, *, days: float, signed_by_itself: bool = False) -> Path:
        """Key and certificate for *name* that holds for *days* from now, in one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._certificate(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key.public_key(), days=days
        )
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        signed = made.sign(key if signed_by_itself else self.key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file = self.folder / f"{name}-{days}-{signed_by_itself}.pem"
        file.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
        return file

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, days: float
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=400)).not_valid_after(now + dt.timedelta(days=days))
        )  # fmt: skip


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    return made


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """Starts a TLS server with a certificate, or with one for each name that is asked for; gives its port."""
    listeners: list[socket.socket] = []

    def start(default: Path | None, **by_name: Path) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        contexts = {name: _context(file) for name, file in by_name.items()}
        context = _context(default)

        def choose(client: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
            client.context = contexts.get(name or "", context)

        context.sni_callback = choose

        def answer() -> None:
            with suppress(OSError):  # the listener ends with the test
                while True:
                    client, _ = listener.accept()
                    client.settimeout(5)
                    with closing(client), suppress(OSError):  # who asks may not like the certificate
                        context.wrap_socket(client, server_side=True).close()

        if default is not None:
            threading.Thread(target=answer, daemon=True).start()
        port: int = listener.getsockname()[1]
        return port

    yield start
    for listener in listeners:
        listener.close()


def _context(file: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if file is not None:
        context.load_cert_chain(file)
    return context


def asked(settings: Settings, *hosts: str) -> Watched:
    """An exporter that has asked these hosts."""
    watched = Watched(settings.model_copy(update={"certificate_hosts": ",".join(hosts)})).start()
    finish(watched)
    return watched


def finish(watched: Watched) -> None:
    """Let the hosts answer, and poll."""
    for thread in threading.enumerate():
        if thread.name == "certificates":
            thread.join(60)
    watched.poll()


def figures(watched: Watched, host: str) -> tuple[float | None, float | None, float | None]:
    """Days for which the certificate still holds, whether a client takes it, whether the host answered."""
    expiry = watched.value("millrace_certificate_expiry_timestamp_seconds", host=host)
    return (
        None if expiry is None else (expiry - time.time()) / DAY,
        watched.value("millrace_certificate_valid", host=host),
        watched.value("millrace_certificate_reachable", host=host),
    )


@pytest.mark.parametrize(
    ("name", "days", "signed_by_itself", "is_taken"),
    [
        ("localhost", 90, False, 1),
        ("localhost", 2, False, 1),
        ("localhost", -10, False, 0),
        ("localhost", 90, True, 0),
        ("localhost", -10, True, 0),
        ("elsewhere", 90, False, 0),
    ],
    ids=["valid", "about to expire", "expired", "signed by itself", "signed by itself and expired", "for another name"],
)
def test_every_certificate_tells_its_date_and_whether_a_client_takes_it(
    settings: Settings, authority: Authority, serve: Callable[..., int],
    name: str, days: float, signed_by_itself: bool, is_taken: int,
):  # fmt: skip
    host = f"localhost:{serve(authority.certify(name, days=days, signed_by_itself=signed_by_itself))}"

    assert figures(asked(settings, host), host) == (pytest.approx(days, abs=0.01), is_taken, 1)


def test_the_host_is_asked_by_its_name_where_an_address_has_several(
    settings: Settings, authority: Authority, serve: Callable[..., int]
):
    port = serve(authority.certify("elsewhere", days=1), localhost=authority.certify("localhost", days=50))
    watched = asked(settings, f"localhost:{port}", f"127.0.0.1:{port}")

    assert figures(watched, f"localhost:{port}") == (pytest.approx(50, abs=0.01), 1, 1)
    assert figures(watched, f"127.0.0.1:{port}") == (pytest.approx(1, abs=0.01), 0, 1)


def test_a_host_that_does_not_answer_is_told_and_no_other_waits_for_it_in_vain(
    settings: Settings, authority: Authority, serve: Callable[..., int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(certificates, "CONNECT_SECONDS", 0.5)
    good, silent = serve(authority.certify("localhost", days=90)), serve(None)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        gone = free.getsockname()[1]
    hosts = [f"localhost:{port}" for port in (silent, gone, good)]
    started = time.monotonic()
    watched = asked(settings, *hosts, "no-such-host.invalid:443")

    assert time.monotonic() - started < 30
    for host in (*hosts[:2], "no-such-host.invalid:443"):
        assert figures(watched, host) == (None, None, 0)
    assert figures(watched, hosts[2]) == (pytest.approx(90, abs=0.01), 1, 1)
    assert watched.exporter.polled_at  # it is no failure of the exporter's own


def test_no_poll_waits_for_a_host(settings: Settings, serve: Callable[..., int]):
    silent = f"127.0.0.1:{serve(None)}"
    watched = Watched(settings.model_copy(update={"certificate_hosts": silent})).start()
    started = time.monotonic()
    watched.poll()

    assert time.monotonic() - started < certificates.CONNECT_SECONDS / 2
    assert figures(watched, silent) == (None, None, None)


def test_a_renewed_certificate_is_seen_after_an_hour_and_the_last_one_stays_while_nobody_answers(
    settings: Settings, authority: Authority, serve: Callable[..., int]
):
    old, new = authority.certify("localhost", days=5), authority.certify("localhost", days=90)
    now = [1e9]
    port = serve(old)
    host = f"localhost:{port}"
    watched = Watched(settings.model_copy(update={"certificate_hosts": host}), clock=lambda: now[0]).start()
    finish(watched)
    (topic,) = (topic for topic in watched.exporter.topics if topic.name == "certificates")
    assert figures(watched, host)[0] == pytest.approx(5, abs=0.01)

    topic._hosts = {host: ("localhost", serve(new))}  # type: ignore[attr-defined]
    now[0] += certificates.EVERY_SECONDS - 1
    watched.poll()
    finish(watched)
    assert figures(watched, host)[0] == pytest.approx(5, abs=0.01)
    now[0] += 2
    watched.poll()
    finish(watched)
    assert figures(watched, host)[0] == pytest.approx(90, abs=0.01)

    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        topic._hosts = {host: free.getsockname()[:2]}  # type: ignore[attr-defined]
    now[0] += certificates.EVERY_SECONDS
    watched.poll()
    finish(watched)
    assert figures(watched, host) == (pytest.approx(90, abs=0.01), 1, 0)
    topic._hosts = {host: ("localhost", serve(new))}  # type: ignore[attr-defined]
    now[0] += certificates.RETRY_SECONDS
    watched.poll()
    finish(watched)
    assert figures(watched, host) == (pytest.approx(90, abs=0.01), 1, 1)


def test_hosts_are_read_with_and_without_a_port():
    settings = Settings(certificate_hosts="site.example.com, [::1]:8443,10.0.0.1:9443")

    assert settings.certificate_addresses == {
        "site.example.com": ("site.example.com", 443),
        "[::1]:8443": ("::1", 8443),
        "10.0.0.1:9443": ("10.0.0.1", 9443),
    }


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ("https://site.example.com", "'https://site.example.com' is neither a host nor host:port"),
        ("a.example.com,b:99999", "'b:99999' is neither a host nor host:port"),
        (",".join(f"h{number}" for number in range(21)), "21 hosts, of which 20 are asked at most"),
    ],
)
def test_hosts_that_cannot_be_asked_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, hosts: str, said: str):
    monkeypatch.setenv("MILLRACE_CERTIFICATE_HOSTS", hosts)

    with pytest.raises(ConfigError, match="MILLRACE_CERTIFICATE_HOSTS") as caught:
        Settings.load()
    assert said in str(caught.value)
