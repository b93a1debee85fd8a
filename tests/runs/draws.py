"""Draws what a run is made of: every setting that changes what it carries from one update to the next, for any family.

A Draw is a function of its number alone, so one that fails can be made again.
"""

import random
from dataclasses import dataclass

SIZES = {
    "gpt2": lambda draw: ["--num-layers", draw(1, 2), "--channels", draw(8, 16), "--num-heads", draw(1, 2), "--max-seq-len", 24],
    "chargpt": lambda draw: [
        "--num-layers", draw(1, 2), "--channels", draw(8, 16), "--num-heads", draw(1, 2), "--max-seq-len", 24,
        "--dropout", draw(0, 0.1, 0.5),
    ],
    "mingru": lambda draw: ["--dim", draw(5, 12), "--depth", draw(1, 2), "--expansion", draw(1.0, 1.5)],
    "hybrid": lambda draw: [
        "--hidden", draw(6, 9), "--embed", draw(4, 6), "--num-layers", draw(1, 2), "--num-heads", draw(1, 3), "--num-experts",
        draw(1, 2, 4), "--top-k", draw(1, 2), "--carry", draw("layer", "cell"), draw("--use-rwkv", "--no-use-rwkv"),
        "--balance-loss", draw(0, 0.01, 0.5),
    ],
    "llama": lambda draw: [
        "--num-layers", draw(1, 2), "--channels", draw(16, 24), "--num-heads", draw(2, 4), "--num-kv-heads", draw(1, 2),
        "--max-seq-len", 24, draw("--tied", "--no-tied"), draw("--qkv-bias", "--no-qkv-bias"), draw("--qk-norm", "--no-qk-norm"),
    ],
    "trm": lambda draw: [
        "--channels", draw(8, 16), "--hidden", draw(8, 12), "--num-heads", draw(1, 2), "--max-seq-len", 24, "--depth", draw(1, 3),
        "--pos-emb", draw("learned", "none"), draw("--adaptive", "--no-adaptive"), "--max-depth", 4,
    ],
}  # fmt: skip
RECURRENT = ("mingru", "hybrid")
ORDERS = ("random", "lanes", "shuffled", "sequential")


@dataclass(frozen=True)
class Draw:
    number: int
    family: str
    words: list  # of the command line, what the run is
    ranks: int
    stops: list  # fractions of the run, at which it is ended
    ways: list  # further words for each part of the run: what may not change a bit

    def __str__(self):
        ranks = f"{self.ranks} ranks, " if self.ranks > 1 else ""
        return f"draw {self.number}: {ranks}gpt2c train {' '.join(self.words)}, stopped at {self.stops}, with {self.ways}"


def draw_run(number, ranks=(1,)):
    """The Draw of this number."""
    rng = random.Random(number)

    def draw(*choices):
        return rng.choice(choices)

    family = draw(*SIZES, *RECURRENT)  # which carry most
    words = ["--model", family, *SIZES[family](draw), "-b", draw(1, 2, 3), "--seed", draw(1, 7, 2**40)]
    words += data_of(draw, family)
    words += ["-x", draw(6, 9, 12), *optimizer_of(draw), *schedule_of(draw), *validation_of(draw)]
    words += ["--matmul-precision", draw("fp32", "fp32", "bf16"), "-n", draw(1, 2, 3), "--keep", draw(0, 1, 2)]
    words += [
        "-s",
        draw(0, 2, 5, -1),
        "-g",
        5,
        "--temperature",
        draw(0, 1.0),
        "--sample-top-k",
        draw(0, 3),
        "--sample-top-p",
        draw(0.5, 1.0),
    ]
    parts = draw(2, 2, 3)
    stops = sorted(rng.random() for _ in range(parts - 1))
    ways = [["--threads", draw(1, 2, 3), "-r", draw(0, 1, 2)] for _ in range(parts + 1)]
    return Draw(number, family, [str(word) for word in words], draw(*ranks), stops, [[str(w) for w in way] for way in ways])


def data_of(draw, family):
    """The text, its tokens, and the order of batches; where the order is of lanes, TBPTT(k1, k2)."""
    if draw(True, False, False, False, False):
        return ["--data", "talks.jsonl", "--mask-prompt", "--tokenizer", draw("char", "byte"), "-t", draw(20, 24)]
    order = draw(*ORDERS, *(["lanes"] * 9 if family in RECURRENT else []))
    words = [
        "--data",
        "text.txt",
        "--tokenizer",
        draw("char", "byte", "bpe"),
        "--bpe-vocab-size",
        280,
        "--order",
        order,
        "-t",
        draw(3, 8, 17),
    ]
    if order != "lanes":
        return words
    words += ["--max-chunks-per-epoch", draw(3, 7, 1000), draw("--preserve-hidden-states", "--preserve-hidden-states",
              "--no-preserve-hidden-states")]  # fmt: skip
    return [*words, "--update-chunks", draw(1, 2, 3, 4), "--backprop-chunks", draw(1, 2, 3, 5, 8)]


def optimizer_of(draw):
    words = ["--optimizer", draw("adamw", "adam", "sgd"), "-l", draw(1e-3, 1e-2), "--weight-decay", draw(0, 0.1)]
    if words[1] == "sgd":
        words += draw([], ["--momentum", 0.9], ["--momentum", 0.9, "--nesterov"])
    words += draw([], ["--grad-clip", 0.5], ["--clip-value", 0.01], ["--skip-grad-z", 3, "--skip-loss-z", 3], ["--decay-all"])
    return words


def schedule_of(draw):
    words = ["--lr-schedule", draw("constant", "cosine", "linear", "wsd", "randygpt", "plateau"), "--final-lr-frac", draw(0.1, 1)]
    words += ["--plateau-patience", 1, "--lr-unit", "update", "--warmup-epochs", 0, "--warmup-steps", draw(0, 3)]
    return words


def validation_of(draw):
    return ["-v", draw(0, 1, 2, 5), "-m", draw(1, 3, -1), "--patience", draw(0, 0, 4)]
