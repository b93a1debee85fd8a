"""Writes the README's tables of speeds and docs/roofline.png from the files in benchmarks/results.

A session may take several runs: of all files of the newest one's day and processor, the newest row of each measurement counts.
Training and generation have sessions of their own.

    gpt2c bench --compare torch --out benchmarks/results && python benchmarks/readme_table.py
    gpt2c bench generate --checkpoint FILE --weights stored,q8_0 --out benchmarks/results && python benchmarks/readme_table.py
"""

import json
import re
from pathlib import Path

from gpt2c.bench.tables import load_kernels
from gpt2c.support.pictures import roofline

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- {}: written by benchmarks/readme_table.py -->", "<!-- end of {} -->"
KEY = "isa", "work", "model", "system", "kernel", "case", "weights"  # of a measurement


def session(*sections):
    """({"machine", "rows"} of the newest session with rows of these sections, its newest file with kernels). Names of files begin
    with the date."""
    paths = sorted(RESULTS.glob("*.json"), key=lambda path: path.name)
    paths = [path for path in paths if json.loads(path.read_text(encoding="utf-8"))["rows"][0]["section"] in sections]
    newest = json.loads(paths[-1].read_text(encoding="utf-8"))["machine"]
    rows, machine, kernels = {}, {}, None
    for path in paths:
        bench = json.loads(path.read_text(encoding="utf-8"))
        if (bench["machine"]["cpu"], bench["machine"]["date"][:10]) == (newest["cpu"], newest["date"][:10]):
            machine |= bench["machine"]
            for row in bench["rows"]:
                if row.get("system", "").startswith("gpt2c"):  # what was measured beside an older one of these no longer counts
                    rows = {key: old for key, old in rows.items() if _measured_beside(old) != _measured_beside(row)}
                rows[tuple(row.get(name) for name in KEY)] = row
                kernels = path if row["section"] == "kernels" else kernels
    return {"machine": machine, "rows": list(rows.values())}, kernels


def _measured_beside(row):
    return row.get("isa"), row.get("work"), row.get("model"), "bf16" in row.get("system", "")


def training(bench):
    """The text with steps of training."""
    machine, rows = bench["machine"], [row for row in bench["rows"] if row.get("work") == "train"]
    isa, peak = rows[0]["isa"], rows[0].get("roof", machine["peak"][rows[0]["isa"]])
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, {machine['date']}, {machine['compiler']}; in the same session: float32 "
        f"peak {peak:.0f} GFLOP/s ({isa}), reading {machine['read_bandwidth']:.0f} GB/s. PyTorch "
        f"{machine['torch']} takes turns with gpt2c in the same precision; times are medians, its best mode counts.",
        "",
        "| training step | gpt2c | share of peak | memory | PyTorch | gpt2c is | gpt2c bf16 | PyTorch bf16 | gpt2c is |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = {row["system"]: row for row in rows if row["model"] == model}
        ours, bf16 = mine["gpt2c"], mine.get("gpt2c bf16")
        cells = [
            model,
            _ms(ours),
            f"{ours['share']:.0%}",
            f"{ours['peak_memory'] / 1e9:.1f} GB",
            *_rival(mine, lambda name: "bf16" not in name),
            _ms(bf16),
            *_rival(mine, lambda name: "bf16" in name),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ms(row):
    return f"{row['ms']:,.0f} ms" if row["ms"] >= 100 else f"{row['ms']:.1f} ms"


def _rival(rows, wanted):
    """(time, how many times as fast gpt2c is) of PyTorch's fastest such mode."""
    theirs = [row for name, row in rows.items() if name.startswith("torch") and wanted(name.removeprefix("torch "))]
    if not theirs:
        return "-", "-"
    best = min(theirs, key=lambda row: row["ms"])
    return f"{_ms(best)} ({best['system'].removeprefix('torch ')})", f"{best['ratio']:.2f}x"


def generation(bench):
    """The text with prompts and decoding, type by type."""
    machine, rows = bench["machine"], bench["rows"]
    reading = sorted(row["read_bandwidth"] for row in rows)
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, {machine['date'][:10]}; reading {reading[0]:.0f} to {reading[-1]:.0f} "
        f"GB/s in the same runs. llama.cpp (xllamacpp {machine['llama.cpp']}) takes turns on the same file; medians, in tokens "
        "per second.",
        "",
        "| file | weights | | gpt2c | share of the bound | llama.cpp | gpt2c is |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = f"{row['share']:.0%} ({row['of']})" + (f", {row['times_one']:.1f} x one" if row["times_one"] else "")
        theirs = [f"{row['llama_cpp_tok_s']:.0f}", f"{row['ratio']:.2f}x"] if row["ratio"] else ["-", "-"]
        weights = f"{row['weights']}, {row['bytes'] / 1e6:.0f} MB"
        lines.append("| " + " | ".join([row["model"], weights, row["work"], f"{row['tok_s']:.0f}", share, *theirs]) + " |")
    return "\n".join(lines)


def written(text, name, table):
    """The README with this table between its marks."""
    begin, end = BEGIN.format(name), END.format(name)
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.S)


def main():
    (bench, kernels), (generated, _), readme = session("kernels", "models"), session("generate"), ROOT / "README.md"
    text = written(readme.read_text(encoding="utf-8"), "speed", training(bench))
    readme.write_text(written(text, "generation", generation(generated)), encoding="utf-8")
    if kernels:
        machine, rows = load_kernels(kernels)
        shown = [row for row in rows if row["isa"] == rows[0]["isa"] and not row["case"].endswith("T64")]  # few enough to read
        roofline(machine, shown, ROOT / "docs" / "roofline.png")


if __name__ == "__main__":
    main()
