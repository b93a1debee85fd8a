"""Weights of a file as the Base of a model: frozen, stored as the file has them or converted."""

import itertools

from gpt2c.engine.base import Base
from gpt2c.errors import UsageError
from gpt2c.formats import blocks
from gpt2c.formats.parts import converted, of_array
from gpt2c.formats.weights import Part, Unread, loaded
from gpt2c.models.family import Family
from gpt2c.support.fields import flag
from gpt2c.support.machine import require_memory

CHOICES = ("stored", *blocks.WRITTEN)  # what weights may be asked for


def weights_flag():
    """The flag of every program that reads a model only to use it."""
    return flag(
        "stored",
        "what weights are kept as in memory (quantisation): as the file has them, or converted",
        choices=CHOICES,
        metavar="stored|f32|bf16|q8_0|q4_0|...",
    )


def base_of(definition: Family, config, weights, choice: str) -> Base:
    """The parameters as `choice` says, one of CHOICES."""
    if choice not in CHOICES:
        raise UsageError(f"weights are to be {choice!r}, expected one of {', '.join(CHOICES)}")
    specs, found = definition.params(config), {}
    for spec in specs:
        if spec.name in definition.matrices:
            found[spec.name] = [
                together(converted(spec.name, part, type_of(spec, part.kind, choice, config)) for part in layer)
                for layer in layers(spec, weights.tensors[spec.name])
            ]
    types = {name: [_types(specs, name, parts) for parts in found[name]] for name in found}
    base = Base(specs, types)
    require_memory(base.nbytes, f"a model of {base.size:,} parameters", "choose a smaller one, or smaller --weights")
    for spec in specs:
        if spec.name not in found:
            weights.put(spec.name, base.array(spec.name))
        for layer, parts in enumerate(found.get(spec.name, ())):
            for number, part in enumerate(parts):
                base.put(spec.name, layer, number, part.pieces())
    return base


def layers(spec, tensor):
    """The Parts of each layer of a parameter. A matrix with a row for each token is one layer."""
    L, rows = (spec.shape[0], spec.shape[1]) if len(spec.shape) > 2 else (1, spec.shape[0])
    if not (isinstance(tensor, Unread) and tensor.parts):
        return [[of_array(layer)] for layer in loaded(tensor).reshape(L, rows, -1)]
    found, there = [[]], 0
    for part in tensor.parts:
        if there == rows:
            found.append([])
            there = 0
        found[-1].append(part)
        there += part.shape[0]
    return found


def together(parts):
    """Parts of which no neighbours are stored alike: one product each is made with them."""
    found: list[Part] = []
    for kind, alike in itertools.groupby(parts, lambda part: part.kind):
        some = list(alike)
        shape = sum(part.shape[0] for part in some), some[0].shape[1]
        found.append(Part(kind, shape, lambda some=some: itertools.chain.from_iterable(part.pieces() for part in some)))
    return found


def _types(specs, name, parts: list[Part]):
    """(rows, storage type) of each part; the last one has the rows, too, that only pad a vocabulary."""
    rows = next(spec.shape[-2] for spec in specs if spec.name == name)
    sizes = [part.shape[0] for part in parts]
    return [(size, part.kind) for size, part in zip([*sizes[:-1], rows - sum(sizes[:-1])], parts)]


def type_of(spec, kind, choice, config):
    """What a matrix is stored as that is of this kind in its file. What is looked up, and the head, is q8_0 beside four bits."""
    if choice == "stored":
        return kind
    if choice.startswith("q4") and len(spec.shape) == 2 and spec.shape[0] >= config.vocab_size:
        choice = "q8_0"
    return "f16" if spec.shape[-1] % blocks.KINDS[choice].elements else choice
