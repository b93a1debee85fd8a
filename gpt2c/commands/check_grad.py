"""Check a model's gradients by finite differences: python -m gpt2c check-grad [CKPT] [flags], or gpt2c check-grad.

Along random directions in each parameter tensor, the gradient of the backward pass is compared with finite differences of
the loss. Without a checkpoint, a tiny model of the family is checked, or one of the size given by flags. The exit code is 1
if a tensor fails.
"""

from dataclasses import dataclass

import numpy as np

from gpt2c import settings
from gpt2c.commands.command_line import parse, peek
from gpt2c.errors import UsageError
from gpt2c.models.family import max_seq_len
from gpt2c.models.files import load
from gpt2c.models.model import Model
from gpt2c.models.registry import FAMILIES, family_named, other_configs
from gpt2c.support.fields import flag, require_at_least
from gpt2c.support.rng import checked_seed

NOISE = 1.2e-7  # of a loss in float32, as a part of it
STEPS = 1.0, 1 / 8, 1 / 64
FLAT = 0.1  # of a slope: with more rounding than this nothing is proved


@dataclass
class CheckConfig:
    checkpoint: str = flag("", "checkpoint to check instead of a new model", "--load-checkpoint", metavar="CKPT")
    model: str = flag("gpt2", "model family of a new model", choices=tuple(FAMILIES))
    batch_size: int = flag(2, "batch size: sequences per batch", "-b")
    seq_len: int = flag(8, "sequence length: tokens per sequence", "-t")
    directions: int = flag(8, "random directions per parameter tensor")
    step: float = flag(0.05, "finite-difference step, as a fraction of the norm of the tensor")
    tolerance: float = flag(0.02, "largest relative error that passes")
    seed: int = flag(1337, "random seed of the weights, the data and the directions")
    threads: int = flag(0, "CPU threads to use", default_text="one per core")

    def __post_init__(self):
        require_at_least(self, batch_size=1, seq_len=1, directions=1, tolerance=0)
        checked_seed(self.seed)
        if not self.step > 0:
            raise UsageError(f"step is {self.step}, expected more than 0")


def main(argv):
    path, family = peek(argv, CheckConfig, "checkpoint", "model")
    own = family_named(family)
    (config, shape), _ = parse(
        argv,
        [CheckConfig, own.Config],
        "gpt2c check-grad",
        __doc__.partition("\n\n")[2],
        ["checkpoint"],
        own.tiny,
        other_configs(family),
    )
    if config.threads:
        settings.set_num_threads(config.threads)
    model = load(config.checkpoint) if config.checkpoint else Model(family, shape).initialise(config.seed)
    if config.seq_len > (most := max_seq_len(model.config)):
        raise UsageError(f"--seq-len {config.seq_len} is more than the model's max_seq_len of {most}")
    print(f"{model.family}, {model.num_parameters:,} parameters, {config.batch_size} x {config.seq_len} tokens")
    failed, flat = [], []
    for name, size, *both in tensor_errors(model, config):
        wrong = any(error > config.tolerance + noise for error, noise in both)
        unknown = not wrong and both[0][1] > FLAT
        parts = "   ".join(f"{how} {error:.1e} +- {noise:.1e}" for how, (error, noise) in zip(("along it", "at random"), both))
        print(
            f"  {name:<12} gradient {size:.3e}   {parts}   {'FAILS' if wrong else 'too flat to tell' if unknown else 'ok'}",
            flush=True,
        )
        failed += [name] * wrong
        flat += [name] * unknown
    print(
        f"{'FAILED: ' + ', '.join(failed) if failed else 'no tensor fails'}"
        + (f"; too flat to tell: {', '.join(flat)}" if flat else "")
    )
    return int(bool(failed))


def tensor_errors(model, config):
    """Yields (name, the gradient's length, *two pairs (relative error, how much of it may be rounding)) of each tensor: for
    directions near the gradient, where the slope is large whatever the size of the tensor, and for directions at random,
    which show what is missing from the gradient.

    An error is the root mean square, over the directions, of slope by differences less slope by the gradient, as a part
    of that of the slopes.
    """
    rng = np.random.default_rng(config.seed)
    x, y = rng.integers(0, model.config.vocab_size, (2, config.batch_size, config.seq_len)).astype(np.int32)

    def loss():
        model.reset_state()
        return model.forward(x, y)

    rounding = NOISE * abs(loss())
    model.zero_grad()
    model.backward()
    for name in model.params:
        values, grad = model.params[name], model.grads[name].astype(np.float64)
        length = max(float(np.linalg.norm(values)), 0.1 * values.size**0.5)
        directions = [rng.standard_normal(values.shape) for _ in range(config.directions)]
        size = float(np.linalg.norm(grad))
        units = [direction / np.linalg.norm(direction) for direction in directions]
        along = [unit + grad / (size or 1.0) for unit in units]
        yield name, size, *(least_error(loss, values, grad, kind, config.step * length, rounding) for kind in (along, units))


def least_error(loss, values, grad, directions, step, rounding):
    """slope_error at the step that suits: a wrong gradient is wrong at every one, a loss with bends needs a short one."""
    found = [slope_error(loss, values, grad, directions, step * part, rounding) for part in STEPS]
    return min(found, key=sum)


def slope_error(loss, values, grad, directions, step, rounding):
    """(the relative error of the gradient's slopes, how much of it may be rounding) for steps of this length."""
    before, wrong, slopes = values.copy(), [], []
    for direction in directions:
        rises = []
        for h in (-step, -step / 2, step / 2, step):
            values[...] = before + h * direction
            rises.append(loss())
        values[...] = before
        by_differences = (8 * (rises[2] - rises[1]) - (rises[3] - rises[0])) / (6 * step)  # exact up to the fourth power
        by_gradient = float((grad * direction).sum())
        wrong.append(by_differences - by_gradient)
        slopes.append(max(abs(by_differences), abs(by_gradient)))
    size = float(np.linalg.norm(slopes)) or 1.0
    return float(np.linalg.norm(wrong)) / size, 3 * rounding / step * len(directions) ** 0.5 / size
