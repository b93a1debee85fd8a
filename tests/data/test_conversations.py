"""Conversations as records and in one line."""

import json

import pytest
from texts import ITEMS

from gpt2c.data import Reading, read_items
from gpt2c.data.conversations import conversation, prompts_and_answers
from gpt2c.errors import InputError
from gpt2c.tokenizers.tokenizer import Tokenizer


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


@pytest.mark.parametrize("role", [None, 3, ["user"], {"user": 1}, True, "User", ""])
@pytest.mark.parametrize("content", ["hi", None, 3, ["hi"]])
def test_a_message_of_another_kind_is_named(role, content):
    with pytest.raises(InputError, match="^message 1 in row 1 has role .* and content of type .*; expected a role of .*string$"):
        conversation({"messages": [{"role": role, "content": content}]}, "row 1")


@pytest.mark.parametrize("message", [None, 3, "hi", ["user", "hi"], {}])
def test_a_message_that_is_no_object_is_named(message):
    with pytest.raises(InputError, match="^message 2 in row 1 has role None"):
        conversation({"messages": [{"role": "user", "content": "hi"}, message]}, "row 1")


@pytest.mark.parametrize(
    "record", [3, None, [], {}, {"a\nb": 1}, {"messages": []}, {"messages": "hi"}, dict.fromkeys("abcdefghijklmn")]
)
def test_a_record_of_another_kind_is_named_in_a_line(record):
    with pytest.raises(InputError, match="^row 1 has .*; expected a string, or an object.*messages$") as caught:
        conversation(record, "row 1")
    assert len(str(caught.value)) < 200


def test_questions_with_their_answers():
    assert prompts_and_answers(ITEMS[2], "") == [("Hello.", "Hi!"), ("Again.", "Hi, hi!")]
    assert prompts_and_answers("User: a b Assistant: c </s>", "") == [("a b", "c")]


@pytest.mark.parametrize("special", ["<|bos|>", "<|im_start|>", "<|im_end|>", "</s>"])
def test_a_special_token_that_a_record_spells_is_text(special, write):
    made = Tokenizer.make("byte", specials=("<|bos|>", "<|im_start|>", "<|im_end|>", "</s>"))
    records = [
        {"prompt": f"a{special}", "completion": f"{special}b"},
        {"messages": [{"role": "system", "content": special}, {"role": "user", "content": "c"}]},
        {"text": f"d {special}"},
    ]
    path = write("a.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    question, talk, text = read_items([path], Reading(), made, mask_prompt=False)
    assert question.ids.tolist() == [*f"User: a{special} Assistant: {special}b".encode(), made.eot]
    assert talk.ids.tolist() == [*f"System: {special} User: c".encode()]
    assert [id for id in text.ids.tolist() if id in made.control_ids] in ([], [made.eot])
