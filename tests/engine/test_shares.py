"""Shares of peak: of which unit, on how many threads, and what is done where more than the peak is reached."""

import re

import pytest
from programs import call

import gpt2c
from gpt2c.data import write_shard
from gpt2c.engine import peak
from gpt2c.engine.peak import measured_peak, raised, unit


@pytest.mark.parametrize("isa, fp32, bf16", [
    ("baseline", "fp32 FMA", "fp32 FMA"), ("avx2", "fp32 FMA", "fp32 FMA"), ("avx512", "fp32 FMA", "fp32 FMA"),
    ("avx512bf16", "fp32 FMA", "AVX-512 bf16"), ("amx", "AMX fp32", "AMX bf16"),
])  # fmt: skip
def test_the_unit_is_the_one_that_multiplies(isa, fp32, bf16):
    assert (unit(isa, "fp32"), unit(isa, "bf16")) == (fp32, bf16)


@pytest.mark.parametrize("precision", [None, "fp32", "bf16"])
def test_measuring_leaves_the_settings_as_they_were(isa, precision, monkeypatch):
    gpt2c.set_isa("baseline")
    monkeypatch.setattr(peak, "RUNS", 2)
    monkeypatch.setattr(peak, "STEPS", 10)
    monkeypatch.setattr(peak, "PRODUCTS", ((64, 64, 64),))
    monkeypatch.setattr(peak, "unit", lambda *_: "a unit that only products use")
    before = gpt2c.info()
    assert measured_peak(isa, precision) > 0
    assert gpt2c.info() == before


def test_products_in_other_units_are_measured_by_products(monkeypatch):
    """In the precision that is asked for, and the fastest of several sizes counts."""
    seen = []

    def fastest(kernel, *args):
        seen.append((kernel, gpt2c.info()["matmul_precision"], gpt2c.info()["isa"]))
        return 1e-3 * len(seen)

    monkeypatch.setattr(peak, "_fastest", fastest)
    monkeypatch.setattr(peak, "unit", lambda *_: "AMX bf16")
    others = [2e-9 * r * c * n / (1e-3 * place) for place, (r, c, n) in enumerate(peak.PRODUCTS, 1)]
    assert measured_peak("avx2" if "avx2" in gpt2c.info()["isas"] else "baseline", "bf16") == pytest.approx(max(others))
    assert {(kernel, precision) for kernel, precision, _ in seen} == {("matmul_forward", "bf16")}


@pytest.mark.parametrize("again, expected", [(90.0, 120.0), (110.0, 120.0), (150.0, 150.0)])
def test_what_is_above_the_peak_is_a_reason_to_measure_again(monkeypatch, again, expected):
    asked = []
    monkeypatch.setattr(peak, "measured_peak", lambda *how: asked.append(how) or again)
    assert raised(100.0, 99.0, "avx2", "bf16") == 100 and not asked
    assert raised(100.0, 120.0, "avx2", "bf16") == expected and asked == [("avx2", "bf16")]


def test_lines_of_a_run_name_the_unit_and_never_show_more_than_all_of_it(tmp_path, monkeypatch):
    """As where the machine was busy when the peak was measured first."""
    write_shard(tmp_path / "x_train.bin", [1, 2, 3, 4] * 50)
    found, measured = iter([1e-6, 1e9]), []

    def measure(*how):
        measured.append((*how, gpt2c.info()["threads"]))
        return next(found)

    monkeypatch.setattr("gpt2c.runs.loop.measured_peak", measure)
    monkeypatch.setattr(peak, "measured_peak", measure)
    words = "-e scratch --num-layers 1 --channels 16 --num-heads 1 --max-seq-len 16 --vocab-size 97 -b 2 -t 16 -v 0 -s 0 -x 3"
    run = ["train", *words.split(), "--data", "x_train.bin", "--threads", 1, "--matmul-precision", "bf16"]
    said = call(tmp_path, *run).stdout
    isa = gpt2c.info()["isa"]
    assert measured == 2 * [(isa, "bf16", 1)]
    shares = re.findall(r"\| ([\d.]+)% of (.*?) peak \|", said)
    assert len(shares) == 3 and all(float(share) <= 100 and of == unit(isa, "bf16") for share, of in shares)
    assert f"; {unit(isa, 'bf16')} peak " in said
