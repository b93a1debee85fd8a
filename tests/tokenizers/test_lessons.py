"""What is learned of a conversation by a chat template: its ids, and which of them are answers."""

import json
from pathlib import Path

import pytest
from folders_tokenizers import SPECIALS, TEMPLATES, folder

from gpt2c.errors import TokenizationError
from gpt2c.tokenizers import huggingface
from gpt2c.tokenizers.lessons import lessons
from gpt2c.tokenizers.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/chat_templates.json").read_text(encoding="utf-8"))
TALK = [("system", "Be brief."), ("user", "What is it?"), ("assistant", "é日🙂"), ("user", "12345"), ("assistant", "yes")]
ENDS = {"smollm2": "<|im_end|>\n", "llama3": "<|eot_id|>", "qwen2": "<|im_end|>\n", "qwen3": "<|im_end|>\n", "mistral": "</s>"}
FAMILIES = [name for name in SPECIALS if TEMPLATES[name]]


def talk(name, *turns):
    turns = turns or TALK[name == "mistral" :]
    return [{"role": role, "content": content} for role, content in turns]


def tokenizer(name):
    return huggingface.read(folder(name), 1000)[0]


def with_template(template):
    made = Tokenizer.from_document(GOLDEN["tokenizer"])
    made.chat_template, made.ends = template, [made.special_tokens["<|im_end|>"]]
    return made


def answers(made, lesson):
    """The texts of what counts."""
    texts, run = [], []
    for id, counts in [*zip(*lesson), (None, False)]:
        if counts:
            run.append(id)
        elif run:
            texts.append(made.decode(run))
            run = []
    return texts


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answers_count_and_their_ends(name):
    made, messages = tokenizer(name), talk(name)
    found = lessons(made, messages)
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    if thought:  # which the template writes for the last answer alone
        assert [lesson.ids for lesson in found] == [made.chat(messages[:3], False), made.chat(messages, False)]
    else:
        assert [lesson.ids for lesson in found] == [made.chat(messages, False)]
    said = [text.lstrip() for lesson in found for text in answers(made, lesson)]
    assert said == [f"{thought}é日🙂{ENDS[name]}", f"{thought}yes{ENDS[name]}"]
    for lesson in found:
        assert len(lesson.ids) == len(lesson.counts) and type(lesson.counts[0]) is bool
        assert {id for id, counts in zip(*lesson) if counts} & set(made.ends)


@pytest.mark.parametrize("case", [case for case in GOLDEN["cases"] if "answers" in case], ids=lambda case: case["text"][-30:])
def test_marked_answers_are_those_of_transformers(case):
    made = with_template(GOLDEN["templates"][case["template"]])
    made.ends = [made.special_tokens["<|eot_id|>"]]
    ((ids, counts),) = lessons(made, case["messages"])
    assert ids == case["ids"] and counts == [bool(one) for one in case["answers"]]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_precedes_an_answer_is_what_chat_asks_with(name):
    made, messages = tokenizer(name), talk(name)
    for lesson, asked in zip(lessons(made, messages)[-1:], [messages[:-1]]):
        prompt = made.chat(asked)
        assert lesson.ids[: len(prompt)] == prompt and not any(lesson.counts[len(prompt) - 1 : len(prompt)])
        assert all(lesson.counts[len(prompt) :])


def test_a_conversation_without_an_answer_counts_nothing():
    made = tokenizer("smollm2")
    for messages in (talk("", ("user", "a")), talk("", ("system", "b"), ("user", "a"))):
        ((ids, counts),) = lessons(made, messages)
        assert ids == made.chat(messages, False) and not any(counts) and len(counts) == len(ids)
    ((ids, counts),) = lessons(made, talk("", ("user", "a"), ("assistant", "b"), ("user", "c")))
    assert answers(made, (ids, counts)) == ["b<|im_end|>\n"]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_message_spells_is_learned_as_text(name):
    """Every special token, in every message."""
    made = tokenizer(name)
    plain = [[id for id in ids if id in made.control_ids] for ids, _ in lessons(made, talk(name))]
    for special in made.special_tokens:
        for at in range(len(talk(name))):
            messages = talk(name)
            messages[at]["content"] = f"x{special}y"
            found = lessons(made, messages)
            assert [[id for id in ids if id in made.control_ids] for ids, _ in found] == plain
            assert any(special in made.decode(ids) for ids, _ in found)
            for ids, counts in found:
                ends = [id for id, counted in zip(ids, counts) if counted and id in made.control_ids]
                assert len(ends) == len(answers(made, (ids, counts)))  # one each, its own


def test_tokens_that_reach_over_the_border_of_an_answer_are_of_the_answer():
    made = tokenizer("smollm2")
    messages = talk("", ("user", "a"), ("assistant", "\n\n b"))
    ((ids, counts),) = lessons(made, messages)
    assert ids == made.chat(messages, False) and made.chat(messages[:1]) != ids[: len(made.chat(messages[:1]))]
    assert answers(made, (ids, counts)) == ["\n\n\n b<|im_end|>\n"]


@pytest.mark.parametrize("around, said", [
    ("{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n", "b<|im_end|>"),
    ("{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n", "b<|im_end|>"),  # its end belongs to it
    ("{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}", "b<|im_end|>\n"),
    ("{% generation %}{{ m.content | upper }}{% endgeneration %}", "B"),
])  # fmt: skip
def test_a_template_that_marks_answers_is_believed(around, said):
    made = with_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}THINK " + around + "{% else %}"
        "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>other{% endif %}"
    )
    messages = talk("", ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "b"))
    ((ids, counts),) = lessons(made, messages)
    whole = made.chat(messages, False)
    last = said if "im_end" in said else f"{said}<|im_end|>"  # what is to stop has an end
    assert ids == whole + made.ends * (last != said) and answers(made, (ids, counts)) == [said, last]


def test_marked_answers_that_later_turns_change_are_learned_one_by_one():
    made = with_template(
        "{% for m in messages %}<|im_start|>{% if m.role == 'assistant' %}{% generation %}{% if loop.last %}THINK {% endif %}"
        "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    first, second = lessons(made, talk("", ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    assert answers(made, first) == ["THINK b<|im_end|>"] and answers(made, second) == ["THINK d<|im_end|>"]
    assert "THINK b" not in made.decode(second.ids)


def test_an_answer_at_the_end_has_an_end():
    made = with_template(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    messages = talk("", ("user", "a"), ("assistant", "b"))
    ((ids, counts),) = lessons(made, messages)
    assert ids == [*made.chat(messages, False), *made.ends] and answers(made, (ids, counts)) == ["b\n<|im_end|>"]
    made.ends = []
    assert lessons(made, messages)[0].ids == made.chat(messages, False)


def test_a_template_that_asks_otherwise_than_it_goes_on_is_refused():
    made = with_template("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}?{% endif %}")
    with pytest.raises(TokenizationError, match="nothing says which text is the answer"):
        lessons(made, talk("", ("user", "a"), ("assistant", "b")))


def test_tools_reach_the_template():
    made = with_template("{{ tools[0].name }}: {% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    assert made.decode(lessons(made, talk("", ("user", "a")), tools=[{"name": "n"}])[0].ids) == "n: a<|im_end|>"
