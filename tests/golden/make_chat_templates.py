"""Writes chat_templates.json: conversations as transformers writes and encodes them. python tests/golden/make_chat_templates.py

Needs transformers (made with 5.24) and tests/ on the path. The templates are in the manner of SmolLM2's, Qwen3's, Llama 3's and
Mistral's, and use what those use.
"""

import json
import tempfile
from pathlib import Path

from folders_tokenizers import LLAMA3_TEMPLATE, MISTRAL_TEMPLATE, QWEN3_TEMPLATE
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from gpt2c.tokenizers.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = """{%- macro turn(role, text) %}
{{- '<|im_start|>' ~ role ~ '\\n' ~ text ~ '<|im_end|>\\n' }}
{%- endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
    {{- '# Tools' }}
    {%- for tool in tools %}
        {{- '\\n' }}{{ tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- turn('system', messages[0].content) }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == 'user' and not message.content.startswith('<tool>') %}
        {%- set ns.open = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}{% continue %}{% endif %}
    {%- set content = message.content if message.content is string else '' %}
    {%- set thought = message.thought if message.thought is defined and message.thought is not none else '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if message.role == 'assistant' and (loop.last or loop.index0 > ns.last) and thought %}
        {{- turn('assistant', '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content) }}
    {%- else %}
        {{- turn(message.role, content) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""
HEADERS = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}
{% set offset = 0 %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set offset = 1 %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages[offset:] %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must take turns') }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
SPECIALS = ("<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PROSE = "You are helpful. What is the capital of France? Today the user and the assistant think. \n\n# Tools\nsystem\n" * 9
TURNS = (("user", "What is the capital of\n France?"), ("assistant", "\n\nParis é日🙂 "), ("user", "  and\tItaly?\n"))
TOOLS = [{"type": "function", "function": {"name": "wörter", "parameters": {"a<b>&": ["x", 1, None, True]}}}]


def conversations():
    messages = [{"role": role, "content": content} for role, content in TURNS]
    system = {"role": "system", "content": " Be brief. "}
    thinking = [*messages[:1], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nParis"}, *messages[2:]]
    for talk in (messages, messages[:1], [system, *messages], messages[:2], thinking, [{"role": "user", "content": ""}]):
        for prompt in (True, False):
            yield talk, {"add_generation_prompt": prompt}
    yield messages, {"add_generation_prompt": True, "tools": TOOLS, "enable_thinking": False, "date_string": "1 May 2026"}


def main():
    made = Tokenizer.make("bpe", PROSE, vocab_size=340, specials=SPECIALS)
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.write(made.to_json())
        file.flush()
        theirs = PreTrainedTokenizerFast(tokenizer_file=file.name, bos_token=SPECIALS[0], eos_token=SPECIALS[1])
    templates, cases = {"chatml": CHATML, "thinking": THINKING, "headers": HEADERS}, []
    templates |= {"llama3": LLAMA3_TEMPLATE, "qwen3": QWEN3_TEMPLATE, "mistral": MISTRAL_TEMPLATE}
    for name, template in templates.items():
        for messages, how in conversations():
            try:
                text = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, **how)
            except TemplateError:  # Mistral's has no system prompt
                continue
            marked = "{% generation %}" in template and not how["add_generation_prompt"]
            kind = dict(chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=marked)
            found = theirs.apply_chat_template(messages, **kind, **how)
            case = {"template": name, "messages": messages, "how": how, "text": text, "ids": found["input_ids"]}
            cases.append(case | ({"answers": found["assistant_masks"]} if marked else {}))
    document = {"tokenizer": json.loads(made.to_json()), "templates": templates, "cases": cases}
    path = Path(__file__).with_name("chat_templates.json")
    path.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
