"""Generating: a decoder that keeps what it has read, and the choice of the next token."""
import sys

import numpy as np

from gpt2c.engine import Runner, Work
from gpt2c.errors import UsageError
from gpt2c.models import max_seq_len
from gpt2c.rng import Xorshift, multinomial

CHUNK = 512  # tokens of a prompt that go through the model at a time


class Decoder:
    """Feeds tokens to a model and gives the logits of the next one; what was read before stays in a cache or a state.

    A transformer whose context is full starts again from the later half of what it holds; a recurrent model has no end.
    """

    def __init__(self, model, context=None):
        most = max_seq_len(model.config)
        self.model, self.context = model, min(context or most, most)
        self._runner = Runner(model, context=self.context)
        self._endless = most == sys.maxsize
        self._read = []  # the tokens in the cache

    def feed(self, ids):
        """The logits (vocab_size,) after these ids."""
        ids = list(ids)
        if not self._endless and len(self._read) + len(ids) > self.context:
            ids = (self._read + ids)[-max(1, self.context // 2):]
            self._read = []
        for first in range(0, len(ids), CHUNK):
            logits = self._feed(ids[first : first + CHUNK])
        return logits

    def _feed(self, ids):
        work = self._runner.prepare(Work(1, len(ids), targets=False))
        work.tokens[0] = ids
        work.position[0] = len(self._read)
        work.forward()
        if not self._endless:
            self._read += ids
        return work.output.logits.array.reshape(-1)[: self.model.config.vocab_size]


def choose(logits, rng, temperature=1.0, top_k=0, top_p=1.0):
    """The next id. Temperature 0 takes the likeliest, the lowest id on ties; 1 with neither top_k nor top_p is
    llm.c's draw."""
    if temperature == 0:
        return int(np.argmax(logits))
    probs = np.exp((logits - logits.max()) / np.float32(temperature))
    if top_k and top_k < len(probs):
        order = np.argsort(-probs, kind="stable")
        probs[order[top_k:]] = 0
    probs /= np.cumsum(probs, dtype=np.float32)[-1]
    if top_p < 1:
        order = np.argsort(-probs, kind="stable")
        enough = np.searchsorted(np.cumsum(probs[order]), top_p) + 1  # the smallest set that reaches top_p
        probs[order[enough:]] = 0
        probs /= probs.sum()
    return multinomial(probs, rng.float32())


def generate(model, prompt_ids, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, seed=1337):
    """Yields up to max_new_tokens new ids, one by one. `seed` is the state of llm.c's generator, or an Xorshift."""
    prompt = [int(i) for i in prompt_ids]
    vocab = model.config.vocab_size
    if not prompt:
        raise UsageError("the prompt is empty: give at least one token id")
    if min(prompt) < 0 or max(prompt) >= vocab:
        raise UsageError(f"the prompt holds ids from {min(prompt)} to {max(prompt)}, expected 0 to {vocab - 1}")
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise UsageError(f"temperature {temperature}, top_k {top_k}, top_p {top_p}: expected at least 0, at least 0, "
                         "and above 0 up to 1")
    rng = seed if isinstance(seed, Xorshift) else Xorshift(seed)
    decoder = Decoder(model, len(prompt) + max_new_tokens)
    new = prompt[-max_seq_len(model.config):]
    for _ in range(max_new_tokens):
        new = [choose(decoder.feed(new), rng, temperature, top_k, top_p)]
        yield new[0]
