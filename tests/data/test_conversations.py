"""Conversations as records and in one line."""

import json

import pytest
from texts import ITEMS

from gpt2c.data import Reading, read_items
from gpt2c.data.conversations import conversation, messages_of, prompts_and_answers
from gpt2c.data.items import are_conversations
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


# ---- a model with a chat template of its own

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def templated():
    made = Tokenizer.make("byte", specials=("<|im_start|>", "<|im_end|>"))
    made.chat_template, made.ends = CHATML, [257]
    return made


def test_all_kinds_of_conversations_have_messages():
    turn = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    records = ({"prompt": "a b", "completion": "c"}, {"messages": turn}, "User: a b Assistant: c </s>")
    assert [messages_of(record, "") for record in records] == [turn] * 3
    strange = [{"role": "tool", "content": None, "name": "x"}]
    assert messages_of({"messages": strange}, "") == strange


def test_its_template_writes_the_items(templated, write):
    def end(text):
        return [*text.encode(), 257, 10]

    records = [
        {"prompt": "a", "completion": "b"},
        {"messages": [{"role": "tool", "content": "<|im_end|>c"}]},
        "User: d Assistant: e",
    ]
    path = write("a.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    first, second, third = read_items([path], Reading(), templated)
    asked = [256, *end("user\na"), 256, *b"assistant\n"]
    assert first.ids.tolist() == [*asked, *end("b")] and first.counts.tolist() == [False] * len(asked) + [True] * 3
    assert second.ids.tolist() == [256, *end("tool\n<|im_end|>c")] and not second.counts.any()
    assert third.counts.sum() == 3 and third.ids[-3:].tolist() == end("e")
    every = read_items([path], Reading(), templated, mask_prompt=False)
    assert [item.ids.tolist() for item in every] == [item.ids.tolist() for item in (first, second, third)]
    assert all(item.counts.all() for item in every) and first.counts.dtype == bool and first.ids.dtype == "int32"


def test_what_a_template_cannot_write_is_named_with_its_place(templated, write):
    templated.chat_template = CHATML + "{% if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    for message, why in (
        ({"role": "tool", "content": ""}, "no tools"),
        ({"role": "user", "content": 3j.imag}, None),
        ({}, "role None"),
    ):
        path = write("a.jsonl", json.dumps({"messages": [message, {"role": "assistant", "content": "b"}]}))
        if why is None:
            assert len(read_items([path], Reading(), templated)) == 1
            continue
        with pytest.raises(InputError, match=f"row 1 of .*{why}"):
            read_items([path], Reading(), templated)


def test_what_are_conversations(write):
    talk, text = json.dumps(ITEMS[0]) + "\n", json.dumps({"text": "a"}) + "\n"
    for content, found in ((talk * 3, True), (talk + text, False), (text, False), ("", False)):
        assert are_conversations([write("a.jsonl", content)], Reading()) == found
    assert not are_conversations([write("b.txt", talk)], Reading()) and not are_conversations([], Reading())
