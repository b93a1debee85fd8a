"""The words of a turn: how text says who speaks in a conversation that has no special tokens for it."""

NAMES = {"system": "System:", "user": "User:", "assistant": "Assistant:"}

# What data/conversations.py makes of records, as a chat template.
TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %} {% endif %}"
    + "".join(f"{{% {'el' * (n > 0)}if message.role == '{role}' %}}{word}" for n, (role, word) in enumerate(NAMES.items()))
    + "{% else %}{{ raise_exception('a role is ' ~ message.role ~ ', expected one of "
    + ", ".join(NAMES)
    + "') }}{% endif %}"
    + " {{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    + "{% if add_generation_prompt %} "
    + NAMES["assistant"]
    + "{% endif %}"
)


def has_own_template(tokenizer):
    """Whether conversations are written as the model's own chat template says, not with these words."""
    return bool(tokenizer) and tokenizer.chat_template not in ("", TEMPLATE)


def learned(tokenizer, turns):
    """Gives the tokenizer of a model that learned from conversations, of so many turns, this template where it has none."""
    if tokenizer and turns and not tokenizer.chat_template:
        tokenizer.chat_template = TEMPLATE


def stops(tokenizer):
    """The texts that end an answer where no token does: the name of who speaks next."""
    return [f" {NAMES['user']}"] if tokenizer.chat_template == TEMPLATE else []
