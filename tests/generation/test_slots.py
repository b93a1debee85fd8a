"""Slots: the bits of a sequence's logits depend on its text alone: not on those beside it, nor on what its slot read before."""

import numpy as np
import pytest
from families import FAMILIES, families, model_of

import gpt2c
from gpt2c.errors import UsageError
from gpt2c.generation.slots import Slots

transformers = pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("mingru", "hybrid")])
PIECE = 8


def lively(family):
    model = model_of(family)
    model.params.flat[...] *= 3  # far from even
    return model


def text(count, seed=0):
    return np.random.default_rng(seed).integers(0, 27, count).tolist()


def alone(model, ids, prompt, threads=1):
    """Logits after the prompt and after each later token, of a slot that has read nothing else."""
    gpt2c.set_num_threads(threads)
    slots = Slots(model, piece=PIECE)
    rows = [slots.read({0: ids[:prompt]})[0]]
    rows += [slots.step({0: [id]})[0][0].copy() for id in ids[prompt:]]
    return np.array(rows)


@families
@pytest.mark.parametrize("count", [2, 5, 11])
def test_a_sequence_in_a_batch_has_the_bits_it_has_alone(family, count):
    """Of different lengths, in step, as many as threads, some done before others."""
    model, rng = lively(family), np.random.default_rng(count)
    texts = [text(40, seed) for seed in range(count)]
    prompts = [int(n) for n in rng.integers(1, 30, count)]
    ends = [int(n) for n in rng.integers(30, 41, count)]
    expected = [alone(model, ids[:end], prompt) for ids, prompt, end in zip(texts, prompts, ends)]
    for threads in 1, 3:
        gpt2c.set_num_threads(threads)
        slots = Slots(model, count + 1, piece=PIECE)
        places = rng.permutation(count + 1)[:count].tolist()
        found = [[] for _ in texts]
        for row, logits in slots.read({place: texts[row][: prompts[row]] for row, place in enumerate(places)}).items():
            found[places.index(row)].append(logits)
        for step in range(40):
            new = {p: texts[r][prompts[r] + step] for r, p in enumerate(places) if prompts[r] + step < ends[r]}
            for place, logits in slots.step({place: [id] for place, id in new.items()}).items():
                found[places.index(place)].append(logits[0].copy())
        for rows, exact in zip(found, expected):
            np.testing.assert_array_equal(rows, exact)


@families
def test_threads_change_no_bit(family):
    model, ids = lively(family), text(40)
    np.testing.assert_array_equal(alone(model, ids, 30, threads=1), alone(model, ids, 30, threads=3))


@families
def test_what_a_slot_had_read_before_changes_no_bit(family):
    """Another text, a longer one, the same with tokens that it has written itself, one that goes on otherwise."""
    model = lively(family)
    conversation, other = text(60), text(30, seed=1)
    slots = Slots(model, 2, piece=PIECE)
    for ids, prompt in [(conversation[:20], 12), (conversation[:40], 27), (other, 9), (conversation, 40), (conversation, 17)]:
        rows = [slots.read({1: ids[:prompt]})[1]] + [slots.step({1: [id]})[1][0].copy() for id in ids[prompt:]]
        np.testing.assert_array_equal(rows, alone(model, ids, prompt))


@transformers
def test_what_a_text_begins_with_is_read_once(family, monkeypatch):
    slots, read, run = Slots(lively(family), 2, piece=PIECE), [], Slots._run

    def counted(self, slots, positions, ids, decoding=False):
        read.append(np.size(ids))
        return run(self, slots, positions, ids, decoding)

    monkeypatch.setattr(Slots, "_run", counted)
    ids = text(60)
    slots.read({0: ids[:20]})
    slots.step({0: ids[20:30]})
    assert sum(read) == 30
    slots.read({0: ids[:32]})  # 16 are kept: the last piece was not whole
    slots.read({0: ids[:32]})  # the last id is read, for its logits
    assert sum(read) == 30 + 16 + 8
    slots.read({0: ids[:8], 1: ids[:8]})
    assert sum(read) == 30 + 16 + 8 + 8


@families
def test_a_copy_goes_on_as_its_source(family):
    model, ids, other = lively(family), text(40), text(40, seed=1)
    slots = Slots(model, 3, piece=PIECE)
    slots.read({0: ids[:20], 2: other[:30]})
    slots.step({0: ids[20:21]})
    slots.copy(0, 2)
    rows = {slot: [] for slot in (0, 2)}
    for n in range(21, 40):
        for slot, logits in slots.step({0: [ids[n]], 2: [other[n]]}).items():
            rows[slot].append(logits[0].copy())
    np.testing.assert_array_equal(rows[0], alone(model, ids, 20)[2:])
    np.testing.assert_array_equal(rows[2], alone(model, ids[:21] + other[21:], 20)[2:])


@transformers
def test_several_tokens_in_a_step_are_those_one_by_one_and_can_be_taken_back(family):
    model, ids = lively(family), text(50)
    expected = alone(model, ids, 20)
    slots = Slots(model, 2, piece=PIECE)
    slots.read({0: ids[:20], 1: text(9, seed=1)})
    np.testing.assert_array_equal(slots.step({0: ids[20:33], 1: [5]})[0], expected[1:14])
    slots.step({0: text(7, seed=2)})
    slots.cut(0, 33)
    np.testing.assert_array_equal(slots.step({0: ids[33:]})[0], expected[14:])


@transformers
def test_a_full_context_begins_again_with_its_later_half(family):
    """Whatever the others do meanwhile."""
    model, ids = lively(family), text(200)
    together = Slots(model, 2, piece=PIECE)
    together.read({0: ids[:50], 1: text(5)})
    for n in range(50, 200):
        found = together.step({0: [ids[n]], 1: [ids[-n]]})[0][0]
        begun, length = divmod(n - 64, 33)
        if begun >= 0:  # what is there: 32 tokens once it was full, and one more each time
            at = n + 1 - 32 - length
            np.testing.assert_array_equal(found, alone(model, ids[at : n + 1], 32)[-1])
    assert together.room(0) == 64 - together.length(0)


@families
def test_a_reading_that_was_broken_off_leaves_no_trace(family, monkeypatch):
    model, ids = lively(family), text(40)
    slots, run = Slots(model, piece=PIECE), Slots._run
    slots.read({0: ids[:10]})
    slots.step({0: [1]})

    def interrupted(self, slots, positions, ids, decoding=False):
        if positions == [16]:
            raise KeyboardInterrupt
        return run(self, slots, positions, ids, decoding)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Slots, "_run", interrupted)
        slots.read({0: ids})
    np.testing.assert_array_equal(slots.read({0: ids})[0], alone(model, ids, 40)[0])


def test_a_piece_is_of_at_least_one_token():
    with pytest.raises(UsageError, match="0 tokens at a time"):
        Slots(model_of(), piece=0)


@pytest.mark.parametrize(
    "ids, message",
    [
        ({2: [1]}, "slot is 2, expected 0 to 1"),
        ({-1: [1]}, "slot is -1"),
        ({0: []}, "slot 0 is given no ids, expected one or more from 0 to 26"),
        ({0: [1, 27]}, "ids from 1 to 27, expected"),
        ({1: [-1]}, "ids from -1 to -1"),
    ],
)
def test_what_is_no_text_is_refused(ids, message):
    slots = Slots(model_of(), 2)
    for way in slots.read, slots.step:
        with pytest.raises(UsageError, match=message):
            way(ids)


def test_several_ids_are_for_a_transformer_with_room_for_them():
    slots = Slots(model_of())
    slots.read({0: text(62)})
    with pytest.raises(UsageError, match="slot 0 is given 3 ids at once"):
        slots.step({0: [1, 2, 3]})
    assert len(slots.step({0: [1, 2]})[0]) == 2
    with pytest.raises(UsageError, match="slot 0 is given 2 ids at once"):
        Slots(model_of("mingru")).step({0: [1, 2]})
