"""The training program as a user meets it: a new folder, a command, what is printed and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest
from programs import call

import gpt2c
from gpt2c.data import write_shard
from gpt2c.training.config import seconds
from gpt2c.training.schedules import learning_rate

SHAPE = "-e scratch --num-layers 2 --channels 32 --num-heads 2 --max-seq-len 32 --vocab-size 97"
SMALL = [*SHAPE.split(), *"-b 2 -t 16 --log-every 1 -s 0".split()]


@pytest.fixture
def folder(tmp_path):
    """A folder with a data set of random tokens below data/."""
    (tmp_path / "data" / "noise").mkdir(parents=True)
    rng = np.random.default_rng(0)
    write_shard(tmp_path / "data/noise/noise_train.bin", rng.integers(0, 97, 5000))
    write_shard(tmp_path / "data/noise/noise_val.bin", rng.integers(0, 97, 600))
    return tmp_path


def train(folder, *words, small=True, code=0):
    return call(folder, "train", *(SMALL if small else []), *words, code=code)


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_and_what_it_leaves(folder):
    done = train(folder, "-o", "out", "-x", 5, "-v", 2, "-m", 3, "-n", 2, "-s", 3, "-g", 8, "-l", "1e-3")
    assert "data: noise, train data/noise/noise_train.bin, val data/noise/noise_val.bin" in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("step")]
    assert len(lines) == 5
    assert all(
        part in lines[0]
        for part in ("step    1/5 | loss ", "| norm ", "| lr 1.00e-03 |", "ms |", "% of ", " peak |", "tok/s | eta")
    )
    out = folder / "out"
    assert sorted(p.name for p in out.iterdir() if p.suffix != ".png") == [
        "best.safetensors",
        "ckpt_00000002.safetensors",
        "ckpt_00000004.safetensors",
        "ckpt_00000005.safetensors",
        "config.toml",
        "main.log",
        "metrics.jsonl",
        "samples.txt",
    ]
    found = rows(out)
    assert [row["step"] for row in found] == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in found if "val_loss" in row] == [0, 2, 4, 5]
    assert {"loss", "lr", "grad_norm", "ms", "tok_s", "tokens"} <= set(found[0]) and found[-2]["tokens"] == 5 * 32
    assert found[0]["loss"] == pytest.approx(np.log(97), abs=0.2)
    log = (out / "main.log").read_text().splitlines()
    assert log[0].startswith("s:0 tel:4.") and log[1].startswith("s:0 trl:4.") and " lr:0.001000 norm:" in log[1]
    assert tomllib.loads((out / "config.toml").read_text())["max_steps"] == 5
    assert (
        gpt2c.load(out / "ckpt_00000005.safetensors").num_parameters
        == gpt2c.create("gpt2", num_layers=2, channels=32, num_heads=2, max_seq_len=32, vocab_size=97).num_parameters
    )


def test_a_run_resumed_from_the_command_line_is_the_same_run(folder):
    train(folder, "-o", "straight", "-x", 6, "-v", 2, "--warmup-steps", 2, "-n", 3, "-d", 64)
    (folder / "broken").mkdir()
    for name in ("ckpt_00000003.safetensors", "metrics.jsonl", "main.log"):
        (folder / "broken" / name).write_bytes((folder / "straight" / name).read_bytes())
    resumed = train(folder, "-o", "broken", "-y", 1, "-x", 6, "-v", 2, "--warmup-steps", 2, "-d", 64, "--threads", 1)
    assert "resumed from broken/ckpt_00000003.safetensors at step 3" in resumed.stdout
    name = "ckpt_00000006.safetensors"
    assert (folder / "broken" / name).read_bytes() == (folder / "straight" / name).read_bytes()
    for mine, theirs in zip(rows(folder / "broken"), rows(folder / "straight"), strict=True):
        assert {k: mine.get(k) for k in ("step", "loss", "val_loss")} == {k: theirs.get(k) for k in ("step", "loss", "val_loss")}
    again = train(folder, "-o", "broken", "-y", 1, "-x", 6, "-d", 64)
    assert "already at step 6 of 6: nothing to train" in again.stdout


def test_ctrl_c_saves_and_says_130(folder):
    command = [sys.executable, "-m", "gpt2c.train", *SMALL, "-o", "out", "-x", "1000000", "-v", "0"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "saving after this step" in err
    (checkpoint,) = (folder / "out").glob("ckpt_*.safetensors")
    assert f"{checkpoint.name}" in out
    assert int(checkpoint.stem.removeprefix("ckpt_")) == len(rows(folder / "out"))


def test_accumulated_batches_equal_one_large_batch(folder):
    """Unshuffled, four batches of 2 sequences are the same tokens as one of 8."""
    runs = []
    for B in (8, 2):
        m = gpt2c.create("gpt2", num_layers=2, channels=32, num_heads=2, vocab_size=97, max_seq_len=16)
        loader = gpt2c.DataLoader(str(folder / "data/noise/noise_train.bin"), B=B, T=16)
        trainer = gpt2c.Trainer(m, loader, None, gpt2c.TrainConfig(max_steps=5, total_batch_size=128, eps=1e-4))
        assert trainer.micro_steps == 8 // B
        runs.append([(step.loss, step.grad_norm, step.tokens) for step in trainer])
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-5)
    bad = train(folder, "-b", 8, "-d", 100, code=2)
    assert "100 tokens is no multiple of the batch of 8 x 16 = 128" in bad.stderr


def test_overfitting_one_batch(folder):
    train(folder, "-o", "out", "-x", 60, "-a", 1, "-l", "1e-2", "-v", 0)
    assert rows(folder / "out")[-1]["loss"] < 0.2


def test_recomputing_changes_no_bit(folder):
    for level in (0, 1, 2):
        train(folder, "-o", f"r{level}", "-x", 3, "-v", 0, "-r", level)
    names = [folder / f"r{level}" / "ckpt_00000003.safetensors" for level in (0, 1, 2)]
    assert len({name.read_bytes() for name in names}) == 1


def test_bf16_products_train_along_the_same_curve(folder):
    for precision in ("fp32", "bf16"):
        train(folder, "-o", precision, "-x", 30, "-v", 0, "-a", 1, "-l", "3e-3", "--matmul-precision", precision)
    one, other = ([row["loss"] for row in rows(folder / name)[:30]] for name in ("fp32", "bf16"))
    assert one != other and one[-1] < one[0] - 1
    np.testing.assert_allclose(other, one, rtol=0.02)


def test_stopping_early(folder):
    done = train(folder, "-o", "a", "-x", 1000, "-v", 1, "-m", 1, "--target-val-loss", 5)
    assert "stopped: validation loss" in done.stdout and len(rows(folder / "a")) <= 3
    done = train(folder, "-o", "b", "-x", 10**6, "-v", 0, "--max-time", "1s")
    assert "stopped: after 1s, as asked" in done.stdout
    done = train(folder, "-o", "c", "-x", 1000, "-v", 1, "-m", 1, "-l", "1e-30", "--patience", 3)
    assert "stopped: 3 validations without a better one" in done.stdout


def test_epochs_and_data_by_path_without_validation_data(folder):
    os.remove(folder / "data/noise/noise_val.bin")
    done = train(folder, "-o", "out", "--epochs", 1, "--data", "data/noise/noise_train.bin", "-v", 50, "-m", -1)
    assert "val the last 10% of it" in done.stdout
    assert rows(folder / "out")[-1]["step"] == (4500 - 1) // 32


def test_fine_tuning_starts_from_the_weights(folder):
    m = gpt2c.create("gpt2", num_layers=1, channels=16, num_heads=1, vocab_size=97, max_seq_len=16)
    m.save(folder / "gpt2_124M.bin")
    done = train(folder, "-t", 8, "-x", 1, "-s", 1, "-g", 4, "-o", "out", small=False)
    assert "from gpt2_124M.bin" in done.stdout and "step    1/1 |" in done.stdout
    assert "generating:\n---\n" in done.stdout


def test_a_dry_run_prints_the_memory_and_stops(folder):
    done = train(folder, "--dry-run", "-e", "gpt2:d48", "-b", 64, "-t", 1024, small=False)
    assert "1,557,686,400 parameters" in done.stdout and "Adam moments 12.5 GB" in done.stdout
    assert not (folder / "runs").exists()


def test_without_an_output_folder_the_run_gets_one(folder):
    done = train(folder, "-x", 1, "-v", 0)
    (run,) = (folder / "runs").iterdir()
    assert run.name.endswith("-gpt2") and f"runs/{run.name}/ckpt_00000001.safetensors" in done.stdout.splitlines()[-1]


def test_data_sets_are_found_listed_and_chosen(folder):
    (folder / "data/a").mkdir()
    write_shard(folder / "data/a/alpha_train.bin", np.arange(500) % 50)
    listed = train(folder, "--list-datasets")
    assert listed.stdout.startswith(
        "Available datasets:\n  0: alpha\n    Train: data/a/alpha_train.bin\n    Val:   none\n  1: noise"
    )
    assert "data: noise" in train(folder, "--data", "noise", "--dry-run").stdout
    assert "data: noise" in train(folder, "-i", "1", "--dry-run").stdout
    assert "data: alpha" in train(folder, "--dry-run").stdout
    wrong = train(folder, "--data", "alfa", code=2)
    assert "there is no data set 'alfa'; did you mean alpha?" in wrong.stderr


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["-t", "33"], 2, "--seq-len 33 is more than the model's max_seq_len of 32"),
        (["--channels", "33"], 2, "--channels (33) must be a multiple of --num-heads (2)"),
        (["--learnin-rate", "1"], 2, "unknown flag --learnin-rate; did you mean --learning-rate"),
        (["--dim", "8"], 2, "unknown flag --dim, which goes with --model mingru"),
        (["-b", "-4"], 2, "-b is -4, expected at least 1"),
        (["-t", "0"], 2, "-t is 0, expected at least 1"),
        (["-x", "-5"], 2, "-x is -5, expected at least -1"),
        (["--epochs", "-1"], 2, "--epochs is -1.0, expected at least 0"),
        (["-m", "-5"], 2, "-m is -5, expected at least -1"),
        (["-g", "-1"], 2, "-g is -1, expected at least 0"),
        (["--temperature", "-1"], 2, "--temperature is -1.0, expected at least 0"),
        (["--top-p", "2"], 2, "--top-p is 2.0, expected more than 0 and at most 1"),
        (["--beta2", "1"], 2, "--beta2 is 1.0, expected less than 1"),
        (
            ["--data", "missing.txt"],
            4,
            "cannot read missing.txt: there is no such file, nor a data set of that name; there is noise",
        ),
        (["--data", "words.txt", "--tokenizer", "words"], 4, "expected a file, or one of char, byte, word, bpe, gpt2"),
        (["--save-path", "missing/m.bin"], 2, "missing; create it first"),
        (["-e", "d7"], 2, "no GPT-2 of depth 7; the depths are d6, d12"),
        (["--model", "gpt3"], 2, "--model: expected one of gpt2"),
        (["-e", "missing.bin"], 4, "cannot read missing.bin"),
        (["--data", "data/*_nothing.bin"], 4, "no file matches"),
        (["-b", "400"], 4, "choose B * T"),
        (["--vocab-size", "50"], 4, "expected ids from 0 to 49"),
        (["--resume", "missing.safetensors"], 4, "cannot read missing.safetensors"),
        (["-y", "1"], 2, "--resume needs --out-dir"),
        (["--grad-clip=-1"], 2, "--grad-clip is -1.0, expected at least 0"),
        (
            ["-l", "0"],
            2,
            "--learning-rate is 0, with which nothing is learned; choose a higher one, or measure the model with gpt2c",
        ),
        (["--max-time", "soon"], 2, "'soon' is not a duration"),
        (["--channels", "65536", "--num-layers", "96", "--vocab-size", "97"], 5, "of memory"),
    ],
)
def test_errors_are_one_sentence_with_the_right_code(folder, words, code, message):
    (folder / "words.txt").write_text("some words")
    done = train(folder, *words, code=code)
    assert done.stderr.count("\n") == 1 and message in done.stderr and "step    1" not in done.stdout


def test_single_tensors_may_be_all_that_is_trained(folder):
    train(folder, "-o", "out", "-x", 2, "-v", 0, "-l", 0, "--tensor-rates", "wpe=1e-3")
    assert len(rows(folder / "out")) == 2


def test_a_failed_save_on_the_way_is_a_warning(folder):
    (folder / "out" / "ckpt_00000002.safetensors").mkdir(parents=True)  # the name is taken
    done = train(folder, "-o", "out", "-x", 4, "-n", 2, "-v", 0, "--log-every", 0)
    assert "not saved: cannot write" in done.stderr
    assert (folder / "out" / "ckpt_00000004.safetensors").is_file()


def test_divergence_ends_with_code_3(folder):
    done = train(folder, "-x", 50, "-l", "1e30", "-v", 0, code=3)
    assert "lower the learning rate" in done.stderr


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.8875, 0.775, 0.6625, 0.55, 0.4375, 0.325, 0.2125]),
        ("cosine", [0.5, 1, 1, 0.9657458, 0.8681981, 0.7222076, 0.55, 0.3777924, 0.2318019, 0.1342542]),
        ("wsd", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.1 + 0.9 * (1 - 0.5**0.5)]),
    ],
)
def test_schedules(schedule, expected):
    found = [learning_rate(step, 10, 1.0, schedule, warmup=2, final_frac=0.1) for step in range(10)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_durations():
    assert [seconds(t) for t in ("90", "90s", "10m", "2h", "1.5d")] == [90, 90, 600, 7200, 129600]


def test_the_help_names_every_flag(folder):
    done = train(folder, "--help-all")
    for name in ("--max-steps", "--learning-rate", "--num-layers", "--init-from", "--dry-run", "-nk", "--top-p"):
        assert name in done.stdout


def test_an_iterator_is_all_a_script_needs(folder):
    m = gpt2c.create("gpt2", num_layers=1, channels=16, num_heads=1, vocab_size=97, max_seq_len=16)
    loader = gpt2c.DataLoader(str(folder / "data/noise/*_train.bin"), B=2, T=16)
    trainer = gpt2c.Trainer(m, loader, None, gpt2c.TrainConfig(max_steps=5))
    began = time.perf_counter()
    steps = list(trainer)
    assert [s.step for s in steps] == [0, 1, 2, 3, 4] and trainer.step == 5
    assert sum(s.ms for s in steps) <= 1000 * (time.perf_counter() - began)
