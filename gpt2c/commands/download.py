"""Fetch a published model: python -m gpt2c download NAME, or gpt2c download.

Without NAME, the models are listed. What is fetched is continued where it stopped, and checked: its size and SHA-256 are
known here. GPT2C_MODELS_URL is the address of a mirror, https:// or file://, for networks without a way to the usual one.
"""

import os
import shlex
from dataclasses import dataclass

from gpt2c.commands.command_line import parse
from gpt2c.errors import TransferError
from gpt2c.models.published import PUBLISHED, published
from gpt2c.support.fields import flag
from gpt2c.support.machine import in_units
from gpt2c.support.streams import say
from gpt2c.support.transfer import fetch, part_of


@dataclass
class DownloadConfig:
    name: str = flag("", "model to fetch", metavar="NAME", default_text="list them")
    to: str = flag("", "file or folder to put it in", metavar="PATH", default_text="this folder")
    overwrite: bool = flag(False, "replace another file that is there")


def main(argv):
    (config,), _ = parse(argv, [DownloadConfig], "gpt2c download", __doc__.partition("\n\n")[2], ["name"])
    if not config.name:
        print(listing())
        return
    model = published(config.name)
    if not model.file:
        raise TransferError(
            f"{config.name} is to be fetched by hand: take a .gguf file, or the whole folder, from {model.page}, then "
            "gpt2c chat PATH"
        )
    is_file = os.path.basename(config.to) and not os.path.isdir(config.to)
    path = config.to if is_file else os.path.join(config.to, model.file)
    new = transferred(model, path, config.overwrite)
    print(f"{path}: {in_units(model.size)}, {'fetched' if new else 'already there'}, its SHA-256 is right")
    print(f"to chat with it: gpt2c chat {shlex.quote(path)}")


def listing():
    width = max(map(len, PUBLISHED))
    rows = ((name, in_units(model.size) if model.file else "by hand", model.page) for name, model in PUBLISHED.items())
    return "\n".join(f"{name:<{width}}  {size:>8}  {page}" for name, size, page in rows)


def transferred(model, path, overwrite):
    """Whether it had to be fetched."""
    mirror = os.environ.get("GPT2C_MODELS_URL")
    address = f"{mirror.rstrip('/')}/{model.file}" if mirror else model.address
    try:
        return fetch(address, path, model.size, model.sha256, overwrite)
    except KeyboardInterrupt:
        say(f"\nstopped{kept(path)}", "stderr")
        raise
    except TransferError as error:
        by_hand = f"fetch {model.file} by hand from {model.page}, put it at {path} and run this again, which checks it"
        raise TransferError(f"{error}{kept(path)}; or {by_hand}") from error


def kept(path):
    """What a message says of the part that came."""
    part = part_of(path)
    if not part.is_file():
        return ""
    return f"; the first {in_units(part.stat().st_size)} are kept, and the same command goes on from there"
