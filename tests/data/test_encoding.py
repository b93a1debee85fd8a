"""From text to ids, in one process or several."""

from pathlib import Path

import numpy as np
import pytest
from texts import random_text, stories_tokenizer

from gpt2c.data.documents import read_pieces, total_bytes
from gpt2c.data.encoding import encode_pieces
from gpt2c.data.reading import Reading
from gpt2c.errors import InputError
from gpt2c.tokenizers.tokenizer import Tokenizer


def test_processes_give_the_same_ids_in_order(write, monkeypatch):
    for module in ("reading", "encoding"):
        monkeypatch.setattr(f"gpt2c.data.{module}.BLOCK", 20_000)
    stories = stories_tokenizer()
    files = [write("a.txt", random_text(100_000, alphabet="the cat \n.,é")), write("b.txt", random_text(60_000, 1, "dog \n"))]
    total = total_bytes(files, Reading())
    one, two = (list(encode_pieces(read_pieces(files, Reading(), 120_000), stories, total, workers)) for workers in (1, 2))
    assert [(part, at) for part, _, at in one] == [(part, at) for part, _, at in two] and len(one) > 5
    assert all(np.array_equal(a, b) for (_, a, _), (_, b, _) in zip(one, two))
    joined = {part: np.concatenate([x for p, x, _ in one if p == part]).tolist() for part in ("train", "val")}
    assert joined["train"].count(stories.eot) == 2 and joined["train"][0] == stories.eot
    assert stories.decode(joined["train"] + joined["val"]).replace("<|endoftext|>", "") == "".join(
        Path(file).read_text(encoding="utf-8") for file in files
    )


def test_an_error_in_a_worker_names_the_place(write):
    path = write("a.jsonl", '"abc"\n"abd"\n')
    with pytest.raises(InputError, match="row 2 of .*a.jsonl: "):
        list(encode_pieces(read_pieces([path], Reading()), Tokenizer.make("char", "abc"), 10, 2))


def test_each_text_is_opened_as_the_model_wants_it(write):
    made = Tokenizer.make("byte", specials=("<|bos|>", "<|eos|>"))
    files = [write("a.jsonl", '"ab"\n"c"\n')]
    for adds_bos, opens in ((False, made.eot), (True, made.bos)):
        made.adds_bos = adds_bos
        for workers in (1, 2):
            parts = [ids for _, ids, _ in encode_pieces(read_pieces(files, Reading()), made, 10, workers)]
            assert np.concatenate(parts).tolist() == [opens, *b"ab", opens, *b"c"]
