"""The words of a turn: how text says who speaks in a conversation."""

NAMES = {"system": "System:", "user": "User:", "assistant": "Assistant:"}


def question(text, first):
    """The prompt of a model that was trained on conversations."""
    return f"{'' if first else ' '}{NAMES['user']} {text} {NAMES['assistant']}"
