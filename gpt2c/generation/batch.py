"""Batches: completions of many prompts, in step."""

import sys
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from gpt2c.errors import UsageError
from gpt2c.generation.decoder import checked_prompt, choose, is_greedy, penalised
from gpt2c.generation.slots import Slots
from gpt2c.models.family import max_seq_len
from gpt2c.models.model import Model
from gpt2c.support.choice import check_choice
from gpt2c.support.rng import Xorshift


class BatchSampler:
    """Reuses its slots from one call to the next, where they are enough."""

    def __init__(self, model, kv=""):
        self.model, self.kv = model, kv
        self._slots = None

    def sample(self, prompts, max_new_tokens, rng, stops=(), temperature=1.0):
        """A list of new ids for each prompt (a list of ids), which ends after the first id of `stops`.

        A row's choices depend on its prompt, its place in the batch and the state of the NumPy generator alone, not on
        the other rows. Temperature 0 takes the likeliest.
        """
        check_choice(temperature=temperature)
        coins = rng.random((len(prompts), max_new_tokens))
        return self.continued(
            prompts, max_new_tokens, stops, lambda logits, rows, count: choose_rows(logits, coins[rows, count], temperature)
        )

    def continued(self, prompts, max_new_tokens, stops, pick):
        """The same with the next ids from pick(logits, rows, count): of those rows, which have so many new ids already."""
        if not min(map(len, prompts), default=1):
            raise UsageError("a prompt is empty: give at least one token id")
        slots = self._prepared(len(prompts), max(map(len, prompts), default=0) + max_new_tokens)
        new: list[list[int]] = [[] for _ in prompts]
        rows, logits = list(range(len(prompts))), slots.read(dict(enumerate(prompts)))
        for count in range(max_new_tokens):
            for row, id in zip(rows, pick(np.stack([logits[row] for row in rows]), rows, count)):
                new[row].append(int(id))
            rows = [row for row in rows if new[row][-1] not in stops]
            if not rows or count + 1 == max_new_tokens:
                break
            logits = {row: found[0] for row, found in slots.step({row: new[row][-1:] for row in rows}).items()}
        return new

    def _prepared(self, count, length):
        """Slots for so many sequences of this length, that have read nothing: the model may have learned since they last did."""
        most = max_seq_len(self.model.config)
        if length > most:
            raise UsageError(
                f"prompts and completions come to {length} tokens, more than the model's max_seq_len of {most}: "
                "choose a smaller --max-new-tokens"
            )
        if self._slots is None or self._slots.count < count or self._slots.context < length:
            self._slots = Slots(self.model, count, most if most == sys.maxsize else min(-(-length // 32) * 32, most), kv=self.kv)
        for slot in range(count):
            self._slots.cut(slot, 0)
        return self._slots


def generate_batch(
    model: Model,
    prompts: Iterable[Iterable[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    *,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop_tokens: Collection[int] = (),
    kv: str = "",
) -> list[list[int]]:
    """A list of new ids for each prompt: those that `generate` gives for it with its seed, which are 1337, 1338, ... unless
    given. All of them have to fit into the model's context."""
    prompts = [checked_prompt(model, prompt) for prompt in prompts]
    if not prompts:
        return []
    check_choice(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty)
    rngs = [Xorshift(seed) for seed in (range(1337, 1337 + len(prompts)) if seeds is None else seeds)]
    if len(rngs) != len(prompts):
        raise UsageError(f"{len(rngs)} seeds for {len(prompts)} prompts: give one for each")
    seen, ends = [set(prompt) for prompt in prompts], set(stop_tokens)

    def pick(logits, rows, count):
        chosen = []
        for row, values in zip(rows, logits):
            if repetition_penalty != 1:
                values = penalised(values, seen[row], repetition_penalty)
            chosen.append(choose(values, rngs[row], temperature, top_k, top_p, min_p))
            seen[row].add(chosen[-1])
        return chosen

    every = BatchSampler(model, kv).continued(prompts, max_new_tokens, ends, pick)
    return [ids[:-1] if ids[-1:] and ids[-1] in ends else ids for ids in every]


def choose_rows(logits, coins, temperature=1.0):
    """The next id of each row: the first at which the summed probability exceeds the row's coin, from [0, 1)."""
    if is_greedy(temperature):
        return logits.argmax(axis=1)
    sums = np.cumsum(np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64) / temperature), axis=1)
    return np.minimum((sums <= coins[:, None] * sums[:, -1:]).sum(axis=1), logits.shape[1] - 1)
