"""Tokenizers as folders in Hugging Face's form have them: what is read, what is written, and that transformers agrees."""

import copy
import json
import os
import subprocess
from pathlib import Path

import pytest
from folders_tokenizers import CHATML, ENDS, PROSE, SPECIALS, TEMPLATES, folder

from gpt2c.errors import TokenizationError, UsageError
from gpt2c.tokenizers import huggingface
from gpt2c.tokenizers.tokenizer import Tokenizer

ROWS = 1000
CORPUS = Path(__file__).parents[1] / "corpus"
TEXTS = (
    PROSE[:120],
    "",
    " a",
    "  It's\u0301 é日🙂 12345\r\n",
    "x\x00\x7f\n\n\n y",
    "👩‍👩‍👧 中文 <s> </s> <|im_end|>",
    "naïve " * 9,
)
TALK = [
    {"role": "user", "content": "What is the capital of\n France? "},
    {"role": "assistant", "content": "é日🙂"},
    {"role": "user", "content": "12345"},
]


def read(name):
    found, why = huggingface.read(folder(name), ROWS)
    assert why == ""
    return found


@pytest.mark.parametrize("name", SPECIALS)
def test_what_a_folder_says(name):
    made = read(name)
    assert [made.tokens[id].decode() for id in made.ends] == sorted(ENDS[name], key=lambda text: text != made_end(name))
    assert made.chat_template == TEMPLATES[name]
    assert made.adds_bos == (name in ("llama3", "mistral"))
    bos = {"gpt2": None, "smollm2": CHATML[1], "llama3": "<|begin_of_text|>", "mistral": "<s>"}.get(name)
    assert made.bos == (None if bos is None else made.special_tokens[bos])
    assert set(made.special_tokens) == set(SPECIALS[name])


def made_end(name):
    return {"llama3": "<|eot_id|>"}.get(name, ENDS[name][0])


@pytest.mark.parametrize("name", SPECIALS)
def test_what_is_written_is_read_as_the_same(name):
    made = read(name)
    files, why = huggingface.write(made, ROWS)
    again, _ = huggingface.read(json.loads(json.dumps(files)), ROWS)
    assert why == "" and set(files) <= set(huggingface.FILES)
    for found in "tokens", "bos", "eot", "ends", "adds_bos", "chat_template", "special_tokens":
        assert getattr(again, found) == getattr(made, found)
    for text in TEXTS:
        assert again.encode(text) == made.encode(text) and again.encode(text, special=True) == made.encode(text, special=True)
    assert huggingface.write(again, ROWS)[0] == files


# ---- each place where a fact may be


def changed(name="smollm2", **files):
    """A folder with other keys in its documents; a key of value ... is taken out."""
    found = copy.deepcopy(folder(name))
    for stem, keys in files.items():
        file = next(known for known in huggingface.FILES if known.partition(".")[0] == stem)
        found[file] = {key: value for key, value in (found.get(file, {}) | keys).items() if value is not ...}
    return huggingface.read(found, ROWS)[0]


def test_ends_are_of_the_most_particular_file():
    ids = read("smollm2").special_tokens
    start, end, text = (ids[name] for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    assert changed(config={"eos_token_id": [text]}).ends == [end]
    assert changed(generation_config={"eos_token_id": ...}, config={"eos_token_id": [text, end]}).ends == [end, text]
    assert changed(generation_config={"eos_token_id": None}, config={"eos_token_id": ...}).ends == [end]
    assert changed(generation_config={"eos_token_id": [start, 10**9]}, tokenizer_config={"eos_token": ...}).ends == [start]
    none = {"eos_token_id": ...}
    assert changed(generation_config=none, config=none, tokenizer_config={"eos_token": ...}).ends == [text]  # by its name


def test_tokens_of_the_folder_may_be_objects_and_in_another_file():
    ids = read("smollm2").special_tokens
    objects = {"bos_token": {"content": "<|endoftext|>"}, "eos_token": {"content": "<|im_start|>"}}
    for files in (
        {"tokenizer_config": objects},
        {"tokenizer_config": dict.fromkeys(objects, ...), "special_tokens_map": objects},
    ):
        made = changed(generation_config={"eos_token_id": ...}, config={"eos_token_id": ...}, **files)
        assert (made.bos, made.ends) == (ids["<|endoftext|>"], [ids["<|im_start|>"]])
    assert changed(tokenizer_config={"bos_token": ...}, config={"bos_token_id": 1}).bos == 1
    assert changed(tokenizer_config={"bos_token": None}, config={"bos_token_id": 1}).bos is None


@pytest.mark.parametrize("name, said, adds", [
    ("llama3", ..., True), ("llama3", False, False), ("llama3", True, True), ("llama3", None, True), ("smollm2", True, True),
    ("smollm2", ..., False), ("qwen2", True, False),
])  # fmt: skip
def test_who_says_that_bos_is_added(name, said, adds):
    made = changed(name, tokenizer_config={"add_bos_token": said})
    assert made.adds_bos == adds
    files, _ = huggingface.write(made, ROWS)
    single = (files["tokenizer.json"]["post_processor"] or {}).get("single", [])
    if name == "smollm2":
        assert len(single) == 2 * adds
    assert files["tokenizer_config.json"]["add_bos_token"] == adds and huggingface.read(files, ROWS)[0].adds_bos == adds


def test_where_a_template_is():
    none = {"chat_template": ...}
    assert changed(tokenizer_config=none).chat_template == ""
    assert changed("llama3", tokenizer_config={"chat_template": "older"}).chat_template == TEMPLATES["llama3"]
    for listed, found in (([{"name": "a", "template": "b"}], "b"), ([{"name": n, "template": "b"} for n in "ac"], ""), ([], "")):
        assert changed(tokenizer_config={"chat_template": listed}).chat_template == found


def test_what_other_files_call_special_is_special():
    document = folder("smollm2")["tokenizer.json"]
    plain = [token | {"special": False} for token in document["added_tokens"]]
    named = {"additional_special_tokens": ["<|im_start|>", {"content": "<|endoftext|>"}, "not there", 3]}
    for added in ([], plain):
        made = changed(tokenizer={"added_tokens": added}, tokenizer_config=named)
        assert made.special_tokens == read("smollm2").special_tokens
        assert made.control_ids.isdisjoint(made.encode("<|im_start|><|im_end|><|endoftext|>"))


def test_a_vocabulary_and_merges_without_a_tokenizer_json():
    for name in "gpt2", "qwen2":
        files, made = folder(name), read(name)
        model = files.pop("tokenizer.json")["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        files |= {"vocab.json": model["vocab"], "merges.txt": "\n".join(["#version: 0.2", *merges, ""])}
        decoder = {id: {"content": text, "special": True} for text, id in made.special_tokens.items()}
        files["tokenizer_config.json"] = files["tokenizer_config.json"] | {"added_tokens_decoder": decoder}
        found, why = huggingface.read(json.loads(json.dumps(files)), ROWS)
        assert why == "" and found.ends == made.ends and found.special_tokens == made.special_tokens
        assert [found.encode(text, special=True) for text in TEXTS] == [made.encode(text, special=True) for text in TEXTS]
    files["tokenizer_config.json"] = {"tokenizer_class": "XyzTokenizer"}
    assert huggingface.read(files, ROWS)[1].endswith("does not know how a 'XyzTokenizer' splits text")
    assert huggingface.read({"config.json": {}}, ROWS)[1].startswith("the folder has no tokenizer.json")


# ---- what goes wrong


@pytest.mark.parametrize("files, why", [
    ({"tokenizer.json": []}, "tokenizer.json holds a list"), ({"tokenizer.json": {}}, "refuses this tokenizer.json"),
    ({"tokenizer_config.json": 3}, "tokenizer_config.json holds a int"), ({"config.json": "x"}, "config.json holds a str"),
    ({"generation_config.json": {"eos_token_id": "2"}}, "eos_token_id of generation_config.json is neither an id"),
    ({"config.json": {"eos_token_id": [True]}, "generation_config.json": {}}, "eos_token_id of config.json is neither"),
    ({"chat_template.jinja": "\ud800"}, "half a UTF-16 pair"), ({"chat_template.jinja": {"a": 1}}, "chat template is a dict"),
])  # fmt: skip
def test_damaged_files_are_refused_in_a_sentence(files, why):
    with pytest.raises(TokenizationError) as caught:
        huggingface.read(folder("smollm2") | files, ROWS)
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_more_tokens_than_rows_are_refused_and_fewer_are_not():
    size = read("smollm2").vocab_size
    assert huggingface.read(folder("smollm2"), size)[0].vocab_size == size
    with pytest.raises(TokenizationError, match=f"has {size:,} tokens, and the model {size - 1:,} rows"):
        huggingface.read(folder("smollm2"), size - 1)
    with pytest.raises(UsageError, match="give it its own"):
        huggingface.write(read("smollm2"), size - 1)


def test_added_tokens_with_ids_that_are_not_theirs_are_refused():
    """The library would give them others."""
    files = copy.deepcopy(folder("qwen3"))
    for id in (3, 10_000):
        files["tokenizer.json"]["added_tokens"][-1]["id"] = id
        with pytest.raises(TokenizationError, match=f"'<think>' has the id {id}, where "):
            huggingface.read(files, 20_000)


def test_what_cannot_be_written():
    assert huggingface.write(None, 5) == ({}, "the model has no tokenizer")
    files, why = huggingface.write(Tokenizer([b"a", b"<e>"], 1), 5)
    assert files == {} and why.startswith("this tokenizer can decode but not encode")


# ---- transformers: GPT2C_JUDGE is a Python that has it

JUDGE = os.environ.get("GPT2C_JUDGE")
PROGRAM = """
import json, sys
from transformers import AutoTokenizer
answers = []
for folder, texts, talk in json.load(sys.stdin):
    made = AutoTokenizer.from_pretrained(folder)
    how = dict(tokenize=True, return_dict=False)
    chats = [made.apply_chat_template(talk[:n], add_generation_prompt=n != 2, **how) for n in (1, 2, 3) if made.chat_template]
    ids = [[made(text, add_special_tokens=added)["input_ids"] for text in texts] for added in (False, True)]
    answers.append([*ids, chats, made.bos_token_id, made.eos_token_id, [made.decode(one) for one in ids[0]]])
print(json.dumps(answers))
"""


def vocabularies():
    """(name, Tokenizer, texts that it has) of each kind."""
    for name in SPECIALS:
        yield name, read(name), TEXTS
    for kind in "char", "byte", "word", "bpe":
        made = Tokenizer.make(kind, PROSE, specials=("</s>",))
        made.chat_template = "{% for message in messages %}{{ 'France' }}{% endfor %}"
        yield kind, made, (PROSE[:90], "France is it")
    for kind in "pieces", "unigram", "subwords":
        document = json.loads((CORPUS / f"tokenizer_{kind}.json").read_text(encoding="utf-8"))
        made, why = huggingface.read({"tokenizer.json": document}, ROWS)
        made.chat_template = "{% for message in messages %}{{ 'ab' }}{% endfor %}"
        assert why == ""
        yield kind, made, ("ab a", "a b", "b")


@pytest.mark.skipif(not JUDGE, reason="GPT2C_JUDGE names no Python with transformers")
def test_transformers_reads_what_is_written_with_the_same_ids(tmp_path):
    asked = []
    for name, made, texts in vocabularies():
        (folder_of := tmp_path / name).mkdir()
        model = folder(name)["config.json"] if name in SPECIALS else {"model_type": "gpt2"}
        for file, found in (huggingface.write(made, ROWS)[0] | {"config.json": model}).items():
            (folder_of / file).write_text(found if isinstance(found, str) else json.dumps(found), encoding="utf-8")
        asked.append([str(folder_of), texts, TALK])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([JUDGE, "-c", PROGRAM], input=json.dumps(asked), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for (name, made, texts), (plain, begun, chats, bos, eos, decoded) in zip(
        vocabularies(), json.loads(done.stdout), strict=True
    ):
        assert plain == [made.encode(text, special=True) for text in texts], name
        assert begun == [made.encode(text, special=True, bos=made.adds_bos) for text in texts], name
        assert chats == [made.chat(TALK[:n], add_generation_prompt=n != 2) for n in (1, 2, 3) if made.chat_template], name
        assert (bos, eos) == (made.bos, next(iter(made.ends), None)), name
        assert decoded == [made.decode(ids) for ids in plain], name
