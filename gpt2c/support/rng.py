"""Two random number generators whose streams match other programs bit for bit.

`Mt19937` is PyTorch's Mersenne twister, with which llm.c shuffles data: the same seed gives the same order. `Xorshift` with
`multinomial` is llm.c's sampler: the same probabilities and the same state give the same tokens.
"""

from numbers import Integral

import numpy as np

from gpt2c.errors import InputError, UsageError


def checked_seed(seed, least=0, bits=64):
    """A seed as an int, the same for everything that is random: an error unless it is a whole number of that many bits."""
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not least <= seed < 2**bits:
        raise UsageError(f"seed is {seed!r}, expected a whole number from {least} to {2**bits - 1}")
    return int(seed)


class Mt19937:
    """The Mersenne twister MT19937, seeded like torch.manual_seed on the CPU."""

    def __init__(self, seed):
        seed = checked_seed(seed, bits=32)
        self._bits = np.random.MT19937()
        # RandomState expands the seed by Knuth's recurrence, as PyTorch does; MT19937(seed) would hash it.
        self._bits.state = np.random.RandomState(seed).get_state()

    @property
    def state(self):
        """(625,) uint32: the 624 words of the twister, then how many of them have been handed out."""
        inner = self._bits.state["state"]
        return np.append(inner["key"], np.uint32(inner["pos"]))

    @state.setter
    def state(self, words):
        if words.dtype != np.uint32 or words.shape != (625,) or words[624] > 624:
            raise InputError("the saved random state is damaged: expected 625 uint32, the last at most 624")
        self._bits.state = {"bit_generator": "MT19937", "state": {"key": words[:624], "pos": int(words[624])}}

    def randint32(self):
        """The next 32-bit word, as a Python int."""
        return self._bits.random_raw()

    def random_permutation(self, n, dtype=np.int32):
        """0..n-1 shuffled: for i from n-1 down to 1, entry i is swapped with entry randint32() % (i + 1)."""
        sizes = np.arange(n, 1, -1, dtype=np.uint64)  # i + 1
        partners = (self._bits.random_raw(sizes.size) % sizes).tolist()
        order = list(range(n))
        for i, j in zip(range(n - 1, 0, -1), partners):
            order[i], order[j] = order[j], order[i]
        return np.array(order, dtype)


class Xorshift:
    """llm.c's xorshift*; `state` is the whole generator, a number of 64 bits."""

    def __init__(self, state):
        self.state = checked_seed(state, least=1)  # 0 would stay 0

    def u32(self):
        """The next 32-bit word."""
        s = self.state
        s ^= s >> 12
        s ^= s << 25 & 2**64 - 1
        s ^= s >> 27
        self.state = s
        return (s * 0x2545F4914F6CDD1D >> 32) & 0xFFFFFFFF

    def float32(self):
        """A number in [0, 1) with 24 random bits, exact in float32."""
        return (self.u32() >> 8) / 2**24


def multinomial(probs, coin):
    """The first i where coin < probs[0] + ... + probs[i], summed left to right in float32; else the last."""
    above = coin < np.cumsum(probs, dtype=np.float32)
    return int(above.argmax()) if above.any() else len(above) - 1
