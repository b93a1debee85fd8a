"""Batched generation: completions of many prompts, all rows in step through one KV cache or hidden state."""

import sys
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from gpt2c.engine.runner import Runner, Work
from gpt2c.errors import UsageError
from gpt2c.generation.decoder import checked_prompt, choose, is_greedy, penalised
from gpt2c.models.family import max_seq_len
from gpt2c.models.model import Model
from gpt2c.support.choice import check_choice
from gpt2c.support.rng import Xorshift


class BatchSampler:
    """Reuses recorded programs and caches from one call to the next of the same size."""

    def __init__(self, model):
        self.model = model
        self._runner = self._size = None

    def sample(self, prompts, max_new_tokens, rng, stops=(), temperature=1.0):
        """A list of new ids for each prompt (a list of ids), which ends after the first id of `stops`.

        A row's choices depend on its prompt, its place in the batch and the state of the NumPy generator alone, not on
        the other rows. Temperature 0 takes the likeliest.
        """
        check_choice(temperature=temperature)
        coins = rng.random((len(prompts), max_new_tokens))
        return self.continued(
            prompts, max_new_tokens, stops, lambda logits, rows, counts: choose_rows(logits, coins[rows, counts], temperature)
        )

    def continued(self, prompts, max_new_tokens, stops, pick):
        """The same with the next ids from pick(logits, rows, counts): of those rows, which have so many new ids already."""
        B, lengths = len(prompts), np.array([len(prompt) for prompt in prompts])
        if not lengths.min(initial=1):
            raise UsageError("a prompt is empty: give at least one token id")
        shortest, longest = lengths.min(), lengths.max()
        runner = self._prepared(B, int(longest) + max_new_tokens)
        stops = np.array(sorted(stops), np.int64)
        ids = np.zeros((B, longest + max_new_tokens), np.int32)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        ends = lengths + max_new_tokens  # where each row is over
        logits = self._feed(runner, ids[:, :shortest], 0)
        for at in range(shortest, ids.shape[1]):
            # A row whose prompt goes on is given that; one that is over goes along, and what it gets is cut off.
            new = np.flatnonzero((lengths <= at) & (at < ends))
            chosen = pick(logits[new], new, at - lengths[new])
            ids[new, at] = chosen
            ends[new] = np.where(np.isin(chosen, stops), at + 1, ends[new])
            if (ends <= at + 1).all():
                break
            logits = self._feed(runner, ids[:, at : at + 1], at, decoding=True)
        return [ids[row, lengths[row] : ends[row]].tolist() for row in range(B)]

    def _prepared(self, B, length):
        most = max_seq_len(self.model.config)
        if length > most:
            raise UsageError(
                f"prompts and completions come to {length} tokens, more than the model's max_seq_len of {most}: "
                "choose a smaller --max-new-tokens"
            )
        if self._size is None or self._size[0] != B or self._size[1] < length:
            self._size = B, most if most == sys.maxsize else min(-(-length // 32) * 32, most)
            self._runner = Runner(self.model, context=self._size[1])
        if self._runner.state_shapes(B):
            self._runner.begin(B)
        return self._runner

    def _feed(self, runner, ids, at, decoding=False):
        """The logits (B, known_ids) after these ids (B, n), the first of which stands at position `at`."""
        work = runner.prepare(Work(*ids.shape, targets=False, decoding=decoding))
        work.tokens[...] = ids
        work.position[0] = at
        work.forward()
        return work.output.logits.array.reshape(len(ids), -1)[:, : self.model.known_ids]


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

    def pick(logits, rows, counts):
        chosen = []
        for row, values in zip(rows, logits):
            if repetition_penalty != 1:
                values = penalised(values, seen[row], repetition_penalty)
            chosen.append(choose(values, rngs[row], temperature, top_k, top_p, min_p))
            seen[row].add(chosen[-1])
        return chosen

    every = BatchSampler(model).continued(prompts, max_new_tokens, ends, pick)
    return [ids[:-1] if ids[-1:] and ids[-1] in ends else ids for ids in every]


def choose_rows(logits, coins, temperature=1.0):
    """The next id of each row: the first at which the summed probability exceeds the row's coin, from [0, 1)."""
    if is_greedy(temperature):
        return logits.argmax(axis=1)
    sums = np.cumsum(np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64) / temperature), axis=1)
    return np.minimum((sums <= coins[:, None] * sums[:, -1:]).sum(axis=1), logits.shape[1] - 1)
