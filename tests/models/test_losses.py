"""The loss of each target, and a gradient weighted target by target."""

import numpy as np
import pytest
from families import families, model_of

from gpt2c.errors import UsageError


@families
def test_weights_scale_each_targets_gradient(family, rng):
    model = model_of(family)
    x, y = rng.integers(0, 27, (2, 3, 6))
    y[0, :3] = -1

    def gradient(weights=None):
        model.reset_state()
        model.forward(x, y)
        model.zero_grad()
        model.backward(weights)
        return model.grads.flat.copy()

    plain = gradient()
    assert (gradient(np.ones(x.shape)) == plain).all() and (gradient(-2 * np.ones(x.shape)) == -2 * plain).all()
    assert not gradient(np.where(y < 0, 5.0, 0.0)).any() and (gradient() == plain).all()
    parts = [gradient(np.where(np.arange(6) % 2 == k, 1.0, 0.0) * np.ones((3, 1))) for k in (0, 1)]
    np.testing.assert_allclose(sum(parts), plain, atol=1e-5 * abs(plain).max())
    losses = model.losses
    assert losses.shape == (3, 6) and not losses[0, :3].any()
    assert losses.sum() / 15 == pytest.approx(model.metrics["cross_entropy"])


def test_losses_are_there_after_a_forward_with_targets_alone(rng):
    model, x = model_of(), rng.integers(0, 27, (1, 4))
    for run in (lambda: None, lambda: model.forward(x), lambda: model.loss_and_grad(x, x)):
        run()
        with pytest.raises(UsageError, match="losses are there after forward with targets"):
            print(model.losses)
