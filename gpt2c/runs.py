"""The folder of a run: what is in it, and how it is written.

    config.toml            every flag as it was
    metrics.jsonl          one object per update
    main.log               llm.c's log lines
    samples.txt            what the model wrote on the way
    ckpt_%08d.safetensors  checkpoints, by the number of updates done; best.safetensors
    loss.png               the loss curve, where matplotlib is installed
"""
import json
from datetime import datetime
from pathlib import Path

from gpt2c.errors import InputError, UsageError
from gpt2c.files import open_input


class Run:
    """One run's folder. Lines are written out at once, so an interrupted run keeps them."""

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the run's folder {folder}: {error.strerror}; choose another --out-dir") from None

    @classmethod
    def new(cls, family):
        """A folder runs/<date>-<family> that does not exist yet."""
        name = f"runs/{datetime.now():%Y%m%d-%H%M%S}-{family}"
        number = 1
        while Path(name if number == 1 else f"{name}-{number}").exists():
            number += 1
        return cls(name if number == 1 else f"{name}-{number}")

    def checkpoint(self, step):
        return self.folder / f"ckpt_{step:08d}.safetensors"

    def checkpoints(self):
        """The run's checkpoints, oldest first."""
        return sorted(self.folder.glob("ckpt_*.safetensors"))

    def begin(self, config_text, step):
        """Writes the configuration and drops what the logs say of updates from `step` on."""
        (self.folder / "config.toml").write_text(config_text)
        self._keep("metrics.jsonl", lambda line: json.loads(line)["step"] < step)
        self._keep("main.log", lambda line: int(line.split()[0].removeprefix("s:")) < step)

    def _keep(self, name, wanted):
        path = self.folder / name
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines(keepends=True):
            try:
                if line.endswith("\n") and wanted(line):
                    kept.append(line)
            except (ValueError, KeyError, IndexError):  # a line cut short when the run was killed
                continue
        path.write_text("".join(kept))

    def append(self, name, text):
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def log(self, step, validation=None, **row):
        """One update in metrics.jsonl and main.log."""
        if validation is not None:
            row["val_loss"] = validation
            self.append("main.log", f"s:{step} tel:{validation:.4f}")
        self.append("metrics.jsonl", json.dumps({"step": step, **row}))
        if "loss" in row:
            self.append("main.log", f"s:{step} trl:{row['loss']:.4f} lr:{row['lr']:.6f} norm:{row['grad_norm']:.2f}")

    def retain(self, count):
        """Deletes all but the newest `count` checkpoints (0: none)."""
        for path in self.checkpoints()[: -count or None] if count else []:
            path.unlink()


def read_metrics(folder):
    """The rows of a run's metrics.jsonl. A last line cut short does not count: the run may be going on."""
    path = Path(folder) / "metrics.jsonl"
    with open_input(path) as file:
        lines = file.read().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            for key in {"step", "loss", "val_loss"} & {"step", *row}:
                float(row[key] + 0)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise InputError(f"line {number} of {path} is not a row of a run: expected an object with numbers for "
                             "step, loss and val_loss") from None
        rows.append(row)
    if not rows:
        raise InputError(f"{path} has no rows yet: the run has not done an update")
    return rows
