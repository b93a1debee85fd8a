"""How many bytes a type takes, where an Arena's tensors lie, and what a Pool hands out: pieces that share no memory while
they are held, within the slab that planning asked for."""

import numpy as np
import pytest

from gpt2c._core import DTYPES, Buffer, nbytes
from gpt2c.engine.arena import ALIGNMENT, Arena, ParamSpec, Pool, aligned_bytes, constant


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
    take_and_give(Pool(aligned_bytes(plan.peak), reuse=reuse), seed)


def test_what_was_given_back_is_used_again():
    pool = Pool()
    first, second, third = (pool.take((size,), "piece") for size in (32, 16, 16))
    del first, second  # neighbours: one hole of 48
    pool.take((48,), "fits there")
    assert pool.peak == 4 * 64
    del third  # together with the hole: all of it is free
    pool.take((80,), "begins in the hole")
    assert pool.peak == 4 * 80


def test_an_emptied_pool_is_as_good_as_new():
    """Or a program that runs again without being recorded would not find room for what was planned."""
    pool = Pool()
    for _ in range(2):
        big, keep, small = (pool.take((size,), "piece") for size in (64, 16, 32))
        del big, small
        fits = pool.take((48,), "below the top")
        assert pool.peak == 4 * 112
        del fits, keep
    assert pool.top == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_table_says_what_numpy_says(dtype):
    for shape in ((), (0, 3), (5,), (2, 3, 7)):
        assert nbytes(dtype, shape) == np.zeros(shape, DTYPES[dtype].array).nbytes
    size = nbytes(dtype, (1 << 20, 1 << 20))
    assert type(size) is int and size == DTYPES[dtype].itemsize << 40


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_beyond_4_gib_are_where_they_are(dtype):
    """Nothing is read there."""
    whole = Buffer("x", (1 << 34, 3), 1 << 30, None, dtype)
    part = whole.rows(1 << 33, (1 << 33) + 2, 3)
    assert (part.dtype, part.shape, part.array.dtype) == (dtype, (2, 3), DTYPES[dtype].array)
    assert part.array.ctypes.data - whole.array.ctypes.data == nbytes(dtype, (1 << 33, 3))


@pytest.mark.parametrize("dtype", ["f32", "i32"])
def test_a_pool_takes_whole_lines_for_pieces_of_every_type(dtype):
    pool = Pool(aligned_bytes(4 * ALIGNMENT), poison=True)
    pieces = [pool.take((size,), "piece", dtype) for size in (17, 1, 0, 3)]
    assert pool.peak == pool.slab.nbytes and [piece.dtype for piece in pieces] == 4 * [dtype]
    pieces[0].array[...] = range(17)
    assert pieces[0].array.sum() == 136 and pieces[0].array.dtype == DTYPES[dtype].array
    del pieces
    assert np.isnan(pool.slab.view(np.float32)).all()


def test_an_arena_s_tensors_lie_one_after_the_other_each_of_its_own_type():
    specs = [
        ParamSpec("w", (2, 3), constant(0), True),
        ParamSpec("ids", (2, 5), constant(0), False, "i32"),
        ParamSpec("b", (4,), constant(0), False),
    ]
    arena = Arena(specs, "d")
    assert (arena.size, arena.nbytes) == (20, nbytes("f32", (10,)) + nbytes("i32", (10,)))
    assert arena.buffer("ids", address=False).dtype == "i32" and not arena.allocated
    for name, value in zip(arena, (1, 2, 3)):
        arena[name][...] = value
    assert [(arena[spec.name].shape, arena[spec.name].dtype) for spec in specs] == [
        (spec.shape, DTYPES[spec.dtype].array) for spec in specs
    ]
    assert arena.flat.nbytes == arena.nbytes
    assert (arena.flat[:6] == 1).all() and (arena.flat[6:16].view(np.int32) == 2).all() and (arena.flat[16:] == 3).all()
    assert [arena.range(name) for name in arena] == [(0, 6), (6, 16), (16, 20)]
    arena["ids"][1] = 7
    layer = arena.buffer("ids", 1)
    assert (layer.name, layer.shape, layer.dtype) == ("dids[1]", (5,), "i32") and (layer.array == 7).all()
    assert arena.buffer("b", 3).shape == (1,) and arena.buffer("b", 3).array == 3


def test_a_notebook_shows_an_arena_in_a_line():
    specs = [ParamSpec(f"tensor{number}", (number + 1, 2), constant(0), True) for number in range(300)]
    assert repr(Arena(specs[:2])) == "<gpt2c.Arena: 2 tensors, 6 numbers: tensor0 (1, 2), tensor1 (2, 2)>"
    shown = repr(Arena(specs, "d"))
    assert shown.startswith("<gpt2c.Arena: 300 tensors, 90,300 numbers: dtensor0 (1, 2), ") and len(shown) < 200
    assert shown.endswith(" and 296 more>")
