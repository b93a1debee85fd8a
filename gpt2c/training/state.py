"""The training state in a checkpoint, besides weights and moments, and how a Trainer restores it."""

import dataclasses
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
    if trainer.carries and trainer.loader.continues:
        arrays |= {f"carried.{name}": array for name, array in _carried(trainer).items()}
    arrays |= {"window.loss": watch.losses.values, "window.norm": watch.norms.values}
    values = dataclasses.asdict(done) | {
        "windows": [watch.losses.count, watch.norms.count],
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
    """Puts a Trainer where `recorded` was called; without `data_position` its loader stays where it is."""
    values, arrays = run.values, run.arrays
    optimizer = values.get("config", {}).get("optimizer", trainer.config.optimizer)
    if optimizer != trainer.config.optimizer:
        raise UsageError(
            f"the checkpoint holds the moments of {optimizer}, not of {trainer.config.optimizer}: resume with "
            f"--optimizer {optimizer}, or take its weights alone with --init-from"
        )
    watch = trainer.watch
    _check_account(values, arrays, trainer)
    validations, epoch = Validations(**values["validations"]), Epoch(**values["epoch"])
    sampling, (seed, counter) = Xorshift(values["sampling"]), values["dropout"]
    if data_position:
        require_same_data(trainer, values)
        trainer.loader.restore(values["loader"] | _named(arrays, "loader."))
    try:
        _carry(trainer, _named(arrays, "carried."))
    except (KeyError, IndexError, ValueError) as error:  # arrays that are missing or of another shape
        if isinstance(error, (UsageError, InputError)):
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


COUNT, NUMBER, UNKNOWN = (int,), (int, float), (int, float, type(None))
KINDS = dict(
    step=COUNT,
    tokens=COUNT,
    skipped_in_a_row=COUNT,
    sampling=COUNT,
    validations=dict(best=UNKNOWN, best_step=UNKNOWN, since_best=COUNT, waited=COUNT, falls=COUNT),
    epoch=dict(updates=COUNT, loss=NUMBER, grad_norm=NUMBER),
    windows=[COUNT, COUNT],
    dropout=[COUNT, COUNT],
    loader={},
)


def _check_account(values, arrays, trainer):
    """An error unless everything that a run goes on from is there and of its kind."""
    for name, kind in KINDS.items():
        if not _is_kind(values.get(name), kind):
            raise _damaged(f"{name} is {values.get(name)!r}")
    counts = [values["step"], values["tokens"], values["skipped_in_a_row"], values["dropout"][1], *values["windows"]]
    if min(counts) < 0 or not 0 < values["sampling"] < 2**64:
        raise _damaged("a count is negative, or the state of sampling is none")
    for name in "loss", "norm":
        array = arrays.get(f"window.{name}")
        if array is None or array.shape != trainer.watch.losses.values.shape:
            raise _damaged(f"the last {name} values are missing")
    position = values["loader"] | _named(arrays, "loader.")
    for name, now in trainer.loader.state().items():
        was = position.get(name, now)
        if isinstance(was, int) != isinstance(now, int) or not isinstance(now, int) and was.dtype.kind != now.dtype.kind:
            raise _damaged(f"the loader's {name} is of another kind")


def _is_kind(value, kind):
    """Whether what was read is one of these types; of a list or dict, whether its parts are. {}: any dict."""
    if isinstance(kind, tuple):
        return type(value) in kind
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
    """The recurrent state that the model carries from one update to the next, over the lanes of all ranks."""
    carried, ranks = trainer.model.carried(trainer.window), trainer.world
    if ranks.size == 1:
        return carried
    states = {name: array for name, array in carried.items() if name.startswith("state.")}
    lanes = {name: np.concatenate(ranks.all_gather_arrays(array), axis=1) for name, array in states.items()}
    return lanes | {f"ranks.{name}": ranks.all_gather_arrays(array) for name, array in carried.items() if name not in lanes}


def _carry(trainer, carried):
    """Goes on from `_carried`, of any number of ranks. A TBPTT window over chunks that other ranks have computed starts empty."""
    rank, size, B = trainer.world.rank, trainer.world.size, trainer.loader.B
    states = {name: array[:, rank * B : (rank + 1) * B] for name, array in carried.items() if name.startswith("state.")}
    ours = "chain." if size == 1 else "ranks.chain."
    chain = {
        name.removeprefix("ranks."): array if size == 1 else array[rank]
        for name, array in carried.items()
        if name.startswith(ours) and (size == 1 or len(array) == size)
    }
    trainer.model.carry(states | chain)
