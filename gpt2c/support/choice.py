"""How a token is chosen from a model's probabilities: the settings of sampling, and the values that each may have."""

import math
import sys

from gpt2c.errors import InferenceError

CHOICE = {  # setting -> (whether it may be this, in words)
    "temperature": (lambda value: 0 <= value < math.inf, "at least 0"),
    "top_k": (lambda value: value >= 0 and value % 1 == 0, "a whole number of at least 0"),
    "top_p": (lambda value: 0 < value <= 1, "more than 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "0 to 1"),
    "repetition_penalty": (lambda value: 0 < value < math.inf, "more than 0"),
}


def check_choice(**settings):
    """An error unless tokens can be chosen so."""
    for name, value in settings.items():
        fits, expected = CHOICE[name]
        if not fits(value):
            raise InferenceError(f"{name} is {value}, expected {expected}")


def is_choice(settings):
    """Whether this, from a file, is settings of sampling by name, all of them possible."""
    return isinstance(settings, dict) and all(
        name in CHOICE and type(value) in (int, float) and abs(value) <= sys.float_info.max and CHOICE[name][0](value)
        for name, value in settings.items()
    )
