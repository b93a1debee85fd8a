"""Files that people have (tests/real_models.py), against what other programs make of them (golden/make_smollm2.py and
golden/make_real_digests.py)."""

import hashlib

import numpy as np
import pytest
from programs import call, run
from real_models import golden

import gpt2c
from gpt2c import formats
from gpt2c.formats import blocks, gguf
from gpt2c.models import files
from gpt2c.tokenizers.conventions import conventions

QUESTION = "What is the capital of France?"


@pytest.mark.parametrize("model", ["smollm2", "gemma"])
def test_real_blocks_are_read_to_the_bit(model, request):
    content, digests = gguf.read(request.getfixturevalue(model)), {}
    for name in sorted(content.tensors):
        tensor, part = content.tensors[name], content.part(name)
        digest = digests.setdefault(tensor.kind.upper(), hashlib.sha256())
        for piece in part.pieces():
            values = np.empty(blocks.count(part.kind, piece.size), np.float32)
            blocks.decode(part.kind, piece, values)
            digest.update(values)
    assert {kind: digest.hexdigest() for kind, digest in digests.items()} == golden("real_digests")[content.path.name]


def test_smollm2_has_the_loss_that_transformers_finds(smollm2):
    """Both in float32: a thousandth is what two programs may differ by, and a hundredth of that is what they do."""
    expected, model = golden("smollm2"), gpt2c.load(smollm2)
    assert model.tokenizer.encode(expected["text"]) == expected["ids"]
    ids = np.array([expected["ids"]])
    assert model.evaluate(ids[:, :-1], ids[:, 1:]) == pytest.approx(expected["loss"], abs=1e-4)


def test_smollm2_writes_conversations_as_transformers_does(smollm2, tmp_path):
    content = files.read(smollm2)
    tokenizer = content.weights.tokenizer
    assert tokenizer.ends == [2, 0] and (tokenizer.bos, tokenizer.eot, tokenizer.adds_bos) == (1, 0, False)
    formats.write(tmp_path / "again.gguf", content.alone())
    again = files.read(tmp_path / "again.gguf").weights.tokenizer
    assert conventions(again) == conventions(tokenizer)
    for chat in golden("smollm2")["chats"]:
        for known in tokenizer, again:
            assert known.chat(chat["messages"], add_generation_prompt=chat["prompt"]) == chat["ids"]


def test_smollm2_says_paris(smollm2, tmp_path):
    assert run(tmp_path, "chat", smollm2, input=QUESTION + "\n").stdout == "The capital of France is Paris.\n"
    asked = call(tmp_path, "generate", smollm2, "--chat", "--prompt", QUESTION)
    assert asked.stdout == "The capital of France is Paris.\n"
