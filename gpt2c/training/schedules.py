"""Learning rate schedules: pure functions of the step."""

import math

from gpt2c.errors import UsageError

SCHEDULES = ("constant", "cosine", "linear", "wsd", "randygpt", "plateau")


def learning_rate(step, total, base, schedule, warmup=0, final_frac=1.0):
    """The learning rate of update `step` (from 0) of `total`; a decaying schedule ends at `final_frac` of base.

    constant         base, after a linear warm-up over `warmup` updates
    cosine, linear   warm-up, then decay to the end
    wsd              warm-up, stable, then decay with 1 - sqrt over the last fifth
    randygpt         warm-up from a tenth, stable, then decay along a cosine over the last fifth
    plateau          base, after the warm-up; the Trainer lowers it when the validation loss stops improving
    """
    low = base * final_frac
    if step < warmup:
        return base * (0.1 + 0.9 * step / warmup if schedule == "randygpt" else (step + 1) / warmup)
    if schedule in ("constant", "plateau"):
        return base
    if schedule == "wsd":
        start = max(warmup, total * 4 // 5)
        if step < start:
            return base
        return low + (1 - math.sqrt((step - start) / max(1, total - start))) * (base - low)
    if schedule == "randygpt":
        if step < total * 4 // 5:
            return base
        return low + _half_cosine((step - 0.8 * total) / (0.2 * total)) * (base - low)
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return base - (base - low) * progress
    if schedule == "cosine":
        return low + _half_cosine(progress) * (base - low)
    raise UsageError(f"unknown schedule {schedule!r}, expected one of {', '.join(SCHEDULES)}")


def _half_cosine(progress):
    """From 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def rate_of_epoch(epoch, epochs, base, schedule, warmup=0, final_frac=1.0):
    """The learning rate of an epoch, from 1 to `epochs`: a decaying schedule ends with the last one, `warmup` counts epochs."""
    step = epoch - 1 if epoch <= warmup else epoch
    return learning_rate(step, epochs, base, schedule, warmup, final_frac)
