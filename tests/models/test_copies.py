"""Copies of a model, in this process or pickled for another one: each trains on as the original would, and apart from it."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from families import families, model_of

import gpt2c
from gpt2c.errors import UsageError


def pickled(model):
    return pickle.loads(pickle.dumps(model))  # noqa: S301 (of our own making)


COPIES = {"deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": pickled}


def trained(model, steps, first=1):
    """Some updates, with dropout, from a state where there is one; what they come to."""
    rng, losses = np.random.default_rng(first), []
    for t in range(first, first + steps):
        x, y = rng.integers(0, model.config.vocab_size, (2, 2, 8), dtype=np.int32)
        losses.append(model.loss_and_grad(x, y, train=True))
        model.update(lr=1e-2, t=t)
    return losses, *(getattr(model, name).flat.tobytes() for name in ("params", "grads", "m", "v"))


@families
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_trains_on_as_the_original_would(family, way):
    model = model_of(family)
    model.description, model.turns, model.recompute = "a model", 2, 1
    model.options = {name: 0.5 for name in model.options}
    trained(model, 3)
    made = COPIES[way](model)
    for name in ("family", "config", "description", "turns", "recompute", "options", "seed", "dropout_counter"):
        assert getattr(made, name) == getattr(model, name), name
    assert made.tokenizer.to_json() == model.tokenizer.to_json()
    assert {name: array.tolist() for name, array in made.state.items()} == {n: a.tolist() for n, a in model.state.items()}
    before = model.params.flat.tobytes()
    after = trained(made, 3, first=4)
    assert model.params.flat.tobytes() == before  # they share nothing
    assert after == trained(model, 3, first=4)


def test_a_deep_copy_has_a_tokenizer_of_its_own():
    model = model_of()
    made = copy.deepcopy(model)
    made.tokenizer.eot = 3
    assert model.tokenizer.eot is None and made.tokenizer.encode("ab") == model.tokenizer.encode("ab")


def test_a_copy_takes_no_memory_for_what_the_original_has_not():
    model = model_of()
    made = copy.deepcopy(model)
    assert not (made.grads.allocated or made.m.allocated or made.v.allocated)
    made.params.flat[...] = 0
    assert model.params.flat.any()


def test_how_a_model_runs_is_copied():
    made = copy.deepcopy(gpt2c.Model("gpt2", model_of("gpt2").config, record=False, poison=True))
    assert (made._runner.record, made._runner.poison, made._runner.reuse) == (False, True, True)


def test_another_process_gets_the_same_model(tmp_path):
    model = model_of("mingru")
    trained(model, 2)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    program = (
        f"import pickle; m = pickle.load(open({str(tmp_path / 'model.pickle')!r}, 'rb')); print(m.evaluate([[1, 2]], [[2, 3]]))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(said) == model.evaluate([[1, 2]], [[2, 3]])


def test_a_family_that_this_process_does_not_have_is_named():
    rebuild, parts = model_of().__reduce__()
    with pytest.raises(UsageError, match="unknown model family 'other'"):
        rebuild("other", *parts[1:])
