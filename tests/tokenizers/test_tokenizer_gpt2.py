"""GPT-2's tokenizer: the ids that tiktoken gives. GPT2C_GPT2_TOKENIZER names llm.c's gpt2_tokenizer.bin, which is not here."""

import json
import os
import random
from pathlib import Path

import pytest

from gpt2c.errors import InputError
from gpt2c.tokenizers.tokenizer import Tokenizer

CASES = json.loads((Path(__file__).parents[1] / "golden" / "hard_texts.json").read_text(encoding="utf-8"))["cases"]


@pytest.fixture(scope="module")
def path():
    root = Path(__file__).parents[2]
    places = [root / "gpt2_tokenizer.bin", *sorted(root.glob("data/**/gpt2_tokenizer.bin"))]
    if named := os.environ.get("GPT2C_GPT2_TOKENIZER"):
        places = [Path(named)]
    for path in places:
        if path.is_file():
            return path
    pytest.skip("there is no gpt2_tokenizer.bin here or under data/, and GPT2C_GPT2_TOKENIZER names none")


@pytest.fixture(scope="module")
def gpt2(path):
    return Tokenizer.make("gpt2", path=path)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_ids_are_tiktokens(gpt2, case):
    assert gpt2.encode(case["text"]) == case["gpt2"]
    assert gpt2.decode(case["gpt2"]) == case["text"]
    stream = gpt2.stream()
    assert "".join([stream.push(i) for i in case["gpt2"]] + [stream.flush()]) == case["text"]


def test_the_library_gives_the_same_from_the_json(gpt2):
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer.from_str(gpt2.to_json())
    library.encode_special_tokens = True
    for case in CASES:
        assert library.encode(case["text"]).ids == case["gpt2"]
        assert library.decode(case["gpt2"]) == case["text"]


def test_pieces_give_what_the_whole_gives(gpt2, monkeypatch):
    rng = random.Random(4)
    text = "".join(rng.choice(CASES)["text"] + rng.choice(["", " ", "\n", "\u00a0", "\x1c ", " 's"]) for _ in range(400))
    whole = gpt2._library.encode(text, add_special_tokens=False).ids
    for size in (1, 7, 1000):
        monkeypatch.setattr("gpt2c.tokenizers.tokenizer.PIECE_CHARACTERS", size)
        assert gpt2.encode_array(text).tolist() == whole


def test_kind_and_end_of_text(gpt2):
    assert (gpt2.kind, gpt2.vocab_size, gpt2.eot, gpt2.bos) == ("gpt2", 50257, 50256, None)
    assert gpt2.encode("a<|endoftext|>b", allow_special=True) == [64, 50256, 65]
    assert Tokenizer.from_json(gpt2.to_json()).kind == "gpt2"
    assert Tokenizer([*gpt2.tokens[:-2], b" x1", gpt2.tokens[-1]], 50256).kind == "bpe"


def test_where_the_file_is_looked_for(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="downloaddataset.sh --only gpt2_tokenizer.bin"):
        Tokenizer.make("gpt2")
    for folder in ("beside", "data", "."):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "gpt2_tokenizer.bin").symlink_to(path.resolve())
        assert Tokenizer.make("gpt2", folders=["beside"]).kind == "gpt2"
        (tmp_path / folder / "gpt2_tokenizer.bin").unlink()
