"""Conversations: what a model reads, and which part of it is an answer.

A record {"prompt", "completion"} or {"messages": [{"role", "content"}, ...]} becomes

    User: how do mountains form? Assistant: plates collide
    `------------ not counted -----------'`-- counted ----'

and so does a plain string of that form; the end-of-text token follows each answer. A checkpoint records that its model was
trained on conversations (Model.turns): then gpt2c chat puts the user's input into the same form. For a model with a chat template
of its own the template says what becomes of the messages (data/items.py).
"""

import re
import reprlib

from gpt2c.errors import DataError
from gpt2c.tokenizers.turns import NAMES

SHOWN = 80  # characters of a record's keys in an error


def conversation(record, where):
    """[(text, whether it is an answer), ...]: joined, the texts are what the model reads."""
    if isinstance(record, str):
        return _of_text(record, where)
    parts = []
    for number, message in enumerate(messages_of(record, where), 1):
        role, content = message["role"], message.get("content")
        if role not in NAMES or not isinstance(content, str):
            raise _wrong(number, where, role, content)
        gap = " " if parts else ""
        if role == "assistant":
            parts += [(f"{gap}{NAMES[role]}", False), (f" {content}", True)]
        else:
            parts.append((f"{gap}{NAMES[role]} {content}", False))
    return parts


def messages_of(record, where):
    """The messages of a conversation, objects with a role; what else is in them is the business of a chat template."""
    if isinstance(record, str):
        turns = prompts_and_answers(record, where)
        return [message for asked, answer in turns for message in _turn(asked, answer)]
    if isinstance(record, dict) and {"prompt", "completion"} <= record.keys():
        return _turn(record["prompt"], record["completion"])
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list) or not record["messages"]:
        found = type(record).__name__
        if isinstance(record, dict):
            keys = " ".join(", ".join(record).split())  # in a line, as far as there is room
            found = f"keys {keys[:SHOWN]}" if keys else "no keys"
        raise DataError(
            f"{where} has {found}; expected a string, or an object with text, with prompt and completion, or with messages"
        )
    for number, message in enumerate(record["messages"], 1):
        if not isinstance(message, dict):
            raise _wrong(number, where, None, None)
        if not isinstance(message.get("role"), str):
            raise _wrong(number, where, message.get("role"), message.get("content"))
    return record["messages"]


def _turn(asked, answer):
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _wrong(number, where, role, content):
    """The error for a message with these."""
    return DataError(
        f"message {number} in {where} has role {reprlib.repr(role)} and content of type {type(content).__name__}; "
        f"expected a role of {', '.join(NAMES)} and a string"
    )


def is_conversation(record):
    """Whether a record has something to answer."""
    if isinstance(record, str):
        return record.startswith(NAMES["user"]) and NAMES["assistant"] in record
    return isinstance(record, dict) and ("messages" in record or {"prompt", "completion"} <= record.keys())


def prompts_and_answers(record, where):
    """[(what was asked, the answer), ...] of a conversation."""
    turns, asked = [], ""
    for text, answer in conversation(record, where):
        if answer:
            turns.append((asked, text.strip()))
        else:
            asked = text.strip().removesuffix(NAMES["assistant"]).strip().removeprefix(NAMES["user"]).strip() or asked
    return turns


def _of_text(text, where):
    """The same from text that spells it out; a closing </s> stands for the end-of-text token."""
    text = text.rstrip().removesuffix("</s>").rstrip()
    parts = [part for part in re.split(r"(?<=Assistant:)|(?= User:)", text) if part]
    answers = [False, *(before.endswith("Assistant:") for before in parts[:-1])]
    if not any(answers):
        raise DataError(f"{where} has no answer; expected User: ... Assistant: ...")
    return list(zip(parts, answers))
