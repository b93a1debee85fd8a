"""What a tokenizer.json does not say: how texts begin and end, and how a conversation is written. Files of models keep it as
`chat`, an object with the names below."""

from gpt2c.errors import TokenizationError


def conventions(tokenizer):
    """Those of a tokenizer, as a file keeps them."""
    return {
        "template": tokenizer.chat_template,
        "bos": tokenizer.bos,
        "eot": tokenizer.eot,
        "ends": list(tokenizer.ends),
        "adds_bos": tokenizer.adds_bos,
    }


def with_conventions(tokenizer, found):
    """The tokenizer, which from now on has those that a file says."""

    def is_id(value):
        return type(value) is int and 0 <= value < tokenizer.vocab_size

    if not (
        isinstance(found, dict)
        and conventions(tokenizer).keys() <= found.keys()
        and isinstance(found["template"], str)
        and all(found[name] is None or is_id(found[name]) for name in ("bos", "eot"))
        and isinstance(found["ends"], list)
        and all(map(is_id, found["ends"]))
        and isinstance(found["adds_bos"], bool)
        and (found["bos"] is not None or not found["adds_bos"])
    ):
        raise TokenizationError("what it says of chat is not a template with ids of its tokenizer")
    tokenizer.chat_template, tokenizer.ends, tokenizer.adds_bos = found["template"], found["ends"], found["adds_bos"]
    tokenizer.bos, tokenizer.eot = found["bos"], found["eot"]
    return tokenizer
