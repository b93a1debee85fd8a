"""Gradient accumulation: the gradients of one update, summed over its batches on all ranks."""

import numpy as np

from gpt2c.training.validation import own_turns


def accumulate(model, loader, length, ranks, window, carries=False, only_batch=None):
    """{number: (batches, {"loss" and its parts by name: mean over them})} of this rank's passes; the model has the sum of the
    batches' gradients.

    `only_batch` is taken each time instead of the loader's next one (overfitting a single batch).
    """
    told, dropout, batches = {}, model.dropout_counter, length.batches
    dealt = length.dealt and not only_batch
    numbers = own_turns(loader, batches, ranks) if dealt else range(ranks.rank, batches, ranks.size)
    for number, goes_on, chunks in passes(loader, numbers, window.most if carries else 1, carries, only_batch):
        if not goes_on:
            model.reset_state(loader.B)
            window.begin_anew()
        x, y, first = window.pass_over(model, chunks)
        model.dropout_counter = dropout + number  # masks do not depend on the rank that computes the batch
        # each target weighs as much as any other of the update
        loss = model.loss_and_grad(x, y, add=bool(told), train=True, first=first, scale=len(chunks))
        told[number] = len(chunks), {"loss": loss} | model.metrics
    model.dropout_counter = dropout + batches
    if not told:  # there are fewer batches than ranks
        model.zero_grad()
    return told


def passes(loader, numbers, most, carries, only_batch=None):
    """(number of the first batch, whether it continues the batch before it, batches): up to `most` of them that continue one
    another."""
    group, first, began = [], 0, False
    for number in numbers:
        goes_on = carries and loader.continues
        if group and (len(group) == most or not goes_on):
            yield first, began, group
            group = []
        if not group:
            first, began = number, goes_on
        group.append(only_batch or loader.next_batch())
    if group:
        yield first, began, group


def mean_over_ranks(told, batches, ranks, *flags):
    """(the mean loss, {part: its mean}, *how many ranks raise each flag), over the batches of all ranks, in their order.
    The first batch is rank 0's, which so has all names."""
    names = list(next(iter(told.values()), (0, {}))[1])
    (columns,) = ranks.all_reduce_max(len(names))
    table = np.zeros((batches, int(columns)))
    for number, (count, row) in told.items():
        table[number] = [count * value for value in row.values()]
    values = ranks.all_reduce([*table.ravel(), *flags]).tolist()
    loss, *parts = (sum(value / batches for value in values[at : table.size : len(table.T)]) for at in range(len(table.T)))
    return loss, dict(zip(names[1:], parts)), *values[table.size :]
