"""Plot loss curves or a roofline: python -m gpt2c plot RUN [RUN ...], or gpt2c plot.

RUN is the output directory of a run; several are drawn in one picture. --roofline draws what gpt2c bench --out wrote.
"""

import os
from dataclasses import dataclass

from gpt2c.bench import tables
from gpt2c.commands.command_line import parse
from gpt2c.errors import UsageError
from gpt2c.runs.logs import read_metrics
from gpt2c.support import pictures
from gpt2c.support.fields import flag
from gpt2c.support.streams import say


@dataclass
class PlotConfig:
    run: tuple[str, ...] = flag((), "output directory of a run", metavar="RUN")
    roofline: str = flag(
        "", "draw the roofline plot of a benchmark: kernels against the peaks of its machine", metavar="BENCH.json"
    )
    out: str = flag(
        "", "output file; its extension is the picture format", "-o", metavar="FILE", default_text="loss.png or roofline.png here"
    )


def main(argv):
    (config,), _ = parse(argv, [PlotConfig], "gpt2c plot", __doc__.partition("\n\n")[2], ["run"])
    if bool(config.run) == bool(config.roofline):
        raise UsageError("name the folders of runs, or a benchmark with --roofline: gpt2c plot RUN [RUN ...]")
    if config.roofline:
        path = config.out or "roofline.png"
        pictures.roofline(*tables.load_kernels(config.roofline), path)
    else:
        path = config.out or "loss.png"
        pictures.loss_curves({name: read_metrics(folder) for name, folder in named(config.run).items()}, path)
    say(f"written: {path}")


def named(folders):
    """{name: folder}; the name is the folder's own, or its whole path where several would have the same."""
    names = [os.path.basename(os.path.abspath(folder)) for folder in folders]
    return {name if names.count(name) == 1 else folder: folder for name, folder in zip(names, folders)}
