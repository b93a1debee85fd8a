"""Pictures of runs and benchmarks, for which matplotlib must be installed."""

import itertools
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
    """The losses of runs, {name: rows of its metrics.jsonl}: training thin, validation with markers. What was measured before
    the first update has a marker alone: a line from there would hide how the loss fell."""
    figure, axes = _drawing(8, 4.5, xlabel="update", ylabel="loss")
    for number, (name, rows) in enumerate(runs.items()):
        about = {"color": f"C{number}"}
        title = f"{_plain(name)}: " if len(runs) > 1 else ""
        trained = [(row["step"], row["loss"]) for row in rows if "loss" in row]
        measured = [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]
        if trained:
            axes.plot(*zip(*trained), lw=0.8, alpha=0.7, label=f"{title}training", **about)
        if measured:
            about["color"] = f"C{number}" if len(runs) > 1 else "C1"
            axes.plot(*zip(*measured), ls="none", marker="o", ms=4, label=f"{title}validation", **about)
            axes.plot(*zip(*([point for point in measured if point[0]] or measured[:1])), lw=1.2, **about)
    axes.legend()
    _save(figure, path)


# Kernels by kind, as their names begin; each kind has a colour.
KINDS = {
    "matrix products": ("matmul",),
    "attention": ("attention", "cope"),
    "recurrence and experts": ("scan", "mingru", "gru", "moe", "balance"),
    "optimizer": ("adamw", "sgd", "global_norm", "clamp", "add_scaled"),
    "norms, activations and others": ("",),
}
MARKERS = "osD^vP*X"


def roofline(machine, rows, path):
    """Kernels by operations per byte and speed, below the roofs of the machine: its peak, and its bandwidth x intensity. What
    was fastest in this run is no more than the machine can do: data in the cache come faster than the memory gives them."""
    figure, axes = _drawing(
        13,
        8,
        xscale="log",
        yscale="log",
        xlabel="floating-point operations per byte",
        ylabel="GFLOP/s",
        title=_plain(f"{machine['cpu']}, {machine['threads']} threads"),
    )
    isas = list(dict.fromkeys(row["isa"] for row in rows))
    for isa in isas:
        _roofs(axes, machine, isa, [row for row in rows if row["isa"] == isa])
    groups = list(dict.fromkeys(_group(row, isas) for row in rows))
    for marker, group in zip(itertools.cycle(MARKERS), groups):
        if group:
            axes.plot([], [], ls="none", marker=marker, ms=5, color="grey", label=_plain(group))
    numbers = {kernel: number for number, kernel in enumerate(dict.fromkeys(row["kernel"] for row in rows), 1)}
    colours = {kernel: f"C{next(n for n, names in enumerate(KINDS.values()) if kernel.startswith(names))}" for kernel in numbers}
    for number, kind in enumerate(KINDS):
        if f"C{number}" in colours.values():
            axes.plot([], [], color=f"C{number}", lw=5, label=kind)
    for row in rows:
        point, colour = (row["intensity"], row["gflop_s"]), colours[row["kernel"]]
        marker = MARKERS[groups.index(_group(row, isas)) % len(MARKERS)]
        axes.plot(*point, ls="none", marker=marker, ms=5, color=colour)
        axes.annotate(
            numbers[row["kernel"]],
            point,
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8,
            color=colour,
            annotation_clip=True,
        )
    for kernel, number in numbers.items():
        axes.plot([], [], ls="none", label=_plain(f"{number}  {kernel}"))
    figure.legend(loc="outside right upper", fontsize=9, ncols=math.ceil((len(numbers) + len(groups) + 8) / 44))
    _save(figure, path)


def _group(row, isas):
    """Points that have one marker: of a length such as T64, and where there are several, of an instruction set."""
    length = re.findall(r"[A-Z]\d+$", row["case"])
    return " ".join([row["isa"]] * (len(isas) > 1) + length)


def _roofs(axes, machine, isa, rows):
    """The lines that no kernel of an instruction set can be above."""
    peak = max(machine["peak"][isa], *(row["gflop_s"] for row in rows))
    memory = max(machine["bandwidth"], machine.get("read_bandwidth") or 0)
    fastest = max(row["gflop_s"] / row["intensity"] for row in rows)  # GB/s
    right = 2 * max(peak / memory, *(row["intensity"] for row in rows))
    left = min(peak / max(memory, fastest), *(row["intensity"] for row in rows)) / 2
    for bandwidth, style, name in ((memory, "-", "memory"), (fastest, "--", "cache, at least")):
        if style == "-" or fastest > memory:
            xs = [left, peak / bandwidth, right]
            label = f"{isa}: {peak:.0f} GFLOP/s; {name} {bandwidth:.0f} GB/s"
            axes.plot(xs, [left * bandwidth, peak, peak], color="black", lw=1, ls=style, label=label)


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
