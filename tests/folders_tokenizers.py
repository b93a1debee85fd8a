"""Small tokenizers in the manner of those of well-known models, as the folders of these models have them."""

import json
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

PROSE = "It's the capital of France, isn't it? We'll say 12345 or 67: é日🙂 naïve.\n\n  def f(x):\n\treturn x ** 2\r\n" * 9
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>")
SPECIALS = {
    "gpt2": ("<|endoftext|>",),
    "smollm2": CHATML,
    "llama3": LLAMA3,
    "qwen2": CHATML,
    "qwen3": CHATML,
    "mistral": ("<unk>", "<s>", "</s>"),
}
PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{% for message in messages %}"
    "{% set header = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' %}"
    "{% set content = header + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN3_TEMPLATE = r"""{%- set ns = namespace(last=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- if ns.open and message.role == 'user' %}
        {%- set ns.open = false %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' and loop.index0 > ns.last %}
        {{- '<think>\n' + (message.thought or '') + '\n</think>\n\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "gpt2": "",
    "smollm2": CHATML_TEMPLATE,
    "llama3": LLAMA3_TEMPLATE,
    "qwen2": CHATML_TEMPLATE,
    "qwen3": QWEN3_TEMPLATE,
    "mistral": MISTRAL_TEMPLATE,
}
CONFIGS = {  # tokenizer_config.json
    "gpt2": {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024},
    "smollm2": {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": CHATML[1],
        "eos_token": CHATML[2],
        "chat_template": CHATML_TEMPLATE,
    },
    "llama3": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": LLAMA3[0], "eos_token": LLAMA3[5]},
    "qwen2": {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": {"content": CHATML[2], "lstrip": False},
        "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML_TEMPLATE}],
    },
    "qwen3": {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": CHATML[2]},
    "mistral": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"},
}
ENDS = {  # the texts of generation_config.json's eos_token_id
    "gpt2": CHATML[:1],
    "smollm2": CHATML[2:],
    "llama3": LLAMA3[1:2] + LLAMA3[4:],
    "qwen2": (CHATML[2], CHATML[0]),
    "qwen3": (CHATML[2], CHATML[0]),
    "mistral": ("</s>",),
}
MODEL_TYPES = {"smollm2": "llama", "llama3": "llama"}  # of config.json, where it is not the name


@cache
def _trained(name):
    library = Tokenizer(models.BPE(byte_fallback=name == "mistral", unk_token="<unk>" if name == "mistral" else None))
    specials, alphabet = list(SPECIALS[name]), pre_tokenizers.ByteLevel.alphabet()
    if name == "mistral":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        library.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        specials, alphabet = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))], []
    else:
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in ("gpt2", "smollm2"))
        digits = r"\p{N}{1,3}" if name == "llama3" else r"\p{N}"
        first = pre_tokenizers.Digits(individual_digits=True) if name == "smollm2" else None
        first = first or pre_tokenizers.Split(Regex(PIECES.replace("DIGITS", digits)), "isolated")
        library.pre_tokenizer = plain if name == "gpt2" else pre_tokenizers.Sequence([first, plain])
        library.decoder = decoders.ByteLevel()
        library.normalizer = normalizers.NFC() if name.startswith("qwen") else None
    trainer = trainers.BpeTrainer(vocab_size=640, initial_alphabet=alphabet, special_tokens=specials, show_progress=False)
    library.train_from_iterator([PROSE if name != "mistral" else PROSE.replace("🙂", "")], trainer)
    document = json.loads(library.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] in SPECIALS[name]]
    return document


def folder(name):
    """{name of a file: its document, or text} of a model's folder."""
    document = json.loads(json.dumps(_trained(name)))
    ids = document["model"]["vocab"]
    if name == "llama3":
        document["model"]["ignore_merges"] = True
        library = processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=[(LLAMA3[0], ids[LLAMA3[0]])])
        plain = json.loads(processors.ByteLevel(trim_offsets=False).__getstate__())
        document["post_processor"] = {"type": "Sequence", "processors": [plain, json.loads(library.__getstate__())]}
    if name in ("gpt2", "smollm2"):
        document["model"]["merges"] = [" ".join(merge) for merge in document["model"]["merges"]]
    if name == "qwen3":
        added = {"content": "<think>", "id": len(ids), "special": False, "normalized": False}
        document["added_tokens"].append(dict.fromkeys(("single_word", "lstrip", "rstrip"), False) | added)
    ends = [ids[text] for text in ENDS[name]]
    files = {
        "tokenizer.json": document,
        "tokenizer_config.json": CONFIGS[name],
        "generation_config.json": {"eos_token_id": ends if len(ends) > 1 else ends[0]},
        "config.json": {"model_type": MODEL_TYPES.get(name, name), "eos_token_id": ends[-1]},
    }
    if TEMPLATES[name] and "chat_template" not in CONFIGS[name]:
        files["chat_template.jinja"] = TEMPLATES[name]
    return files
