"""Texts of any length through recurrent models: the state goes on from chunk to chunk, and memory does not grow."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import gpt2c
from gpt2c.commands.eval import EvalConfig, batches, measure
from gpt2c.data import write_shard
from gpt2c.generation.sampling import Sampling, pieces
from gpt2c.models.registry import make_config
from gpt2c.training.config import TrainConfig
from gpt2c.training.trainer import Trainer

SMALL = {"mingru": dict(vocab_size=256, dim=32, depth=2), "hybrid": dict(vocab_size=256, hidden=16, num_layers=2)}


def model_of(family):
    """A model whose state matters: its logits are far from even."""
    m = gpt2c.create(family, **SMALL[family])
    m.params["head"][...] *= 4
    m.tokenizer = gpt2c.Tokenizer.make("byte")
    return m


def write(path, count, seed=0):
    """Tokens that depend on those before them, in a shard."""
    steps = np.random.default_rng(seed).integers(0, 3, count)
    tokens = np.cumsum(steps) % 256
    write_shard(path, tokens)
    return tokens.astype(np.int32)


def loss_in(line):
    return float(line.split()[1])


def evaluate(m, path, B, T, val_steps=-1):
    return measure(m, [path], m.tokenizer, EvalConfig(batch_size=B, val_steps=val_steps), T)


@pytest.mark.parametrize("family", SMALL)
def test_a_file_is_one_text_whatever_the_chunks(family, tmp_path):
    m, tokens = model_of(family), write(tmp_path / "a.bin", 1000)
    m.reset_state()
    whole = m.forward(tokens[None, :-1], tokens[None, 1:])
    m.reset_state()
    lines = {evaluate(m, tmp_path / "a.bin", B, T) for B, T in ((1, 1000), (1, 7), (3, 16), (8, 1024), (2, 333))}
    assert all("(999 tokens)" in line for line in lines)
    np.testing.assert_allclose([loss_in(line) for line in lines], whole, rtol=2e-6)
    apart = np.mean([m.evaluate(x, y) for x, y, _ in batches([tmp_path / "a.bin"], 1, 9, 256)])
    assert abs(apart - whole) > 1e-3  # from a state of zeros each time, it is another loss
    two = measure(m, [tmp_path / "a.bin"] * 2, None, EvalConfig(batch_size=1), 100)
    assert loss_in(two) == pytest.approx(whole, rel=2e-6)  # the second file begins with zeros
    assert not any(array.any() for array in m.state.values())


def test_what_is_validated_goes_on_too(tmp_path):
    m = model_of("mingru")
    write(tmp_path / "a.bin", 3000)
    lanes = [gpt2c.data.Lanes(str(tmp_path / "a.bin"), 2, 8, 40) for _ in range(2)]
    trainer = Trainer(m, lanes[0], lanes[1], TrainConfig(val_steps=-1))
    found = trainer.evaluate()
    assert found == trainer.evaluate()
    lanes[1].reset()
    rows = [lanes[1].next_batch() for _ in range(40)]
    m.reset_state()
    whole = m.forward(*(np.concatenate(parts, 1) for parts in zip(*rows)))
    assert found == pytest.approx(whole, rel=2e-6)
    apart = Trainer(m, lanes[0], lanes[1], TrainConfig(val_steps=-1, preserve_hidden_states=False)).evaluate()
    assert abs(apart - whole) > 1e-3


def memory():
    """Bytes of this process that are no file's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


COUNTS = [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
def test_memory_does_not_grow_with_what_is_generated(count):
    m = model_of("mingru")
    text = pieces(m, m.tokenizer, [65], count, Sampling())
    length = sum(map(len, islice(text, count // 10)))
    before = memory()
    length += sum(map(len, text))
    assert memory() - before < 2**19 and count / 2 < length <= count  # several bytes may be one character


@pytest.mark.parametrize("count", [30_000, *COUNTS[1:]])
def test_memory_does_not_grow_with_what_is_evaluated(count, tmp_path):
    m = model_of("mingru")
    write(tmp_path / "a.bin", count)
    evaluate(m, tmp_path / "a.bin", 1, 256, val_steps=4)
    before = memory()
    assert f"({count - 1:,} tokens)" in evaluate(m, tmp_path / "a.bin", 1, 256)
    assert memory() - before < 2**19


def test_what_a_chunk_takes_does_not_depend_on_what_came_before():
    config = make_config("mingru", SMALL["mingru"])
    sizes = []
    for chunks in (1, 20):
        m = gpt2c.create("mingru", **SMALL["mingru"])
        for n in range(chunks):
            m.evaluate(np.zeros((1, 64), np.int32), np.zeros((1, 64), np.int32), continues=n > 0)
        sizes.append((m._evaluation._slab.nbytes, {name: array.shape for name, array in m._evaluation.state.items()}))
    assert sizes[0] == sizes[1] and sizes[0][1] == m.definition.state(config, 1)
