"""Conversations as records and in one line."""

import pytest
from texts import ITEMS

from gpt2c.data.conversations import conversation, prompts_and_answers
from gpt2c.errors import InputError


def test_conversations():
    assert conversation({"prompt": "hi", "completion": "ho"}, "") == [("User: hi", False), (" Assistant:", False), (" ho", True)]
    many = conversation(
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
                {"role": "assistant", "content": "d"},
            ]
        },
        "",
    )
    assert "".join(text for text, _ in many) == "System: s User: a Assistant: b User: c Assistant: d"
    assert [text for text, answer in many if answer] == [" b", " d"]
    spelled = conversation("User: a Assistant: b User: c Assistant: d </s>", "")
    assert "".join(text for text, _ in spelled) == "User: a Assistant: b User: c Assistant: d"
    assert [text for text, answer in spelled if answer] == [" b", " d"]
    with pytest.raises(InputError, match="row 1 has no answer"):
        conversation("just text", "row 1")


def test_questions_with_their_answers():
    assert prompts_and_answers(ITEMS[2], "") == [("Hello.", "Hi!"), ("Again.", "Hi, hi!")]
    assert prompts_and_answers("User: a b Assistant: c </s>", "") == [("a b", "c")]
