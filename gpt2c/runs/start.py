"""The start of a run: its model, data and trainer, from merged settings."""

import dataclasses
import os
from dataclasses import dataclass

from gpt2c import settings
from gpt2c.data.identity import identities
from gpt2c.data.sources import choose_source
from gpt2c.errors import UsageError
from gpt2c.models.family import max_seq_len
from gpt2c.models.files import load
from gpt2c.models.model import Model
from gpt2c.models.registry import family_named
from gpt2c.runs.config import PRETRAINED
from gpt2c.runs.resume import check_flags, shaping_flags
from gpt2c.support.files import shipped_data
from gpt2c.support.machine import in_units, require_memory
from gpt2c.tokenizers.turns import learned
from gpt2c.training.ranks import world
from gpt2c.training.state import data_changes
from gpt2c.training.trainer import Trainer


@dataclass(frozen=True)
class Start:
    """A run ready to begin. A new model (without `origin`) has no parameters yet."""

    run: object  # RunConfig
    chosen: object  # DataConfig, with names resolved to paths
    reading: object  # Reading
    config: object  # TrainConfig
    model: Model
    source: object  # of the data
    state: object  # of the run that goes on, or None
    origin: str | None

    @property
    def init_from(self):
        return self.run.init_from or (PRETRAINED if self.origin else "scratch")

    def memory(self):
        """{purpose: bytes}, per rank."""
        config, lanes = self.config, self.source.lanes
        B, T = config.batch_size, config.seq_len
        new = config.total_batch_size // (B * T * world().size) or config.update_batches(T, lanes)
        memory = self.model.memory(B, T, config.reach(T, lanes, new))
        if config.zero:
            memory["Adam moments"] //= world().size
        return memory

    def allocate(self, memory):
        """An error where there is too little memory; else the model has its first parameters."""
        ranks, params = world(), self.model.params
        needed = ranks.neighbours * (sum(memory.values()) - (params.nbytes if params.allocated else 0))
        require_memory(needed, "this run", "try a smaller --batch-size or --seq-len")
        ranks.barrier()  # none takes memory before all have looked
        if not self.origin:
            self.model.initialise(self.config.seed)

    def trainer(self, console):
        """The Trainer, at the step of the resumed run."""
        config = self.config
        validate = bool(config.val_every and config.val_steps)
        size = config.batch_size, config.seq_len, self.model.known_ids
        loaders = self.source.loaders(*size, config.seed, validate, world())
        trainer = Trainer(self.model, *loaders, config)
        recorded = dataclasses.replace(self.run, init_from=self.init_from)
        trainer.recorded = shaping_flags(recorded, self.chosen, self.reading)
        if not trainer.world.rank:
            identities(*loaders)  # of the data as they are now, whatever happens to their files
        if self.state:
            trainer.restore(self.state, self._keeps_place(trainer, console))
        for warning in trainer.warnings:
            console.warning(warning)
        return trainer

    def _keeps_place(self, trainer, console):
        """Whether the resumed run goes on at its place in the data, which may be others if the user allows it."""
        words, stays = data_changes(trainer, self.state.values)
        if not words or not self.run.allow_new_data:
            return True
        del self.state.values["data"]
        console.warning(f"{words}; going on with these{'' if stays else ' from their beginning'}, as --allow-new-data says")
        return stays

    def banner(self, memory):
        about, ranks, model = settings.info(), world(), self.model
        size = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(model.config).items() if value != "")
        parts = " + ".join(f"{what} {in_units(n)}" for what, n in memory.items())
        threads = f"{about['threads']} threads"
        if ranks.size > 1:
            threads = f"{ranks.size} ranks, {ranks.neighbours} of them here with {threads} each"
        active = f" ({model.num_active_parameters:,} active)" if model.num_active_parameters < model.num_parameters else ""
        origin = self.origin or f"from scratch, seed {self.config.seed}"
        return "\n".join(
            [
                f"gpt2c {about['version']} on {about['cpu']}: {about['isa']}, {threads} ({about['cores']} cores)",
                f"model: {model.family}, {model.num_parameters:,} parameters{active}, {origin}",
                f"       {size}",
                f"data: {self.source.summary}",
                f"memory: {parts} = {in_units(sum(memory.values()))}",
            ]
        )


def begin(instances, given, old, anew, console):
    """The Start of a run with these settings: from the checkpoint `old`, with a new model, or from the file that --init-from
    names."""
    run, _, chosen, reading, config, shape = instances
    ranks = world()
    ranks.settle(run.threads)
    settings.set_matmul_precision(run.matmul_precision)
    if not (old or config.val_every and config.val_steps):  # then nothing need be held out
        chosen = dataclasses.replace(chosen, held_out=0.0)
    model = state = origin = None
    if old:
        check_flags(old, given, shape, console, run, chosen, reading, config)
        model, state = old.build(ranks.part if config.zero else None)
        origin = f"resumed from {old.path} at step {old.run.values['step']}"
    elif not anew:
        path = run.init_from or PRETRAINED
        model, origin = model_from(path, run.model, shape, given), f"from {path}"
    family = family_named(run.model)
    source = ranks.rank_0_first(lambda: choose_source(chosen, reading, data_folder(), model, family))
    model = model or new_model(run.model, shape, given, source)
    model.recompute = run.recompute
    model.tokenizer = model.tokenizer or source.tokenizer
    learned(model.tokenizer, source.turns)
    model.turns, model.description = max(model.turns, source.turns), run.description or model.description
    fit(config, given, model, source)
    chosen = dataclasses.replace(chosen, **source.resolved)
    return Start(run, chosen, reading, config, model, source, state, origin)


def fit(config, given, model, source):
    """(B, T) reduced to what the model and the data allow; an error if a --seq-len that was given is too long."""
    most = max_seq_len(model.config)
    if "seq_len" not in given:
        config.seq_len = min(config.seq_len, most)
    config.batch_size, config.seq_len = source.fit(config.batch_size, config.seq_len)
    if config.seq_len > most:
        raise UsageError(f"--seq-len {config.seq_len} is more than the model's max_seq_len of {most}")


def data_folder():
    """data/ of the current folder, else the one that comes with gpt2c."""
    return "data" if os.path.isdir("data") else shipped_data()


def model_from(path, family, shape, given):
    """The model in a file, which must be of this family and of the shape that was asked for."""
    model = load(path)
    if model.family != family:
        raise UsageError(f"{path} holds a {model.family} model; say --model {model.family}")
    for name in sorted(given & {field.name for field in dataclasses.fields(shape)}):
        if getattr(shape, name) != getattr(model.config, name):
            raise UsageError(
                f"--{name.replace('_', '-')} {getattr(shape, name)} does not fit {path}, "
                f"where it is {getattr(model.config, name)}"
            )
    return model


def new_model(family, shape, given, source):
    """A model without parameters yet, of the data's vocabulary."""
    changes = {}
    if source.tokenizer and "vocab_size" not in given:
        changes["vocab_size"] = source.tokenizer.vocab_size
        if hasattr(shape, "padded_vocab_size") and "padded_vocab_size" not in given:
            changes["padded_vocab_size"] = 0
    return Model(family, dataclasses.replace(shape, **changes))
