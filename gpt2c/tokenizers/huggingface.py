"""The files of a tokenizer in a folder of Hugging Face: a Tokenizer of them, and they of a Tokenizer."""

import json

from gpt2c.tokenizers.tokenizer import Tokenizer


def read(files, rows):
    """(the Tokenizer in these files, {name: document or text}, or None; why there is none)"""
    if "tokenizer.json" not in files:
        return None, "the folder has no tokenizer.json"
    tokenizer = Tokenizer.from_document(files["tokenizer.json"])
    if tokenizer.vocab_size > rows:
        return None, f"it has {tokenizer.vocab_size:,} ids, the model {rows:,}"
    return tokenizer, ""


def write(tokenizer, rows):
    """({name: document or text} of a Tokenizer for a model of so many ids, why there are none)"""
    if tokenizer is None:
        return {}, "the model has no tokenizer"
    return {"tokenizer.json": json.loads(tokenizer.to_json())}, ""
