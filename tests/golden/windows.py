"""Truncated backpropagation through time in PyTorch: the gradients of the last update of a short run, for many windows."""

from itertools import product

import torch

UPDATES_OF, BACK_THROUGH, CHUNKS, RATE = (1, 2, 4), (1, 2, 4, 8), 12, 0.1


def windows(params, forward, tokens, targets, start):
    """{grads<k1>_<k2>/name: gradient} of the last update, and losses<k1>_<k2>.

    tokens and targets are (CHUNKS, B, T); forward(params, tokens (B, T'), state) gives logits and the new state. The run does
    an update of plain SGD after every k1 chunks. The state at the end of a pass is kept for those that begin there later.
    """
    arrays = {}
    for new, asked in product(UPDATES_OF, BACK_THROUGH):
        run = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
        reach = asked if asked <= new else -(-asked // new) * new
        ends, done, losses = {0: start}, 0, []
        while done < CHUNKS:
            total, until = 0.0, done + new
            gradients = {name: torch.zeros_like(p) for name, p in run.items()}
            while done < until:
                end = min(done + reach, until)
                begin = max(0, end - reach)
                logits, state = forward(run, torch.cat(list(tokens[begin:end]), dim=1), ends[begin])
                ends[end] = tuple(s.detach() for s in state)
                counted = torch.cat(list(targets[done:end]), dim=1)
                counted_logits = logits[:, -counted.shape[1] :]
                loss = torch.nn.functional.cross_entropy(counted_logits.flatten(0, 1), counted.flatten(), reduction="sum") / (
                    targets[0].numel() * new
                )
                for (name, _), g in zip(run.items(), torch.autograd.grad(loss, list(run.values()))):
                    gradients[name] += g
                total, done = total + loss.item(), end
            losses.append(total)
            with torch.no_grad():
                for name, p in run.items():
                    p -= RATE * gradients[name]
        arrays |= {f"grads{new}_{asked}/{name}": g.numpy().astype("float32") for name, g in gradients.items()}
        arrays[f"losses{new}_{asked}"] = losses
    return arrays
