"""A tokenizer as the folder of a model has it in Hugging Face's form: tokenizer.json, and what the files beside it say of how
texts begin and end and of how conversations are written.

Where a fact is kept has changed over the years: all places are read, and those are written that old programs know too.
"""

import json

from gpt2c.errors import InputError, TokenizationError, UsageError
from gpt2c.tokenizers.byte_level import utf8
from gpt2c.tokenizers.gguf import SPLITS
from gpt2c.tokenizers.tokenizer import Tokenizer

LIBRARY, CONFIG, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
GENERATION, MODEL = "generation_config.json", "config.json"
TEMPLATE, VOCABULARY, MERGES = "chat_template.jinja", "vocab.json", "merges.txt"
FILES = (LIBRARY, CONFIG, MAP, GENERATION, MODEL, TEMPLATE, VOCABULARY, MERGES)  # that `read` looks at

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")  # of tokens without a role
SPLIT_OF_CLASS = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}  # those that may come without a tokenizer.json
END_OF_TEXT = "<|endoftext|>"  # of these, unless they say another
TEXT = None  # among the ids that a post-processor puts around a text: the text


def read(files, rows):
    """(Tokenizer, "") of these files, {name: parsed JSON, or text}, of a model with so many rows for tokens; (None, why) where
    there is none that gpt2c reads. Damaged ones are an error."""
    about = _object(files, MAP) | _object(files, CONFIG)
    document, why = _library(files, about)
    if why:
        return None, why
    ids = _vocabulary(document)
    roles = {name: ids.get(_text(about[name])) for name in ROLES if name in about}
    others = [ids.get(_text(token)) for name in LISTS for token in _entries(about.get(name))]
    listed = _listed(files, "eos_token_id")
    eos = roles.get("eos_token", next(iter(listed), None))
    bos = roles.get("bos_token", next(iter(_listed(files, "bos_token_id")), None))
    first = (_around(document, ids) or [TEXT])[0]
    adds_bos = about.get("add_bos_token")
    if not isinstance(adds_bos, bool):
        adds_bos, bos = first is not TEXT, bos if first is TEXT else first
    tokenizer = Tokenizer.from_document(_with_specials(document, ids, {bos, eos, *listed, *roles.values(), *others}))
    if tokenizer.vocab_size > rows:
        raise TokenizationError(f"it has {tokenizer.vocab_size:,} tokens, and the model {rows:,} rows for them")
    known = range(tokenizer.vocab_size)
    tokenizer.bos = bos if bos in known else None
    tokenizer.adds_bos = adds_bos and tokenizer.bos is not None
    tokenizer.ends = [id for id in dict.fromkeys([eos, *listed]) if id in known] or tokenizer.ends
    tokenizer.eot = next(iter(tokenizer.ends), None) if tokenizer.eot is None else tokenizer.eot
    tokenizer.chat_template = _template(files, about)
    return tokenizer, ""


def write(tokenizer, rows):
    """({name: JSON document, or text}, "") of the files that say this tokenizer; ({}, why) where none can."""
    if tokenizer is None:
        return {}, "the model has no tokenizer"
    if tokenizer.vocab_size > rows:
        raise UsageError(f"the tokenizer has {tokenizer.vocab_size:,} ids, the model {rows:,}: give it its own")
    try:
        specials = tokenizer.special_tokens
    except InputError as error:
        return {}, str(error)
    document = json.loads(tokenizer.to_json())
    texts = {id: text for text, id in _vocabulary(document).items()}
    begin = [tokenizer.bos] if tokenizer.adds_bos else []
    if _around(document, specials) != [*begin, TEXT]:
        document["post_processor"] = _post_processor(texts[tokenizer.bos], tokenizer.bos) if begin else None
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it is, in every version of transformers
        "bos_token": texts.get(tokenizer.bos),
        "eos_token": texts.get(next(iter(tokenizer.ends), tokenizer.eot)),
        "unk_token": document["model"].get("unk_token"),
        "add_bos_token": tokenizer.adds_bos,
        "clean_up_tokenization_spaces": False,
    }
    ends = tokenizer.ends[0] if len(tokenizer.ends) == 1 else tokenizer.ends or None
    found = {LIBRARY: document, CONFIG: config, GENERATION: {"bos_token_id": tokenizer.bos, "eos_token_id": ends}}
    if tokenizer.chat_template:
        config["chat_template"] = found[TEMPLATE] = tokenizer.chat_template
    return found, ""


def _object(files, name):
    """The JSON object in a file; {} where there is no such file."""
    found = files.get(name, {})
    if not isinstance(found, dict):
        raise TokenizationError(f"{name} holds a {type(found).__name__}, expected an object")
    return found


def _text(token):
    """The text of a token, which stands there itself or in an object; None where there is none."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _entries(found):
    """What is in a list, or in an object under whatever names."""
    return list(found.values()) if isinstance(found, dict) else found if isinstance(found, list) else []


def _library(files, about):
    """(a tokenizer.json, ""), or (None, why): that of the folder, or one of its vocabulary and merges."""
    if LIBRARY in files:
        return _object(files, LIBRARY), ""
    if VOCABULARY not in files or MERGES not in files:
        return (
            None,
            f"the folder has no {LIBRARY}; transformers writes it: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    name = str(about.get("tokenizer_class") or next(iter(SPLIT_OF_CLASS))).removesuffix("Fast")
    if name not in SPLIT_OF_CLASS:
        return None, f"the folder has no {LIBRARY}, and gpt2c does not know how a {name[:40]!r} splits text"
    if not isinstance(merges := files[MERGES], str):
        raise TokenizationError(f"{MERGES} is no text")
    about |= {role: END_OF_TEXT for role in ("bos_token", "eos_token") if role not in about}
    lines = [line for line in merges.splitlines() if line.strip() and not line.startswith("#version")]
    split = json.loads(SPLITS[SPLIT_OF_CLASS[name]].__getstate__())
    document = {
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if name == "Qwen2Tokenizer" else None,
        "pre_tokenizer": split,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": _object(files, VOCABULARY), "merges": lines},
    }
    for id, token in _object(about, "added_tokens_decoder").items():
        if isinstance(token, dict) and _text(token) and id.isdecimal() and len(id) < 10:
            document["added_tokens"].append(_added(int(id), _text(token), bool(token.get("special"))))
    return document, ""


def _vocabulary(document):
    """{text: id} of a tokenizer.json, as far as it is one: what is wrong with it is said when it is read."""
    model, found = document.get("model"), {}
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        found = {text: id for text, id in vocab.items() if type(id) is int}
    elif isinstance(vocab, list):  # of texts with their scores
        texts = (entry[0] if isinstance(entry, list) and entry else None for entry in vocab)
        found = {text: id for id, text in enumerate(texts) if isinstance(text, str)}
    for token in _entries(document.get("added_tokens")):
        if isinstance(token, dict) and _text(token) is not None and type(token.get("id")) is int:
            found[_text(token)] = token["id"]
    return found


def _listed(files, name):
    """The ids of this name in the first file that has some, one or a list of them."""
    for file in GENERATION, MODEL:
        found = _object(files, file).get(name)
        found = [] if found is None else found if isinstance(found, list) else [found]
        if not all(type(id) is int for id in found):
            raise TokenizationError(f"{name} of {file} is neither an id nor a list of ids")
        if found:
            return found
    return []


def _around(document, ids):
    """What a tokenizer.json puts around a text: the ids of special tokens with TEXT among them; [] if that cannot be said so."""
    processor = document.get("post_processor")
    if isinstance(processor, dict) and processor.get("type") == "Sequence":
        steps = _entries(processor.get("processors"))
    else:
        steps = [] if processor is None else [processor]
    found = [TEXT]
    for step in steps:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "TemplateProcessing":
            parts = [part if isinstance(part, dict) else {} for part in _entries(step.get("single"))]
            found = [ids.get(_name(part["SpecialToken"]), -1) if "SpecialToken" in part else TEXT for part in parts]
        elif kind != "ByteLevel":  # which concerns where tokens lie
            return []
    return found


def _name(token):
    """The text of a token in a post-processor."""
    name = token.get("id") if isinstance(token, dict) else None
    return name if isinstance(name, str) else None


def _post_processor(text, id):
    """The one that puts this token before a text."""

    def sequence(name, number):
        return [{"SpecialToken": {"id": text, "type_id": number}}, {"Sequence": {"id": name, "type_id": number}}]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": sequence("A", 0) + sequence("B", 1),
        "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}},
    }


def _with_specials(document, ids, special):
    """The tokenizer.json in which the tokens of these ids are special, which the files beside it may say alone."""
    added, texts = document.get("added_tokens"), {text: id for text, id in ids.items() if id in special}
    if not isinstance(added, list):
        return document
    marked = [token | {"special": True} if isinstance(token, dict) and _text(token) in texts else token for token in added]
    others = texts.keys() - {_text(token) for token in added}
    return document | {"added_tokens": marked + [_added(texts[text], text, True) for text in sorted(others, key=texts.get)]}


def _added(id, text, special):
    rest = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": text, **rest, "special": special}


def _template(files, about):
    """The chat template: of a file of its own, or of the config, which may have several by name. "" if there is none."""
    found = files.get(TEMPLATE, about.get("chat_template")) or ""
    if isinstance(found, list):
        named = {str(entry.get("name")): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default", next(iter(named.values())) if len(named) == 1 else "")
    if not isinstance(found, str):
        raise TokenizationError(f"its chat template is a {type(found).__name__}, expected text")
    utf8(found)
    return found
