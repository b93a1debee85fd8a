"""Writes docs/command_line.md, the help of every verb, and the flags that shells complete: python docs/make_command_line.py.

The help comes from the fields of dataclasses (gpt2c/commands/flags.py), and so do these files: tests/test_docs.py compares them.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import tempfile
from pathlib import Path

from gpt2c.__main__ import ALIASES, VERBS
from gpt2c.commands.train import STARTER
from gpt2c.models import gpt2
from gpt2c.models.registry import FAMILIES
from gpt2c.runs.config import RunConfig
from gpt2c.training.config import TrainConfig

PAGE = Path(__file__).with_name("command_line.md")
SPELLINGS = Path(__file__).parents[1] / "gpt2c/commands/spellings.json"
WIDTH = 110  # of the page
LONG = 60  # characters of a default beyond which it is cut

HEAD = """# The command line

Written by `docs/make_command_line.py` from what `gpt2c VERB --help-all` prints. Errors are one sentence; the exit code says of
what kind: 0 done, 1 not fetched or unexpected, 2 usage, 3 diverged, 4 bad input file, 5 too little memory or disk, 129, 130 and
143 ended by a signal after saving. Flags that are not given come from the TOML file of `--config`, if there is one; then from the
run that is resumed; then from the family; then from here.
"""


def page():
    parts = [HEAD]
    for verb in VERBS:
        others = [f"`{alias}`" for alias, name in ALIASES.items() if name == verb]
        also = f"; also {', '.join(others)}" if others else ""
        parts.append(f"## gpt2c {verb}\n\n{VERBS[verb]}{also}\n\n```\n{help_of(verb)}```\n")
        if verb == "train":
            parts += map(family, FAMILIES)
    return "\n".join(parts)


def spellings():
    """The long flags of each verb, train's with those of all families."""
    flags = {verb: set(re.findall(r"^  (--[a-z0-9-]+)", help_of(verb), re.M)) for verb in VERBS}
    for name in FAMILIES:
        flags["train"] |= set(re.findall(r"^  (--[a-z0-9-]+)", help_of("train", "--model", name), re.M))
    flags = {verb: sorted(found) for verb, found in flags.items()}
    return json.dumps(flags, indent=1) + "\n"


def help_of(verb, *words):
    """What the verb prints where no file is at hand that it would look at."""
    main = importlib.import_module(f"gpt2c.commands.{verb.replace('-', '_')}").main
    said = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(said):
        with contextlib.suppress(SystemExit):
            main([*words, "--help-all"])
    os.environ.pop("COLUMNS")
    if before is not None:
        os.environ["COLUMNS"] = before
    return said.getvalue()


def family(name):
    """The flags of a family's models, and what it starts from."""
    own = next(part for part in help_of("train", "--model", name).split("\n\n") if part.startswith(f"{name}:\n"))
    starts = f"Starts from {listed(FAMILIES[name].training)}."
    if name == "gpt2":
        plain = {f.name: f.default for cls in (RunConfig, TrainConfig, gpt2.Config) for f in dataclasses.fields(cls)}
        starts = (
            "The defaults above and here are those of the run without arguments. With `gpt2_124M.bin` at hand, or `-e`, it "
            f"starts from {listed({flag: plain[flag] for flag in STARTER})}."
        )
    return f"### --model {name}\n\n{starts}\n\n```\n{own}\n```\n"


def listed(values):
    return ", ".join(f"`--{flag.replace('_', '-')} {shown(value)}`" for flag, value in values.items())


def shown(value):
    text = str(value).lower() if isinstance(value, bool) else str(value).replace("\n", " ")
    return text if len(text) <= LONG else text[:LONG].rstrip() + "..."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SPELLINGS.write_text(spellings(), encoding="utf-8")
