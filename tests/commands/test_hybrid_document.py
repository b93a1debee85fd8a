"""The command lines of the hybrid's document, as they stand there but for the name of the program and, where it would take
minutes, for the number of epochs."""

import json
import shlex

import numpy as np
import pytest
from programs import call

import gpt2c
from gpt2c.commands.command_line import CommandLine, parse, split
from gpt2c.commands.compat import ForRlvr
from gpt2c.commands.train import family_of_flags
from gpt2c.errors import UsageError
from gpt2c.formats.native import metadata
from gpt2c.models.files import load, load_run

FOX = "the quick brown fox jumps over the lazy dog"
TEXT = "once upon a time 3 frogs + 4 foxes = 7 friends; they jumped over 12 dogs - and 5 * 8 = 40 hens.\n"


@pytest.fixture
def run(tmp_path, cache):
    """run(command) in a folder with data.txt -> (standard output, standard error)."""
    (tmp_path / "data.txt").write_text(TEXT * 12)

    def run(command, code=0):
        done = call(tmp_path, *shlex.split(command), code=code)
        return done.stdout, done.stderr

    run.folder = tmp_path
    return run


def epochs_told(out):
    return [int(line.split()[1]) for line in out.splitlines() if line.startswith("Epoch ")]


def test_quick_start_and_going_on(run):
    out, err = run(f'train --trainingText="{FOX}" --epochs=300')
    assert epochs_told(out) == [1, *range(25, 301, 25)] and "model: hybrid" in out
    assert float(out.split("Epoch  300 | Loss: ")[1].split(" | ∇: ")[0]) < 0.1
    assert "43 tokens to train on: a window has 21 tokens instead of 180" in err
    assert "s | Best loss: 0.0" in out and "\nSaved binary checkpoint to checkpoint.bin (0." in out
    before, sample, _ = out.split("-" * 70 + "\n")
    assert before.endswith("Generating sample...\n\nTemperature: 0.3\nGenerated (100 tokens):\n")
    assert len(sample) == 101 and "jumps over the lazy dog" in sample
    out, _ = run(f'inference --loadCheckpoint=./checkpoint.bin --trainingText="{FOX}"')
    assert len(out) == 101 and "jumps over the lazy dog" in out
    out, _ = run("train --loadCheckpoint=./checkpoint.bin --epochs=303")
    assert "resumed from ./checkpoint.bin at step 300" in out and "step 303 of 303" in out
    model, state = load_run(run.folder / "checkpoint.bin")
    assert state.values["step"] == 303 and model.m.flat.any() and state.values["config"]["training_text"] == FOX


def test_the_full_pipeline(run):
    out, _ = run("train-tokenizer --bpeTrainingFile=./data.txt --bpeVocabSize=1024 --bpeSavePath=./tokenizer.json")
    assert "round trip: the same text" in out
    out, _ = run(
        "train --useBPE=true --bpeLoadPath=./tokenizer.json --trainingFile=./data.txt --hiddenSize=128 --numLayers=2 "
        "--embedSize=64 --epochs=4 --saveEvery=2 --savePath=./model.bin"
    )
    assert sorted(path.name for path in run.folder.glob("*.bin")) == ["model.bin", "model_epoch2.bin", "model_epoch4.bin"]
    model = load(run.folder / "model.bin")
    assert (model.config.hidden, model.config.num_layers, model.config.embed, model.tokenizer.kind) == (128, 2, 64, "bpe")
    assert f"{model.num_parameters:,} parameters ({model.num_active_parameters:,} active)" in out
    out, _ = run(
        "inference --loadCheckpoint=./model.bin --useBPE=true --bpeLoadPath=./tokenizer.json --trainingFile=./data.txt "
        '--prompt="Once upon" --temperature=0.5 --genLength=200'
    )
    assert out.startswith("Once upon") and len(out) > 100
    out, _ = run(
        "rlvr --loadCheckpoint=./model.bin --useBPE=true --bpeLoadPath=./tokenizer.json --trainingFile=./data.txt "
        "--rlTask=arithmetic --rlEpisodes=2"
    )
    assert "rlvr: arithmetic with hybrid" in out and "done: step 2 of 2" in out and out.count("before: reward") == 1
    assert metadata(run.folder / "model.bin")["step"] == 4  # what it began from is as it was


def test_the_smoke_test_and_a_larger_model(run):
    out, _ = run("train --hiddenSize=16 --epochs=50 --fastMode=true --logEvery=10")
    assert epochs_told(out) == [1, 10, 20, 30, 40, 50] and "inline text" in out
    model = load(run.folder / "checkpoint.bin")
    assert model.config.fast_mode and model.config.hidden == 16 and model.num_active_parameters == model.num_parameters
    (run.folder / "checkpoint.bin").unlink()
    run(
        "train --hiddenSize=128 --numLayers=3 --embedSize=64 --numHeads=8 --numExperts=4 --topK=2 --epochs=1 "
        "--learningRate=0.0005 --trainingFile=./data.txt --saveOnComplete=false"
    )
    assert not (run.folder / "checkpoint.bin").exists()


def test_command_lines_without_a_verb(run):
    out, err = run("--trainBPE=true --bpeTrainingFile=./data.txt --bpeVocabSize 300")
    assert "--trainBPE is deprecated: use gpt2c train-tokenizer" in err and "300 tokens" in out
    assert (run.folder / "tokenizer.json").exists()
    out, err = run("--doRL=true --epochs=2 --rlTask reverse --rlEpisodes=2 --rlLearningRate=0.001")
    assert "--doRL is deprecated: use gpt2c train, then gpt2c rlvr" in err
    assert "Epoch    2 | Loss" in out and "rlvr: reverse with hybrid" in out and "done: step 2 of 2" in out
    assert load_run(run.folder / "checkpoint.bin")[1].values["config"]["learning_rate"] == 0.001
    _, err = run("--hiddenSize=16", code=2)
    assert "--hiddenSize=16 stands where a verb is expected" in err


def test_metrics_tell_how_experts_are_used(run):
    out, _ = run("train --model hybrid --trainingFile=./data.txt --numExperts=3 --balanceLoss=0.02 --max-steps=3 -o out")
    rows = [json.loads(line) for line in (run.folder / "out/metrics.jsonl").read_text().splitlines()]
    assert [row["usage_0_1"] + row["usage_0_2"] for row in rows] == pytest.approx([1, 1, 1]) and rows[0]["balance"] > 0
    assert not (run.folder / "checkpoint.bin").exists()  # a folder was given
    out, _ = run("info out/ckpt_00000003.safetensors")
    model = load(run.folder / "out/ckpt_00000003.safetensors")
    idle = 6 * 32 * 32
    assert f"parameters: {model.num_parameters}\nactive parameters: {model.num_parameters - idle}\n" in out
    _, err = run("train --model mingru --balanceLoss=0.1 --data data.txt --dim 16 --max-steps=1", code=2)
    assert "balance_loss is 0.1, but mingru has no such option" in err


@pytest.mark.parametrize(
    "words, start, family",
    [
        ("--trainingText=x", "", "hybrid"),
        ("--training_file x", "", "hybrid"),
        ("--FASTMODE", "", "hybrid"),
        ("--data --trainingText", "", "hybrid"),
        ("x trainingText", "", "gpt2"),
        ("--trainingText=x", "d12", "gpt2"),
        ("--data x", "", "gpt2"),
        ("", "", "gpt2"),
    ],
)
def test_flags_of_one_family_alone_mean_it(words, start, family):
    assert family_of_flags(CommandLine(words.split()), start) == family


def test_the_balance_loss_pulls_on_the_router():
    """Alone: with nothing else in the loss, its weight is that of the gradient, and none of it reaches a run without."""

    def gradient(weight):
        model = gpt2c.create("hybrid", vocab_size=11, hidden=16, num_experts=4, seed=2)
        trainer = gpt2c.Trainer(model, Loader(), None, gpt2c.TrainConfig(balance_loss=weight, learning_rate=0.0))
        step = trainer.update()
        assert step.loss == pytest.approx(model.metrics["cross_entropy"] + weight * model.metrics["balance"])
        assert step.parts["balance"] == model.metrics["balance"] and step.parts["cross_entropy"] < step.loss + 1e-6
        return model.grads["router"].copy()

    plain, light, heavy = gradient(0.0), gradient(0.5), gradient(1.0)
    assert abs(light - plain).max() > 1e-4
    assert heavy - plain == pytest.approx(2 * (light - plain), rel=1e-3, abs=1e-6)


class Loader:
    B, T, world, num_batches = 4, 16, 1, 1

    def next_batch(self):
        ids = np.add.outer(3 * np.arange(self.B), np.arange(self.T + 1) ** 2) % 11
        return ids[:, :-1].astype(np.int32), ids[:, 1:].astype(np.int32)


def test_words_of_some_flags_can_be_told_from_others():
    ours, others = split(["--rlTask", "copy", "--epochs", "3", "--RL-episodes=2", "x", "--rl_learning_rate"], ForRlvr)
    assert ours == ["--rlTask", "copy", "--RL-episodes=2", "--rl_learning_rate"] and others == ["--epochs", "3", "x"]
    with pytest.raises(UsageError):
        parse(ours, [ForRlvr], "x")
