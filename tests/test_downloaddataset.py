"""downloaddataset.sh against a server on this machine that can misbehave in the ways real ones do."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "downloaddataset.sh"
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

MODEL, SHARD, HELLASWAG = 20240326, 20240520, 20240522
PAGE = b"<!DOCTYPE html><title>sorry</title>" + b" " * 3000


def content(magic, size):
    noise = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    return magic.to_bytes(4, "little") + noise[4:]


FILES = {
    "model.bin": content(MODEL, 200_000),
    "tiny_val.bin": content(SHARD, 3_000),
    "hellaswag_val.bin": content(HELLASWAG, 5_000),
}
PLACES = {
    "model.bin": "model.bin",
    "tiny_val.bin": "data/tiny/tiny_val.bin",
    "hellaswag_val.bin": "data/hellaswag/hellaswag_val.bin",
}
TABLE = f"""
model.bin          .               200000  {MODEL}      {hashlib.sha256(FILES["model.bin"]).hexdigest()}
tiny_val.bin       data/tiny       3000    {SHARD}      -
hellaswag_val.bin  data/hellaswag  -       {HELLASWAG}  -
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, name = self.server, self.path.rpartition("/")[2]
        asked = self.headers["Range"]
        server.requests.append((name, asked))
        body = server.files.get(name)
        if body is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if asked and server.ranges and start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if name in server.cut:  # half of what was promised; then the connection closes, or first hangs
            self.wfile.write(body[start : len(body) // 2])
            self.wfile.flush()
            server.release.wait(30)
        else:
            self.wfile.write(body[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = dict(FILES)
    server.ranges = True
    server.cut = set()
    server.release = threading.Event()
    server.release.set()
    server.requests = []
    server.url = f"http://127.0.0.1:{server.server_port}/pack/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def call(tmp_path):
    """The command line and environment of one run into tmp_path/dest."""
    (tmp_path / "table").write_text(TABLE)

    def call(url, *args, table=tmp_path / "table"):
        # A fresh environment: a proxy or ~/.curlrc of this machine must not matter.
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C", "GPT2C_DATA_URL": url}
        if table:
            env["GPT2C_DATA_TABLE"] = str(table)
        return {"args": [str(SCRIPT), "--dest", str(tmp_path / "dest"), *args], "env": env}

    return call


@pytest.fixture
def run(call):
    def run(url, *args, **kw):
        command = call(url, *args, **kw)
        return subprocess.run(**command, check=False, capture_output=True, text=True, timeout=30)

    return run


def put(tmp_path, place, data):
    path = tmp_path / "dest" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def files_in(tmp_path):
    dest = tmp_path / "dest"
    return {str(p.relative_to(dest)): p.read_bytes() for p in dest.rglob("*") if p.is_file()}


ALL = {PLACES[name]: data for name, data in FILES.items()}
WITHOUT_MODEL = {place: data for place, data in ALL.items() if place != "model.bin"}


@needs_curl
def test_every_file_lands_in_its_place(server, run, tmp_path):
    done = run(server.url)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert files_in(tmp_path) == ALL
    assert "hellaswag_val.bin: its size is not known here" in done.stdout


@needs_curl
def test_a_folder_serves_as_a_mirror(run, tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name, data in FILES.items():
        (mirror / name).write_bytes(data)
    put(tmp_path, "model.bin.part", FILES["model.bin"][:1000])
    put(tmp_path, PLACES["hellaswag_val.bin"] + ".part", FILES["hellaswag_val.bin"] + b"more")
    assert run(mirror.as_uri()).returncode == 0
    assert files_in(tmp_path) == ALL


@needs_curl
def test_files_already_there_are_not_fetched(server, run, tmp_path):
    for name, place in PLACES.items():
        put(tmp_path, place, FILES[name])
    done = run(server.url)
    assert done.returncode == 0
    assert server.requests == []


@needs_curl
def test_only_takes_names_and_groups(server, run):
    assert run(server.url, "--only", "model.bin", "--only", "tiny").returncode == 0
    assert [name for name, _ in server.requests] == ["model.bin", "tiny_val.bin"]


@needs_curl
def test_a_partial_file_is_continued(server, run, tmp_path):
    put(tmp_path, "model.bin.part", FILES["model.bin"][:70_001])
    assert run(server.url).returncode == 0
    assert server.requests[0] == ("model.bin", "bytes=70001-")
    assert files_in(tmp_path) == ALL


@needs_curl
def test_a_server_without_ranges_sends_it_whole(server, run, tmp_path):
    server.ranges = False
    put(tmp_path, "model.bin.part", FILES["model.bin"][:70_001])
    assert run(server.url).returncode == 0
    assert server.requests[:2] == [("model.bin", "bytes=70001-"), ("model.bin", None)]
    assert files_in(tmp_path) == ALL


@needs_curl
@pytest.mark.parametrize(
    "part", [FILES["model.bin"], FILES["model.bin"] + b"more", PAGE, b""], ids=["whole", "larger", "page", "empty"]
)
def test_a_useless_partial_file_is_started_again(server, run, tmp_path, part):
    put(tmp_path, "model.bin.part", part)
    assert run(server.url).returncode == 0
    assert server.requests[0] == ("model.bin", None)
    assert files_in(tmp_path) == ALL


@needs_curl
@pytest.mark.parametrize("extra", [b"", b"more"], ids=["whole", "larger"])
def test_a_range_past_the_end_starts_again(server, run, tmp_path, extra):
    """The table does not know this file's size, so it is the server that says 416."""
    put(tmp_path, PLACES["hellaswag_val.bin"] + ".part", FILES["hellaswag_val.bin"] + extra)
    assert run(server.url).returncode == 0
    asked = [asked for name, asked in server.requests if name == "hellaswag_val.bin"]
    assert asked == [f"bytes={5_000 + len(extra)}-", None]
    assert files_in(tmp_path) == ALL


@needs_curl
def test_a_missing_file_does_not_stop_the_others(server, run, tmp_path):
    del server.files["model.bin"]
    done = run(server.url)
    assert done.returncode == 1
    assert "could not be fetched: model.bin\n" in done.stderr
    assert "404" in done.stderr
    assert files_in(tmp_path) == WITHOUT_MODEL


@needs_curl
@pytest.mark.parametrize(
    "body, says",
    [
        (b"", f"begins with the number 0 instead of {MODEL}"),
        (PAGE, "an error page?"),
        (FILES["model.bin"][:-1], "has 199999 bytes instead of 200000"),
        (FILES["model.bin"] + b"x", "has 200001 bytes instead of 200000"),
        (content(SHARD, 200_000), f"begins with the number {SHARD} instead of {MODEL}"),
        (FILES["model.bin"][:-1] + b"x", "sha256"),
    ],
    ids=["empty", "page", "short", "long", "magic", "digest"],
)
def test_a_wrong_file_is_not_kept(server, run, tmp_path, body, says):
    assert body != FILES["model.bin"]
    server.files["model.bin"] = body
    done = run(server.url)
    assert done.returncode == 4
    assert says in done.stderr
    assert "not what they should be: model.bin\n" in done.stderr
    assert files_in(tmp_path) == WITHOUT_MODEL


@needs_curl
def test_a_broken_transfer_is_kept_apart_and_continued(server, run, tmp_path):
    server.cut = {"model.bin"}
    done = run(server.url)
    assert done.returncode == 1
    half = FILES["model.bin"][:100_000]
    assert files_in(tmp_path) == WITHOUT_MODEL | {"model.bin.part": half}
    server.cut = set()
    assert run(server.url).returncode == 0
    assert server.requests[-1] == ("model.bin", "bytes=100000-")
    assert files_in(tmp_path) == ALL


@needs_curl
@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interruption_leaves_no_half_file(server, run, call, tmp_path, sent, status):
    server.cut = {"model.bin"}
    server.release.clear()
    # A shell started where SIGINT is ignored (as in a background job) cannot trap it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        **call(server.url), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    part = tmp_path / "dest" / "model.bin.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, sent)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == status
    assert ("continues" in said) == (sent == signal.SIGINT)
    left = files_in(tmp_path)
    assert list(left) == ["model.bin.part"]
    assert FILES["model.bin"].startswith(left["model.bin.part"])

    server.cut = set()
    server.release.set()
    assert run(server.url).returncode == 0
    assert files_in(tmp_path) == ALL


@needs_curl
def test_a_different_file_under_the_name_is_left_alone(server, run, tmp_path):
    """It may be the user's own, such as weights of another version."""
    put(tmp_path, "model.bin", b"mine")
    done = run(server.url)
    assert done.returncode == 4
    assert "move it away" in done.stderr
    assert files_in(tmp_path) == WITHOUT_MODEL | {"model.bin": b"mine"}


@needs_curl
def test_without_a_server_it_says_how_to_go_on(run, tmp_path):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # a port nobody listens on
        done = run(f"http://127.0.0.1:{deaf.getsockname()[1]}")
    assert done.returncode == 1
    for words in ("fetched: model.bin tiny_val.bin hellaswag_val.bin", "offline", "GPT2C_DATA_URL"):
        assert words in done.stderr
    assert files_in(tmp_path) == {}


def test_without_curl_it_says_so(run, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "grep", "awk", "sort", "cat"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        [str(tools / "bash"), SCRIPT, "--dest", tmp_path / "dest"],
        env={"PATH": str(tools)},
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "curl is not installed" in done.stderr


def test_list_shows_the_state_of_every_file(run, tmp_path):
    put(tmp_path, "model.bin", FILES["model.bin"])
    put(tmp_path, PLACES["tiny_val.bin"] + ".part", FILES["tiny_val.bin"][:7])
    put(tmp_path, PLACES["hellaswag_val.bin"], PAGE)
    done = run("http://127.0.0.1:1", "--list")
    assert done.returncode == 0
    rows = [line.split(maxsplit=3) for line in done.stdout.replace("not known", "unknown").splitlines()[1:]]
    assert rows[0] == ["model.bin", "200000", "model.bin", "present"]
    assert rows[1] == ["tiny_val.bin", "3000", "data/tiny/tiny_val.bin", "unfinished: 7 bytes"]
    assert rows[2][:3] == ["hellaswag_val.bin", "unknown", "data/hellaswag/hellaswag_val.bin"]
    assert rows[2][3].startswith("wrong: ")
    missing = run("http://127.0.0.1:1", "--list", "--only", "tiny", "--dest", str(tmp_path / "other"))
    assert missing.stdout.split()[4:] == ["tiny_val.bin", "3000", "data/tiny/tiny_val.bin", "missing"]


def test_the_built_in_table_has_the_sizes_of_gpt2_124m(run):
    V, padded, T, L, C, header = 50257, 50304, 1024, 12, 768, 1024
    parameters = padded * C + T * C + L * (12 * C * C + 13 * C) + 2 * C
    listed = run("", "--list", table=None).stdout.splitlines()[1:]
    rows = {line.split()[0]: line.split()[1:3] for line in listed}
    assert rows == {
        "gpt2_124M.bin": [str(header + 4 * parameters), "gpt2_124M.bin"],
        "gpt2_124M_bf16.bin": [str(header + 2 * parameters), "gpt2_124M_bf16.bin"],
        "gpt2_124M_debug_state.bin": [  # x, y (4, 64); logits (4, 64, V); loss; gradients
            str(header + 4 * (2 * 256 + 256 * V + 1 + parameters)),
            "gpt2_124M_debug_state.bin",
        ],
        "gpt2_tokenizer.bin": ["372108", "gpt2_tokenizer.bin"],
        "tiny_shakespeare_train.bin": [str(header + 2 * 305_260), "data/tinyshakespeare/tiny_shakespeare_train.bin"],
        "tiny_shakespeare_val.bin": [str(header + 2 * 32_768), "data/tinyshakespeare/tiny_shakespeare_val.bin"],
        "hellaswag_val.bin": ["not", "known"],
    }


@pytest.mark.parametrize(
    "args, says",
    [
        (["--only", "nosuch"], "does not know nosuch; known are: hellaswag hellaswag_val.bin model.bin tiny"),
        (["--only", "."], "does not know"),
        (["--only"], "--only needs a value"),
        (["--dest", "--list"], "--dest needs a value"),
        (["--force"], "unknown argument --force"),
        (["model.bin"], "unknown argument model.bin"),
    ],
)
def test_wrong_usage(run, args, says):
    done = run("http://127.0.0.1:1", *args)
    assert done.returncode == 2
    assert says in done.stderr
    assert "usage: downloaddataset.sh" in done.stderr


def test_help(run):
    done = run("", "--help")
    assert done.returncode == 0
    for word in ("--only", "--dest", "--list", "--help", "GPT2C_DATA_URL", "GPT2C_DATA_TABLE"):
        assert word in done.stdout


@pytest.mark.parametrize("row", ["../x.bin . 1 2 -", "x.bin . many 2 -", "x.bin . 1 2", "x.bin . 1 2 abc"])
def test_a_malformed_table_is_refused(run, tmp_path, row):
    table = tmp_path / "bad"
    table.write_text(row + "\n")
    done = run("http://127.0.0.1:1", "--list", table=table)
    assert done.returncode == 2
    assert row in done.stderr


def test_an_unreadable_table_is_refused(run, tmp_path):
    done = run("http://127.0.0.1:1", "--list", table=tmp_path / "nosuch")
    assert done.returncode == 2
    assert "cannot be read" in done.stderr
