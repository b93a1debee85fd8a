"""Runs as a user meets them: going on, going back, what is kept, what is told."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from programs import call, run

import gpt2c
from gpt2c.data import write_shard
from gpt2c.errors import UsageError
from gpt2c.formats import native as checkpoint
from gpt2c.runs.folder import Run
from gpt2c.runs.logs import read_metrics

SMALL = "-e scratch --num-layers 1 --channels 16 --num-heads 1 --max-seq-len 16 --vocab-size 97 -b 2 -t 16 -l 1e-2".split()
QUIET = ["-v", "0", "-s", "0"]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)  # something to learn: small ids are more frequent
    write_shard(tmp_path / "x_train.bin", rng.integers(0, 97, 1000) * rng.integers(0, 97, 1000) // 97)
    write_shard(tmp_path / "x_val.bin", rng.integers(0, 97, 600) * rng.integers(0, 97, 600) // 97)
    return tmp_path


def train(folder, *words, code=0):
    return call(folder, "train", *words, code=code)


def fresh(folder, *words, code=0):
    return train(folder, *SMALL, "--data", "x_train.bin", *words, code=code)


def names(folder, pattern="ckpt*"):
    return sorted(path.name for path in Path(folder).glob(pattern))


def test_a_number_that_no_step_has_is_text_of_a_sample(tmp_path):
    """Python reads none of more than 4300 digits."""
    run, head = Run(tmp_path), "--- step {}\n"
    for number in "9" * 5000, "9" * 19:
        kept = f"{head.format(3)}one\n{head.format(number)}two\n"
        (tmp_path / "samples.txt").write_text(f"{kept}{head.format(4)}three\n")
        run.forget(4)
        assert (tmp_path / "samples.txt").read_text() == kept


def test_twenty_and_twenty_are_forty(folder):
    """Parameters, moments, the next batch, the next sample and the flags, all of which a checkpoint holds; so do the logs."""
    model = ["train", *SMALL, "--data", "x_train.bin"]
    plateau = "-v 7 -m 3 -d 64 --lr-schedule plateau --plateau-patience 1 --matmul-precision bf16".split()
    samples = "-s 5 -g 20 -sg 3 --temperature 1.5 --top-k 5 --top-p 0.5".split()
    run(folder, *model, "-o", "straight", "-x", 40, "-n", 20, *plateau, *samples)
    run(folder, *model, "-o", "parts", "-x", 20, *plateau, *samples)
    done = run(folder, "train", "-o", "parts", "--resume", "-x", 40, "--threads", 1)
    assert "changed since parts/ckpt_00000020.safetensors: max_steps 20 -> 40" in done.stdout
    for name in ("ckpt_00000040.safetensors", "best.safetensors", "samples.txt", "main.log"):
        assert (folder / "parts" / name).read_bytes() == (folder / "straight" / name).read_bytes(), name
    rows = [
        [{k: row.get(k) for k in ("step", "loss", "val_loss", "lr")} for row in read_metrics(folder / name)]
        for name in ("straight", "parts")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 41


def test_the_best_weights_are_those_of_the_best_validation(folder):
    fresh(folder, "-o", "out", "-x", 60, "-v", 3, "-m", -1, "-s", 0, "-l", "0.1", "-n", 3)
    losses = {row["step"]: row["val_loss"] for row in read_metrics(folder / "out") if "val_loss" in row}
    step = min(losses, key=losses.get)
    said = checkpoint.metadata(folder / "out/best.safetensors")
    assert said["step"] == step not in (0, 60) and said["best_val_loss"] == losses[step] and not said["run"]
    best = gpt2c.load(folder / "out/best.safetensors")
    loader = gpt2c.DataLoader(str(folder / "x_val.bin"), B=2, T=16)
    loss = np.mean([best.forward(*loader.next_batch()) for _ in range(loader.num_batches)])
    assert loss == pytest.approx(losses[step], rel=1e-6)
    there = gpt2c.load(folder / f"out/ckpt_{step:08d}.safetensors")
    assert there.params.flat.tobytes() == best.params.flat.tobytes()


def test_old_checkpoints_go_and_major_ones_stay(folder):
    fresh(folder, "-o", "out", "-x", 11, "-n", 1, "--keep", 2, "-nm", 4, *QUIET)
    assert names(folder / "out") == [f"ckpt_{n:08d}.safetensors" for n in (4, 8, 10, 11)]


def test_a_file_to_save_to(folder):
    fresh(folder, "--savePath", "model.bin", "--epochs", 3, "--saveEvery", 1, "-s", 0)
    assert names(folder, "*.bin") == [
        "model.bin",
        "model_best.bin",
        "model_epoch1.bin",
        "model_epoch2.bin",
        "model_epoch3.bin",
        "x_train.bin",
        "x_val.bin",
    ]
    assert [checkpoint.metadata(folder / f"model{x}.bin")["step"] for x in ("_epoch1", "_epoch2", "")] == [31, 62, 93]
    assert names(folder, "*") == names(folder, "*.bin")  # nothing else is left behind
    done = train(folder, "--loadCheckpoint", "model.bin", "--savePath", "model.bin", "--epochs", 4, *QUIET)
    assert "resumed from model.bin at step 93" in done.stdout
    fresh(folder, "--savePath", "steps.bin", "-x", 4, "-n", 2, *QUIET)
    assert names(folder, "steps*") == ["steps.bin", "steps_step2.bin", "steps_step4.bin"]
    done = train(folder, "--savePath", "steps.bin", "--resume", "-x", 5)
    assert "resumed from steps.bin at step 4" in done.stdout


def test_a_damaged_newest_checkpoint_is_passed_over(folder):
    fresh(folder, "-o", "out", "-x", 6, "-n", 2, *QUIET)
    newest = folder / "out/ckpt_00000006.safetensors"
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-5])
    middle = folder / "out/ckpt_00000004.safetensors"
    middle.write_bytes(middle.read_bytes()[:-1] + b"?")
    done = train(folder, "-o", "out", "--resume")
    assert "resumed from out/ckpt_00000002.safetensors at step 2" in done.stdout
    assert done.stderr.count("skipped: out/ckpt_0000000") == 2 and "SHA-256" in done.stderr
    assert newest.read_bytes() == whole  # made again, with the same bits


def test_when_no_checkpoint_is_whole_nothing_is_overwritten(folder):
    fresh(folder, "-o", "out", "-x", 2, *QUIET)
    (folder / "out/ckpt_00000002.safetensors").write_bytes(b"x")
    done = train(folder, "-o", "out", "--resume", code=4)
    assert "no checkpoint in out is whole" in done.stderr


def test_a_newer_version_is_not_passed_over(folder):
    fresh(folder, "-o", "out", "-x", 4, "-n", 2, *QUIET)
    newest = folder / "out/ckpt_00000004.safetensors"
    newest.write_bytes(newest.read_bytes().replace(b'"gpt2c 2"', b'"gpt2c 3"'))
    done = train(folder, "-o", "out", "--resume", code=4)
    assert "a newer gpt2c wrote it" in done.stderr


def test_nothing_to_resume_and_nothing_to_train_are_said(folder):
    done = fresh(folder, "-o", "out", "--resume", "-x", 3, *QUIET)
    assert "nothing to resume in out: starting afresh" in done.stdout
    done = train(folder, "-o", "out", "--resume")
    assert "already at step 3 of 3: nothing to train" in done.stdout


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["--channels", 32], 2, "--channels 32 does not fit out/ckpt_00000002.safetensors, where it is 16"),
        (["-b", 1], 2, "the saved data position has B = 2, this run has 1"),
        (["--optimizer", "sgd"], 2, "the checkpoint holds the moments of adamw, not of sgd"),
        (["--resume", "out/best.safetensors"], 4, "holds weights only, no run to resume"),
    ],
)
def test_what_cannot_be_resumed(folder, words, code, message):
    fresh(folder, "-o", "out", "-x", 2, "-s", 0)
    assert message in train(folder, "-o", "out", "--resume", "-x", 3, *words, code=code).stderr


def test_how_a_run_is_attended_is_kept_too(folder):
    fresh(folder, "-o", "out", "-x", 4, "-n", 2, "--keep", 3, *QUIET)
    train(folder, "-o", "out", "--resume", "-x", 9)
    assert names(folder / "out") == [f"ckpt_{n:08d}.safetensors" for n in (6, 8, 9)]


def test_resume_goes_before_init_from(folder):
    fresh(folder, "-o", "out", "-x", 2, *QUIET)
    done = train(folder, "-o", "out", "--resume", "--init-from", "missing.bin", "-x", 3)
    assert "resumed from out/ckpt_00000002.safetensors" in done.stdout


def test_a_new_run_in_an_old_folder_sets_its_checkpoints_aside(folder):
    fresh(folder, "-o", "out", "-x", 4, "-n", 2, "-v", 2, "-s", 0)
    before = (folder / "out/ckpt_00000004.safetensors").read_bytes()
    done = fresh(folder, "-o", "out", "-x", 1, *QUIET)
    assert "moved to out/left_1, because this run begins at step 0" in done.stderr
    assert names(folder / "out") == ["ckpt_00000001.safetensors"]
    assert (folder / "out/left_1/ckpt_00000004.safetensors").read_bytes() == before
    assert names(folder / "out/left_1", "*") == ["best.safetensors", "ckpt_00000002.safetensors", "ckpt_00000004.safetensors"]
    train(folder, "--resume", "out/left_1/ckpt_00000002.safetensors", "-o", "out", "-x", 3)
    assert names(folder / "out") == ["ckpt_00000001.safetensors", "ckpt_00000003.safetensors"]


def test_what_was_to_follow_the_last_update_is_made_up_for(folder):
    """After a run that was killed when its last checkpoint was written and nothing else."""
    fresh(folder, "-o", "whole", "-x", 4, "-v", 3, "-m", 2, "-s", 3, "-g", 4)
    fresh(folder, "-o", "out", "-x", 4, "-v", 3, "-m", 2, "-s", 3, "-g", 4)
    for name in ("main.log", "metrics.jsonl"):
        text = (folder / "out" / name).read_text()
        (folder / "out" / name).write_text(text[: text.rstrip().rindex("\n") + 1])
    samples = (folder / "out/samples.txt").read_text()
    (folder / "out/samples.txt").write_text(samples[: samples.index("--- step 4")])
    for _ in range(2):
        assert "already at step 4 of 4" in train(folder, "-o", "out", "--resume").stdout
        for name in ("main.log", "samples.txt"):
            assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_two_runs_do_not_share_a_folder(tmp_path):
    first, second = Run(tmp_path), Run(tmp_path)
    first.take()
    with pytest.raises(UsageError, match="another process is training into"):
        second.take()
    del first
    second.take()


def test_what_a_killed_save_left_is_removed(tmp_path):
    for name in (".ckpt_00000001.safetensors.0123abcd.tmp", ".other.tmp", "x.tmp"):
        (tmp_path / name).write_text("")
    Run(tmp_path).take()
    assert names(tmp_path, ".*") + names(tmp_path, "*.tmp") == [".other.tmp", ".other.tmp", "x.tmp"]


def test_a_saved_configuration_repeats_the_run(folder):
    """Bit for bit, whatever would now be found instead of what was not said."""
    fresh(folder, "-o", "a", "-x", 5, "-v", 2, "-s", 2, "-g", 4, "-d", 64, "--lr-schedule", "cosine", "-u", 2)
    config = tomllib.loads((folder / "a/config.toml").read_text())
    found = [config[name] for name in ("data", "val_data", "init_from", "resume")]
    assert found == ["x_train.bin", "x_val.bin", "scratch", False]
    (folder / "y.toml").write_bytes((folder / "a/config.toml").read_bytes())
    train(folder, "--config", "y.toml", "-o", "b")
    for name in ("ckpt_00000005.safetensors", "best.safetensors", "samples.txt", "main.log"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes(), name


def test_epochs_are_told(folder):
    done = fresh(folder, "-o", "out", "--epochs", 5, "--log-every", 2, *QUIET)
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch")]
    assert [line.split()[2] for line in lines] == ["epoch=1", "epoch=2", "epoch=4", "epoch=5"]
    rows = read_metrics(folder / "out")
    assert f"loss={np.mean([row['loss'] for row in rows[31:62]]):.6f} " in lines[1] and "learning_rate=1.000e-02" in lines[1]


@pytest.mark.parametrize(
    "level, said, unsaid",
    [("debug", ["saved out", "step    1/2"], []), ("warning", [], ["step", "gpt2c"]), ("error", [], ["step"])],
)
def test_log_levels(folder, monkeypatch, level, said, unsaid):
    monkeypatch.setenv("GPT2C_LOG", level)
    done = fresh(folder, "-o", "out", "-x", 2, "-n", 1, *QUIET)
    assert all(text in done.stdout for text in said) and not any(text in done.stdout for text in unsaid)


def test_an_unknown_log_level_is_refused(folder, monkeypatch):
    monkeypatch.setenv("GPT2C_LOG", "loud")
    assert "expected one of debug, info" in fresh(folder, "-x", 1, code=2).stderr


def test_a_reader_that_goes_away_does_not_end_training(folder):
    command = f"{sys.executable} -m gpt2c.train {' '.join(SMALL + QUIET)} --data x_train.bin -o out -x 200; echo $? >&2"
    done = subprocess.run(["bash", "-c", f"({command}) | head -n 1"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stderr == "0\n" and (folder / "out/ckpt_00000200.safetensors").exists()


def test_info(folder):
    fresh(folder, "-o", "out", "-x", 4, "-n", 2, "-v", 2, "-s", 0)
    about = call(folder, "info").stdout
    assert f"gpt2c: {gpt2c.__version__}" in about and "isas: " in about and "threads: " in about and "memory available: " in about
    file = call(folder, "info", "out/ckpt_00000004.safetensors", "--json")
    found = json.loads(file.stdout)
    assert (found["family"], found["step"], found["channels"], found["run"]["config"]["max_steps"]) == ("gpt2", 4, 16, 4)
    assert found["parameters"] == gpt2c.load(folder / "out/best.safetensors").num_parameters
    assert "run: none: weights alone" in call(folder, "info", "out/best.safetensors").stdout
    (folder / "out/ckpt_00000002.safetensors").write_bytes(b"damage")
    told = call(folder, "info", "out").stdout
    assert "step: 4" in told and "best val_loss: 4." in told and "ckpt_00000004.safetensors: whole, " in told
    assert "ckpt_00000002.safetensors: out/ckpt_00000002.safetensors is neither" in told
    wrong = call(folder, "info", "out/ckpt_00000002.safetensors", code=4)
    assert wrong.stderr.count("\n") == 1
    assert callable(gpt2c.info)


def test_tensorboard(folder):
    tensorboard = pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    fresh(folder, "-o", "out", "-x", 3, *QUIET, "--report-to", "tensorboard")
    (events,) = (folder / "out/tensorboard").iterdir()
    assert tensorboard and b"grad_norm" in events.read_bytes()


def test_without_tensorboard_it_is_said(folder):
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        done = fresh(folder, "-o", "out", "-x", 3, *QUIET, "--report-to", "tensorboard", code=2)
        assert 'pip install "gpt2c[tensorboard]"' in done.stderr
    else:
        pytest.skip("tensorboardX is installed")
