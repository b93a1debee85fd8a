"""Conversations as a model's chat template writes them, and their ids.

Only the template's own text becomes special tokens. Where its source spells one, a mark with its id takes its place before the
template is compiled, between two halves of UTF-16 pairs that no text of a message can have. So whatever a template does with a
message, it can make no special token of it: what a message spells is encoded as any other text.
"""

import functools
import itertools
import re

from gpt2c.errors import TokenizationError, UsageError
from gpt2c.tokenizers.byte_level import utf8
from gpt2c.tokenizers.sandbox import DEEPEST, Sandbox, render

BEGIN, END = "\ud800", "\udc00"
MARK = re.compile(f"{BEGIN}([0-9]{{1,9}}){END}")


def chat_ids(tokenizer, messages, **variables):
    """The ids of a conversation."""
    return ids_of(tokenizer, written(tokenizer, messages, **variables))


def ids_of(tokenizer, marked):
    """The ids of what a template has written. Where no message spells a special token they are those of the whole text."""
    parts, names = parts_of(marked), {id: text for text, id in tokenizer.special_tokens.items()}
    own = parts[1::2]
    if names.keys() >= set(own) and not any(map(tokenizer.special_pattern.search, parts[::2])):
        ids = tokenizer.encode("".join(part if isinstance(part, str) else names[part] for part in parts), special=True)
        if [id for id in ids if id in tokenizer.control_ids] == [id for id in own if id in tokenizer.control_ids]:
            return ids
    return [id for part in parts for id in (tokenizer.encode(part) if isinstance(part, str) else [part])]


def parts_of(marked):
    """[text, id, text, ..., text]: what a template has written, with the ids of the special tokens that are its own."""
    return [int(part) if odd else part for part, odd in zip(MARK.split(marked), itertools.cycle((False, True)))]


def written(tokenizer, messages, borders=False, **variables):
    """What the template writes, a mark for each special token of its own; with `borders` also OPEN and CLOSE around what it says
    that the model writes."""
    if not tokenizer.chat_template:
        raise UsageError("the model's tokenizer has no chat template; use a model for chat, or give a prompt instead")
    if not isinstance(messages, (list, tuple)) or not all(isinstance(message, dict) for message in messages):
        raise UsageError('messages are no list of objects; expected [{"role": "user", "content": "..."}, ...]')
    said = []
    variables = _copied({"tools": None, "documents": None, **variables, "messages": messages}, said)
    end = next(iter(tokenizer.ends), tokenizer.eot)
    tokens = {"bos_token": tokenizer.bos, "eos_token": end}
    variables |= {name: _mark(id) for name, id in tokens.items() if id is not None}
    template = _compiled(tokenizer.chat_template, tuple(tokenizer.special_tokens.items()), tokenizer.special_pattern)
    marked = render(template, variables, sum(map(len, said)), borders)
    parts = parts_of(marked)
    texts, ids = parts[::2], parts[1::2]
    if ids and max(ids) >= tokenizer.vocab_size:
        raise TokenizationError(f"the chat template writes the id {max(ids)}, the vocabulary has {tokenizer.vocab_size}")
    for spelt in {found for text in texts for found in tokenizer.special_pattern.findall(text)}:
        if not any(spelt in text for text in said):
            raise TokenizationError(
                f"the chat template makes the special token {spelt!r} out of parts of a message, which could be anyone's; "
                "use a template that spells it out"
            )
    return marked


def _mark(id):
    return f"{BEGIN}{id}{END}"


@functools.lru_cache(maxsize=16)
def _compiled(source, tokens, pattern):
    utf8(source)
    ids = dict(tokens)
    return _sandbox().read(source, lambda text: pattern.sub(lambda found: _mark(ids[found[0]]), text))


@functools.cache
def _sandbox():
    return Sandbox()


def _copied(value, said, depth=0):
    """A copy of plain values; their texts are added to `said`."""
    if depth == DEEPEST:
        raise UsageError(f"a message has lists within lists more than {DEEPEST} times; expected a few")
    if isinstance(value, dict):
        return {_copied(key, said, depth + 1): _copied(entry, said, depth + 1) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(entry, said, depth + 1) for entry in value]
    if isinstance(value, str):
        utf8(value)
        said.append(str(value))
        return said[-1]
    if not isinstance(value, (int, float, type(None))):
        raise UsageError(f"a message holds a {type(value).__name__}; expected what JSON has")
    return value
