"""A small model of each family whose tokens are characters, with as many as the tasks need."""

import pytest

import gpt2c
from gpt2c.tokenizers.tokenizer import Tokenizer

FAMILIES = {
    "gpt2": dict(num_layers=2, channels=32, num_heads=2, max_seq_len=64),
    "chargpt": dict(num_layers=2, channels=32, num_heads=2, max_seq_len=64),
    "mingru": dict(dim=32, depth=2),
    "hybrid": dict(hidden=16, num_layers=2, num_experts=2),  # where choices of experts make no jumps
    "llama": dict(num_layers=2, channels=32, num_heads=4, num_kv_heads=2, max_seq_len=64),
    "trm": dict(channels=32, hidden=48, num_heads=2, max_seq_len=64),
}
families = pytest.mark.parametrize("family", FAMILIES)
CHARACTERS = "\n0123456789+-*=:>abcdefghij"


def model_of(family="chargpt", characters=CHARACTERS, seed=1, **fields):
    tokenizer = Tokenizer.make("char", characters)
    model = gpt2c.create(family, seed=seed, vocab_size=tokenizer.vocab_size, **FAMILIES[family] | fields)
    model.tokenizer = tokenizer
    return model
