"""The output directory of a run: its files, and how they are written.

    config.toml            the value of every flag
    metrics.jsonl          one object per update
    main.log               llm.c's log lines
    samples.txt            samples generated during training
    ckpt_%08d.safetensors  checkpoints, by the number of updates done; best.safetensors
    loss.png               the loss curve, where matplotlib is installed
    left_%d/               checkpoints of an earlier attempt, from later on than where this one began (beside the file to
                           save to, where there is one)

Names that a family has for some of these (its FILES) are added as hard links to the same files.

With --save-path X.bin the last checkpoint is X.bin, those during training X_epochN.bin or X_stepN.bin and the best one
X_best.bin; logs are then kept only if there is a directory as well. While the run lasts, .X.bin.lock keeps others from it.
"""

import json
import os
import re
from datetime import datetime
from pathlib import Path

from gpt2c.errors import InputError, UsageError
from gpt2c.formats import native
from gpt2c.support.files import Lock, atomic_write, open_input, remove_leftovers, require_place, second_name

FILES = r"config\.toml|metrics\.jsonl|main\.log|samples\.txt|loss\.png|best\.safetensors|ckpt_\d+\.safetensors"  # of a folder


class Run:
    """The files of one run. Log lines are flushed at once, so an interrupted run keeps them.

    `names` are the second names of files in the folder: of the best checkpoint, of one at the end of an epoch, of the last
    one, and the name of the tokenizer's own file.
    """

    def __init__(self, folder=None, save_path=None, names=None):
        self.folder, self._names = Path(folder) if folder else None, names or {}
        self.save_path = Path(save_path) if save_path else None
        self._unwritten = {}  # lines for which there was no room, by file
        self._locks = []

    @classmethod
    def new(cls, family, names=None):
        """A folder runs/<date>-<family> that does not exist yet."""
        name = f"runs/{datetime.now():%Y%m%d-%H%M%S}-{family}"
        number = 1
        while Path(name if number == 1 else f"{name}-{number}").exists():
            number += 1
        return cls(name if number == 1 else f"{name}-{number}", names=names)

    def __str__(self):
        return str(self.folder or self.save_path)

    # ---- checkpoints

    @property
    def best(self):
        return self._beside("_best") if self.save_path else self.folder / "best.safetensors"

    def last(self, step):
        """The checkpoint at the end of a run."""
        return self.save_path or self._numbered(step)

    def on_the_way(self, step, epoch=None):
        """A checkpoint during training; `epoch` where epochs are counted."""
        if not self.save_path:
            return self._numbered(step)
        return self._beside(f"_step{step}" if epoch is None else f"_epoch{epoch}")

    def name_too(self, path, kind, epoch=None):
        """Gives a checkpoint in the folder its second name: as the best, the last, or that of an epoch."""
        if kind in self._names and not self.save_path:
            second_name(path, self._names[kind].format(epoch=epoch))

    def _names_of(self, path):
        """The checkpoint and its second names."""
        others = [other for pattern in self._names.values() for other in path.parent.glob(pattern.format(epoch="*"))]
        return [path, *(other for other in others if other.samefile(path))]

    def _numbered(self, step):
        return self.folder / f"ckpt_{step:08d}.safetensors"

    def _beside(self, suffix):
        return self.save_path.with_name(f"{self.save_path.stem}{suffix}{self.save_path.suffix}")

    def checkpoints(self):
        """The run's checkpoints, oldest first."""
        if not self.save_path:
            numbered = [path for path in self.folder.glob("ckpt_*") if re.fullmatch(r"ckpt_\d+\.safetensors", path.name)]
            return sorted(numbered, key=_number_of)
        numbered = re.compile(re.escape(self.save_path.stem) + r"_(?:step|epoch)(\d+)" + re.escape(self.save_path.suffix))
        found = [
            (int(match[1]), path)
            for path in self.save_path.parent.glob(f"{self.save_path.stem}_*")
            if (match := numbered.fullmatch(path.name))
        ]
        paths = [path for _, path in sorted(found)]
        if self.save_path.exists():
            paths.append(self.save_path)
        return sorted(paths, key=_step_of)  # stable: what cannot be read stands last, newest last

    def retain(self, count, step, major=0):
        """Deletes all but the newest `count` checkpoints (0: none) up to `step`, and those of every `major`-th update (0:
        none). Checkpoints named with a later step are damaged ones that were skipped: they do not count."""
        ours = [(path, done) for path in self.checkpoints() if (done := _step_of(path)) <= step] if count else []
        for path, done in ours[: -count or None]:
            if path != self.save_path and not (major and done % major == 0):
                for name in self._names_of(path):
                    name.unlink(missing_ok=True)

    def _set_aside(self, step):
        """Moves checkpoints in the folder from after `step` out of the way, so that they are not taken for this run's."""
        if self.save_path:  # then there are none
            return None
        later = [path for path in self.checkpoints() if path.is_file() and _number_of(path) > step]
        if not step and self.best.is_file():
            later.append(self.best)
        return self._move_aside(later, self.folder, step)

    def set_aside_saved(self):
        """Moves files of an earlier run with the names of --save-path aside. A message about it, or None."""
        if not self.save_path:
            return None
        earlier = [path for path in (*self.checkpoints(), self.best) if path.is_file()]
        words = self._move_aside(earlier, self.save_path.parent, 0)
        return words and f"{words}; to go on from one, --resume it"

    def _move_aside(self, paths, folder, step):
        if not paths:
            return None
        number = 1
        while (aside := folder / f"left_{number}").exists():
            number += 1
        aside.mkdir()
        for path in paths:
            for name in self._names_of(path):
                os.replace(name, aside / name.name)
        return f"moved to {aside}, because this run begins at step {step}: {', '.join(path.name for path in paths)}"

    # ---- logs

    def take(self):
        """Locks the directory and the file to save to for this process, and removes the temporary files of a killed one."""
        if self.folder:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(
                    f"cannot make the run's folder {self.folder}: {error.strerror}; choose another --out-dir"
                ) from None
            self._lock(self.folder, "training into", "--out-dir")
            names = [re.escape(name).replace(r"\{epoch\}", r"\d+") for name in self._names.values()]
            remove_leftovers(self.folder, re.compile("|".join([FILES, *names])).fullmatch)
        if self.save_path:  # which may lie in the folder
            require_place(self.save_path)
            self._lock(self.save_path, "saving to", "--save-path")
            for path in {self.save_path, Path(os.path.realpath(self.save_path))}:
                ours = rf"{re.escape(path.stem)}(_best|_(step|epoch)\d+)?{re.escape(path.suffix)}"
                remove_leftovers(path.parent, re.compile(ours).fullmatch)

    def _lock(self, place, doing, flag):
        """Holds a lock on the folder or file for the lifetime of this object or of the process."""
        lock = Lock(place)
        try:
            alone = lock.take()
        except OSError as error:
            raise UsageError(f"cannot write {place}: {error.strerror}; choose another {flag}") from None
        if not alone:
            raise UsageError(f"another process is {doing} {place}: wait for it, or choose another {flag}")
        self._locks.append(lock)

    def begin(self, config_text, step, tokenizer=None):
        """Writes the configuration and drops log lines of updates from `step` on. A message about checkpoints that were moved
        aside, or None."""
        if not self.folder:
            return None
        aside = self._set_aside(step)
        with atomic_write(self.folder / "config.toml") as file:
            file.write(config_text.encode())
        if tokenizer and "tokenizer" in self._names:
            tokenizer.save(self.folder / self._names["tokenizer"])
        self.forget(step)
        return aside

    def has_validation(self, step):
        """Whether the logs have a validation loss of this step."""
        return any(row["step"] == step and "val_loss" in row for row in self._rows())

    def has_sample(self, step):
        path = self.folder and self.folder / "samples.txt"
        return bool(path and path.exists() and f"--- step {step}\n".encode() in path.read_bytes())

    def _rows(self):
        try:
            return read_metrics(self.folder) if self.folder else []
        except InputError:  # none yet
            return []

    def forget(self, step):
        """Drops log lines of updates from `step` on."""
        if not self.folder:
            return
        self._keep("metrics.jsonl", _step_of_row, step)
        self._keep("main.log", _step_of_line, step)
        self._keep_samples(step)

    def _keep(self, name, step_of, step):
        """Keeps the whole lines of before `step`: the last may have been cut short when the run was killed."""

        def is_wanted(line):
            return line.endswith(b"\n") and (at := step_of(line)) is not None and at < step

        self._rewrite(name, lambda text: b"".join(filter(is_wanted, text.splitlines(keepends=True))))

    def _keep_samples(self, step):
        def earlier(text):
            parts = re.split(rb"(?m)^(?=--- step \d+\n)", text)
            return b"".join(part for part in parts if (found := re.match(rb"--- step (\d+)\n", part)) and int(found[1]) < step)

        self._rewrite("samples.txt", earlier)

    def _rewrite(self, name, change):
        path = self.folder / name
        if path.exists():
            with open_input(path) as file:
                text = file.read()
            if (kept := change(text)) != text:
                with atomic_write(path) as file:
                    file.write(kept)

    def append(self, name, text):
        """Adds a line to a log. False if there was no room: it is then tried again with the next line."""
        if not self.folder:
            return True
        lines = self._unwritten[name] = self._unwritten.get(name, b"") + text.encode() + b"\n"
        try:
            with open(self.folder / name, "ab", buffering=0) as file:
                size = file.tell()
                try:
                    while lines:
                        lines = lines[file.write(lines) :]
                except OSError:
                    file.truncate(size)  # no half line
                    raise
        except OSError:
            return False
        self._unwritten[name] = b""
        return True

    def log(self, step, validation=None, **row):
        """One update in metrics.jsonl and main.log. False if there was no room for it yet."""
        lines = []
        if validation is not None:
            row["val_loss"] = validation
            lines.append(f"s:{step} tel:{validation:.4f}")
        if "loss" in row:
            lines.append(f"s:{step} trl:{row['loss']:.4f} lr:{row['lr']:.6f} norm:{row['grad_norm']:.2f}")
        written = [self.append("metrics.jsonl", json.dumps({"step": step, **row})), *[self.append("main.log", x) for x in lines]]
        return all(written)


class Elsewhere(Run):
    """The run on ranks other than 0, which write nothing."""

    def take(self):
        pass

    def checkpoints(self):
        return []

    def last(self, step):
        return None

    def on_the_way(self, step, epoch=None):
        return None

    @property
    def best(self):
        return None


def run_at(folder, save_path, family, ranks, names=None):
    """The run in this folder or file, or in a new folder; rank 0 has it."""
    if ranks.rank:
        return Elsewhere()
    return Run(folder, save_path, names) if folder or save_path else Run.new(family, names)


def _number_of(path):
    """The number in a checkpoint's name."""
    return int(re.search(r"(\d+)\.", path.name)[1])


def _step_of(path):
    """The updates done at a checkpoint: as its name says, or else what it says itself; infinity where it cannot be read."""
    if path.name.startswith("ckpt_"):
        return _number_of(path)
    try:
        step = native.metadata(path).get("step")
    except InputError:
        step = None
    return step if isinstance(step, int) else float("inf")


def _step_of_line(line):
    """The step of a line of main.log; None of any other line."""
    found = re.match(rb"s:([0-9]{1,18}) ", line)
    return int(found[1]) if found else None


def _step_of_row(line):
    """The step of a line of metrics.jsonl; None of any other line."""
    row = _row(line)
    return row["step"] if row else None


def _row(line):
    """A line of metrics.jsonl: an object with numbers for step and, where it has them, loss and val_loss; else None."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(_is_number(row.get(key)) for key in {"step", "loss", "val_loss"} & {"step", *row}):
        return None
    return row


def _is_number(value):
    """Whether it is one that a float can hold."""
    return type(value) is float or type(value) is int and value.bit_length() < 1024


def read_metrics(folder):
    """The rows of a run's metrics.jsonl. A last line cut short does not count: the run may be going on."""
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        raise InputError(f"{folder} is not the folder of a run: there is no {path}")
    with open_input(path) as file:
        lines = file.read().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is None:
            raise InputError(
                f"line {number} of {path} is not a row of a run: expected an object with numbers for step, loss and val_loss"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{path} has no rows yet: the run has not done an update")
    return rows
