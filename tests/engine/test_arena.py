"""What a Pool hands out: pieces that share no memory while they are held, within the slab that planning asked for."""

import numpy as np
import pytest

from gpt2c.engine.arena import Pool, aligned


def take_and_give(pool, seed, steps=400):
    """Takes pieces and gives others back, the same ones for the same seed; what is written to a piece has to stay."""
    rng, held = np.random.default_rng(seed), {}
    for number in range(steps):
        if held and rng.random() < 0.45:
            gone = int(rng.choice(list(held)))
            assert pool.slab is None or (held[gone].array == gone).all(), f"piece {gone} was written over by another"
            del held[gone]
        else:
            held[number] = pool.take((int(rng.integers(0, 80)),), str(number))
            if pool.slab is not None:
                held[number].array[...] = number


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_pieces_that_are_held_share_no_memory(seed, reuse):
    plan = Pool(reuse=reuse)
    take_and_give(plan, seed)
    take_and_give(Pool(aligned(plan.peak // 4), reuse=reuse), seed)


def test_what_was_given_back_is_used_again():
    pool = Pool()
    first, second, third = (pool.take((size,), "piece") for size in (32, 16, 16))
    del first, second  # neighbours: one hole of 48
    pool.take((48,), "fits there")
    assert pool.peak == 4 * 64
    del third  # together with the hole: all of it is free
    pool.take((80,), "begins in the hole")
    assert pool.peak == 4 * 80
