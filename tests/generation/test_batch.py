"""Completions in batches: a row is what its prompt gives alone."""

import numpy as np
import pytest
from families import families, model_of

import gpt2c
from gpt2c.errors import UsageError
from gpt2c.generation.batch import BatchSampler, choose_rows


def likeliest(logits, rows, count):
    return logits.argmax(axis=1)


@families
def test_a_row_of_a_batch_is_what_its_prompt_gives_alone(family):
    model = model_of(family)
    model.params.flat[...] *= 3  # so that choices are not all a matter of chance
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 27, n).tolist() for n in (3, 1, 7, 5, 3)]
    coins = np.random.default_rng(7).random((5, 12))

    class Coins:
        def __init__(self, rows):
            self.rows = rows

        def random(self, shape):
            return coins[self.rows]

    together = BatchSampler(model).sample(prompts, 12, Coins(slice(None)), stops={4})
    for row, prompt in enumerate(prompts):
        assert BatchSampler(model).sample([prompt], 12, Coins([row]), stops={4}) == [together[row]]
    for prompt, new in zip(prompts, BatchSampler(model).sample(prompts, 12, rng, temperature=0)):
        assert new == list(gpt2c.generate(model, prompt, 12, temperature=0))


def test_what_a_model_has_learned_since_shows():
    """Though its slots would not read a prompt again that they have in whole pieces."""
    model, prompt = model_of(max_seq_len=1024), [n % 27 for n in range(600)]
    model.params.flat[...] *= 3
    sampler = BatchSampler(model)
    before = sampler.continued([prompt], 12, (), likeliest)
    model.params.flat[...] = np.roll(model.params.flat, 1000)
    after = sampler.continued([prompt], 12, (), likeliest)
    assert after == BatchSampler(model).continued([prompt], 12, (), likeliest) != before


def test_completions_end_with_a_stop_and_a_full_context_is_refused():
    model = model_of()
    new = BatchSampler(model).sample([[1], [2, 3]] * 20, 15, np.random.default_rng(0), stops={0, 5})
    assert all(len(ids) <= 15 and not {0, 5} & set(ids[:-1]) for ids in new)
    assert any(len(ids) < 15 for ids in new) and all(len(ids) == 15 or ids[-1] in (0, 5) for ids in new)
    with pytest.raises(UsageError, match="66 tokens, more than the model's max_seq_len of 64"):
        BatchSampler(model).sample([[1] * 60], 6, np.random.default_rng(0))
    with pytest.raises(UsageError, match="empty"):
        BatchSampler(model).sample([[1], []], 6, np.random.default_rng(0))


def test_choices_have_the_probabilities_of_the_softmax(rng):
    logits = np.tile(np.log([[0.5, 0.3, 0.15, 0.05]]), (20000, 1)).astype(np.float32)
    for temperature, expected in ((1.0, [0.5, 0.3, 0.15, 0.05]), (0.5, np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365)):
        counts = np.bincount(choose_rows(logits, rng.random(20000), temperature), minlength=4) / 20000
        np.testing.assert_allclose(counts, expected, atol=4 * 0.5 / 20000**0.5)
    assert (choose_rows(logits, rng.random(20000), 0) == 0).all()
    assert choose_rows(np.float32([[0, 0]]), np.array([1 - 1e-17]))[0] == 1
