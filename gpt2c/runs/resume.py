"""Resuming a run: from which checkpoint, and with which flags."""

import dataclasses
import tomllib
from pathlib import Path

from gpt2c.errors import InputError, UsageError
from gpt2c.models.files import newest, read
from gpt2c.runs import folder as runs
from gpt2c.support.files import open_input
from gpt2c.training.ranks import world

SHAPING = ("matmul_precision", "sample_every", "sample_len", "prompt", "temperature", "sample_top_k", "sample_top_p", "init_from")
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


def shaping_flags(run, data, reading):
    """{flag: value} of a RunConfig, a DataConfig and a Reading that a checkpoint records, because they shape what the run
    computes."""
    return {name: getattr(run, name) for name in SHAPING} | vars(data) | vars(reading)


def recorded_flags(content, *classes):
    """{flag: value} of these dataclasses in the checkpoint's run: flags that are not given again keep them. Lanes are divided
    over ranks.

    Flags that do not affect what the run computes, such as --save-every, are in config.toml beside the checkpoint, if any.
    """
    recorded = content.run.values.get("config")
    if not isinstance(recorded, dict):
        raise InputError(f"{content.path} does not say how its run was made: use another checkpoint")
    beside = Path(content.path).with_name("config.toml")
    if beside.is_file():
        with open_input(beside) as file:
            try:
                settings = tomllib.loads(file.read().decode())
            except (ValueError, RecursionError) as error:
                raise InputError(f"{beside} is not a TOML file: {error}") from None
        recorded = {name: settings[name] for name in ATTENDING if name in settings} | recorded
    known = {}
    for field in (field for cls in classes for field in dataclasses.fields(cls) if field.name in recorded):
        value = known[field.name] = recorded[field.name]
        if type(value) not in ((int, float) if isinstance(field.default, float) else (type(field.default),)):
            raise InputError(f"{content.path} has {field.name} = {value!r}: use another checkpoint")
    if "chunks" in content.run.values.get("loader", {}):
        lanes, ranks = known["batch_size"], world().size
        if lanes % ranks:
            raise UsageError(
                f"{content.path} has {lanes} lanes, which {ranks} ranks cannot share evenly: use a "
                "number of ranks that divides them"
            )
        known["batch_size"] = lanes // ranks
    return known | dataclasses.asdict(content.config) | {"model": content.family}


def check_flags(content, given, shape, console, run, data, reading, config):
    """Prints which of the given flags have changed; an error if they would change the model."""
    if run.model != content.family:
        raise UsageError(f"{content.path} holds a {content.family} model, not {run.model}: leave out --model")
    for name, new in dataclasses.asdict(shape).items():
        if name in given and new != getattr(content.config, name):
            raise UsageError(
                f"--{name.replace('_', '-')} {new} does not fit {content.path}, where it is {getattr(content.config, name)}"
            )
    tell_changes(content, given, vars(run) | vars(data) | vars(reading) | vars(config), console)


def tell_changes(content, given, now, console):
    """Prints which of the given flags differ from those of the checkpoint's run."""
    before = content.run.values["config"]
    changes = [f"{name} {before[name]} -> {now[name]}" for name in before if name in given and now.get(name) != before[name]]
    if changes:
        console.info(f"changed since {content.path}: {', '.join(changes)}")
