"""Generation: a decoder with a KV cache or a hidden state, and the sampling of the next token."""

import sys
from collections.abc import Collection, Iterable, Iterator

import numpy as np

from gpt2c.engine.runner import Runner, Work
from gpt2c.errors import InferenceError
from gpt2c.models.family import max_seq_len
from gpt2c.models.model import Model
from gpt2c.support.choice import check_choice
from gpt2c.support.rng import Xorshift, multinomial

COLDEST = float(np.finfo(np.float32).tiny)  # temperature
CHUNK = 512  # prefill: tokens of a prompt per forward pass


class Decoder:
    """Feeds tokens to a model and gives the logits of the next one; earlier tokens stay in the KV cache or the hidden state.

    A transformer whose context is full starts again from its later half; the context of a recurrent model is unlimited.
    """

    def __init__(self, model, context=None, chunk=CHUNK):
        most = max_seq_len(model.config)
        self.model, self.context, self._chunk = model, min(context or most, most), chunk
        self._runner = Runner(model, context=self.context)
        self._endless = most == sys.maxsize
        self._read = []  # the tokens in the cache

    def feed(self, ids, decoding=False):
        """The logits (known_ids,) after these ids: a prompt or more of it, or, `decoding`, the token that was chosen."""
        ids = list(ids)
        if not self._endless and len(self._read) + len(ids) > self.context:
            ids = (self._read + ids)[-max(1, self.context // 2) :]
            self._read, decoding = [], False
        for first in range(0, len(ids), self._chunk):
            logits = self._feed(ids[first : first + self._chunk], decoding)
        return logits

    def become(self, other):
        """Goes on from where another decoder of the same model and context is."""
        self._runner.take_over(other._runner)
        self._read = list(other._read)

    def _feed(self, ids, decoding):
        work = self._runner.prepare(Work(1, len(ids), targets=False, decoding=decoding))
        work.tokens[0] = ids
        work.position[0] = len(self._read)
        work.forward()
        if not self._endless:
            self._read += ids
        return work.output.logits.array.reshape(-1)[: self.model.known_ids]


def penalised(logits, seen, penalty):
    """A copy of the logits in which the ids that were seen are less likely: divided by the penalty, or multiplied if
    negative."""
    logits, seen = logits.copy(), list(seen)
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits


def is_greedy(temperature):
    """Whether the likeliest is taken: at 0, and so near to it that a float32 may take it for 0."""
    return temperature < COLDEST


def choose(logits, rng, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The next id. Temperature 0 takes the likeliest, the lowest id on ties; 1 with neither top_k, top_p nor min_p is
    llm.c's draw. The three narrow the choice one after the other, in this order."""
    if is_greedy(temperature):
        return int(np.argmax(logits))
    with np.errstate(over="ignore"):  # what is infinitely less likely than the likeliest
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
    if min_p > 0:
        probs[probs < min_p * probs.max()] = 0
        probs /= probs.sum()
    return multinomial(probs, rng.float32())


def checked_prompt(model, prompt_ids):
    """The ids as a list of ints, or those of a text; an error unless there are some and the model has them."""
    if isinstance(prompt_ids, str):
        if not model.tokenizer:
            raise InferenceError("the prompt is text, but the model has no tokenizer: set model.tokenizer, or give token ids")
        prompt_ids = model.tokenizer.encode(prompt_ids, bos=model.tokenizer.adds_bos)
    prompt, vocab = [int(i) for i in prompt_ids], model.known_ids
    if not prompt:
        raise InferenceError("the prompt is empty: give at least one token id")
    if min(prompt) < 0 or max(prompt) >= vocab:
        raise InferenceError(f"the prompt holds ids from {min(prompt)} to {max(prompt)}, expected 0 to {vocab - 1}")
    return prompt


def generate(
    model: Model,
    prompt_ids: Iterable[int] | str,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Xorshift = 1337,
    *,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop_tokens: Collection[int] = (),
    chunk: int = CHUNK,
) -> Iterator[int]:
    """Yields up to max_new_tokens new ids, one by one. `seed` is the state of llm.c's generator, or an Xorshift.

    The prompt is token ids, or text where the model has a tokenizer; it is read `chunk` tokens at a time. Generation ends
    before the first of `stop_tokens`. A `repetition_penalty` above 1 makes the ids of the prompt and those generated less
    likely; `min_p` leaves out those with less than this part of the likeliest one's probability.
    """
    prompt = checked_prompt(model, prompt_ids)
    check_choice(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty)
    if chunk < 1:
        raise InferenceError(f"the prompt is to be read {chunk} tokens at a time, expected at least 1")
    rng = seed if isinstance(seed, Xorshift) else Xorshift(seed)
    decoder = Decoder(model, len(prompt) + max_new_tokens, chunk)
    new, seen, ends = prompt[-max_seq_len(model.config) :], set(prompt), set(stop_tokens)
    for count in range(max_new_tokens):
        logits = decoder.feed(new, decoding=count > 0)
        if repetition_penalty != 1:
            logits = penalised(logits, seen, repetition_penalty)
        new = [choose(logits, rng, temperature, top_k, top_p, min_p)]
        if new[0] in ends:
            return
        seen.add(new[0])
        yield new[0]
