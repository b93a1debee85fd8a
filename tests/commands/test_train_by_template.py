"""Fine-tuning a model that has a chat template of its own: on conversations, which are written by it, end to end."""

import json

import numpy as np
import pytest
from programs import call, run
from texts import ITEMS

import gpt2c
from gpt2c.data.conversations import conversation
from gpt2c.tokenizers.conventions import conventions
from gpt2c.tokenizers.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RATE = ("--learning-rate", "5e-3", "-b", 4, "--val-every", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """base.safetensors, a model that has learned nothing yet, and chats.jsonl."""
    path = tmp_path_factory.mktemp("template")
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    made = Tokenizer.make("word", [text for item in ITEMS for text, _ in conversation(item, "")], specials=specials)
    made.chat_template, made.ends = CHATML, [made.special_tokens["<|im_end|>"], made.eot]
    shape = dict(num_layers=2, channels=48, num_heads=3, max_seq_len=64)
    model = gpt2c.create("gpt2", vocab_size=made.vocab_size + 3, **shape)
    model.tokenizer, model.sampling = made, {"temperature": 0.0}
    model.save(path / "base.safetensors")
    (path / "chats.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS[:3]), encoding="utf-8")
    return path


def train(folder, *words):
    return call(folder, "train", "--data", "chats.jsonl", *RATE, *words).stdout


def test_it_answers_as_it_has_learned(folder):
    told = train(folder, "--init-from", "base.safetensors", "-x", 150, "-o", "tuned")
    assert "3 conversations to train on" in told and "loss on answers" in told
    path = sorted((folder / "tuned").glob("ckpt*.safetensors"))[-1]
    model, base = gpt2c.load(path), gpt2c.load(folder / "base.safetensors")
    assert conventions(model.tokenizer) == conventions(base.tokenizer) and model.tokenizer.chat_template == CHATML
    assert model.sampling == base.sampling and model.turns == 0
    done = run(folder, "chat", path, input="Hello.\nAgain.\nexit\n")
    assert done.stdout == "Hi!\nHi, hi!\n"
    assert call(folder, "generate", path, "--chat", "--prompt", "Who are you?").stdout == "I am a tiny model.\n"


def test_a_run_goes_on_with_the_same_bits(folder):
    start = ("--init-from", "base.safetensors", "--save-every", 3)
    train(folder, *start, "-x", 6, "-o", "straight")
    train(folder, *start, "-x", 3, "-o", "broken")
    train(folder, "-x", 6, "-o", "broken", "--resume")
    models = [gpt2c.load(folder / name / "ckpt_00000006.safetensors") for name in ("straight", "broken")]
    np.testing.assert_array_equal(*(model.params.flat for model in models))
    np.testing.assert_array_equal(*(model.m.flat for model in models))


def test_other_orders_are_as_they_were(folder):
    told = train(folder, "--init-from", "base.safetensors", "-x", 1, "--order", "items")
    assert "loss on all tokens" in told
    assert "random order" in train(folder, "--init-from", "base.safetensors", "-x", 1, "--order", "random", "-t", 8)
