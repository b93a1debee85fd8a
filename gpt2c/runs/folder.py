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
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from gpt2c.errors import DivergedError, Gpt2cError, InputError, ResourceError
from gpt2c.formats import native
from gpt2c.runs.logs import read_metrics, step_of_line, step_of_row
from gpt2c.runs.places import Places
from gpt2c.support.files import atomic_write, open_input, second_name


class Run:
    """The files of one run. Log lines are flushed at once, so an interrupted run keeps them.

    `names` are the second names of files in the folder: of the best checkpoint, of one at the end of an epoch, of the last
    one, and the name of the tokenizer's own file. `warn` is told what goes wrong without ending the run.
    """

    def __init__(self, folder=None, save_path=None, names=None, warn=lambda text: None):
        self.folder, self._names = Path(folder) if folder else None, names or {}
        self.save_path = Path(save_path) if save_path else None
        self._unwritten = {}  # lines for which there was no room, by file
        self._places = Places(self.folder, self.save_path, self._names)
        self._warn, self._reasons = warn, {}  # of troubles that were told

    @classmethod
    def new(cls, family, **how):
        """A folder runs/<date>-<family> that does not exist yet."""
        name = f"runs/{datetime.now():%Y%m%d-%H%M%S}-{family}"
        number = 1
        while Path(name if number == 1 else f"{name}-{number}").exists():
            number += 1
        return cls(name if number == 1 else f"{name}-{number}", **how)

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
        ours, why = [(path, done) for path in self.checkpoints() if (done := _step_of(path)) <= step] if count else [], ""
        try:
            for path, done in ours[: -count or None]:
                if path != self.save_path and not (major and done % major == 0):
                    for name in self._names_of(path):
                        name.unlink(missing_ok=True)
        except OSError as error:
            why = error.strerror
        self._tell("old", why, f"old checkpoints stay for now: {why}")

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

    def save(self, save, path, ranks):
        """save(path), on all ranks; an error on all of them where this run no longer has its places."""
        if why := ranks.broadcast(self.hold()):
            raise ResourceError(f"cannot write {path}: {why}")
        save(path)

    def save_last(self, save, path, ranks):
        """The same at the end of a run: the error says what there is without it."""
        try:
            self.save(save, path, ranks)
        except DivergedError:
            raise
        except Gpt2cError as error:
            kept = self.checkpoints()
            left = f"the newest checkpoint of this run is {kept[-1]}" if kept else "nothing of this run is saved"
            raise ResourceError(f"{error}; {left}") from None

    # ---- the places for all of these

    def take(self):
        """Locks the places for this process; an error if another one has them."""
        self._places.take()

    def hold(self):
        """Makes folders again that were removed meanwhile, with what was in them from the beginning. Why there is no place to
        write to any more, or ""."""
        why, again = self._places.hold()
        for folder in again:
            self._warn(f"{folder} was removed during the run: it is made again, without what was in it")
            with suppress(Gpt2cError):
                self._write_beginning()
        return why

    def _tell(self, about, why, trouble, otherwise=""):
        """Warns of a trouble once while its reason lasts, and says once that it is over (`why` is "")."""
        if why != self._reasons.get(about, ""):
            self._reasons[about] = why
            if text := trouble if why else otherwise:
                self._warn(text)

    def begin(self, config_text, step, tokenizer=None):
        """Writes the configuration and drops log lines of updates from `step` on. A message about checkpoints that were moved
        aside, or None."""
        if not self.folder:
            return None
        aside = self._set_aside(step)
        self._beginning = config_text, tokenizer
        self._write_beginning()
        self.forget(step)
        return aside

    def _write_beginning(self):
        """What is in the folder from the beginning."""
        if self.folder:
            config_text, tokenizer = self._beginning
            with atomic_write(self.folder / "config.toml") as file:
                file.write(config_text.encode())
            if tokenizer and "tokenizer" in self._names:
                tokenizer.save(self.folder / self._names["tokenizer"])

    # ---- logs

    def has_validation(self, step):
        """Whether both logs have a validation loss of this step."""
        rows = [row for row in self._rows() if row["step"] == step and "val_loss" in row]
        return bool(rows) and f"\ns:{step} tel:".encode() in b"\n" + self._text("main.log")

    def has_sample(self, step):
        return f"--- step {step}\n".encode() in self._text("samples.txt")

    def _text(self, name):
        try:
            return (self.folder / name).read_bytes() if self.folder else b""
        except OSError:  # there is none yet
            return b""

    def _rows(self):
        try:
            return read_metrics(self.folder) if self.folder else []
        except InputError:  # none yet
            return []

    def forget(self, step):
        """Drops log lines of updates from `step` on."""
        if not self.folder:
            return
        self._keep("metrics.jsonl", step_of_row, step)
        self._keep("main.log", step_of_line, step)
        self._keep_samples(step)

    def _keep(self, name, step_of, step):
        """Keeps the whole lines of before `step`: the last may have been cut short when the run was killed."""

        def is_wanted(line):
            return line.endswith(b"\n") and (at := step_of(line)) is not None and at < step

        self._rewrite(name, lambda text: b"".join(filter(is_wanted, text.splitlines(keepends=True))))

    def _keep_samples(self, step):
        def earlier(text):
            parts = re.split(rb"(?m)^(?=--- step \d{1,18}\n)", text)
            return b"".join(
                part for part in parts if (found := re.match(rb"--- step (\d{1,18})\n", part)) and int(found[1]) < step
            )

        self._rewrite("samples.txt", earlier)

    def _rewrite(self, name, change):
        self._unwritten[name] = change(self._unwritten.get(name, b""))
        path = self.folder / name
        if path.exists():
            with open_input(path) as file:
                text = file.read()
            if (kept := change(text)) != text:
                with atomic_write(path) as file:
                    file.write(kept)

    def append(self, name, text):
        """Adds a line to a log. False if it, or one before it, cannot be written: they are tried again with the next one."""
        if not self.folder:
            return True
        self._unwritten[name] = self._unwritten.get(name, b"") + text.encode() + b"\n"
        why = self.hold() or self._write_lines()
        logs = f"the logs in {self.folder}"
        lost = f"{logs} cannot be written for now ({why}): their lines are kept until they can"
        self._tell("logs", why, lost, f"{logs} are written again")
        return not why

    def _write_lines(self):
        """Why not all could be written, or ""."""
        try:
            for name, lines in self._unwritten.items():
                add_lines(self.folder / name, lines)
                self._unwritten[name] = b""
        except OSError as error:
            return error.strerror
        return ""

    def log(self, step, validation=None, **row):
        """One update in metrics.jsonl and main.log. False if they cannot be written yet."""
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

    def hold(self):
        return ""

    def checkpoints(self):
        return []

    def last(self, step):
        return None

    def on_the_way(self, step, epoch=None):
        return None

    @property
    def best(self):
        return None


def run_at(folder, save_path, family, ranks, **how):
    """The run in this folder or file, or in a new folder; rank 0 has it."""
    if ranks.rank:
        return Elsewhere()
    return Run(folder, save_path, **how) if folder or save_path else Run.new(family, **how)


def add_lines(path, lines):
    """Adds to a file all of these or none."""
    if not lines:
        return
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            while lines:
                lines = lines[file.write(lines) :]
        except OSError:
            file.truncate(size)  # no half line
            raise


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
