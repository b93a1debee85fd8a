"""Runs gpt2c once for each line of standard input, in a process of its own that is split off from this one, which has loaded
all of it. A line is JSON: {"words", "states"}, those of its standard output and standard error. A line for each comes back:
{"code", "out", "err"}."""

import gc
import importlib
import json
import os
import sys
import tempfile

import gpt2c.bench.measure
import gpt2c.runs.loop
import gpt2c.support.pictures
from gpt2c.__main__ import VERBS, main

gpt2c.runs.loop.measured_peak = lambda *_: 1e6  # these take longer than the rest
gpt2c.support.pictures.available = lambda: False
gpt2c.support.pictures.loss_curves = lambda *_: None
gpt2c.bench.measure.machine = lambda isas: {
    **dict.fromkeys(("version", "commit", "date", "compiler", "openmp", "cpu"), "\u2603"),
    **dict.fromkeys(("threads", "cores", "bandwidth", "read_bandwidth"), 1),
    "peak": dict.fromkeys(isas, 1.0),
    "product_peak": {},
}


def spoil(number, state, file):
    """The standard stream of this number, as Python would make it at its start."""
    if state == "closed":
        os.close(number)
        return None
    if state == "gone":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, number)
    else:
        os.dup2(os.open("/dev/full", os.O_WRONLY) if state == "full" else file.fileno(), number)
    encoding = state if state in ("ascii", "latin-1") else "utf-8"
    return open(number, "w", buffering=1 if number == 2 else -1, encoding=encoding, errors="strict", closefd=False)


def one(words, states, files):
    """The same in the process that is split off: the streams, then the program to its very end."""
    os.chdir(tempfile.mkdtemp(dir="."))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name, state, file in zip((1, 2), ("stdout", "stderr"), states, files):
        setattr(sys, name, spoil(number, state, file))
        setattr(sys, f"__{name}__", getattr(sys, name))
    sys.argv = ["gpt2c", *words]
    main()


if __name__ == "__main__":
    for verb in VERBS:
        importlib.import_module(f"gpt2c.commands.{verb.replace('-', '_')}")
    gc.freeze()  # what is loaded need not be looked through at the end of each
    lines = sys.stdin.read().splitlines()
    answers = os.fdopen(os.dup(1), "w")
    files = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    for line in lines:
        for file in files:
            file.seek(0)
            file.truncate()
        if not (pid := os.fork()):
            one(**json.loads(line), files=files)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = [os.pread(file.fileno(), 1 << 20, 0).decode("latin-1") for file in files]
        print(json.dumps({"code": code, "out": texts[0], "err": texts[1]}), file=answers, flush=True)
