"""The training state in a checkpoint, besides weights and moments, and how a Trainer restores it."""

import dataclasses
import reprlib
from dataclasses import dataclass, field

import numpy as np

from gpt2c.data.identity import changes, identities
from gpt2c.errors import InputError, UsageError
from gpt2c.formats.weights import RunState
from gpt2c.support.rng import Xorshift
from gpt2c.training.validation import Validations


@dataclass(frozen=True)
class Epoch:
    """Sums over the updates of the current epoch."""

    updates: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0

    def plus(self, loss, grad_norm):
        return Epoch(self.updates + 1, self.loss + loss, self.grad_norm + grad_norm)


@dataclass
class Snapshot:
    """A run as it was right after an update."""

    step: int = 0  # updates done
    tokens: int = 0
    skipped_in_a_row: int = 0
    sampling: int = 0  # the state of the sampling generator
    validations: Validations = field(default_factory=Validations)
    epoch: Epoch = field(default_factory=Epoch)


def snapshot(trainer):
    validations = dataclasses.replace(trainer.validations)
    skipped = trainer.watch.skipped_in_a_row
    return Snapshot(trainer.step, trainer.tokens, skipped, trainer.sampling.state, validations, trainer.epoch)


def recorded(trainer, done):
    """The RunState of a Trainer as it was at the Snapshot `done`: from its values and arrays the run resumes bit-identically,
    on any number of ranks."""
    loader, watch, model = trainer.loader.state(), trainer.watch, trainer.model
    arrays = {f"loader.{name}": value for name, value in loader.items() if not isinstance(value, int)}
    window = trainer.window if trainer.carries and trainer.loader.continues else None
    if window:
        arrays |= {f"carried.{name}": array for name, array in _carried(trainer).items()}
    arrays |= {"window.loss": watch.losses.values, "window.norm": watch.norms.values}
    values = dataclasses.asdict(done) | {
        "windows": [watch.losses.count, watch.norms.count],
        "chunks": window.chunks if window else [],
        "dropout": [model.seed, model.dropout_counter],
        "loader": {name: value for name, value in loader.items() if isinstance(value, int)},
        "data": {} if trainer.world.rank else identities(trainer.loader, trainer.val_loader),
        "config": dataclasses.asdict(trainer.config) | _batch_sizes(trainer) | trainer.recorded,
    }
    return RunState(values=values, arrays=arrays)


def _batch_sizes(trainer):
    """What has to be recorded for the updates to stay the same on another number of ranks: the tokens of an update, or
    where each row is a lane that goes on, their number."""
    if hasattr(trainer.loader, "continues"):
        return {"batch_size": trainer.config.batch_size * trainer.world.size}
    return {"total_batch_size": trainer.length.tokens_per_step}


def restore(trainer, run, data_position=True):
    """Puts a Trainer where `recorded` was called; without `data_position` its loader stays where it is, and a TBPTT window
    begins anew at the carried state."""
    values, arrays = run.values, run.arrays
    _check_account(values, arrays, trainer)
    optimizer = values["config"].get("optimizer", trainer.config.optimizer)
    if optimizer != trainer.config.optimizer:
        raise UsageError(
            f"the checkpoint holds the moments of {optimizer}, not of {trainer.config.optimizer}: resume with "
            f"--optimizer {optimizer}, or take its weights alone with --init-from"
        )
    watch = trainer.watch
    validations, epoch = Validations(**values["validations"]), Epoch(**values["epoch"])
    sampling, (seed, counter) = Xorshift(values["sampling"]), values["dropout"]
    if data_position:
        require_same_data(trainer, values)
        trainer.loader.restore(values["loader"] | _named(arrays, "loader."))
    try:
        _carry(trainer, _named(arrays, "carried."), values.get("chunks", []) if data_position else [])
    except (KeyError, IndexError, TypeError, ValueError) as error:  # arrays that are missing or of another shape
        if isinstance(error, InputError):
            raise
        raise _damaged(error) from None
    trainer.step, trainer.tokens, trainer.validations, trainer.epoch = values["step"], values["tokens"], validations, epoch
    trainer.sampling, watch.skipped_in_a_row = sampling, values["skipped_in_a_row"]
    trainer.model.seed, trainer.model.dropout_counter = seed, counter
    for window, count, name in zip((watch.losses, watch.norms), values["windows"], ("loss", "norm")):
        window.count, window.values = count, np.array(arrays[f"window.{name}"], np.float64)


def data_changes(trainer, values):
    """`changes` since these values were recorded, as rank 0 finds them."""
    data = values.get("data", {}), trainer.loader, trainer.val_loader
    words, stays = ("", True) if trainer.world.rank else changes(*data, trainer.carries)
    return trainer.world.broadcast(words), bool(trainer.world.broadcast("stays" * stays))


def require_same_data(trainer, values):
    if words := data_changes(trainer, values)[0]:
        raise UsageError(f"{words}; go on with the same data, or take these by --allow-new-data")


def _count(value):
    return type(value) is int and 0 <= value < 2**53  # what a float can count


def _word(value):
    return type(value) is int and 0 <= value < 2**64


def _sum(value):
    return type(value) is float or _count(value)  # NaN where an update was skipped for that


def _chunks(value):
    """Of each pass in a window; checkpoints of before have none."""
    return value is None or type(value) is list and all(_count(number) and number for number in value)


KINDS = dict(
    step=_count,
    tokens=_count,
    skipped_in_a_row=_count,
    sampling=lambda value: _word(value) and value > 0,
    validations=dict(
        best=lambda value: value is None or _sum(value),
        best_step=lambda value: value is None or _count(value),
        since_best=_count,
        waited=_count,
        falls=_count,
    ),
    epoch=dict(updates=_count, loss=_sum, grad_norm=_sum),
    windows=[_count, _count],
    dropout=[_word, _count],
    chunks=_chunks,
    loader={},
    config={},
)


def _check_account(values, arrays, trainer):
    """An error unless everything that a run goes on from is there and of its kind."""
    for name, kind in KINDS.items():
        if not _is_kind(value := values.get(name), kind):
            raise _damaged(f"{name} is {reprlib.repr(value)}")
    for name in "loss", "norm":
        array, own = arrays.get(f"window.{name}", np.zeros(0)), trainer.watch.losses.values
        if (array.shape, array.dtype) != (own.shape, own.dtype) or not np.isfinite(array).all():
            raise _damaged(f"the last {name} values are missing, or no finite float64")
    position = values["loader"] | _named(arrays, "loader.")
    for name, now in trainer.loader.state().items():
        was = position.get(name, now)
        alike = isinstance(was, np.ndarray) and was.dtype.kind == now.dtype.kind if isinstance(now, np.ndarray) else _word(was)
        if not alike:
            raise _damaged(f"the loader's {name} is of another kind")


def _is_kind(value, kind):
    """Whether what was read is of a kind: one that a function tells; a list or dict of kinds, {} for any dict."""
    if callable(kind):
        return kind(value)
    if type(value) is not type(kind):
        return False
    if isinstance(kind, list):
        return len(value) == len(kind) and all(map(_is_kind, value, kind))
    return not kind or value.keys() == kind.keys() and all(_is_kind(value[name], kind[name]) for name in kind)


def _named(arrays, beginning):
    return {name.removeprefix(beginning): array for name, array in arrays.items() if name.startswith(beginning)}


def _damaged(error):
    return InputError(f"the run state in the checkpoint is damaged ({error}): use another checkpoint")


def _carried(trainer):
    """What the lanes of all ranks carry from one update to the next: "state.NAME", and of each earlier pass in the window
    "before.NUMBER.NAME", the state that it began with."""
    states = {"state": trainer.model.state} | {f"before.{i}": past.state for i, past in enumerate(trainer.window.past)}
    return {
        f"{label}.{name}": np.concatenate(trainer.world.all_gather_arrays(array), axis=1)
        for label, state in states.items()
        for name, array in state.items()
    }


def _carry(trainer, carried, chunks):
    """Goes on from `_carried`, of any number of ranks, and from the chunks that those passes went over."""
    rank, B = trainer.world.rank, trainer.loader.B
    ours = {name: array[:, rank * B : (rank + 1) * B] for name, array in carried.items() if "chain." not in name}
    state, before = _named(ours, "state."), [_named(ours, f"before.{i}.") for i in range(len(chunks))]
    for array, like in ((earlier[name], state[name]) for earlier in before for name in state):
        if (array.shape, array.dtype) != (like.shape, like.dtype):
            raise _damaged("the states in the window are of other shapes")
    trainer.model.state = state
    trainer.window.restore(before, chunks, trainer.loader.again(sum(chunks)) if chunks else [])
    if len(ours) < len(carried):
        trainer.warnings.append(
            "the checkpoint is of an older gpt2c, which backpropagated through several chunks in another way: the window begins "
            "anew at its state, and losses differ in their last digits from those of a run that was not interrupted"
        )
