"""Texts, and the ids that come of them."""

import random
from functools import cache
from pathlib import Path

from gpt2c.data import read_shard
from gpt2c.tokenizers.tokenizer import Tokenizer

STORIES = str(Path(__file__).parents[1] / "data/stories_tokenizer.bin")

ITEMS = [
    {"prompt": "What is snow?", "completion": "Snow is ice, of course."},
    {"prompt": "Who are you?", "completion": "I am a tiny model."},
    {
        "messages": [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hi!"},
            {"role": "user", "content": "Again."},
            {"role": "assistant", "content": "Hi, hi!"},
        ]
    },
    {"prompt": "Again.", "completion": "What again?"},
]
FACTS = ["Snow is ice.", "The sun is a star.", "Ice is cold."]


@cache
def stories_tokenizer():
    return Tokenizer.load(STORIES)


def random_text(size, seed=0, alphabet="ab éß中🙂\n\t"):
    rng = random.Random(seed)
    return "".join(rng.choice(alphabet) for _ in range(size))


def ids(path):
    return read_shard(path).tokens.tolist()
