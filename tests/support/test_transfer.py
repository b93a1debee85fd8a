"""Fetching a file from a server on this machine that can misbehave in the ways real ones do."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from gpt2c.errors import InputError, ResourceError, TransferError, UsageError
from gpt2c.support import transfer
from gpt2c.support.files import Lock

BODY = np.random.default_rng(0).bytes(1_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers["Range"]
        server.asked.append(asked)
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", server.leads_to)
            self.end_headers()
            return
        if server.status:
            self.send_error(server.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if start and start >= len(server.body):
            self.send_error(416)
            return
        first = start + server.off if start else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {first}-{len(server.body) - 1}/{len(server.body)}")
        if server.says_length:
            self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        self.wfile.write(server.body[start : start + server.at_once])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(transfer, "PAUSE", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that has gone
    server.body, server.asked, server.at_once, server.off = BODY, [], len(BODY) + 9, 0
    server.ranges = server.says_length = True
    server.status, server.leads_to = None, ""
    server.address = f"http://127.0.0.1:{server.server_port}/x.gguf"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    def fetch(address=server.address, **more):
        return transfer.fetch(address, tmp_path / "x.gguf", len(BODY), SHA256, **more)

    return fetch


def left(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_fetched_once(fetch, server, tmp_path):
    assert fetch() and left(tmp_path) == {"x.gguf": BODY}
    assert not fetch() and server.asked == [None]


@pytest.mark.parametrize("says_length", [True, False])
def test_lost_connections_are_made_again_where_they_ended(fetch, server, tmp_path, says_length):
    server.at_once, server.says_length = 300_000, says_length
    assert fetch() and left(tmp_path) == {"x.gguf": BODY}
    assert server.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_what_came_is_kept_and_continued(fetch, server, tmp_path, monkeypatch):
    server.at_once = 300_000
    monkeypatch.setattr(transfer, "TRIES", 1)
    with pytest.raises(TransferError, match=r"cannot fetch http://.*x.gguf: the connection was closed early"):
        fetch()
    assert left(tmp_path) == {"x.gguf.part": BODY[:300_000]}
    server.at_once = len(BODY)
    assert fetch() and server.asked == [None, "bytes=300000-"] and left(tmp_path) == {"x.gguf": BODY}


def test_an_interrupt_leaves_what_came(fetch, tmp_path, monkeypatch):
    def interrupt(progress, done):
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer.Progress, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch()
    ((name, part),) = left(tmp_path).items()
    assert name == "x.gguf.part" and part and BODY.startswith(part)


@pytest.mark.parametrize("part", [BODY, BODY + b"more", BODY[:10]], ids=["all", "more", "some"])
@pytest.mark.parametrize("ranges", [True, False])
def test_whatever_lies_there_of_it(fetch, server, tmp_path, part, ranges):
    (tmp_path / "x.gguf.part").write_bytes(part)
    server.ranges = ranges
    assert fetch() and left(tmp_path) == {"x.gguf": BODY}


@pytest.mark.parametrize("start", [b"", b"another beginning"], ids=["nothing", "other"])
def test_a_wrong_digest_is_refused_and_nothing_stays(fetch, server, tmp_path, start):
    (tmp_path / "x.gguf.part").write_bytes(start)
    server.body = BODY if start else BODY[:-1] + b"!"
    with pytest.raises(InputError, match=f"has the sha256 [0-9a-f]{{64}} instead of {SHA256}; it was deleted"):
        fetch()
    assert left(tmp_path) == {}


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"!", b"<html>sorry</html>"], ids=["less", "more", "page"])
@pytest.mark.parametrize("start", [0, 10])
def test_another_size_is_refused_before_a_byte_is_kept(fetch, server, tmp_path, body, start):
    (tmp_path / "x.gguf.part").write_bytes(BODY[:start])
    server.body = body
    with pytest.raises(TransferError, match=f"has {len(body):,} bytes, expected 1,000,000: it is another file"):
        fetch()
    assert left(tmp_path) == ({"x.gguf.part": BODY[:start]} if start else {})


def test_more_than_was_said_is_refused(fetch, server, tmp_path):
    server.body, server.says_length = BODY + b"!", False
    with pytest.raises(TransferError, match="sends more than the 1,000,000 bytes"):
        fetch()
    assert "x.gguf" not in left(tmp_path)


def test_another_file_costs_nothing_of_what_came(fetch, server, tmp_path):
    """As an error page of a server that does not know ranges."""
    (tmp_path / "x.gguf.part").write_bytes(BODY[:10])
    server.ranges, server.body = False, b"<html>sorry</html>"
    with pytest.raises(TransferError, match="has 18 bytes, expected 1,000,000"):
        fetch()
    assert left(tmp_path) == {"x.gguf.part": BODY[:10]}


def test_another_part_than_was_asked_for_is_refused(fetch, server, tmp_path):
    (tmp_path / "x.gguf.part").write_bytes(BODY[:10])
    server.off = 5
    with pytest.raises(TransferError, match="answers with another part of the file"):
        fetch()
    assert left(tmp_path) == {"x.gguf.part": BODY[:10]}


def test_a_server_that_cannot_go_on_there_is_asked_for_all_of_it(fetch, server, tmp_path, monkeypatch):
    (tmp_path / "x.gguf.part").write_bytes(BODY[:-1])
    server.body, whole = BODY[:10], threading.Timer(0.2, lambda: setattr(server, "body", BODY))
    monkeypatch.setattr(transfer, "PAUSE", 0.5)
    whole.start()
    assert fetch() and server.asked == [f"bytes={len(BODY) - 1}-", None]


@pytest.mark.parametrize("status", [404, 403, 503])
def test_what_a_server_refuses_is_said(fetch, server, tmp_path, status):
    server.status = status
    with pytest.raises(TransferError, match=f"it answers HTTP {status}"):
        fetch()
    assert left(tmp_path) == {}


def test_a_redirect_leads_to_an_encrypted_connection_or_stays_there(fetch, server, tmp_path):
    elsewhere = server.address.replace("x.gguf", "elsewhere")
    for address, why in (
        ("http://example.org/x.gguf", "leads to http://example.org/x.gguf, which is not https://: it is not followed"),
        (server.address.replace("http", "ftp"), "leads to ftp://127.0.0.1:.*, which is not https://: it is not followed"),
        ("file:///etc/hostname", "it answers HTTP 302"),
    ):
        server.leads_to = address
        with pytest.raises(TransferError, match=why):
            fetch(elsewhere)
    assert left(tmp_path) == {}
    server.leads_to = "/x.gguf"
    assert fetch(elsewhere)


@pytest.mark.parametrize("address", [
    "http://example.org/x", "http://127.0.0.1.org/x", "ftp://127.0.0.1/x", "x.gguf", "data:,x"
])  # fmt: skip
def test_an_address_is_encrypted(fetch, address):
    with pytest.raises(UsageError, match="is not https://, nor file://"):
        fetch(address)


def test_another_file_is_replaced_only_where_that_is_said(fetch, server, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"mine")
    with pytest.raises(InputError, match="is another file than the one to fetch: move it away, or add --overwrite"):
        fetch()
    assert left(tmp_path) == {"x.gguf": b"mine"} and not server.asked
    server.status = 404
    with pytest.raises(TransferError):
        fetch(overwrite=True)
    assert left(tmp_path) == {"x.gguf": b"mine"}
    server.status = None
    assert fetch(overwrite=True) and left(tmp_path) == {"x.gguf": BODY}


def test_a_disk_without_room_is_known_first(fetch, server, tmp_path, monkeypatch):
    (tmp_path / "x.gguf.part").write_bytes(BODY[:400_000])
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 599_999}))
    with pytest.raises(ResourceError, match=r"600.0 KB are needed, 600.0 KB available"):
        fetch()
    assert not server.asked
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 600_000}))
    assert fetch()


def test_one_process_at_a_time(fetch, server, tmp_path):
    lock = Lock(tmp_path / "x.gguf")
    assert lock.take()
    with pytest.raises(UsageError, match="is being fetched by another process"):
        fetch()
    assert not server.asked


def test_a_part_that_is_a_link_is_not_written_through(fetch, server, tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "x.gguf.part").symlink_to(tmp_path / "mine")
    with pytest.raises(ResourceError, match="cannot write"):
        fetch()
    assert (tmp_path / "mine").read_bytes() == b"mine" and not server.asked


def test_where_nobody_answers(fetch, server, tmp_path):
    with pytest.raises(TransferError, match="cannot fetch http://localhost:1/x: Connection refused"):
        fetch("http://localhost:1/x")
    assert left(tmp_path) == {}
