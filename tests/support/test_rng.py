"""The generators against naive versions written from their formulas, and against known streams."""

import numpy as np
import pytest
from programs import call

import gpt2c
from gpt2c.commands.check_grad import CheckConfig
from gpt2c.data import write_shard
from gpt2c.data.tasks import task_named
from gpt2c.data.windows import RandomWindows
from gpt2c.errors import InputError, UsageError
from gpt2c.generation.sampling import Sampling
from gpt2c.support.rng import Mt19937, Xorshift, multinomial
from gpt2c.training.grpo import GrpoConfig


def naive_mt19937(seed):
    """MT19937 one word at a time: the recurrence, then the tempering."""
    words = [seed]
    for j in range(1, 624):
        words.append((1812433253 * (words[-1] ^ words[-1] >> 30) + j) % 2**32)
    while True:
        mixed = words[-624] & 0x80000000 | words[-623] & 0x7FFFFFFF
        words.append(words[-227] ^ mixed >> 1 ^ (0x9908B0DF if mixed & 1 else 0))
        y = words[-1]
        y ^= y >> 11
        y ^= y << 7 & 0x9D2C5680
        y ^= y << 15 & 0xEFC60000
        yield y ^ y >> 18


def naive_permutation(n, words):
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = next(words) % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def naive_multinomial(probs, coin):
    total = np.float32(0)
    for i, p in enumerate(probs):
        total = np.float32(total + p)
        if coin < total:
            return i
    return len(probs) - 1


def test_known_words():
    rng = Mt19937(137)
    words = [rng.randint32() for _ in range(5)]
    assert words == [4053805790, 2173880614, 380293709, 1237255315, 2986595568]


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_words_over_several_blocks_of_624(seed):
    rng, naive = Mt19937(seed), naive_mt19937(seed)
    assert all(rng.randint32() == next(naive) for _ in range(2000))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 12, 625, 5000])
def test_permutation(n):
    rng, naive = Mt19937(42), naive_mt19937(42)
    for dtype in (np.int32, np.int64):  # the second continues the stream: exactly n - 1 words were drawn
        order = rng.random_permutation(n, dtype)
        assert order.dtype == dtype and order.tolist() == naive_permutation(n, naive)
    assert rng.randint32() == next(naive)


def test_known_permutation():
    rng = Mt19937(42)
    assert rng.random_permutation(12).tolist() == [1, 0, 9, 10, 5, 8, 3, 2, 4, 11, 7, 6]
    assert rng.randint32() == 429389014


@pytest.mark.parametrize("drawn", [0, 1, 623, 624, 1000])
def test_state_continues_the_stream(drawn):
    rng = Mt19937(7)
    for _ in range(drawn):
        rng.randint32()
    saved = rng.state
    expected = [rng.randint32() for _ in range(1500)]  # drawing on must not change what was saved
    other = Mt19937(8)
    other.state = saved
    assert [other.randint32() for _ in range(1500)] == expected


@pytest.mark.parametrize("bad", [np.zeros(624, np.uint32), np.zeros(625, int), np.full(625, 625, np.uint32)])
def test_damaged_state_is_refused(bad):
    with pytest.raises(InputError, match="random state is damaged"):
        Mt19937(0).state = bad


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_twister_seed_out_of_range(seed):
    with pytest.raises(UsageError, match=str(seed)):
        Mt19937(seed)


@pytest.mark.parametrize("seed", [1, 1337, 2**63 + 12345, 2**64 - 1])
def test_xorshift(seed):
    rng, s = Xorshift(seed), seed
    for _ in range(1000):
        s ^= s >> 12
        s = (s ^ (s << 25)) % 2**64
        s ^= s >> 27
        assert rng.u32() == s * 0x2545F4914F6CDD1D % 2**64 >> 32
        assert rng.state == s
    twin = Xorshift(rng.state)
    coins = [rng.float32() for _ in range(1000)]
    assert coins == [(twin.u32() >> 8) / 2**24 for _ in range(1000)]
    assert 0 <= min(coins) < max(coins) < 1


def test_xorshift_known_stream():
    rng = Xorshift(1337)
    assert [rng.u32() for _ in range(5)] == [989205090, 818269915, 1335155955, 3876892996, 2941700015]
    assert rng.state == 12737515200271808181


@pytest.mark.parametrize("state", [0, -1, 2**64])
def test_xorshift_state_out_of_range(state):
    with pytest.raises(UsageError, match=str(state)):
        Xorshift(state)


def test_multinomial_equals_a_sequential_float32_loop():
    rng = np.random.default_rng(0)
    probs = rng.random(5000, np.float32) ** 8
    probs /= probs.sum()
    boundaries = np.cumsum(probs)[::500]  # where a sum of another precision or order would decide otherwise
    for coin in [0.0, 0.5, 1 - 2**-24, *(rng.integers(0, 2**24, 10) / 2**24), *boundaries]:
        assert multinomial(probs, coin) == naive_multinomial(probs, coin)


def test_cumsum_is_sequential():
    """`multinomial` relies on it: a pairwise or float64 sum would differ in the last bits."""
    probs = np.random.default_rng(1).random(50257, np.float32)
    total, running = np.float32(0), []
    for p in probs:
        total = np.float32(total + p)
        running.append(total)
    assert np.array_equal(np.cumsum(probs, dtype=np.float32), running)


def test_multinomial_edges():
    probs = np.array([0, 0.25, 0, 0.25, 0.25], np.float32)
    assert multinomial(probs, 0.0) == 1  # a token of probability 0 is never drawn
    assert multinomial(probs, 0.25) == 3  # the boundary belongs to the next token
    assert multinomial(probs, 0.9) == 4  # beyond the sum: the last one
    assert multinomial(np.full(3, np.nan, np.float32), 0.5) == 2


@pytest.mark.parametrize("seed", [-1, 2**64, 10**400, 1.5, "7", None, True])
def test_what_is_no_seed_is_one_sentence_wherever_it_is_given(seed, tmp_path):
    model = gpt2c.create("mingru", dim=8, depth=1, vocab_size=5)
    write_shard(tmp_path / "x_train.bin", np.arange(100) % 5)
    takers = [
        lambda: gpt2c.create("mingru", dim=8, depth=1, vocab_size=5, seed=seed),
        lambda: gpt2c.TrainConfig(seed=seed),
        lambda: GrpoConfig(seed=seed),
        lambda: CheckConfig(seed=seed),
        lambda: next(gpt2c.generate(model, [1], 1, seed=seed)),
        lambda: gpt2c.generate_batch(model, [[1]], 1, seeds=[seed]),
        lambda: RandomWindows([tmp_path / "x_train.bin"], 1, 4, seed=seed),
        lambda: task_named("reverse").pairs(1, seed=seed),
        lambda: Xorshift(seed),
        lambda: Mt19937(seed),
    ]
    takers += [] if seed == "7" else [lambda: Sampling(seed=seed)]  # text, which a former program has as its prompt
    for take in takers:
        with pytest.raises(UsageError, match=r"seed is .*, expected a whole number from [01] to \d{10,20}$"):
            take()


@pytest.mark.parametrize("seed", [3, np.int64(3), np.uint64(3)])
def test_seeds_of_numpy_are_as_good(seed):
    assert np.array_equal(*(gpt2c.create("mingru", dim=8, depth=1, vocab_size=5, seed=s).params.flat for s in (3, seed)))
    twins = Xorshift(3), Xorshift(seed)
    assert [twins[0].u32() for _ in range(9)] == [twins[1].u32() for _ in range(9)]


def test_a_seed_of_any_verb_is_checked(tmp_path):
    model = gpt2c.create("mingru", dim=8, depth=1, vocab_size=256)
    model.tokenizer = gpt2c.Tokenizer.make("byte")
    model.save(tmp_path / "m.safetensors")
    verbs = [
        ["train", "--data", "x.txt"],
        ["rlvr", "m.safetensors"],
        ["check-grad"],
        ["generate", "m.safetensors", "--prompt", "a"],
        ["chat", "m.safetensors"],
    ]
    for verb in verbs:
        for seed in (-1, 2**64):
            said = call(tmp_path, *verb, f"--seed={seed}", code=2).stderr
            assert f"--seed is {seed}, expected a whole number from " in said, verb
