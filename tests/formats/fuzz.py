"""Coverage-guided fuzzing of every reader: python tests/formats/fuzz.py [READER ...] [--minutes N] [--seed S] [--out DIR]

Copies of the files in tests/corpus are damaged, byte by byte or, where they are JSON, part by part with their digests made to
fit. A copy that reaches a new line of gpt2c, or a new sentence, is damaged further. A finding is whatever is neither success nor
one sentence of a Gpt2cError, takes more memory or time than a file of its size may, or ends the process; the file that does it
is written to DIR/READER. All of it follows from the seed. Without a READER all are tried in turn, each for N minutes.
"""

import argparse
import hashlib
import json
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gpt2c
from gpt2c.errors import Gpt2cError

PACKAGE = str(Path(gpt2c.__file__).parent)
SECONDS = 5  # of processor time that a file may take
ADDRESSES = 2**31  # bytes that a process may map beyond what it has: more is a reader that believed a number in the file
TIMES = 16  # its size that a file may take: as bytes, as text, parsed, and so again inside
LARGEST = 1 << 16  # bytes of a file that is damaged further
WORDS = [0, 1, -1, 2, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, -(2**31), 2**30, 1024]
TEXTS = [
    b"0",
    b"-1",
    b"1e999",
    b"9" * 20,
    b"9" * 5000,
    b"null",
    b"NaN",
    b'"',
    b"[",
    b"{",
    b"}",
    b"\\",
    b"\xff",
    b"\0",
    b"\n",
    b",",
]
VALUES = [None, True, 0, -1, 1, 3, 2**31, 2**53, 2**64, 10**400, 0.5, -1e308, float("nan"), float("inf")]
VALUES += [
    "",
    "a",
    "\n",
    "é日",
    "\ud800",
    "\x1b[2J",
    "(a|aa)+$",
    [],
    {},
    [[]],
    [1, "a"],
    {"a": 1},
    json.loads("[" * 300 + "]" * 300),
]


class Form(NamedTuple):
    """How a file is taken apart, to change one part of it, and put together again."""

    apart: Callable
    together: Callable


def lines_apart(data):
    return [json.loads(line) for line in data.splitlines()]


JSON = Form(json.loads, lambda tree: json.dumps(tree).encode())
LINES = Form(lines_apart, lambda trees: b"".join(json.dumps(tree).encode() + b"\n" for tree in trees))


class Reader(NamedTuple):
    read: Callable[[Path], object]
    seeds: tuple[str, ...]  # files of tests/corpus; the copies are called as the first of them
    form: Form | None = None
    room: int = 2**20  # bytes beyond those of the file that reading it may take


def damaged(data, rng):
    """The bytes cut, longer, or with bytes, words or pieces changed."""
    data = bytearray(data)
    at = rng.randrange(len(data) + 1) if rng.random() < 0.4 else rng.randrange(min(len(data), 600) + 1)
    kind = rng.randrange(9)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        data += rng.randbytes(rng.choice((1, 4, 100)))
    elif kind == 2 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 3 and at < len(data):
        data[at] = rng.randrange(256)
    elif kind == 4:
        data[at // 4 * 4 : at // 4 * 4 + 4] = struct.pack("<i", rng.choice(WORDS))
    elif kind == 5:
        text = rng.choice(TEXTS)
        data[at : at + rng.randrange(20)] = text * rng.choice((1, 1, 3, 5000 // len(text)))
    elif kind == 6:
        del data[at : at + rng.randrange(1, 30)]
    elif kind == 7:
        data[at:at] = data[at : at + rng.randrange(1, 60)]
    elif digits := [i for i, b in enumerate(data[:4000]) if 48 <= b < 58]:
        data[rng.choice(digits)] = rng.choice(b"0123456789-.eE")
    return bytes(data)


def part_of(tree, rng):
    """(a list or object in a tree, one of its keys), near the root more often than deep down; (None, None) if there is none."""
    found = None, None
    while isinstance(tree, (dict, list)) and tree:
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        found, tree = (tree, key), tree[key]
        if rng.random() < 0.25:
            break
    return found


def change(tree, rng, other):
    """Changes one part of a tree of JSON in place: to a hostile value, to a part of `other`, to nothing, or it is there twice. A
    text that is JSON itself may be changed inside."""
    owner, key = part_of(tree, rng)
    if owner is None:
        return
    inside = owner[key]
    if isinstance(inside, str) and inside[:1] == "{" and rng.random() < 0.9:
        try:
            document = json.loads(inside)
            change(document, rng, other)
            owner[key] = json.dumps(document)
            return
        except ValueError:
            pass
    kind, (source, name) = rng.randrange(5), part_of(other, rng)
    if kind < 2 or source is None:
        owner[key] = rng.choice(VALUES)
    elif kind == 2:
        owner[name if isinstance(owner, dict) and isinstance(name, str) and rng.random() < 0.7 else key] = source[name]
    elif kind == 3:
        del owner[key]
    elif isinstance(owner, list):
        owner.insert(key, owner[key])
    else:
        owner[rng.choice(("", "a", "\n"))] = owner[key]


class TooLong(BaseException):
    """A reader did not come back."""


def _time_out(*_):
    raise TooLong


class Fuzzer:
    """Tries files on one reader. `pool`: those that are damaged further, half of the time one of the `sound`, which were read;
    `findings`: {what went wrong: the file}."""

    def __init__(self, reader, corpus, folder, seed=0):
        self.reader, self.rng, self.path = reader, random.Random(seed), Path(folder) / reader.seeds[0]
        self.pool = [(corpus / name).read_bytes() for name in reader.seeds]
        self.seen, self.findings, self.tries, self.refused = set(), {}, 0, 0
        self.sound = list(self.pool)
        for data in self.sound[:]:
            self.attempt(data)  # and what is imported on the way is there
        self.tries = self.refused = 0

    def run(self, goes_on):
        """Tries files as long as goes_on() says."""
        while goes_on():
            self.attempt(self.next())
        return self

    def next(self):
        """A file that was not tried yet."""
        rng, form = self.rng, self.reader.form
        data = rng.choice(self.sound if rng.random() < 0.5 else self.pool)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            try:
                if form and rng.random() < 0.6:
                    tree = form.apart(data)
                    change(tree, rng, form.apart(rng.choice(self.pool)))
                    data = form.together(tree)
                elif rng.random() < 0.1:
                    other = rng.choice(self.pool)
                    data = data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
                else:
                    data = damaged(data, rng)
            except Exception:  # it cannot be taken apart any more, or be put together again
                data = damaged(data, rng)
        return data

    def attempt(self, data):
        """Reads these bytes; keeps them if they reached something new, and what went wrong."""
        self.path.write_bytes(data)
        reached, before = set(), self.refused
        wrong, taken = self._read(reached)
        if not wrong and taken > TIMES * len(data) + self.reader.room:  # once more: tables of the interpreter may have grown
            self.path.write_bytes(data)
            wrong, taken = self._read(reached)
            if taken > TIMES * len(data) + self.reader.room:
                wrong = f"{taken:,} bytes of memory"
        self.tries += 1
        if wrong:
            self.findings.setdefault(re.sub(r"[0-9]+", "N", wrong), data)
        elif not reached <= self.seen and len(data) < LARGEST:
            self.seen |= reached
            self.pool.append(data)
            self.sound += [data] * (self.refused == before)

    def _read(self, reached):
        """(what went wrong or "", bytes that it took); the lines and sentences go into `reached`."""

        def called(frame, event, _):
            return stepped if frame.f_code.co_filename.startswith(PACKAGE) else None

        def stepped(frame, event, _):
            reached.add((frame.f_code.co_filename, frame.f_lineno))
            return stepped

        before, tracer, wrong = signal.signal(signal.SIGPROF, _time_out), sys.gettrace(), ""
        tracemalloc.start()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        sys.settrace(called)
        try:
            self.reader.read(self.path)
        except Gpt2cError as error:
            sys.settrace(None)
            self.refused += 1
            reached.add(re.sub(r"['\"`(\[{].*|keys .*|\w*[0-9]\w*", "", str(error).replace(str(self.path), ""))[:80])
            wrong = "" if str(error) and "\n" not in str(error) else f"not one sentence: {error}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            sys.settrace(None)
            ours = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(PACKAGE)]
            place = f"{Path(ours[-1].filename).name}, {ours[-1].name}" if ours else "a reader"
            wrong = f"{type(error).__name__} in {place}: {str(error)[:100]}"
        finally:
            sys.settrace(tracer)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
            taken = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return wrong, taken


def campaign(name, reader, corpus, minutes, seed, out):
    """Tries a reader for so long, in processes of its own, because a file may end one."""
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder:
            if child := os.fork():
                died = os.waitpid(child, 0)[1]
                if died:
                    _keep(out / name, f"the process ended: {died}", (Path(folder) / reader.seeds[0]).read_bytes(), reader)
            else:
                _work(name, reader, corpus, folder, seed, out, end)
        seed += 1


def _work(name, reader, corpus, folder, seed, out, end):
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    if mapped:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESSES, mapped + ADDRESSES))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the tokenizers library says of its own faults
    fuzzer = Fuzzer(reader, corpus, folder, seed).run(lambda: time.monotonic() < end)
    for wrong, data in fuzzer.findings.items():
        _keep(out / name, wrong, data, reader)
    lines = sum(isinstance(what, tuple) for what in fuzzer.seen)
    print(
        f"{name}, seed {seed}: {fuzzer.tries:,} files, {fuzzer.refused:,} refused; {lines:,} lines and "
        f"{len(fuzzer.seen) - lines:,} sentences reached by {len(fuzzer.pool):,}; {len(fuzzer.findings)} findings",
        flush=True,
    )
    os._exit(0)


def _keep(folder, wrong, data, reader):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (hashlib.sha256(data).hexdigest()[:12] + Path(reader.seeds[0]).suffix)
    path.write_bytes(data)
    print(f"{path}: {wrong}", flush=True)


def main():
    from readers import CORPUS, READERS

    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--minutes", type=float, default=1.0, help="for each reader (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=CORPUS / "found", help="folder for findings (default tests/corpus/found)")
    asked = parser.parse_args()
    if unknown := set(asked.readers) - set(READERS):
        parser.error(f"there is no reader {', '.join(unknown)}; there are {', '.join(READERS)}")
    for name in asked.readers or READERS:
        campaign(name, READERS[name], CORPUS, asked.minutes, asked.seed, asked.out)


if __name__ == "__main__":
    main()
