"""The words of a turn: how text says who speaks in a conversation."""

NAMES = {"system": "System:", "user": "User:", "assistant": "Assistant:"}


def question(text, first):
    """What a model that has learned conversations reads before it answers."""
    return f"{'' if first else ' '}{NAMES['user']} {text} {NAMES['assistant']}"
