"""Gradient accumulation: the gradients of one update, summed over its batches on all ranks."""

import numpy as np

from gpt2c.training.validation import own_turns


def accumulate(model, loader, length, ranks, window=1, carries=False, only_batch=None):
    """{number: {"loss" and its parts by name: value}} of this rank's batches; the model has the sum of their gradients.

    `only_batch` is taken each time instead of the loader's next one (overfitting a single batch).
    """
    told, dropout, batches = {}, model.dropout_counter, length.batches
    dealt = length.dealt and not only_batch
    for number in own_turns(loader, batches, ranks) if dealt else range(ranks.rank, batches, ranks.size):
        if not (carries and loader.continues):
            model.reset_state()
        x, y = only_batch or loader.next_batch()
        model.dropout_counter = dropout + number  # masks do not depend on the rank that computes the batch
        loss = model.loss_and_grad(x, y, add=bool(told), window=window, train=True)
        told[number] = {"loss": loss} | model.metrics
    model.dropout_counter = dropout + batches
    if not told:  # there are fewer batches than ranks
        model.zero_grad()
    return told


def mean_over_ranks(told, batches, ranks, *flags):
    """(the mean loss, {part: its mean}, *how many ranks raise each flag), over the batches of all ranks, in their order.
    The first batch is rank 0's, which so has all names."""
    names = list(next(iter(told.values()), {}))
    (columns,) = ranks.all_reduce_max(len(names))
    table = np.zeros((batches, int(columns)))
    for number, row in told.items():
        table[number] = list(row.values())
    values = ranks.all_reduce([*table.ravel(), *flags]).tolist()
    loss, *parts = (sum(value / batches for value in values[at : table.size : len(table.T)]) for at in range(len(table.T)))
    return loss, dict(zip(names[1:], parts)), *values[table.size :]
