"""A model: a family, a configuration, and its parameters, gradients and Adam moments as four flat blocks.

m = gpt2c.create("gpt2", num_layers=2, channels=64, num_heads=4, vocab_size=97)
loss = m.forward(x, y); m.zero_grad(); m.backward(); m.update(lr=1e-3, t=1)
"""

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, overload

import numpy as np

from gpt2c import formats
from gpt2c._core import Stream
from gpt2c.engine.arena import Arena
from gpt2c.engine.base import Base, Frozen
from gpt2c.engine.runner import ADD, STORE, Pass, Runner, Work, lanes
from gpt2c.errors import UsageError
from gpt2c.formats.weights import SAID, Unread, Weights
from gpt2c.models.family import max_seq_len
from gpt2c.models.registry import family_named, make_config
from gpt2c.support.files import StrPath
from gpt2c.support.machine import require_memory
from gpt2c.support.rng import checked_seed
from gpt2c.tokenizers.tokenizer import Tokenizer
from gpt2c.tokenizers.turns import learned

ARENAS = {"params": "", "grads": "d", "m": "m.", "v": "v."}  # and what program listings put before a tensor's name

Ids = np.ndarray | Sequence[Sequence[int]]  # (B, T)


class Model:
    """`params`, `grads`, `m` and `v` are Arenas: m.params["wte"] is a view, m.params.flat all of them in one array.

    What is frozen is in `base`, by name, and not in these; load(path, weights=...) freezes everything.

    `recompute` trades time for memory in training (Tape), `options` are those that the family has (Family.options): both
    are set before the first forward. `record`, `reuse` and `poison` are the Runner's and the Pool's, for debugging.
    """

    def __init__(
        self,
        family: str,
        config: Any,
        tokenizer: Tokenizer | None = None,
        *,
        recompute: int = 0,
        record: bool = True,
        reuse: bool = True,
        poison: bool = False,
        base: Base | None = None,
        **options: float,
    ) -> None:
        self.family, self.config, self.tokenizer = family, config, tokenizer
        self.definition = family_named(family)
        self.recompute, self.options = recompute, self.definition.checked(options)
        self.base: Mapping[str, Frozen] = {} if base is None else base
        specs = [spec for spec in self.definition.params(config) if spec.name not in self.base]
        self.params, self.grads, self.m, self.v = (Arena(specs, prefix) for prefix in ARENAS.values())
        require_memory(self.params.nbytes, f"a model of {self.params.size:,} parameters", "choose a smaller one")
        self._runner = Runner(self, record=record, reuse=reuse, poison=poison)
        self._evaluation: Runner | None = None  # a Runner of its own for a family that carries a state
        self.description = ""  # in the words of whoever made it
        self.turns = 0  # questions in the longest conversation that it has learned from (gpt2c.data.conversations)
        self.sampling: dict[str, float] = {}  # how its tokens are best chosen, by setting (gpt2c.support.choice)
        self.stream = Stream()
        self.seed, self.dropout_counter = 1337, 0  # from which dropout's masks follow; forward(train=True) counts
        self._last: Pass | None = None  # the Pass of the last forward
        self._backward_ready = False

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in dataclasses.asdict(self.config).items())
        return f"<gpt2c.Model {self.family}: {self.num_parameters:,} parameters, {fields}>"

    def __reduce__(self):
        """What pickle and copy take: everything that goes on from here. The forward that was last is not, nor recorded passes."""
        ways = {name: getattr(self._runner, name) for name in ("record", "reuse", "poison")}
        facts = {name: getattr(self, name) for name in ("description", "turns", "sampling", "seed", "dropout_counter")}
        arenas = {name: arena.flat for name in ARENAS if (arena := getattr(self, name)).allocated}
        switches = {"recompute": self.recompute, "base": self.base or None, **ways, **self.options}
        made = self.family, dataclasses.asdict(self.config), self.tokenizer, switches
        return _made_again, (*made, facts, arenas, self.state)

    def __deepcopy__(self, memo):
        remake, (family, fields, tokenizer, *others) = self.__reduce__()
        return remake(family, fields, copy.deepcopy(tokenizer, memo), *others)  # which copies each array once

    @property
    def num_parameters(self) -> int:
        return self.params.size + sum(math.prod(tensor.shape) for tensor in self.base.values())

    @property
    def num_active_parameters(self) -> int:
        """Active parameters per token: all, but of a mixture of experts only those that a token is routed to."""
        return self.num_parameters - self.definition.idle_parameters(self.config)

    @property
    def known_ids(self) -> int:
        """Ids below it may be generated and be targets: all that the tokenizer has, where the model has more."""
        return min(self.config.vocab_size, self.tokenizer.vocab_size if self.tokenizer else self.config.vocab_size)

    def initialise(self, seed: int) -> Self:
        """Initialises the parameters as the family defines. Each tensor has its own stream of random numbers."""
        self.seed = seed = checked_seed(seed)
        for number, spec in enumerate(self.params.specs):
            self.params[spec.name][...] = spec.init(np.random.default_rng([seed, number]), spec.shape)
        return self

    @property
    def state(self) -> Mapping[str, np.ndarray]:
        """The hidden state that a recurrent family carries from one forward to the next, by name; empty for a transformer."""
        return self._runner.state

    @state.setter
    def state(self, arrays: Mapping[str, np.ndarray]) -> None:
        if arrays:
            self._runner.begin(lanes(arrays), arrays)

    def reset_state(self, B: int = 0) -> None:
        """Starts the next forward from a state of zeros, for B sequences (0: as many as it was for)."""
        if B or self.state:
            self._runner.begin(B or lanes(self.state))

    @overload
    def forward(self, inputs: Ids, targets: None = None, *, keep: bool = False, train: bool = False, first: int = 0) -> None: ...
    @overload
    def forward(self, inputs: Ids, targets: Ids, *, keep: bool = False, train: bool = False, first: int = 0) -> float: ...
    def forward(self, inputs, targets=None, *, keep=False, train=False, first=0):
        """The mean loss over the counted targets (a float); without targets, None: see `logits`.

        inputs and targets are (B, T) token ids, targets -1 where they do not count. `keep` keeps every activation for
        `acts`. `train` turns on dropout, with new masks each time. Gradients and parameters are not changed.

        A recurrent family continues from `state`, a constant, and leaves its new one there. Truncated backpropagation
        through time is one forward over old tokens, with targets -1, and the new ones: `first` is where those begin.
        """
        self._run_forward(inputs, targets, keep=keep, train=train, first=first)
        return None if targets is None else self._loss()

    def evaluate(self, inputs: Ids, targets: Ids, continues: bool = False) -> float:
        """The cross-entropy, for less memory than forward: no logits and no backward afterwards.

        A recurrent family starts from zeros, or where the evaluation before ended if this one `continues` it; `state` and
        what training carries stay as they are.
        """
        if not self._runner.state_shapes(1):
            return self._cross_entropy(inputs, targets)
        if self._evaluation is None:
            self._evaluation = Runner(self)
        training, self._runner, last, ready = self._runner, self._evaluation, self._last, self._backward_ready
        try:
            if not continues:
                self._runner.begin(len(inputs))
            return self._cross_entropy(inputs, targets)
        finally:
            self._runner, self._last, self._backward_ready = training, last, ready

    def _cross_entropy(self, inputs, targets):
        self._run_forward(inputs, targets, purpose="loss")
        self._backward_ready = False
        self._loss()
        return self.metrics["cross_entropy"]

    def loss_and_grad(
        self, inputs: Ids, targets: Ids, add: bool = False, *, train: bool = False, first: int = 0, scale: float = 1.0
    ) -> float:
        """forward and backward in one: the loss; its gradients, times `scale`, take the place of `grads`, or are added to
        them."""
        self._check_trained()
        how = dict(purpose="step", train=train, first=first, scale=scale)
        self._run_forward(inputs, targets, ADD if add else STORE, **how)
        self.backward()
        return self._loss()

    def _run_forward(self, inputs, targets, backward=ADD, **how):
        tokens = self._checked("inputs", inputs, 0, self.config.vocab_size)
        B, T = tokens.shape
        if targets is not None:
            targets = self._checked("targets", targets, -1, self.known_ids)
            if targets.shape != tokens.shape:
                raise UsageError(f"targets have shape {targets.shape}, expected {tokens.shape} as the inputs")
            if (targets[:, : how.get("first", 0)] >= 0).any():
                raise UsageError(f"targets before position {how['first']}, where the new ones begin, are not all -1")
        self._last = self._runner.prepare(Work(B, T, targets is not None, **how), backward)
        self._last.tokens[...] = tokens
        if targets is not None:
            self._last.targets[...] = targets
        if self._last.work.train:
            self.dropout_counter += 1
            self._last.noise.view(np.uint32)[...] = self.seed % 2**32, self.dropout_counter % 2**32
        self._last.forward()
        self._backward_ready = targets is not None

    def _loss(self):
        output = self._last.output
        self.metrics = {"cross_entropy": float(output.loss.array[0])}
        loss = self.metrics["cross_entropy"]
        for name, term in output.terms.items():
            self.metrics[name] = float(term.value.array[0])
            loss += term.weight * self.metrics[name]
        return loss

    def _checked(self, name, tokens, lowest, end):
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise UsageError(f"{name} are {tokens.dtype} of shape {tokens.shape}, expected whole numbers of shape (B, T)")
        if tokens.shape[1] > (most := max_seq_len(self.config)):
            raise UsageError(f"{name} have {tokens.shape[1]} positions, the model has max_seq_len = {most}")
        if tokens.size and (tokens.min() < lowest or tokens.max() >= end):
            raise UsageError(f"{name} hold ids from {tokens.min()} to {tokens.max()}, expected {lowest} to {end - 1}")
        return tokens

    @property
    def logits(self) -> np.ndarray:
        """(B, T, columns) of the last forward, until the next forward or backward; the first vocab_size columns count."""
        if self._last is None or self._last.output.logits is None:
            raise UsageError("logits are there after forward; loss_and_grad and evaluate never have them all at once")
        return self._last.output.logits.array

    @property
    def acts(self) -> Mapping[str, np.ndarray]:
        """Every activation of the last forward(keep=True), by name; attention scores and weights among them."""
        if self._last is None or not self._last.work.keep:
            raise UsageError("acts are there after forward(..., keep=True)")
        return {name: buffer.array for name, buffer in self._last.kept.items()}

    def zero_grad(self) -> None:
        self.stream.zero(self.grads.flat)

    @property
    def losses(self) -> np.ndarray:
        """(B, T) of the last forward: -log of each target's probability, 0 where it is not counted. Until the next forward or
        backward."""
        if self._last is None or self._last.weights is None:
            raise UsageError("losses are there after forward with targets")
        return self._last.output.losses.array

    def backward(self, weights: np.ndarray | None = None) -> None:
        """Adds the gradients of the last forward's loss to `grads`.

        With weights (B, T), those of the sum of weights * `losses` over the number of counted targets, in the place of the
        cross-entropy's. What else a family's loss has stays.
        """
        self._check_trained()
        if self._last is None or not self._backward_ready:
            raise UsageError("backward needs a forward with targets before it, and each forward is good for one")
        if self._last.weights is not None:
            self._last.weights[...] = 1 if weights is None else weights
        self._backward_ready = False
        if not self.grads.allocated:
            require_memory(self.grads.nbytes, "the gradients", "choose a smaller model")
        self._last.backward()

    def _check_trained(self):
        if not self.params.size:
            raise UsageError("all weights of this model are frozen, so that nothing is trained: load it without weights=")

    def update(
        self, lr: float = 1e-4, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0, t: int = 1
    ) -> None:
        """One AdamW step on every tensor, decay included; t counts updates from 1."""
        self._check_trained()
        if t < 1:
            raise UsageError(f"t is {t}, the first update has t = 1")
        if not self.m.allocated:
            require_memory(self.m.nbytes + self.v.nbytes, "Adam's moments", "choose a smaller model")
        self.stream.adamw(
            self.params.flat,
            self.m.flat,
            self.v.flat,
            self.grads.flat,
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            1 - beta1**t,
            1 - beta2**t,
        )

    def save(self, path: StrPath, version: int = 3, dtype: str = "", overwrite: bool = False) -> None:
        """The weights: a name in .json makes JSON, one in .bin makes a gpt2 model an llm.c file (version 3, or 5 for bf16), one
        in .gguf a GGUF file (dtype f32, f16, bf16, q8_0, q5_0, q4_1 or q4_0), one that ends in / or is a folder a folder of
        Hugging Face (dtype f32, f16 or bf16), which replaces one that is not empty with `overwrite`; any other a checkpoint."""
        formats.write(path, self.weights(), version, dtype, overwrite)

    def weights(self):
        """What a file holds of the model; the arrays are views of `params`. What is frozen becomes float32 when it is read."""
        learned(self.tokenizer, self.turns)
        said = {name: value for name in SAID if (value := getattr(self, name))}
        frozen = {name: Unread(tensor.shape, tensor.read) for name, tensor in self.base.items()}
        tensors = {spec.name: spec for spec in self.definition.params(self.config)} | dict(self.params) | frozen
        return Weights(self.family, dataclasses.asdict(self.config), tensors, self.tokenizer, said)

    def program(self, B: int, T: int) -> Pass:
        """The recorded kernel calls of one training step at this shape: print it."""
        return self._runner.prepare(Work(B, T, True, purpose="step", train=True), STORE)

    def memory(self, B: int, T: int, chunks: int = 1) -> dict[str, int]:
        """Bytes that training at this shape takes, by what for; nothing is allocated to find out. `chunks` of T tokens are
        what a gradient reaches back through: a recurrent family takes them in one pass."""
        work = Work(B, T * (chunks if self.definition.state else 1), True, purpose="step", train=True)
        return {
            "parameters": self.params.nbytes + sum(tensor.nbytes for tensor in self.base.values()),
            "gradients": self.grads.nbytes,
            "Adam moments": self.m.nbytes + self.v.nbytes,
            "activations": self._runner.plan(work),
        }


def create(family: str, *, size: str = "", seed: int = 1337, **fields: Any) -> Model:
    """A new model with random parameters; fields are those of the family's Config, beside those that `size` names."""
    named = family_named(family).size(size) if size else {}
    if named is None:
        raise UsageError(f"{family} has no size {size!r}: give the fields of its Config")
    return Model(family, make_config(family, named | fields)).initialise(seed)


def _made_again(family, fields, tokenizer, switches, facts, arenas, state):
    """The Model of what `Model.__reduce__` gave, into arrays of its own."""
    model = Model(family, make_config(family, fields), tokenizer, **switches)
    for name, value in facts.items():
        setattr(model, name, value)
    for name, flat in arenas.items():
        getattr(model, name).flat[...] = flat
    model.state = state
    return model
