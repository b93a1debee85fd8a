"""Pictures of runs and benchmarks, for which matplotlib must be installed."""

import math
import re
from pathlib import Path

from gpt2c.errors import UsageError
from gpt2c.support.files import atomic_write


def available():
    """Whether matplotlib is there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def loss_curves(runs, path):
    """The losses of runs, {name: rows of its metrics.jsonl}: training thin, validation with markers."""
    figure, axes = _drawing(8, 4.5, xlabel="update", ylabel="loss")
    styles = {"training": ("loss", {"lw": 0.8, "alpha": 0.7}), "validation": ("val_loss", {"lw": 1.2, "marker": "o", "ms": 4})}
    for number, (name, rows) in enumerate(runs.items()):
        colour = f"C{number}"
        axes.plot([], [], color=colour, lw=3, label=_plain(name))
        for key, style in styles.values():
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points), color=colour, **style)
    for label, (_, style) in styles.items():
        axes.plot([], [], color="grey", label=label, **style)
    axes.legend()
    _save(figure, path)


def roofline(machine, rows, path):
    """Kernels by operations per byte and speed, below the machine's roofs: peak and bandwidth x intensity."""
    columns = math.ceil(len(rows) / 60)
    figure, axes = _drawing(
        8 + 2.6 * columns,
        7.5,
        xscale="log",
        yscale="log",
        xlabel="floating-point operations per byte",
        ylabel="GFLOP/s",
        title=_plain(f"{machine['cpu']}, {machine['threads']} threads"),
    )
    isas = {isa: f"C{number}" for number, isa in enumerate(dict.fromkeys(row["isa"] for row in rows))}
    xs = [row["intensity"] for row in rows]
    for isa, colour in isas.items():
        peak, ridge = machine["peak"][isa], machine["peak"][isa] / machine["bandwidth"]
        left, right = min(xs + [ridge]) / 2, max(xs + [ridge]) * 2
        axes.plot(
            [left, ridge, right],
            [left * machine["bandwidth"], peak, peak],
            color=colour,
            label=f"{isa}: {peak:.0f} GFLOP/s, {machine['bandwidth']:.0f} GB/s",
        )
    for number, row in enumerate(rows, 1):
        point = row["intensity"], row["gflop_s"]
        axes.plot(
            *point, ls="none", marker="o", ms=4, color=isas[row["isa"]], label=_plain(f"{number}  {row['kernel']} {row['case']}")
        )
        axes.annotate(number, point, xytext=(3, 3), textcoords="offset points", fontsize=6)
    figure.legend(loc="outside right upper", fontsize=6, ncols=columns)
    _save(figure, path)


def _drawing(width, height, **settings):
    if not available():
        raise UsageError('pictures need matplotlib, which is not installed: pip install "gpt2c[plot]"')
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot(**settings)
    axes.grid(alpha=0.3)
    return figure, axes


def _plain(text):
    """Text in which matplotlib sees no formula, and which it does not leave out of a legend."""
    return re.sub("^_", " _", text).replace("$", r"\$")


def _save(figure, path):
    form, known = Path(path).suffix[1:].lower(), sorted(figure.canvas.get_supported_filetypes())
    if form not in known:
        raise UsageError(f"cannot draw {path}: expected a name that ends in one of .{', .'.join(known)}")
    with atomic_write(path) as file:
        figure.savefig(file, format=form, dpi=120)
