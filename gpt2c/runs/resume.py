"""Resuming a run: from which checkpoint, and with which flags."""

import dataclasses
import re
import reprlib
import tomllib
from pathlib import Path

from gpt2c.data.reading import Reading
from gpt2c.errors import InputError, UsageError
from gpt2c.models.files import newest, read
from gpt2c.runs import folder as runs
from gpt2c.support.files import open_input
from gpt2c.training.config import TrainConfig
from gpt2c.training.ranks import world


def names_of(cls):
    return tuple(field.name for field in dataclasses.fields(cls))


# The flags that shape what a run computes: a checkpoint records them, and nothing else is taken from one, which may be anybody's.
SHAPING = (
    *("matmul_precision", "sample_every", "sample_len", "prompt", "temperature", "sample_top_k", "sample_top_p", "init_from"),
    *("data", "training_text", "val_data", "held_out", "order", "max_chunks_per_epoch", "context_length", "mask_prompt"),
    *("tokenizer", "use_bpe", "bpe_vocab_size", "bpe_min_frequency"),
    *names_of(Reading),
    *names_of(TrainConfig),
)
# Flags about the files of a run: they are kept by config.toml in the folder that the user names.
ATTENDING = ("save_every", "keep", "keep_major", "resumable_best", "log_every", "report_to")


def checkpoint_to_resume(resume, out_dir, save_path, console, program="train"):
    """The Content of the checkpoint that --resume means: this one, or the newest whole one of the run, as rank 0 finds it;
    else None. An error if it is of a run of another program."""
    if not resume:
        return None
    if isinstance(resume, str):
        content = read(resume)
    elif out_dir or save_path:
        ranks = world()
        found = newest(runs.Run(out_dir, save_path).checkpoints(), console.warning) if ranks.rank == 0 else None
        path = ranks.broadcast(str(found.path) if found else "")
        content = found or (read(path) if path else None)
    else:
        raise UsageError("--resume needs --out-dir, or the path of a checkpoint")
    if content is None:
        console.info(f"nothing to resume in {out_dir or save_path}: starting afresh")
    elif not content.run:
        raise InputError(f"{content.path} holds weights only, no run to resume; take it with --init-from")
    elif (other := content.run.values.get("program", "train")) != program:
        raise InputError(f"{content.path} holds a run of gpt2c {other}, which that resumes; take its weights with --init-from")
    return content


def shaping_flags(*configs):
    """{flag: value} of these dataclasses that a checkpoint records."""
    return {name: value for config in configs for name, value in vars(config).items() if name in SHAPING}


def recorded_flags(content, *classes, names=SHAPING, out_dir=""):
    """{flag: value} of these dataclasses that a run which goes on keeps if they are not given again: of the checkpoint's those
    with these names, and of config.toml in `out_dir` those about files. Lanes are divided over ranks."""
    recorded = content.run.values.get("config")
    if not isinstance(recorded, dict):
        raise InputError(f"{content.path} does not say how its run was made: use another checkpoint")
    known, beside = _kept(recorded, names, classes, content.path), Path(out_dir, "config.toml")
    if out_dir and beside.is_file():
        known |= _kept(_settings(beside), ATTENDING, classes, beside)
    if "chunks" in content.run.values.get("loader", {}):
        lanes, ranks = known.get("batch_size"), world().size
        if lanes is None:
            raise InputError(f"{content.path} does not say how many lanes its run has: use another checkpoint")
        if lanes % ranks:
            raise UsageError(
                f"{content.path} has {lanes} lanes, which {ranks} ranks cannot share evenly: use a "
                "number of ranks that divides them"
            )
        known["batch_size"] = lanes // ranks
    return known | dataclasses.asdict(content.config) | {"model": content.family}


def _settings(path):
    with open_input(path) as file:
        try:
            return tomllib.loads(file.read().decode())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a TOML file: {error}") from None


def _kept(recorded, names, classes, path):
    """The values with these names, each of the type of its field."""
    kept = {}
    for field in (field for cls in classes for field in dataclasses.fields(cls) if field.name in names):
        if field.name in recorded:
            value = kept[field.name] = recorded[field.name]
            kinds = (int, float) if isinstance(field.default, float) else (type(field.default),)
            if type(value) not in kinds or isinstance(value, int) and value.bit_length() > 64:
                raise InputError(f"{path} has {field.name} = {reprlib.repr(value)}: use another checkpoint or folder")
    return kept


def check_code(content, given):
    """An error if the run's task is a Python file that was not named again: no checkpoint decides what code is run."""
    for name, beginning in ("task", ""), ("data", "task:"):
        value = content.run.values["config"].get(name)
        if name not in given and isinstance(value, str) and re.fullmatch(rf"{beginning}.*\.py(:\d+)?", value, re.DOTALL):
            raise UsageError(f"the run in {content.path} needs a Python file: to run it, name it again by --{name} {value}")


def check_flags(content, given, shape, console, run, data, reading, config):
    """Prints which of the given flags have changed; an error if they would change the model."""
    check_code(content, given)
    if run.model != content.family:
        raise UsageError(f"{content.path} holds a {content.family} model, not {run.model}: leave out --model")
    for name, new in dataclasses.asdict(shape).items():
        if name in given and new != getattr(content.config, name):
            raise UsageError(
                f"--{name.replace('_', '-')} {new} does not fit {content.path}, where it is {getattr(content.config, name)}"
            )
    tell_changes(content, given & set(SHAPING), vars(run) | vars(data) | vars(reading) | vars(config), console)


def tell_changes(content, given, now, console):
    """Prints which of the given flags differ from those of the checkpoint's run."""
    before = content.run.values["config"]
    changes = [f"{name} {before[name]} -> {now[name]}" for name in before if name in given and now.get(name) != before[name]]
    if changes:
        console.info(f"changed since {content.path}: {', '.join(changes)}")
