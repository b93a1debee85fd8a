"""Prompt lookup: guesses change no token, and save steps where a text repeats itself."""

import numpy as np
import pytest
from families import FAMILIES, model_of
from hypothesis import given
from hypothesis import strategies as st

import gpt2c
from gpt2c.errors import UsageError
from gpt2c.generation.slots import Slots
from gpt2c.generation.speculation import SIZES, Lookup

transformers = pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("mingru", "hybrid")])
PROMPT = [1, 2, 3, 4, 5, 1, 2, 3]


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(-1, 12))
def test_a_draft_is_how_the_text_went_on_the_last_time(ids, count):
    lookup = Lookup(ids[: len(ids) // 2])
    for id in ids[len(ids) // 2 :]:
        lookup.push(id)
    draft = lookup.draft(count)
    ends = [[at for at in range(size, len(ids)) if ids[at - size : at] == ids[-size:]] for size in SIZES if len(ids) > size]
    places = next((places for places in ends if places), [])
    if not places or count < 1:
        assert draft == []
    else:
        assert len(draft) == count
        text = ids + draft  # goes on as it did from there, also where that is a part of the draft
        assert text[len(ids) :] == text[places[-1] : places[-1] + count]


WAYS = [dict(temperature=0), dict(temperature=0.8), dict(temperature=0.8, top_k=5, repetition_penalty=1.1), dict(temperature=0.3)]


@pytest.mark.parametrize("how", WAYS, ids=str)
@transformers
def test_speculation_changes_no_token(family, how):
    """Beyond the end of the context too."""
    model = model_of(family)
    for scale, seed in (3, 1), (3, 2), (8, 3):
        model.initialise(seed).params.flat[...] *= scale
        alone = list(gpt2c.generate(model, PROMPT, 150, seed=seed, **how))
        for speculate in 1, 4, 30:
            assert list(gpt2c.generate(model, PROMPT, 150, seed=seed, speculate=speculate, **how)) == alone
    ends = set(alone[60:62])
    expected = list(gpt2c.generate(model, PROMPT, 150, seed=3, stop_tokens=ends, **how))
    assert list(gpt2c.generate(model, PROMPT, 150, seed=3, stop_tokens=ends, speculate=7, **how)) == expected


@transformers
def test_what_repeats_itself_takes_fewer_steps(family, monkeypatch):
    model, steps, step = model_of(family), [], Slots.step
    model.params.flat[...] *= 3
    monkeypatch.setattr(Slots, "step", lambda self, new: steps.append(new) or step(self, new))
    text = [[5, 6, 7, 8][n % 4] for n in range(30)]
    draws = iter(text * 9)
    monkeypatch.setattr("gpt2c.generation.decoder.choose", lambda *_: next(draws))
    assert list(gpt2c.generate(model, text[:8], 30, speculate=4)) == text
    assert sum(len(new[0]) for new in steps) == 29 and len(steps) <= 9


def test_a_guess_that_was_wrong_leaves_no_bit(monkeypatch):
    model = model_of()
    model.params.flat[...] *= 3
    draws = iter([4, 5, 1, 2, 9, 1, 2, 3, 8, 8, 8, 1, 2, 3] * 2)
    monkeypatch.setattr("gpt2c.generation.decoder.choose", lambda *_: next(draws))
    slots = Slots(model)
    ids = PROMPT + list(gpt2c.generate(model, PROMPT, 14, speculate=5, slots=slots))
    alone = Slots(model)
    alone.read({0: PROMPT})
    alone.step({0: ids[len(PROMPT) : slots.length(0)]})
    np.testing.assert_array_equal(slots.step({0: [7]})[0], alone.step({0: [7]})[0])


@pytest.mark.parametrize("family", ["mingru", "hybrid"])
def test_a_recurrent_model_takes_nothing_back(family):
    with pytest.raises(UsageError, match="speculate is 3, but a .* cannot take back"):
        list(gpt2c.generate(model_of(family), [1], 3, speculate=3))
    with pytest.raises(UsageError, match="speculate is -1"):
        list(gpt2c.generate(model_of(), [1], 3, speculate=-1))
