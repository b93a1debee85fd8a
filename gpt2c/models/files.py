"""Loading and saving models: a file's Weights become a Model, and a run's Model becomes a checkpoint."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2c import formats
from gpt2c.errors import InputError, SerializationError, UsageError, VersionError
from gpt2c.formats import native
from gpt2c.formats.weights import SAID, RunState, Weights
from gpt2c.models.frozen import base_of
from gpt2c.models.model import Model
from gpt2c.models.registry import FAMILIES, make_config
from gpt2c.support.files import StrPath
from gpt2c.tokenizers.turns import learned


@dataclass(frozen=True)
class Content:
    """A file that was found valid: its Weights, and the Config of the model that they fit."""

    path: Path
    config: object
    weights: Weights

    @property
    def family(self):
        return self.weights.family

    @property
    def run(self):
        return self.weights.run

    def alone(self):
        """The Weights without the run that they are from, in the order of the family."""
        weights = self.weights
        tensors = {spec.name: weights.tensors[spec.name] for spec in FAMILIES[self.family].params(self.config)}
        said = {name: value for name, value in weights.said.items() if name in SAID}
        config = dataclasses.asdict(self.config)
        return dataclasses.replace(weights, config=config, tensors=tensors, said=said, run=None, moments={})

    def build(self, part=None, weights="", **switches):
        """(Model, RunState or None). `part` as in copy_to; with `weights` it is frozen, as in load."""
        base = base_of(FAMILIES[self.family], self.config, self.weights, weights) if weights else None
        model = Model(self.family, self.config, self.weights.tokenizer, base=base, **switches)
        for name in SAID.keys() & self.weights.said.keys():
            setattr(model, name, self.weights.said[name])
        learned(model.tokenizer, model.turns)  # which files did not say at first
        return model, self.copy_to(model, part)

    def copy_to(self, model, part=None):
        """Fills a model of this family and configuration, and lets the file go. A run brings the optimizer's moments with it:
        of these only what lies in part(their size), (first, last), if it is given: no memory is taken for the rest. The
        RunState, or None."""
        weights = self.weights
        for name in model.params:
            weights.put(name, model.params[name])
        run = None
        if weights.run and not model.base:
            for arena in (model.m, model.v):
                _copy_moments(arena, weights.moments, part(arena.size) if part else (0, arena.size))
            run = RunState(weights.run.values, {name: array.copy() for name, array in weights.run.arrays.items()})
        weights.let_go()
        return run


def load(path: StrPath, weights: str = "", **switches: Any) -> Model:
    """The Model in a gpt2c checkpoint, an llm.c model file (versions 1 to 5), a GGUF file, a folder of Hugging Face, a checkpoint
    of randyGPT, or JSON, told apart by content.

    It is trainable, in float32, unless `weights` are given: then they are frozen (`base`), "stored" as the file has them, or
    converted to "f32", "f16", "bf16", "q8_0", "q5_0", "q4_1" or "q4_0".
    """
    return read(path).build(weights=weights, **switches)[0]


def load_run(path: StrPath, **switches: Any) -> tuple[Model, RunState | None]:
    """(Model, RunState or None): with a run's state, the optimizer's moments are in the model."""
    return read(path).build(**switches)


def read(path):
    """The Content of a file, all of it checked: what its format can tell, and that the tensors are the model's. No memory is
    taken for the model before."""
    weights = formats.read(path)
    if weights.family not in FAMILIES:
        raise SerializationError(f"{path} holds a model of family {weights.family!r}; this gpt2c has {', '.join(FAMILIES)}")
    try:
        config = make_config(weights.family, weights.config)
        specs = FAMILIES[weights.family].params(config)
    except (UsageError, OverflowError) as error:
        raise native.invalid(path, error) from None
    _check_tensors(path, specs, weights)
    return Content(path, config, weights)


def newest(paths, warn):
    """The Content of the newest of these checkpoints, oldest first, that is whole; None if there are no checkpoints.

    `warn` is called for each damaged one. One of a newer version is an error: it must not be skipped.
    """
    paths = list(paths)
    for path in reversed(paths):
        try:
            return read(path)
        except VersionError:
            raise
        except InputError as error:
            warn(f"skipped: {error}")
    if paths:
        raise SerializationError(f"no checkpoint in {paths[0].parent} is whole: start again in another --out-dir, or remove them")
    return None


def save(path, model, run: RunState | None = None, moments=(), step=None, best=None):
    """Writes a checkpoint, whatever the name; with a run, its state and the optimizer's moments, Arenas, go with it."""
    weights = model.weights()
    said = {name: value for name, value in (("step", step), ("best_val_loss", best)) if value is not None}
    kept = {arena.prefix + name: arena[name] for arena in moments for name in arena}
    native.write(path, dataclasses.replace(weights, said=said | weights.said, run=run, moments=kept))


def _copy_moments(arena, moments, part):
    """Fills what lies in part, (first, last), of an Arena, as far as there are moments yet."""
    begin, end = part
    for name in arena if arena.prefix + next(iter(arena)) in moments else ():
        first, last = arena.range(name)
        wanted = slice(max(first, begin), max(first, begin, min(last, end)))
        arena.flat[wanted] = moments[arena.prefix + name].reshape(-1)[wanted.start - first : wanted.stop - first]


def _check_tensors(path, specs, weights):
    """An error unless these are the tensors of such a model: its parameters, and of the optimizer both moments or neither."""
    left = weights.tensors | weights.moments
    begun = [prefix for prefix in ("m.", "v.") if prefix + specs[0].name in left]
    for prefix in ("", *begun):
        for spec in specs:
            name = prefix + spec.name
            if name not in left:
                raise native.invalid(path, f"it has no {name}")
            tensor = left.pop(name)
            if tensor.shape != spec.shape or tensor.dtype != np.float32:
                raise SerializationError(f"{path}: {name} is {tensor.dtype} {tensor.shape}, expected float32 {spec.shape}")
    if left:
        raise SerializationError(f"{path} holds tensors that such a model has not: {', '.join(left)}")
