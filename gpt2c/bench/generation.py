"""The speed of generation from a file: a prompt is read, tokens are decoded, many sequences at once; for each type of weights,
beside what this machine allows and beside llama.cpp on the same file.

A Worker holds a model. It is sent the name of a Workload and answers with the seconds it took, or "facts" and answers with what
else there is to know, after it has compared the logits of each Workload with those of a forward pass.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2c import formats, settings
from gpt2c.bench.measure import ROOT, Worker, medians, served, share, share_of_memory
from gpt2c.engine.flops import FLOPS, flops
from gpt2c.engine.peak import READING, Reading
from gpt2c.engine.runner import Runner, Work
from gpt2c.errors import Gpt2cError, UsageError
from gpt2c.generation.slots import Slots
from gpt2c.models.family import max_seq_len
from gpt2c.models.files import load, read
from gpt2c.models.model import Model

CHECKED = 4  # tokens behind a prompt whose logits are compared
CLOSE = 0.02  # of the spread of logits. A cache in 16 bits costs 2**-11 per sum, 0.006 over 2 x 64 layers; a wrong kernel about 1
LLAMA_CPP = ROOT / "benchmarks" / "llama_cpp_generate.py"


class Workload(NamedTuple):
    prompt: int
    new: int = 0  # tokens decoded behind the prompt, which are timed; if none, reading the prompt is
    sequences: int = 1

    @property
    def name(self):
        times = f"{self.sequences}x" * (self.sequences > 1)
        return f"decode-{times}{self.new}-after-{self.prompt}" if self.new else f"prefill-{self.prompt}"

    @property
    def tokens(self):
        return self.sequences * (self.new or self.prompt)


PREFILL, DECODE, BATCH = Workload(512), Workload(32, 128), Workload(32, 32, 8)
WORKLOADS = PREFILL, Workload(512, 128), DECODE, BATCH


class Generation:
    """Does Workloads with a model, on random tokens."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.text = np.random.default_rng(1).integers(model.known_ids, size=2**12).tolist()
        self._slots: dict[Workload, Slots] = {}

    def seconds(self, work):
        """How long it takes once. What is decoded is the likeliest, as long as it goes on."""
        slots = self._begun(work)
        if not work.new:
            slots.cut(0, 0)
            start = time.perf_counter()
            slots.read({0: self.text[: work.prompt]})
            return time.perf_counter() - start
        ids = {slot: self.text[work.prompt + slot] for slot in range(work.sequences)}
        for slot in ids:
            slots.cut(slot, work.prompt)
        start = time.perf_counter()
        for _ in range(work.new):
            ids = {slot: int(logits[0].argmax()) for slot, logits in slots.step({slot: [id] for slot, id in ids.items()}).items()}
        return time.perf_counter() - start

    def _begun(self, work):
        """The slots for it, which have read its prompts, one each."""
        if work not in self._slots:
            self._slots[work] = slots = Slots(self.model, work.sequences, work.prompt + work.new)
            slots.read({slot: self.text[slot : slot + work.prompt] for slot in range(work.sequences)})
        return self._slots[work]

    def verify(self, work):
        """An error unless it has the logits of a forward pass over the whole texts, in float32."""
        slots, count = Slots(self.model, work.sequences, work.prompt + work.new), min(work.new, CHECKED)
        texts = np.array([self.text[slot : slot + work.prompt + count] for slot in range(work.sequences)])
        found = slots.read({slot: text[: work.prompt] for slot, text in enumerate(texts.tolist())})
        for at in range(work.prompt, work.prompt + count):
            rows = slots.step({slot: [int(id)] for slot, id in enumerate(texts[:, at])})
            found = {slot: logits[0] for slot, logits in rows.items()}
        logits = np.stack([found[slot] for slot in range(work.sequences)])
        self.model.reset_state()
        self.model.forward(texts)
        expected = self.model.logits[:, -1, : self.model.known_ids]
        error = np.linalg.norm(logits - expected) / np.linalg.norm(expected - expected.mean(-1, keepdims=True))
        if not error <= CLOSE:
            raise Gpt2cError(f"{work.name}: logits are wrong by {error:.1e} of their spread, expected at most {CLOSE}")

    def facts(self, work):
        """Of a token: operations in matrix products, those in attention, and the bytes of keys and values that are read."""
        runner = Runner(self.model, slots=work.sequences, context=work.prompt + work.new, kv=self._begun(work).kv)
        program = runner.prepare(
            Work(work.sequences, 1 if work.new else work.prompt, False, decoding=work.new > 0)
        ).forward_program
        attention = sum(FLOPS["attention_forward"](**at) for name, at in program.calls if name == "attention_cached_forward")
        tokens = work.sequences if work.new else work.prompt
        position = runner.cache_bytes() / work.sequences / runner.context
        return {
            "products": flops(program) / tokens,
            "attention": attention / tokens,
            "cache": position * (work.prompt + work.new / 2),
        }


def serve(path, weights, isa, threads, names):
    """The other end of a Worker."""
    works = {work.name: work for work in WORKLOADS if work.name in names}
    with served():
        settings.set_isa(isa)
        settings.set_num_threads(threads)
        ours = Generation(load(path, weights))
        for line in sys.stdin:
            if work := works.get(line.strip()):
                answer = ours.seconds(work)
            else:
                for work in works.values():
                    ours.verify(work)
                answer = {name: ours.facts(work) for name, work in works.items()}
                answer["text"] = ours.text[: max(work.prompt for work in works.values())]
                answer["bytes"] = sum(tensor.nbytes for tensor in ours.model.base.values())
            print(json.dumps(answer), flush=True)


def gpt2c_worker(path, weights, isa, threads, works):
    call = f"serve({str(path)!r}, {weights!r}, {isa!r}, {threads}, {[work.name for work in works]!r})"
    return Worker([sys.executable, "-c", f"from gpt2c.bench.generation import serve; {call}"])


def apart():
    """The environment of another Python: without what gpt2c has set for itself, and without its modules."""
    return {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "PYTHONPATH")}


def llama_cpp(python):
    """The version of llama.cpp (xllamacpp) that this Python has; "" if it has none."""
    command = [python, "-c", "import xllamacpp; print(xllamacpp.__version__)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=apart())
    except OSError as error:
        raise UsageError(f"cannot run {python}: {error.strerror}; GPT2C_JUDGE names it") from None
    return done.stdout.strip() if LLAMA_CPP.exists() and not done.returncode else ""


def llama_cpp_worker(python, path, threads, works, text):
    asked = json.dumps({work.name: (text[: work.prompt], work.new) for work in works})
    return Worker([python, str(LLAMA_CPP), str(path), str(threads), asked], apart())


def fitting(path, text):
    """The Workloads with this in their name that a file's model has room for."""
    most = max_seq_len(read(path).config)
    if works := [work for work in WORKLOADS if work.prompt + work.new <= most and text in work.name]:
        return works
    names = ", ".join(f"{work.name} (of {work.prompt + work.new} tokens)" for work in WORKLOADS)
    raise UsageError(f"nothing to measure has {text!r} in its name and room in the model's {most} tokens; there are {names}")


def measure(path, weights, works, isa, machine, least, python="", folder=None):
    """A row for each Workload, measured for `least` seconds. Where `python` has llama.cpp, that takes turns on the same file: one
    made in the folder, for types other than the file's own."""
    model, threads, how = Path(path).name, machine["threads"], weights
    beside = python and formats.format_of(path) is formats.GGUF
    if beside and weights != "stored":
        source, path, how = path, Path(folder) / f"{weights}.gguf", "stored"
        if not path.exists():
            formats.write(path, read(source).alone(), dtype=weights)
    compared = [work for work in works if work.sequences == 1] if beside else []
    with contextlib.ExitStack() as stack:
        ours, reading = stack.enter_context(gpt2c_worker(path, how, isa, threads, works)), Reading()
        facts, speeds = ours("facts"), {}
        if compared:
            theirs = stack.enter_context(llama_cpp_worker(python, path, threads, compared, facts["text"]))
        for work in works:
            steps = [reading, partial(ours, work.name)] + ([partial(theirs, work.name)] if work in compared else [])
            _, *seconds = medians(steps, least, warm_up=False)
            speeds[work] = work.tokens / seconds[0]
            about = {"section": "generate", "isa": isa, "model": model, "weights": weights, "bytes": facts["bytes"]}
            yield about | row(work, seconds, speeds, facts, isa, machine, READING / reading.best / 1e9)


def row(work, seconds, speeds, facts, isa, machine, bandwidth):
    """A Workload that took gpt2c, and llama.cpp if it is there, so many seconds. A prompt is bound by arithmetic, decoding by
    reading weights and cache, at this bandwidth in GB/s. Many sequences do a prompt's products; `speeds` are those so far."""
    speed, fact = speeds[work], facts[work.name]
    if not work.new:
        part = share(speed * (fact["products"] + fact["attention"]) / 1e9, machine, isa, "fp32")
    elif work.sequences == 1:
        part = share_of_memory(speed * (facts["bytes"] + fact["cache"]) / 1e9, bandwidth)
    elif PREFILL in speeds:
        part = {"share": speed * fact["products"] / (speeds[PREFILL] * facts[PREFILL.name]["products"]), "of": PREFILL.name}
    else:
        part = {"share": None, "of": ""}
    ours, theirs = (*seconds, None)[:2]
    return {
        "work": work.name, "ms": 1e3 * ours, "tok_s": speed, **part, "read_bandwidth": bandwidth,
        "bound": speed / part["share"] if part["share"] else None,
        "times_one": speed / speeds[DECODE] if work.sequences > 1 and DECODE in speeds else None,
        "llama_cpp_tok_s": theirs and work.tokens / theirs, "ratio": theirs and theirs / ours,
    }  # fmt: skip
