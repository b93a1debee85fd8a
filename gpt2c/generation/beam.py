"""Beam search: the most likely continuation found by keeping the few best hypotheses (beams) at each token."""

from typing import NamedTuple

import numpy as np

from gpt2c.errors import InferenceError
from gpt2c.generation.decoder import checked_prompt
from gpt2c.generation.slots import Slots


class Beam(NamedTuple):
    ids: list  # new ones
    log_prob: float  # of all of them together

    def score(self, length_penalty):
        return self.log_prob / len(self.ids) ** length_penalty


def beam_search(model, prompt_ids, max_new_tokens, width=4, length_penalty=1.0, stop_tokens=(), kv=""):
    """The new ids of the best continuation: up to max_new_tokens, or up to and without the first of `stop_tokens`.

    It keeps `width` beams. Of those that ended with a stop token, and those that are unfinished at the last token, the best has
    the highest log probability over length ** length_penalty, that token included: 0 prefers short ones, 1 the highest mean
    per token.
    """
    prompt = checked_prompt(model, prompt_ids)
    for name, value, least in ("max_new_tokens", max_new_tokens, 1), ("width", width, 1), ("length_penalty", length_penalty, 0):
        if not value >= least:
            raise InferenceError(f"{name} is {value}, expected at least {least}")
    beams, ended = [Beam([], 0.0)], []
    slots, places = Slots(model, width, len(prompt) + max_new_tokens, kv=kv), [0]  # the slot of each beam
    log_probs = [log_softmax(slots.read({0: prompt})[0])]
    for length in range(1, max_new_tokens + 1):
        totals = np.concatenate([beam.log_prob + row for beam, row in zip(beams, log_probs)])
        best = np.argsort(-totals, kind="stable")[: 2 * width]  # twice as many: each beam may end in one way only
        chosen = []
        for place in best.tolist():
            parent, id = divmod(place, len(log_probs[0]))
            beam = Beam([*beams[parent].ids, id], float(totals[place]))
            if id in stop_tokens:
                ended.append(beam)
            elif len(chosen) < width:
                chosen.append((parent, beam))
        ended = sorted(ended, key=lambda beam: -beam.score(length_penalty))[:width]
        if length == max_new_tokens or not chosen or _is_settled(ended, chosen, width, max_new_tokens, length_penalty):
            break
        places = _inherit(slots, [places[parent] for parent, _ in chosen])
        beams = [beam for _, beam in chosen]
        logits = slots.step({place: beam.ids[-1:] for place, beam in zip(places, beams)})
        log_probs = [log_softmax(logits[place][0]) for place in places]
    going_on = [beam for _, beam in chosen] if length == max_new_tokens else []
    ids = max([*ended, *going_on], key=lambda beam: beam.score(length_penalty)).ids
    return ids[:-1] if ids[-1] in stop_tokens else ids


def _is_settled(ended, chosen, width, longest, length_penalty):
    """Whether no unfinished beam can overtake the `width` finished ones: probabilities only fall, and the longest length
    divides them most."""
    most = max(beam.log_prob for _, beam in chosen) / longest**length_penalty
    return len(ended) == width and ended[-1].score(length_penalty) >= most


def _inherit(slots, parents):
    """A slot for each child of these slots: its parent's own for the first, a copy for the others."""
    free, places = [slot for slot in range(slots.count) if slot not in parents], []
    for parent in parents:
        places.append(free.pop() if parent in places else parent)
        if places[-1] != parent:
            slots.copy(parent, places[-1])
    return places


def log_softmax(logits):
    """(V,) float64."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
