"""Trains all five families a little, on however many ranks MPI has started: ranks.py DATA OUT [zero] [FROM]

OUT gets <family>.json, the losses, and checkpoints after HALF and all STEPS. With FROM, the folder that another call has
filled, the runs begin at its checkpoints of HALF. After every step all ranks must have the same parameters.
"""

import hashlib
import json
import sys
from pathlib import Path

import gpt2c
from gpt2c.data.lanes import Lanes
from gpt2c.data.windows import RandomWindows
from gpt2c.models.files import read
from gpt2c.models.registry import FAMILIES
from gpt2c.training.ranks import world

B, T, BATCHES, LANES, VOCABULARY = 2, 8, 4, 12, 31
HALF, STEPS = 23, 50  # HALF is amid lanes
HOW = dict(max_steps=STEPS, learning_rate=3e-3, grad_clip=1.0, weight_decay=0.1, val_every=10, val_steps=5)


def trainer_of(family, data, zero, start):
    """A Trainer of a small model that goes on from a checkpoint, if there is one."""
    ranks = world()
    fields = FAMILIES[family].Config.__dataclass_fields__
    if start:
        part = ranks.part if zero else None
        model, run = read(start).build(part)
    else:
        sizes = {**FAMILIES[family].tiny, "vocab_size": VOCABULARY, **({"dropout": 0.1} if "dropout" in fields else {})}
        model, run = gpt2c.create(family, **sizes), None
    if family == "mingru":
        loader, val_loader = (Lanes(data, LANES // ranks.size, T, 10, ranks.rank, ranks.size, seed=seed) for seed in (1, 2))
        more = dict(backprop_chunks=4, update_chunks=2)
    else:
        val_loader = gpt2c.DataLoader(data, B, T)
        loader = RandomWindows(data, B, T) if family in ("chargpt", "hybrid") else gpt2c.DataLoader(data, B, T, shuffle=True)
        more = dict(total_batch_size=BATCHES * B * T) | (dict(clip_value=0.02) if family == "trm" else {})
    config = gpt2c.TrainConfig(**HOW, **more, zero=zero)
    trainer = gpt2c.Trainer(model, loader, val_loader, config)
    if run:
        trainer.restore(run)
    return trainer


def main(data, out, *words):
    ranks, zero = world(), int("zero" in words)
    folders = [Path(word) for word in words if word != "zero"]
    gpt2c.set_num_threads(1)
    for family in FAMILIES:
        trainer = trainer_of(family, data, zero, folders and folders[0] / f"{family}_{HALF}.safetensors")
        losses = []
        for step in trainer:
            losses.append([step.loss, step.grad_norm, step.val_loss])
            digest = int(hashlib.sha256(trainer.model.params.flat.data).hexdigest()[:12], 16)
            largest, smallest = ranks.all_reduce_max(digest, -digest)
            assert largest == -smallest, f"{family}: after step {step.step} the ranks have different parameters"
            if trainer.step in (HALF, STEPS):
                trainer.save(Path(out) / f"{family}_{trainer.step}.safetensors")
        if ranks.rank == 0:
            (Path(out) / f"{family}.json").write_text(json.dumps(losses), encoding="utf-8")
    touched = trainer.model.m.flat.nonzero()[0]
    first, last = ranks.part(trainer.model.m.size) if zero else (0, trainer.model.m.size)
    assert first <= touched.min() and touched.max() < last, "a rank has moments of another's part"


if __name__ == "__main__":
    main(*sys.argv[1:])
