"""pg_dump, which cannot speak TLS itself, at a PostgreSQL that is reached by TLS alone."""

import datetime as dt
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from pipeline.errors import BackupError
from pipeline.operate.backup_programs import newest_programs
from pipeline.operate.instance import ensure_instance
from pipeline.settings import Settings

SSL_REQUEST = bytes.fromhex("0000000804d2162f")  # as PostgreSQL's documentation has it


def certificate(folder: Path, name: str) -> Path:
    """A key with a certificate for *name* that it signed itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / f"{name}.pem"
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


def relay(one: socket.socket, other: socket.socket) -> None:
    pairs = {one: other, other: one}
    while True:
        waiting = [one] if isinstance(one, ssl.SSLSocket) and one.pending() else select.select([one, other], [], [])[0]
        for source in waiting:
            if not (block := source.recv(1 << 16)):
                return
            pairs[source].sendall(block)


@pytest.fixture
def front(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., Settings]]:
    """Makes servers that speak TLS (or say that they do not) before the test's own; gives settings that lead there."""
    ensure_instance(settings)
    folder = Path(settings.libpq("dagster")["host"])
    behind = str(next(folder.glob(".s.PGSQL.*[0-9]")))
    listeners = []

    def make(*, tls: bool = True) -> Settings:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate(tmp_path, "localhost"))
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve(client: socket.socket) -> None:
            with client, suppress(OSError):  # who asked may not like the certificate
                assert client.recv(8) == SSL_REQUEST
                client.sendall(b"S" if tls else b"N")
                if tls:
                    with (
                        context.wrap_socket(client, server_side=True) as secure,
                        socket.socket(socket.AF_UNIX) as server,
                    ):
                        server.connect(behind)
                        relay(secure, server)

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=[client], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        url = f"postgresql://millrace@localhost:{listener.getsockname()[1]}/dagster"
        return settings.model_copy(update={"database_url": SecretStr(url)})

    yield make
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_a_dump_is_made_over_tls(
    front: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
):
    there = front()
    monkeypatch.setenv("PGSSLMODE", mode)
    if mode != "require":
        monkeypatch.setenv("PGSSLROOTCERT", str(tmp_path / "localhost.pem"))

    dump = b"".join(newest_programs().dump(there, "dagster"))

    assert dump.startswith(b"PGDMP")
    assert any(" TABLE DATA public runs " in line for line in newest_programs().contents([dump]))


def test_a_certificate_of_another_authority_is_refused(
    front: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    there = front()
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", str(certificate(tmp_path, "other.test")))

    with pytest.raises(BackupError, match=r"by TLS \(verify-full\): .*certificate verify failed"):
        list(newest_programs().dump(there, "dagster"))


def test_a_certificate_for_another_host_is_refused(
    front: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    there = front()
    assert there.database_url
    url = there.database_url.get_secret_value().replace("@localhost", "@127.0.0.1")
    by_address = there.model_copy(update={"database_url": SecretStr(url)})
    monkeypatch.setenv("PGSSLROOTCERT", str(tmp_path / "localhost.pem"))

    monkeypatch.setenv("PGSSLMODE", "verify-full")
    with pytest.raises(BackupError, match="IP address mismatch"):
        list(newest_programs().dump(by_address, "dagster"))
    monkeypatch.setenv("PGSSLMODE", "verify-ca")
    assert b"".join(newest_programs().dump(by_address, "dagster")).startswith(b"PGDMP")


def test_a_server_without_tls_is_not_talked_to(front: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch):
    there = front(tls=False)
    monkeypatch.setenv("PGSSLMODE", "require")

    with pytest.raises(BackupError, match="the server does not offer TLS"):
        list(newest_programs().dump(there, "dagster"))
