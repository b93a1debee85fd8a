"""Generation: a text token by token, and the choice of the next one."""

from collections.abc import Collection, Iterable, Iterator
from itertools import islice

import numpy as np

from gpt2c.errors import InferenceError
from gpt2c.generation.slots import PIECE, Slots
from gpt2c.generation.speculation import Lookup
from gpt2c.models.family import max_seq_len
from gpt2c.models.model import Model
from gpt2c.support.choice import check_choice
from gpt2c.support.rng import Xorshift, multinomial

COLDEST = float(np.finfo(np.float32).tiny)  # temperature


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
    chunk: int = PIECE,
    kv: str = "",
    speculate: int = 0,
    slots: Slots | None = None,
) -> Iterator[int]:
    """Yields up to max_new_tokens new ids, one by one. `seed` is the state of llm.c's generator, or an Xorshift.

    The prompt is token ids, or text where the model has a tokenizer; it is read `chunk` tokens at a time. Generation ends
    before the first of `stop_tokens`. A `repetition_penalty` above 1 makes the ids of the prompt and those generated less
    likely; `min_p` leaves out those with less than this part of the likeliest one's probability.

    `kv` is what keys and values are stored as: f32, bf16, f16 or q8_0. With `speculate`, up to so many tokens are guessed from
    where the text had the same ones before, and read together: the ids are the same, and sooner there where the guesses are
    right. The first of the model's `slots`, where they are given, need not read again what it has of the prompt.
    """
    prompt = checked_prompt(model, prompt_ids)
    check_choice(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty)
    slots = slots or Slots(model, 1, len(prompt) + max_new_tokens, chunk, kv)
    check_speculation(slots, speculate)
    rng = seed if isinstance(seed, Xorshift) else Xorshift(seed)
    seen, ends = set(prompt), set(stop_tokens)

    def pick(logits):
        if repetition_penalty != 1:
            logits = penalised(logits, seen, repetition_penalty)
        return choose(logits, rng, temperature, top_k, top_p, min_p)

    for id in islice(_continued(slots, prompt[-max_seq_len(model.config) :], pick, speculate, max_new_tokens), max_new_tokens):
        if id in ends:
            return
        seen.add(id)
        yield id


def check_speculation(slots, speculate):
    if speculate < 0:
        raise InferenceError(f"speculate is {speculate}, expected at least 0")
    if speculate and slots.is_recurrent:
        raise InferenceError(
            f"speculate is {speculate}, but a {slots.model.family} model cannot take back what it has read: leave it out"
        )


def _continued(slots, prompt, pick, speculate, most):
    """The ids that pick(logits) chooses, one after the other, of which `most` are wanted.

    What is read together is the last id and a draft of those that may come after it. An id is picked from the logits after
    each, as if it were read alone; the first one that is not the draft's ends what can be used of them.
    """
    text, draft = Lookup(prompt if speculate else ()), []
    rows = [slots.read({0: prompt})[0]]
    while True:
        for right, logits in enumerate(rows):
            yield (id := pick(logits))
            most -= 1
            if speculate:
                text.push(id)
            if draft[right : right + 1] != [id]:
                break
        if draft:
            slots.cut(0, slots.length(0) - len(draft) + right)
        draft = text.draft(min(speculate, slots.room(0) - 1, most - 1))
        rows = slots.step({0: [id, *draft]})[0]
