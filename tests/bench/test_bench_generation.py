"""gpt2c bench generate: logits are compared before anything is timed, rows say what was measured, and llama.cpp takes turns."""

import json
import os
import sys

import numpy as np
import pytest
from families import FAMILIES, model_of
from programs import call

import gpt2c
from gpt2c.bench import generation
from gpt2c.bench import measure as benchmarks
from gpt2c.bench.generation import BATCH, DECODE, PREFILL, Generation, Workload
from gpt2c.engine import peak
from gpt2c.errors import Gpt2cError, UsageError
from gpt2c.generation.slots import Slots

SMALL = Workload(20), Workload(8, 6), Workload(8, 6, 3)
LLAMA = dict(vocab_size=97, num_layers=2, channels=64, num_heads=2, num_kv_heads=1, hidden=96, max_seq_len=192)
MACHINE = {"peak": {"avx2": 200.0}, "product_peak": {}, "threads": 1}


@pytest.fixture
def quick(monkeypatch):
    """What the machine can do is measured on little, and nobody pauses."""
    for name, value in {"RUNS": 2, "STEPS": 10, "FLOATS": 10**6, "PRODUCTS": ((64, 64, 64),), "READING": 2**20}.items():
        monkeypatch.setattr(peak, name, value)
    monkeypatch.setattr(generation, "READING", 2**20)
    monkeypatch.setattr(benchmarks, "PAUSE", 0)


@pytest.fixture
def gguf(tmp_path):
    gpt2c.create("llama", **LLAMA).save(tmp_path / "m.gguf", dtype="q8_0")
    return tmp_path / "m.gguf"


def rival(path, answer):
    """A Python that has llama.cpp, of version 9.9, which answers so to each workload."""
    path.write_text(f'#!/bin/sh\ncase "$1" in -c) echo 9.9 ;; *) while read work; do echo {answer}; done ;; esac\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_generates_what_its_forward_gives(family):
    ours = Generation(model_of(family, seed=3))
    for work in SMALL:
        ours.verify(work)
        assert ours.seconds(work) > 0 and ours.seconds(work) > 0  # again, from where the prompt ends
        facts = ours.facts(work)
        assert facts["products"] > 0 and (facts["cache"] > 0) == (ours.model.definition.state is None)


@pytest.mark.parametrize("call", ["read", "step"])
def test_what_gives_other_logits_is_not_timed(call, monkeypatch):
    right = getattr(Slots, call)
    monkeypatch.setattr(Slots, call, lambda *args: {slot: logits * 1.05 for slot, logits in right(*args).items()})
    with pytest.raises(Gpt2cError, match=r"-8: logits are wrong by [45].\de-02 of their spread, expected at most 0.02"):
        Generation(model_of(seed=3)).verify(Workload(8) if call == "read" else Workload(8, 6))


def test_what_a_token_takes_is_counted():
    """Of 20 tokens of a prompt only the last one needs the head; keys and values are float32, as the weights are."""
    model = gpt2c.create("llama", **LLAMA, tied=True)
    layer = 64 * (2 + 1 + 1) * 32 + 64 * 64 + 3 * 64 * 96  # weights of a block
    head = 64 * 97
    facts = Generation(model).facts(Workload(20))
    assert facts["products"] == pytest.approx(2 * (2 * layer + head / 20))
    assert facts["attention"] == 2 * 2 * 21 * 64
    assert Generation(model).facts(Workload(8, 6, 3))["products"] == 2 * (2 * layer + head)
    assert Generation(model).facts(Workload(8, 6))["cache"] == 2 * 2 * 32 * 4 * (8 + 6 / 2)  # layers, K and V, numbers, bytes


def test_rows_are_shares_of_what_bounds_them():
    facts = {
        PREFILL.name: {"products": 2e6, "attention": 5e5, "cache": 0},
        DECODE.name: {"products": 3e6, "attention": 0, "cache": 1e6},
        BATCH.name: {"products": 3e6, "attention": 0, "cache": 1e6},
        "bytes": 9e6,
    }
    speeds = {}

    def row(work, *seconds):
        speeds[work] = work.tokens / seconds[0]
        return generation.row(work, seconds, speeds, facts, "avx2", MACHINE, 20.0)

    alone = row(BATCH, 0.064)
    assert alone["share"] is alone["bound"] is alone["times_one"] is None
    prompt, one, many = row(PREFILL, 0.512, 1.024), row(DECODE, 0.128, 0.064), row(BATCH, 0.064)
    assert [found["tok_s"] for found in (prompt, one, many)] == pytest.approx([1000, 1000, 4000])
    assert (prompt["share"], prompt["bound"], prompt["ratio"]) == pytest.approx((2.5 / 200, 80_000, 2))
    assert (one["share"], one["of"], one["bound"]) == (pytest.approx(0.5), "memory", pytest.approx(2000))
    assert (one["ratio"], one["llama_cpp_tok_s"]) == pytest.approx((0.5, 2000))
    assert (many["share"], many["of"], many["times_one"], many["ratio"]) == (6, "prefill-512", 4, None)


def test_a_file_beside_llama_cpp(gguf, tmp_path, quick, monkeypatch):
    monkeypatch.setenv("GPT2C_JUDGE", rival(tmp_path / "python", 0.5))
    words = ["bench", "generate", "--checkpoint", gguf, "--weights", "stored,q4_0", "--seconds", 0, "--out", tmp_path / "out"]
    done = call(tmp_path, *words)
    assert "beside it: llama.cpp 9.9" in done.stdout
    (path,) = (tmp_path / "out").glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [(row["weights"], row["work"]) for row in rows] == [
        (weights, work) for weights in ("stored", "q4_0") for work in (DECODE.name, BATCH.name)
    ]  # there is no room for 512 tokens
    for row in rows:
        assert f" {row['tok_s']:.1f} " in done.stdout and row["model"] == "m.gguf"
        assert row["bytes"] == sum(tensor.nbytes for tensor in gpt2c.load(gguf, row["weights"]).base.values())
        if row["work"] == DECODE.name:
            assert row["llama_cpp_tok_s"] == 256 and row["ratio"] == pytest.approx(row["tok_s"] / 256)


def test_any_file_without_llama_cpp(tmp_path, quick, monkeypatch):
    monkeypatch.setenv("GPT2C_JUDGE", rival(tmp_path / "python", 0.5))
    gpt2c.create("mingru", dim=32, depth=1, vocab_size=31).save(tmp_path / "m.safetensors")
    done = call(tmp_path, "bench", "generate", "--checkpoint", "m.safetensors", "--filter", "decode-128-after-32", "--seconds", 0)
    *_, titles, line = done.stdout.splitlines()
    assert titles.split()[-2:] == ["llama.cpp", "gpt2c/llama.cpp"] and line.split()[-2:] == ["-", "-"]
    assert line.split()[1:4] == ["stored", "0", "decode-128-after-32"]


def test_a_python_without_llama_cpp_is_no_rival(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    assert generation.llama_cpp(str(python)) == ""
    with pytest.raises(UsageError, match="cannot run .*missing: No such file or directory; GPT2C_JUDGE names it"):
        generation.llama_cpp(str(tmp_path / "missing"))


def test_llama_cpp_does_the_same_work(smollm2):
    python = os.environ.get("GPT2C_JUDGE") or sys.executable
    if not generation.llama_cpp(python):
        pytest.skip(f"{python} has no xllamacpp")
    with generation.llama_cpp_worker(python, smollm2, 1, SMALL[:2], np.arange(1000, 1020).tolist()) as theirs:
        assert all(0 < theirs(work.name) < 60 for work in (*SMALL[:2], *SMALL[:2]))


@pytest.mark.parametrize("words, message", [
    (["generate", "--weights", "q9_9,f32"], "--weights: expected stored, f32, f16, bf16, q8_0"),
    (["kernels", "--weights", "f32"], "--checkpoint and --weights are for gpt2c bench generate"),
    (["generate", "--profile"], "--profile, --mpi and --compare do nothing for gpt2c bench generate; leave them out"),
    (["generate", "--checkpoint", "m.gguf", "--filter", "prefill"], "room in the model's 192 tokens; there are prefill-512"),
])  # fmt: skip
def test_errors_of_it_are_one_sentence(gguf, tmp_path, words, message):
    done = call(tmp_path, "bench", *words, code=2)
    assert done.stderr.count("\n") == 1 and message in done.stderr and done.stdout == "", done.stderr
