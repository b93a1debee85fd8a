"""Conversations to learn from: their ids as the model's chat template writes them, and which of these are the answers.

A template may say itself what the model writes: {% generation %}. Else an answer is what the conversation with it has more than
the one before it that asks for an answer. Where a template writes an earlier turn otherwise once others follow (without what was
thought before it, say), each answer is learned in the conversation as it was then.
"""

import functools
import re
from itertools import chain
from typing import NamedTuple

from gpt2c.errors import TokenizationError
from gpt2c.tokenizers.sandbox import CLOSE, OPEN
from gpt2c.tokenizers.templates import ids_of, written

BORDER = re.compile(f"[{OPEN}{CLOSE}]")


class Lesson(NamedTuple):
    ids: list[int]
    counts: list[bool]  # whether a token is of an answer, its end included


def lessons(tokenizer, messages, **variables):
    """The Lessons of a conversation, [{"role": "user", "content": "..."}, ...]: one, or one for each answer."""
    write = functools.partial(written, tokenizer, borders=True, **variables)
    whole = write(messages, add_generation_prompt=False)
    answers = [n for n, message in enumerate(messages) if message.get("role") == "assistant"]
    then = [write(messages[: n + 1], add_generation_prompt=False) if n + 1 < len(messages) else whole for n in answers]
    together = all(map(whole.startswith, then))
    if OPEN in whole:
        texts = [whole] if together else [_last_alone(text) for text in then]
    else:
        spans = [(_asked(write, messages[:n], text), len(text)) for n, text in zip(answers, then)]
        texts = [_bordered(whole, spans)] if together else [_bordered(text, [span]) for text, span in zip(then, spans)]
    return [_lesson(tokenizer, text) for text in texts]


def _asked(write, messages, answered):
    """How much of the text of a conversation with an answer was there when it was asked for."""
    asked = write(messages, add_generation_prompt=True)
    if not answered.startswith(asked):
        raise TokenizationError(
            "the chat template does not go on from where it asks for an answer, so that nothing says which text is the answer; "
            "mark it there with {% generation %}"
        )
    return len(asked)


def _bordered(text, spans):
    """The text with borders around what lies in these spans, which follow each other."""
    for begin, end in reversed(spans):
        text = f"{text[:begin]}{OPEN}{text[begin:end]}{CLOSE}{text[end:]}"
    return text


def _last_alone(text):
    """The text with borders around the last answer alone."""
    before, border, answer = text.rpartition(OPEN)
    return BORDER.sub("", before) + border + answer


def _lesson(tokenizer, text):
    """The Lesson of a text with borders. A turn's end that follows an answer belongs to it, and an answer at the end of all has
    one in any case: what has never learned to stop does not."""
    segments, answers = BORDER.split(text), [False, *(border == OPEN for border in BORDER.findall(text))]
    ids, counts = ids_of(tokenizer, "".join(segments)), []
    pieces = [ids_of(tokenizer, segment) for segment in segments]
    if list(chain.from_iterable(pieces)) == ids:
        counts = [answer for piece, answer in zip(pieces, answers) for _ in piece]
    else:  # tokens reach over borders, or depend on the text before: such a token is of what it ends in
        for number, answer in enumerate(answers):
            before = ids_of(tokenizer, "".join(segments[: number + 1]))
            counts += [answer] * (_common(ids, before) - len(counts))
        counts += [answers[-1]] * (len(ids) - len(counts))
    for at, id in enumerate(ids[1:], 1):
        if counts[at - 1] and id in tokenizer.ends and ids[at - 1] not in tokenizer.ends:
            counts[at] = True
    last = max((at for at, answer in enumerate(answers) if answer), default=None)
    if last is not None and not any(segments[last + 1 :]) and not set(tokenizer.ends) & set(pieces[last]):
        ids, counts = [*ids, *tokenizer.ends[:1]], [*counts, *[True] * len(tokenizer.ends[:1])]
    return Lesson(ids, counts)


def _common(ids, others):
    """How many ids two lists begin with alike."""
    return next((at for at, (one, other) in enumerate(zip(ids, others)) if one != other), min(len(ids), len(others)))
