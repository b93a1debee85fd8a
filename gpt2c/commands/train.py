"""Train a model: python -m gpt2c.train [flags], or gpt2c train.

Without arguments it fine-tunes gpt2_124M.bin where that file is present, and otherwise trains a small model from
scratch on the first data set below data/.
"""

import dataclasses
from pathlib import Path

from gpt2c import data
from gpt2c.commands.chat import chat
from gpt2c.commands.command_line import CommandLine, merge, peek
from gpt2c.commands.config_file import to_toml
from gpt2c.data.reading import Reading
from gpt2c.data.sources import DataConfig
from gpt2c.errors import UsageError
from gpt2c.generation.conversation import Conversation
from gpt2c.generation.sampling import usual
from gpt2c.models.registry import FAMILIES, family_named, other_configs
from gpt2c.runs import folder as runs
from gpt2c.runs.config import PRETRAINED, RunConfig
from gpt2c.runs.console import Console
from gpt2c.runs.loop import Loop
from gpt2c.runs.phases import PHASED, PhasesConfig, has_phases, run_phases, shipped, usual_phase
from gpt2c.runs.resume import checkpoint_to_resume, recorded_flags
from gpt2c.runs.signals import Stop
from gpt2c.runs.start import begin, data_folder
from gpt2c.support.fields import Layer
from gpt2c.tokenizers.finding import tokenizer_of_model
from gpt2c.training.config import IDLE, TrainConfig
from gpt2c.training.ranks import world

# Settings of a run without arguments and without gpt2_124M.bin: a small model, trained in a minute or two on two cores.
STARTER = dict(
    num_layers=4,
    num_heads=4,
    channels=128,
    max_seq_len=128,
    **family_named("llama").training,  # which suit any small transformer
)


def main(argv):
    world().quiet()
    line = CommandLine.of(argv)
    (interactive,) = peek(line, PhasesConfig, "interactive")
    with Stop() as stop:
        code, model = (train_in_phases if in_phases(line) else train)(line, stop, Console())
    if interactive and model and not code and world().rank == 0:
        tokenizer = tokenizer_of_model(model)
        chat(Conversation(model, tokenizer, usual(model, "chat" if tokenizer.chat_template else "")))
    return code


def in_phases(line):
    """Whether the flags ask for two phases: by name, or, with no other data or model, by the family that trains so by default,
    or by --interactive."""
    family, start, resume, out_dir = peek(line, RunConfig, "model", "init_from", "resume", "out_dir")
    *named, interactive = peek(line, PhasesConfig, "pretrain", "instruct", "interactive")
    if any(named):
        return True
    elsewhere = any(peek(line, DataConfig, "data", "training_text", "list_datasets")) or start
    return (family == PHASED or interactive) and not elsewhere and (not resume or resume is True and has_phases(out_dir))


def merged(line, family, layers):
    """The Settings of a run of this family: of a RunConfig, PhasesConfig, DataConfig, Reading, TrainConfig and its Config."""
    classes = [RunConfig, PhasesConfig, DataConfig, Reading, TrainConfig, family_named(family).Config]
    about = __doc__.partition("\n\n")[2]
    return merge(line, classes, "gpt2c train", about, layers=layers, elsewhere=other_configs(family))


def train_in_phases(line, stop, console):
    """(the exit code, the model or None)"""
    line = line.between(below=[Layer("two phases", {"model": PHASED})])
    (family,) = peek(line, RunConfig, "model")
    run, phases, chosen, reading, *_ = merged(line, family, [Layer("two phases", usual_phase(family))]).instances
    return run_phases(train, line, shipped(phases), run, chosen, reading, stop, console)


def settings_of(line, console):
    """(the Settings of one run, the checkpoint that it goes on from or None, whether its model is made anew)"""
    family, start, resume, *where = peek(line, RunConfig, "model", "init_from", "resume", "out_dir", "save_path")
    family = family or family_of_flags(line, start)
    usual_place = family_named(family).training.get("save_path", "")
    old = checkpoint_to_resume(resume, *(where if any(where) else ("", usual_place)), console)
    family = old.family if old else family
    own = family_named(family)
    plain = family == "gpt2" and not start and not old  # then the pretrained model, or a small one
    starter = plain and not Path(PRETRAINED).exists()
    size = own.size(start) if start else None
    layers = [Layer(f"the family {family}", {"model": family, **own.training})]
    if old:
        recorded = recorded_flags(old, RunConfig, DataConfig, Reading, TrainConfig, out_dir=where[0])
        layers.append(Layer(f"the run in {old.path}", recorded))
    elif starter:
        layers.append(Layer("a run without arguments", STARTER))
    elif size:
        layers.append(Layer(f"the size {start}", size))
    anew = bool(size) or start in ("", "scratch") and (starter or not plain)
    return merged(line, family, layers), old, anew


def train(line, stop, console):
    """(the exit code, the model or None)"""
    settings, old, anew = settings_of(line, console)
    run, _, chosen, reading, config, _ = settings.instances
    if chosen.list_datasets:
        print(data.list_datasets(data.find_datasets(data_folder())))
        return 0, None
    if run.explain:
        print(settings.explained())
        return 0, None
    if not (config.learning_rate or config.tensor_rates):
        raise UsageError(IDLE)
    start = begin(settings.instances, settings.given, old, anew, console)
    model, ranks = start.model, world()
    memory = start.memory()
    if run.dry_run:
        print(f"{start.banner(memory)}\nsettings:\n{settings.explained()}")
        return 0, None
    console.info(start.banner(memory))
    start.allocate(memory)
    trainer = start.trainer(console)
    how = dict(names=model.definition.files, warn=console.warning)
    files = runs.run_at(run.out_dir, run.save_path, model.family, ranks, **how)
    loop = Loop(trainer, run, files, stop, console)
    if old and not trainer.going:
        console.info(
            f"already at step {trainer.step} of {trainer.total_steps}: nothing to train; ask for more with --max-steps "
            "or --epochs"
        )
        if run.out_dir:
            files.take()
            loop.look_back()
        return stop.exit_code, model
    files.take()
    resolved = dataclasses.replace(run, resume=False, allow_new_data=False, init_from=start.init_from)
    if aside := files.begin(to_toml(resolved, start.chosen, reading, config, model.config), trainer.step, model.tokenizer):
        console.warning(aside)
    if not old and (aside := files.set_aside_saved()):
        console.warning(aside)
    return loop.train(), model


def family_of_flags(line, start):
    """The family that the flags mean where no --model is given: gpt2, or for a new model the one that has flags of its own."""
    own = (name for name, family in FAMILIES.items() if not start and line.mentions(family.flags))
    return next(own, "gpt2")
