"""What the `tokenizers` library refuses, and what it would not survive."""

import json
from contextlib import contextmanager

from gpt2c.errors import TokenizationError

PANIC = ("pyo3_runtime", "PanicException")  # a fault in the library itself; a BaseException


@contextmanager
def refusals(what):
    """Makes a refusal a TokenizationError that begins with `what`. The library raises plain Exceptions, nothing more special,
    or it panics; anything else is a fault of this program and stays what it is."""
    try:
        yield
    except BaseException as error:
        kind = type(error)
        if kind is not Exception and (kind.__module__, kind.__name__) != PANIC:
            raise
        raise TokenizationError(f"{what}: {' '.join(str(error).split())}") from None


def library_of(document):
    """The library's object for a parsed tokenizer.json; it neither truncates nor pads."""
    from tokenizers import Tokenizer

    what = "the tokenizers library refuses this tokenizer.json"
    if isinstance(document, dict):
        if (second := _without_prefix(document.get("model"))) is not None:
            found = f"its merges join {second!r}, which does not begin with the prefix {document['model'][PREFIX]!r} of subwords"
            raise TokenizationError(f"{what}: {found}")
        document = document | {"truncation": None, "padding": None}
    try:
        text = json.dumps(document)  # what was checked is what is read: of a key that is there twice, the last
    except RecursionError:
        raise TokenizationError(f"{what}: it is nested too deeply") from None
    with refusals(what):
        library = Tokenizer.from_str(text)
    for token in document.get("added_tokens") or ():
        if (id := library.token_to_id(token["content"])) != token["id"]:
            raise TokenizationError(f"its added token {token['content']!r} has the id {token['id']}, where {id} is the next one")
    return library


PREFIX = "continuing_subword_prefix"


def _without_prefix(model):
    """The first second part of a merge without the prefix that the library cuts off, whatever is there; None if there is
    none."""
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list) or not isinstance(model.get(PREFIX), str):
        return None
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    seconds = (pair[1] for pair in pairs if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], str))
    return next((second for second in seconds if not second.startswith(model[PREFIX])), None)
