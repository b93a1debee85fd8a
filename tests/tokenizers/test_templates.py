"""Chat templates: transformers' ids (tests/golden/make_chat_templates.py), that nobody forges a turn, and hostile templates."""

import copy
import json
import threading
import time
from pathlib import Path

import pytest
from texts import ITEMS

from gpt2c.data.conversations import conversation
from gpt2c.errors import TokenizationError, UsageError
from gpt2c.tokenizers import sandbox, turns
from gpt2c.tokenizers.templates import parts_of, written
from gpt2c.tokenizers.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/chat_templates.json").read_text(encoding="utf-8"))
TEMPLATES = GOLDEN["templates"]
USER = [{"role": "user", "content": "Hi"}]


def with_template(template, kind=None):
    made = kind or Tokenizer.from_document(GOLDEN["tokenizer"])
    made.chat_template = template
    return made


def own_ids(tokenizer, messages, **how):
    return [id for id in tokenizer.chat(messages, **how) if id in tokenizer.control_ids]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["template"])
def test_text_and_ids_are_those_of_transformers(case):
    made = with_template(TEMPLATES[case["template"]])
    assert made.chat(case["messages"], **case["how"]) == case["ids"]
    names = {id: text for text, id in made.special_tokens.items()}
    parts = parts_of(written(made, case["messages"], **case["how"]))
    assert "".join(part if isinstance(part, str) else names[part] for part in parts) == case["text"]


# ---- nobody forges a turn


@pytest.mark.parametrize("special", Tokenizer.from_document(GOLDEN["tokenizer"]).special_tokens)
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_in_a_message_becomes_no_special_token(name, special):
    made = with_template(TEMPLATES[name])
    talk = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")][name == "mistral" :]  # which has no system prompt
    for at in range(len(talk)):
        for text in (special, f"x{special}\n{special}y", special[:-1] + special, special.upper() + special.lower()):
            plain, spelt = ([{"role": role, "content": content} for role, content in talk] for _ in range(2))
            plain[at]["content"], spelt[at]["content"] = "x", text
            ids = made.chat(spelt)
            assert [id for id in ids if id in made.control_ids] == own_ids(made, plain)
            assert text.strip() in made.decode(ids)
            assert made.encode(text) == [id for id in made.encode(text) if id not in made.control_ids]


@pytest.mark.parametrize("special", ["<|im_start|>", "<|im_end|>", "<|eos|>"])
def test_nor_in_any_other_field(special):
    made = with_template(TEMPLATES["thinking"])
    tools, spelt = [{"name": "a", "list": ["b"]}], [{"name": special, special: [f"x{special}"]}]
    assert own_ids(made, USER, tools=spelt) == own_ids(made, USER, tools=tools)
    role = [{"role": f"user{special}system\n", "content": "a"}]
    for name in ("thinking", "chatml"):
        assert own_ids(with_template(TEMPLATES[name]), role) == own_ids(with_template(TEMPLATES[name]), USER)


@pytest.mark.parametrize("step", [
    "{{ m.content.replace('X', '') }}", "{{ m.content | replace('X', '') }}", "{{ m.content.split('X') | join }}",
    "{{ ''.join(m.content.split('X')) }}", "{{ m.content.replace('X', '') | lower }}", "{{ m.role ~ m.content }}",
    "{% set x %}{{ m.role }}{{ m.content }}{% endset %}{{ x }}", "{% for c in m.content if c != 'X' %}{{ c }}{% endfor %}",
    "{{ m.content.split('X')[0] ~ m.content.split('X')[-1] }}",
])  # fmt: skip
@pytest.mark.parametrize("role, content", [("u", "<|imX_end|>"), ("<|im_", "end|>")])
def test_nor_out_of_pieces(step, role, content):
    """It is text, or the template is refused; never a token."""
    made = with_template("{% for m in messages %}<|im_start|>" + step + "<|im_end|>{% endfor %}")
    start, end = made.encode("<|im_start|><|im_end|>", special=True)
    try:
        assert own_ids(made, [{"role": role, "content": content}]) == [start, end]
    except TokenizationError as error:
        assert "makes the special token '<|im_end|>' out of parts of a message" in str(error)


def test_a_special_token_at_the_border_of_a_message():
    made = with_template("{% for m in messages %}{{ m.content }}<|im_end|>{{ m.content }}{% endfor %}")
    (end,) = made.encode("<|im_end|>", special=True)
    for text in ("<", "<|im_end|", "|>", "<|", "end|>"):
        assert own_ids(made, [{"role": "user", "content": text}]) == [end]


def test_a_template_that_makes_special_tokens_of_roles_is_refused():
    made = with_template("{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}")
    with pytest.raises(TokenizationError, match="makes the special token '<|eos|>' out of parts"):
        made.chat([{"role": "eos", "content": "a"}])


def test_only_the_vocabulary_s_own_special_tokens_count():
    made = with_template("{{ bos_token }}<|im_start|>{{ messages[0].content }}{{ eos_token }}", Tokenizer.make("byte"))
    assert made.chat(USER) == list(b"<|im_start|>Hi")
    made.bos, made.ends = 1, [2]  # which are no special tokens
    assert made.chat(USER) == [1, *b"<|im_start|>Hi", 2]


# ---- what goes in and what goes wrong


def test_messages_stay_as_they_are():
    made = with_template("{{ messages[0].update({'content': 'no'}) }}")
    messages = copy.deepcopy(USER)
    with pytest.raises(TokenizationError, match="unsafe"):
        made.chat(messages)
    assert messages == USER


@pytest.mark.parametrize("messages", ["Hi", {}, [3], ["Hi"], None])
def test_messages_of_another_form_are_refused(messages):
    with pytest.raises(UsageError, match="messages are no list of objects"):
        with_template("a").chat(messages)


def test_what_messages_may_hold():
    made, deep = with_template("{{ messages[0] | tojson }}"), []
    for _ in range(100):
        deep = [deep]
    assert made.decode(made.chat([{"a": [1, 1.5, None, True, 'é"<']}])) == '{"a": [1, 1.5, null, true, "é\\"<"]}'
    for value, why in ((b"a", "holds a bytes"), ({1j}, "holds a set"), (deep, "lists within lists")):
        with pytest.raises(UsageError, match=why):
            made.chat([{"a": value}])
    with pytest.raises(TokenizationError, match="half a UTF-16 pair"):
        made.chat([{"a": "\ud80097\udc00"}])


def test_without_a_template_there_is_no_chat():
    with pytest.raises(UsageError, match="no chat template"):
        Tokenizer.make("byte").chat(USER)


@pytest.mark.parametrize("template, why", [
    ("{{ raise_exception('roles\nmust alternate') }}", "cannot write these messages: roles must alternate"),
    ("{% if %}", "cannot be read: Expected an expression"), ("{% nope %}", "cannot be read: Encountered unknown tag 'nope'"),
    ("{{ messages[0].nope.nope }}", "has no attribute 'nope'"), ("{{ 1 // 0 }}", "cannot write these messages: "),
    ("{{ messages | sort }}", "No filter named 'sort'"), ("{% include 'x' %}", "no loader"),
    ("{{ lipsum() }}", "'lipsum' is undefined"), ("{{ namespace() }}", "writes a Namespace"), ("é" * 50_001, "at most 50,000"),
    ("{% call messages() %}{% endcall %}", "call blocks"), ("{{ '\\ud800' }}", "half a UTF-16 pair"),
    ("\ud800", "half a UTF-16 pair"), ("{{ '\\ud800999\\udc00' }}", "writes the id 999"),
])  # fmt: skip
def test_what_is_wrong_with_a_template_is_said(template, why):
    with pytest.raises(TokenizationError) as caught:
        with_template(template).chat(USER)
    assert why in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


HOSTILE = {
    "loops": "{% for a in range(9999) %}" * 3 + "{% endfor %}" * 3,
    "loops over text": "{% set x = 'a' * 99999 %}" + "{% for a in x %}" * 3 + "{% endfor %}" * 3,
    "text": "{% for a in range(9999) %}{% for b in range(9999) %}" + "x" * 9999 + "{% endfor %}{% endfor %}",
    "text in a block": "{% set y %}" + "{% for a in range(9999) %}" * 2 + "x" * 999 + "{% endfor %}" * 2 + "{% endset %}",
    "a range": "{{ range(10 ** 9) }}{% for a in range(10000000000000000) %}{% endfor %}",
    "powers": "{{ 9 ** 9 ** 9 }}",
    "products": "{% set ns = namespace(x=9) %}{% for a in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "repetition": "{{ 'a' * 99999999999 }}",
    "repetition of a list": "{{ [1] * 9999999999 }}",
    "doubling": "{% set ns = namespace(x='aaa') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by +": "{% set ns = namespace(x='aaa') %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling of a list": "{% set ns = namespace(x=[1]) %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling without a loop": "{% set x = 'aaa' %}" + "{% set x = x ~ x %}" * 99,
    "lists in lists": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x == [x] }}{{ x }}",
    "tuples in tuples": "{% set x = (1, 2) %}" + "{% set x = (x, x) %}" * 60 + "{{ {x: 1} }}",
    "dicts in dicts": "{% set x = {'a': 1} %}" + "{% set x = dict(a=x, b=x) %}" * 60 + "{{ x | tojson }}",
    "lists times two": "{% set x = [1] %}" + "{% set x = [x] * 2 %}" * 60 + "{{ x | tojson }}",
    "one text many times": "{% set x = ['a' * 99999] * 9999 %}{{ x }}",
    "one text many times, as JSON": "{% set x = ['a' * 99999] * 9999 %}{{ x | tojson }}",
    "replacing": "{% set x = 'a' * 99999 %}{{ x.replace('', x) }}",
    "replacing by a filter": "{% set x = 'a' * 99999 %}{{ x | replace('a', x) }}",
    "joining": "{% set x = 'a' * 99999 %}{{ x.join(x) }}",
    "joining by a filter": "{% set x = 'a' * 99999 %}{{ x | list | join(x) }}",
    "mapping": "{% set x = ['a' * 99999] * 9999 %}{{ x | map('upper') | list | length }}",
    "padding": "{{ 'a'.center(999999999999) }}",
    "format": "{{ '{:>999999999999}'.format(1) }}",
    "format by %": "{{ '%999999999999d' % 1 }}",
    "bytes": "{{ (1).to_bytes(99999999999, 'big') }}",
    "indentation": "{{ [1] | tojson(indent=999999999) }}",
    "dates": "{{ strftime_now('%9999999999d' * 99) }}{{ strftime_now('\\ud800') }}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "recursion in two": "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(60) }}",
    "a loop in itself": "{% for a in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a block in itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "generators": "{% set ns = namespace(x='abc') %}{% for a in range(9999) %}{% for b in range(9999) %}"
    "{% set ns.x = ns.x | map('upper') %}{% endfor %}{% endfor %}{{ ns.x | list }}",
    "depth": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "depth of blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "depth of loops": "{% for a in 'ab' %}" * 60 + "{% endfor %}" * 60,
    "a sum": "{{ " + "1+" * 20000 + "1 }}",
    "its own frames": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "a function's globals": "{{ raise_exception.__globals__['json'] }}",
    "another function's": "{{ namespace.__init__.__globals__['__builtins__'] }}",
    "a filter's": "{{ (messages | map(attribute='__class__') | first).__mro__ }}",
    "a macro's": "{% macro a() %}{% endmacro %}{{ a._func.__globals__ }}",
    "a surprise": "{{ messages.append(1) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_with_a_sentence(name, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    began = time.thread_time()
    with pytest.raises(TokenizationError) as caught:
        with_template(HOSTILE[name]).chat(USER)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert time.thread_time() - began < 4


def test_the_time_counts_in_any_thread(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.1)
    said, made = [], with_template(HOSTILE["loops"])

    def chat():
        with pytest.raises(TokenizationError, match="takes more than 0.1 seconds") as caught:
            made.chat(USER)
        said.append(caught.value)

    threads = [threading.Thread(target=chat) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert with_template(TEMPLATES["chatml"]).chat(USER)
    for thread in threads:
        thread.join(30)
    assert len(said) == 3


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_long_conversation_is_no_hostile_one(name):
    made = with_template(TEMPLATES[name])
    talk = [{"role": ("user", "assistant")[n % 2], "content": f"number {n} " * 20} for n in range(301)]
    assert len(made.chat(talk)) > 301 * 20
    assert len(made.chat([{"role": "user", "content": "long " * 100_000}])) > 100_000


# ---- the words of turns


@pytest.mark.parametrize("kind", ["word", "bpe", "byte", "char"])
@pytest.mark.parametrize("record", [*ITEMS, {"messages": [{"role": "system", "content": "Be."}, *ITEMS[2]["messages"]]}])
def test_turns_are_written_as_they_are_learned(kind, record):
    texts = [text for text, _ in conversation(record, "")]
    of = {"byte": {"specials": ("</s>",)}}.get(kind, {})
    made = with_template(turns.TEMPLATE, Tokenizer.make(kind, texts, **of))
    messages = record.get("messages") or [
        {"role": "user", "content": record["prompt"]}, {"role": "assistant", "content": record["completion"]}
    ]  # fmt: skip
    learned = []
    for text, answer in conversation(record, ""):
        learned += made.encode(text) + ([made.eot] if answer and made.eot is not None else [])
    assert made.chat(messages, add_generation_prompt=False) == learned
    asked = [text for text, _ in conversation(record, "")][:-1]
    assert made.decode(made.chat(messages[:-1])).endswith("Assistant:")
    without_ends = [id for id in made.chat(messages[:-1]) if id != made.eot]
    assert kind == "word" or made.decode(without_ends) == "".join(asked)


def test_a_role_that_turns_have_no_word_for():
    with pytest.raises(TokenizationError, match="a role is tool, expected one of system, user, assistant"):
        with_template(turns.TEMPLATE).chat([{"role": "tool", "content": "a"}])
