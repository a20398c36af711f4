"""Finding and fetching files, from real servers on this machine."""

import gzip
import hashlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import stamina

from pipeline.errors import ConfigError, SourceRejected, SourceUnavailable
from pipeline.ingest import http_files
from pipeline.ingest.locations import FoundFile, find_files, local_copy, location_of
from pipeline.ingest.spec import FileSource, FileStream
from pipeline.settings import Settings
from tests.ingest.file_sources import Shop, declare, one_lake

CSV = "id,name\n1,a\n2,b\n"
TWO = {"id": "BIGINT", "name": "VARCHAR"}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from one_lake(tmp_path_factory.mktemp("lake"))


@pytest.fixture
def shop(lake: Any, tmp_path: Path) -> Shop:
    return Shop.in_empty(lake, tmp_path)


@pytest.fixture(autouse=True)
def _retries_do_not_wait() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3):
        yield


@dataclass
class Server:
    """An http server whose files are in memory; `requests` tells what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    modified: float = 1_600_000_000
    head_status: int = 200
    statuses: list[int] = field(default_factory=list)  # of the next requests, before all goes well
    respond: Callable[[BaseHTTPRequestHandler, bytes], None] | None = None
    requests: list[str] = field(default_factory=list)
    tells: bool = True
    address: str = ""

    def asked(self, method: str) -> list[str]:
        return [path for verb, _, path in (line.partition(" ") for line in self.requests) if verb == method]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            server.requests.append(f"{self.command} {self.path}")
            content = server.files.get(self.path.removeprefix("/"))
            status = 404 if content is None else server.statuses.pop(0) if server.statuses else 200
            if self.command == "HEAD" and status == 200:
                status = server.head_status
            if status == 200 and self.command == "GET" and server.respond:
                server.respond(self, content or b"")
                self.close_connection = True
                return
            body = content or b"" if status == 200 else b""
            self.send_response(status)
            if server.tells and status == 200:
                self.send_header("ETag", f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')
                self.send_header("Last-Modified", formatdate(server.modified, usegmt=True))
            for name, value in server.headers.items():
                self.send_header(name, value)
            if server.tells or self.command == "GET":
                self.send_header("Content-Length", str(len(body)))
            else:
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        server.address = f"http://127.0.0.1:{httpd.server_port}"
        yield server
        httpd.shutdown()
        thread.join()


@pytest.fixture
def remote(shop: Shop, server: Server) -> Shop:
    """A stream of one file behind http."""
    server.files["s.csv"] = CSV.encode()
    return shop.declare(path="s.csv", columns=TWO, location=server.address)


# http


def test_a_file_behind_http_is_fetched_once_and_then_only_asked_for(remote: Shop, server: Server):
    assert remote.load().rows == 2
    assert remote.load().files_unchanged == 1
    assert remote.rows() == [(1, "a"), (2, "b")]
    assert (len(server.asked("HEAD")), len(server.asked("GET"))) == (2, 1)
    assert list((remote.settings.scratch_path / "downloads").iterdir()) == []


def test_a_changed_file_behind_http_replaces_its_rows(remote: Shop, server: Server):
    remote.load()
    server.files["s.csv"] = b"id,name\n9,z\n"

    assert remote.load().rows == 1
    assert remote.rows() == [(9, "z")]


def test_a_server_that_tells_nothing_is_believed_by_checksum(remote: Shop, server: Server):
    server.tells = False
    remote.load()
    before = remote.state()

    again = remote.load()

    assert (again.rows, again.files_unchanged, len(server.asked("GET"))) == (0, 1, 2)
    assert remote.state() == before
    server.files["s.csv"] = b"id,name\n9,z\n"
    assert remote.load().rows == 1


@pytest.mark.parametrize("status", [400, 405, 501])
def test_a_server_without_head_is_read_by_get(remote: Shop, server: Server, status: int):
    server.head_status = status

    assert remote.load().rows == 2
    assert remote.load().rows == 0


def test_a_last_modified_header_that_is_no_time_is_ignored(remote: Shop, server: Server):
    server.tells = False
    server.headers["Last-Modified"] = "yesterday"

    assert remote.load().rows == 2


def test_months_that_are_not_published_are_skipped(shop: Shop, server: Server):
    months = {"first": "2021-01", "last": "2021-06"}
    shop.declare(path="trips/{month}.csv", months=months, columns=TWO, location=server.address)
    server.files = {f"trips/2021-{number:02}.csv": CSV.encode() for number in (2, 3, 5)}

    assert shop.load().rows_by_month == (("2021-02", 2), ("2021-03", 2), ("2021-05", 2))
    assert len(server.asked("HEAD")) == 6
    server.requests.clear()
    server.files["trips/2021-06.csv"] = CSV.encode()
    assert shop.load(months=frozenset({"2021-06"})).rows == 2
    assert server.requests == ["HEAD /trips/2021-06.csv", "GET /trips/2021-06.csv"]


def test_months_told_apart_by_the_query_alone_do_not_replace_each_other(shop: Shop, server: Server):
    months = {"first": "2021-01", "last": "2021-02"}
    path = "archive?from={month_start}&to={month_end}&key=s3cret"
    shop.declare(path=path, format="csv", months=months, columns=TWO, location=server.address)
    for query in ("from=2021-01-01&to=2021-01-31", "from=2021-02-01&to=2021-02-28"):
        server.files[f"archive?{query}&key=s3cret"] = CSV.encode()

    assert shop.load().rows == 4
    assert shop.load().files_unchanged == 2
    assert len(shop.rows("DISTINCT _file")) == 2
    assert not any("s3cret" in str(row) for row in shop.rows("_file"))


def test_a_stream_that_is_nowhere_is_refused_with_its_address(remote: Shop, server: Server):
    server.files.clear()

    remote.refused("no file matches s.csv", server.address)


def test_a_server_that_fails_a_few_times_is_asked_again(remote: Shop, server: Server):
    server.statuses = [500, 503, 200, 502, 429, 200]

    assert remote.load().rows == 2


def test_a_server_that_keeps_failing_is_unavailable_and_the_next_run_is_fine(remote: Shop, server: Server):
    server.statuses = [500] * 3

    remote.refused("Asking for", "the server answered 500", kind=SourceUnavailable)
    assert remote.load().rows == 2


def test_a_server_that_wants_a_password_is_refused_at_once(remote: Shop, server: Server):
    server.statuses = [401]

    remote.refused("the server answered 401", kind=SourceRejected)
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_unavailable(shop: Shop):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    shop.declare(path="{month}.csv", months={"first": "2021-01"}, columns=TWO, location=address)

    shop.refused("Asking for", "ConnectError", kind=SourceUnavailable)


def half(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def half_without_length(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


@pytest.mark.parametrize("respond", [half, half_without_length])
def test_a_body_that_is_cut_off_is_unavailable_and_loads_nothing(
    remote: Shop, server: Server, respond: Callable[..., None]
):
    server.respond = respond

    remote.refused("Fetching", kind=SourceUnavailable)

    assert not remote.has_table()
    server.respond = None
    assert remote.load().rows == 2


def test_a_server_that_stalls_is_unavailable_after_the_time_out(
    remote: Shop, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http_files, "TIMEOUT_SECONDS", 0.2)
    server.respond = lambda *_: time.sleep(1)

    remote.refused("ReadTimeout", kind=SourceUnavailable)


def test_a_server_that_trickles_is_unavailable_with_what_came(
    remote: Shop, server: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http_files, "GRACE_SECONDS", 0.3)

    def trickle(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(30):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    server.respond = trickle

    remote.refused("bytes came in", kind=SourceUnavailable)


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz"])
def test_a_body_that_the_server_calls_gzip_encoded_is_what_its_name_says(shop: Shop, server: Server, name: str):
    server.files[name] = gzip.compress(CSV.encode())
    server.headers["Content-Encoding"] = "gzip"
    shop.declare(path=name, columns=TWO, location=server.address)

    assert shop.load().rows == 2


def test_a_star_cannot_be_searched_for_over_http(shop: Shop, server: Server):
    shop.declare(path="*.csv", columns=TWO, location=server.address)

    with pytest.raises(ConfigError, match=r"`\*` cannot be searched for over http"):
        shop.load()


def test_another_scheme_is_refused(shop: Shop):
    shop.declare(path="s.csv", columns=TWO, location="ftp://example.org")

    with pytest.raises(ConfigError, match="only a folder, http"):
        shop.load()


def test_a_key_in_a_query_stands_in_no_message(shop: Shop, server: Server):
    server.files["s?key=s3cret"] = CSV.encode()
    server.statuses = [500] * 3
    shop.declare(path="s?key=s3cret", format="csv", columns=TWO, location=server.address)

    assert "s3cret" not in shop.refused("Asking for", kind=SourceUnavailable)


# Folders


def test_the_data_folder_takes_the_place_of_the_public_address_and_of_the_path(shop: Shop):
    shop.declare(path="trips/{month}.csv.zip", local_path="{month}.csv", months={"first": "2021-01"}, columns=TWO,
                 location="https://example.org/nowhere")  # fmt: skip
    shop.write("2021-01.csv", CSV)

    assert shop.load(settings=shop.settings.model_copy(update={"data_dir": shop.folder})).rows == 2


def test_a_location_is_relative_to_the_project_and_may_name_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = declare(tmp_path / "project", location="${SHOP_FILES:-files/}", path="*.csv")
    assert isinstance(file.source, FileSource)

    assert location_of(file.source, Settings(), file.project_dir) == str(tmp_path / "project/files")
    monkeypatch.setenv("SHOP_FILES", "s3://bucket/shop/")
    assert location_of(file.source, Settings(), file.project_dir) == "s3://bucket/shop"


def test_folders_below_are_searched_with_two_stars_only(tmp_path: Path):
    for name in ("a.csv", "x/b.csv", "x/y/c.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(path: str) -> list[str]:
        return [file.path for file in find_files(FileStream(name="s", path=path), str(tmp_path), Settings())]

    assert found("*.csv") == ["a.csv"]
    assert found("*/*.csv") == ["x/b.csv"]
    assert found("**/*.csv") == ["a.csv", "x/b.csv", "x/y/c.csv"]


def test_a_missing_folder_is_refused(shop: Shop):
    shop.declare(path="*.csv", columns=TWO, location="nowhere")

    shop.refused("there is no folder", f"{shop.project}/nowhere")


def test_a_file_that_may_not_be_read_is_refused():
    program = """
import os, sys
from pathlib import Path
from pipeline.errors import SourceRejected
from pipeline.ingest.locations import FoundFile, local_copy
from pipeline.settings import Settings
state, path = map(Path, sys.argv[1:])
if os.geteuid() == 0:  # who may read everything
    os.chown(state, 65534, 65534)
    os.seteuid(65534)
try:
    with local_copy(FoundFile("s.csv", str(path)), Settings(state_dir=state)):
        pass
except SourceRejected as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as state:  # not pytest's folder, which is closed to others
        path = Path(state) / "s.csv"
        path.write_text(CSV)
        path.chmod(0)

        command = [sys.executable, "-c", program, state, path]
        result = subprocess.run(command, capture_output=True, text=True, check=True)

        assert result.stdout == f"Fetching s.csv: {path}: Permission denied. Correct its permissions.\n"


def test_a_file_that_goes_away_before_it_is_read_can_be_tried_again(tmp_path: Path):
    with (
        pytest.raises(SourceUnavailable, match="It was there a moment ago"),
        local_copy(FoundFile("s.csv", str(tmp_path / "s.csv")), Settings(state_dir=tmp_path)),
    ):
        pass


def test_a_file_that_is_written_to_while_it_is_loaded_is_not_loaded(shop: Shop):
    path = shop.declare(path="*.csv", columns={"v": "BIGINT"}).write("a.csv", "v\n" + "1\n" * 3_000_000)
    done = threading.Event()

    def append() -> None:
        with path.open("a") as handle:
            while not done.wait(0.005):
                handle.write("2\n")
                handle.flush()

    writer = threading.Thread(target=append)
    writer.start()
    try:
        shop.refused("a.csv was written to meanwhile; run again", kind=SourceUnavailable)
    finally:
        done.set()
        writer.join()
    assert not shop.has_table()


def test_what_a_killed_download_left_is_removed_by_the_next(tmp_path: Path):
    program = f"""
import sys, time
from pathlib import Path
from pipeline.ingest.locations import FoundFile, local_copy
from pipeline.settings import Settings
with local_copy(FoundFile("s.csv.gz", sys.argv[1]), Settings(state_dir=Path({str(tmp_path)!r}))) as (path, *_):
    print(path, flush=True)
    time.sleep(60)
"""
    packed = tmp_path / "s.csv.gz"
    packed.write_bytes(gzip.compress(CSV.encode()))
    children = [
        subprocess.Popen([sys.executable, "-c", program, packed], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        left, used = [Path(child.stdout.readline().strip()) for child in children if child.stdout]
        children[0].send_signal(signal.SIGKILL)
        children[0].wait()

        def copy_once() -> None:
            with local_copy(FoundFile("s.csv.gz", str(packed)), Settings(state_dir=tmp_path)) as (path, *_):
                assert path.read_text() == CSV

        copy_once()
        assert used.exists()
        children[1].send_signal(signal.SIGKILL)
        children[1].wait()
        copy_once()
        assert not left.exists()
        assert list((tmp_path / "scratch/downloads").iterdir()) == []
    finally:
        for child in children:
            child.kill()
            child.communicate()


# S3


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    client = boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
        aws_access_key_id="key", aws_secret_access_key="secret",  # noqa: S106
    )  # fmt: skip
    client.create_bucket(Bucket="shop")
    yield client
    client.close()
    server.stop()


@pytest.fixture
def bucket(s3: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for item in s3.list_objects_v2(Bucket="shop").get("Contents", []):
        s3.delete_object(Bucket="shop", Key=item["Key"])
    shop.settings = shop.settings.model_copy(update={"s3_endpoint": s3.meta.endpoint_url})
    return shop


def test_files_of_a_bucket_load_once_and_again_when_they_change(bucket: Shop, s3: Any):
    bucket.declare(path="y/{month}.csv", months={"first": "2021-01"}, columns=TWO, location="s3://shop/in/")
    for name in ("in/y/2021-01.csv", "in/y/2021-02.csv", "in/y/other.csv", "in/yy/2021-03.csv", "2021-04.csv"):
        s3.put_object(Bucket="shop", Key=name, Body=CSV.encode())

    assert bucket.load().files_loaded == ("y/2021-01.csv", "y/2021-02.csv")
    assert bucket.load().files_unchanged == 2
    s3.put_object(Bucket="shop", Key="in/y/2021-01.csv", Body=b"id,name\n9,z\n")
    changed = bucket.load()
    assert (changed.rows, changed.files_loaded) == (1, ("y/2021-01.csv",))
    assert bucket.rows("id, _file") == [(1, "y/2021-02.csv"), (2, "y/2021-02.csv"), (9, "y/2021-01.csv")]
    s3.delete_object(Bucket="shop", Key="in/y/2021-01.csv")
    assert bucket.load().files_vanished == ("y/2021-01.csv",)


def test_a_bucket_that_is_not_there_is_refused(bucket: Shop):
    bucket.declare(path="*.csv", columns=TWO, location="s3://nowhere")

    bucket.refused("Listing s3://nowhere", "Correct the location or the AWS_* variables")


def test_an_s3_server_that_is_not_there_is_unavailable(bucket: Shop):
    bucket.declare(path="*.csv", columns=TWO, location="s3://shop")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"

    started = time.monotonic()
    bucket.refused(
        "Listing s3://shop",
        kind=SourceUnavailable,
        settings=bucket.settings.model_copy(update={"s3_endpoint": endpoint}),
    )
    assert time.monotonic() - started < 30
