"""Show this machine, a model file or a run: python -m gpt2c info [PATH], or gpt2c info.

Without PATH: this machine and this build. A model file, or a folder of Hugging Face: its format, sizes and whether it is valid.
The directory of a run: its progress and its checkpoints. --json prints the same for programs.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gpt2c import settings
from gpt2c.commands.command_line import parse
from gpt2c.errors import InputError
from gpt2c.formats.huggingface_folder import is_model
from gpt2c.models.files import read
from gpt2c.models.registry import family_named
from gpt2c.runs import folder as runs
from gpt2c.runs.logs import read_metrics
from gpt2c.support.fields import flag
from gpt2c.support.machine import available_memory, in_units

SHOWN = 60  # characters of a chat template


@dataclass
class InfoConfig:
    path: str = flag("", "a model's file or folder, or the directory of a run", metavar="PATH", default_text="this machine")
    json: bool = flag(False, "print JSON")


def main(argv):
    (config,), _ = parse(argv, [InfoConfig], "gpt2c info", __doc__.partition("\n\n")[2], ["path"])
    if not config.path:
        found = machine()
    elif Path(config.path).is_dir() and not is_model(config.path):
        found = run(config.path)
    else:
        found = model_file(config.path)
    print(json.dumps(found, indent=1, default=str) if config.json else as_text(found))


def machine():
    about = settings.info()
    return {"gpt2c": about.pop("version"), **about, "memory available": in_units(available_memory())}


def run(folder):
    """The run in a folder, by its logs and checkpoints."""
    last, best = {}, None
    for row in read_metrics(folder):
        last |= row
        if "val_loss" in row and (best is None or row["val_loss"] < best["val_loss"]):
            best = row
    found = {"run": str(folder), **last}
    if best:
        found["best val_loss"] = f"{best['val_loss']:.6f} at step {best['step']}"
    files = runs.Run(folder)
    for path in [*files.checkpoints(), *([files.best] if files.best.exists() else [])]:
        found[path.name] = health(path)
    return found


def health(path):
    try:
        read(path)
    except InputError as error:
        return str(error)
    return f"whole, {in_units(path.stat().st_size)}"


def model_file(path):
    """A file with a model in it: the model, then what the file says of it."""
    content = read(path)
    weights = content.weights
    return {
        "file": path,
        "format": weights.form,
        "family": content.family,
        **dataclasses.asdict(content.config),
        **parameter_counts(content),
        **vocabulary(weights.tokenizer),
        **weights.said,
        "saved": f"{datetime.fromtimestamp(Path(path).stat().st_mtime):%Y-%m-%d %H:%M:%S}",
        "run": content.run.values if content.run else "none: weights alone",
        **weights.facts,
    }


def vocabulary(tokenizer):
    """The tokens, and how a text and a conversation are written with them."""
    if not tokenizer:
        return {"tokenizer": "none"}

    def named(id):
        return f"{id} {tokenizer.tokens[id].decode('utf-8', 'replace')!r}"

    template = tokenizer.chat_template
    first = template.strip().partition("\n")[0]
    begins = repr(first[:SHOWN]) + "..." * (first[:SHOWN] != template)
    return {
        "tokenizer": f"{tokenizer.vocab_size} tokens",
        "bos": "none" if tokenizer.bos is None else named(tokenizer.bos),
        "adds bos": tokenizer.adds_bos,
        "ends": [named(id) for id in tokenizer.ends] or "none",
        "chat template": f"{len(template):,} characters, {begins}" if template else "none",
    }


def parameter_counts(content):
    """Of the model; the active ones where they are fewer."""
    counts = {"parameters": sum(math.prod(tensor.shape) for tensor in content.weights.tensors.values())}
    if idle := family_named(content.family).idle_parameters(content.config):
        counts["active parameters"] = counts["parameters"] - idle
    return counts


def as_text(found):
    """One line per entry, entries in entries indented."""
    lines = []
    for name, value in found.items():
        if isinstance(value, dict):
            lines += [f"{name}:", *("  " + line for line in as_text(value).splitlines())]
        else:
            lines.append(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return "\n".join(lines)
