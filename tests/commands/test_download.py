"""gpt2c download: what it lists, fetches and says. tests/support/test_transfer.py has servers that misbehave."""

import hashlib
import re

import pytest
from programs import call

from gpt2c.commands import download
from gpt2c.models.published import PUBLISHED, Published

BODY = b"a small model" * 1000
TINY = Published(
    "https://example.org/tiny", "tiny.gguf", "https://example.org/tiny.gguf", len(BODY), hashlib.sha256(BODY).hexdigest()
)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder that has the one model that is known, and the folder to fetch it to."""
    monkeypatch.setitem(PUBLISHED, "tiny-1", TINY)
    (tmp_path / "mirror").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "mirror" / "tiny.gguf").write_bytes(BODY)
    monkeypatch.setenv("GPT2C_MODELS_URL", (tmp_path / "mirror").as_uri() + "/")
    return tmp_path / "mirror"


@pytest.fixture
def here(mirror, tmp_path):
    return tmp_path / "here"


def test_what_is_known_is_whole():
    for name, model in PUBLISHED.items():
        assert name == name.lower() and model.page.startswith("https://")
        if model.file:
            assert re.fullmatch("[0-9a-f]{64}", model.sha256) and model.size > 0
            assert re.fullmatch(f"https://.*/[0-9a-f]{{40}}/{re.escape(model.file)}", model.address)


def test_without_a_name_models_are_listed(here):
    lines = call(here, "download").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*PUBLISHED]
    assert "98.4 MB" in lines[0] and "by hand" in lines[1] and "13.0 KB" in lines[-1]


@pytest.mark.parametrize("name, to, path", [
    ("tiny-1", [], "tiny.gguf"),
    ("Tiny_1", ["--to", "folder"], "folder/tiny.gguf"),
    ("tiny-1", ["--to", "my model"], "my model"),
])  # fmt: skip
def test_a_model_comes_with_the_command_to_chat_with_it(here, name, to, path):
    (here / "folder").mkdir()
    quoted = f"'{path}'" if " " in path else path
    for how in "fetched", "already there":
        done = call(here, "download", name, *to)
        assert done.stdout == f"{path}: 13.0 KB, {how}, its SHA-256 is right\nto chat with it: gpt2c chat {quoted}\n"
        assert (here / path).read_bytes() == BODY


def test_where_the_network_does_not_reach_it_says_what_to_do(here, mirror):
    (mirror / "tiny.gguf").unlink()
    said = call(here, "download", "tiny-1", code=1).stderr
    assert said.count("\n") == 1 and "fetch tiny.gguf by hand from https://example.org/tiny, put it at tiny.gguf" in said
    (here / "tiny.gguf.part").write_bytes(BODY[:2000])
    assert (
        "; the first 2.0 KB are kept, and the same command goes on from there; or"
        in call(here, "download", "tiny-1", code=1).stderr
    )


def test_another_file_stays(here):
    (here / "tiny.gguf").write_text("mine")
    assert "add --overwrite" in call(here, "download", "tiny-1", code=4).stderr
    call(here, "download", "tiny-1", "--overwrite")
    assert (here / "tiny.gguf").read_bytes() == BODY


def test_ctrl_c_says_what_is_kept(here, monkeypatch, capsys):
    def interrupted(address, path, *more):
        (here / "tiny.gguf.part").write_bytes(BODY[:2000])
        raise KeyboardInterrupt

    monkeypatch.chdir(here)
    monkeypatch.setattr(download, "fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download.main(["tiny-1"])
    assert capsys.readouterr().err == "\nstopped; the first 2.0 KB are kept, and the same command goes on from there\n"


@pytest.mark.parametrize("words, code, why", [
    ("qwen3", 2, "no published model is known as 'qwen3'; did you mean qwen3-0.6b?"),
    ("Qwen3-0.6B", 1, "is to be fetched by hand: take a .gguf file, or the whole folder, from https://"),
    ("tiny-1 --to folder/", 2, "there is no folder"),
])  # fmt: skip
def test_what_cannot_be_fetched_is_one_sentence(here, words, code, why):
    said = call(here, "download", *words.split(), code=code).stderr
    assert said.count("\n") == 1 and why in said
