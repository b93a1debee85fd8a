"""A text through the slots of a model: its first tokens as a prompt, in pieces, the others one by one."""

import numpy as np

from gpt2c.generation.slots import PIECE, Slots

WAYS = [(1, PIECE), (40, PIECE), (40, 7), (30, 1), (17, 8)]  # of a text of 40 tokens: those of the prompt, those of a piece


def decoded(model, ids, prompt, piece=PIECE):
    """Logits (len(ids) - prompt + 1, known_ids): after the prompt, and after each later token."""
    slots = Slots(model, piece=piece)
    rows = [slots.read({0: ids[:prompt]})[0]]
    for id in ids[prompt:]:
        rows.append(slots.step({0: [id]})[0][0].copy())
    return np.array(rows)
