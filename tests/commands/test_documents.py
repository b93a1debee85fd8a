"""The commands of the documents that chargpt and mingru come from, as docs/chargpt.md and docs/mingru.md give them."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from programs import command as program

import gpt2c
from gpt2c.commands.train import main as train
from gpt2c.errors import TokenizationError
from gpt2c.formats import native as checkpoint
from gpt2c.runs.logs import read_metrics
from gpt2c.tokenizers.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
SMALLER = {
    "chargpt": "-b 2 -t 16 --max-seq-len 16 --num-layers 1 --num-heads 2 --channels 16 --val-steps 1 --val-every 2",
    "mingru": "-b 2 --model-dim 16 --val-steps 1",
}
FACTS = json.loads((ROOT / "data/facts_general.json").read_text(encoding="utf-8"))
TEXT = "\n".join([*FACTS[:100], "ROMEO: Is 1 < 2 > 0? <|eos|>\n"])


@pytest.fixture
def folder(tmp_path, undrawn, monkeypatch):
    """An empty current folder."""
    monkeypatch.setenv("GPT2C_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def commands(family):
    """The commands under "The document's commands", each on one line."""
    section = (ROOT / f"docs/{family}.md").read_text(encoding="utf-8").partition("## The document's commands")[2]
    blocks = re.findall(r"```bash\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0] for line in lines if line.startswith("gpt2c ")]


def run(command, *more):
    """A command of this program; its exit code. Training, of which there is most, runs in this process."""
    _, verb, *words = [*shlex.split(command), *map(str, more)]
    if verb == "train":
        return train(words) or 0
    done = subprocess.run(program(verb, *words), capture_output=True, text=True, timeout=60)
    print(done.stdout + done.stderr, end="")
    return done.returncode


def files():
    return sorted(path.name for path in Path().iterdir() if path.suffix != ".txt")


def test_chargpt_s_commands(folder, capsys):
    """Each is the document's with the program's name replaced; here 1000 iterations are 2, and the model is small."""
    said = []
    Path("train.txt").write_text(TEXT, encoding="utf-8")
    found = commands("chargpt")
    assert len(found) == 5
    for command in found:
        words = re.sub(r"--iters (\d+)", lambda match: f"--iters {int(match[1]) // 500}", command)
        if "my_run.bin" in command:
            shutil.copy("checkpoint.bin", "my_run.bin")
        assert run(words, *("" if "--resume" in words or "generate" in words else SMALLER["chargpt"].split())) == 0, command
        said.append(capsys.readouterr())
    assert "data: train.txt" in said[0].out and "resumed" not in said[0].out
    assert [re.search(r"resumed from (\S+) at step (\d+)", text.out).groups() for text in said[1:4]] == [
        ("checkpoint.bin", "2"),
        ("checkpoint_best.bin", "4"),
        ("my_run.bin", "4"),
    ]
    assert said[4].out.startswith("ROMEO:") and len(said[4].out) > len("ROMEO:\n")
    assert files() == ["checkpoint.bin", "checkpoint_best.bin", "my_run.bin"]  # and nothing else
    model = gpt2c.load("checkpoint.bin")
    assert model.family == "chargpt" and checkpoint.metadata("checkpoint.bin")["step"] == 10
    assert model.config.vocab_size == len(set(TEXT)) + 2  # a token for the beginning and one for the end


def test_chargpt_goes_on_with_the_same_bits_from_its_best_and_its_last(folder, capsys):
    Path("train.txt").write_text(TEXT, encoding="utf-8")
    short = "gpt2c train --model chargpt", *SMALLER["chargpt"].split()
    run(*short, "--iters", 6, "-o", "straight")
    run(*short, "--iters", 4)
    shutil.copy("checkpoint_best.bin", "best.bin")
    straight = gpt2c.load("straight/ckpt_00000006.safetensors")
    for start, step in (("checkpoint.bin", 4), ("best.bin", checkpoint.metadata("best.bin")["step"])):
        capsys.readouterr()
        run("gpt2c train --model chargpt --iters 6 --resume", start)
        assert f"resumed from {start} at step {step}" in capsys.readouterr().out
        resumed = gpt2c.load("checkpoint.bin")
        assert resumed.params.flat.tobytes() == straight.params.flat.tobytes()


def test_chargpt_says_what_to_do_with_an_earlier_checkpoint(folder, capsys):
    Path("train.txt").write_text(TEXT, encoding="utf-8")
    short = "gpt2c train --model chargpt", *SMALLER["chargpt"].split()
    run(*short, "--iters", 2)
    earlier = {name: Path(name).read_bytes() for name in ("checkpoint.bin", "checkpoint_best.bin")}
    assert "moved to" not in capsys.readouterr().err
    run(*short, "--iters", 1)
    said = capsys.readouterr().err
    assert "moved to left_1, because this run begins at step 0: checkpoint.bin, checkpoint_best.bin" in said
    assert "to go on from one, --resume it" in said
    assert {name: Path("left_1", name).read_bytes() for name in earlier} == earlier
    assert checkpoint.metadata("checkpoint.bin")["step"] == 1
    run("gpt2c train --model chargpt --iters 1 --resume")
    assert "already at step 1 of 1: nothing to train" in capsys.readouterr().out
    run(*short, "--iters", 1, "-o", "out")  # a folder takes their place
    assert "ckpt_00000001.safetensors" in [path.name for path in Path("out").iterdir()]
    assert "moved to" not in capsys.readouterr().err and Path("checkpoint.bin").exists()


def test_without_a_text_of_its_own_chargpt_takes_a_data_set(folder, capsys):
    run("gpt2c train --model chargpt --dry-run")
    assert "data: stories" in capsys.readouterr().out
    Path("train.txt").write_text(TEXT, encoding="utf-8")
    Path("other.txt").write_text(TEXT, encoding="utf-8")
    run("gpt2c train --model chargpt --dry-run --data other.txt")
    assert "data: other.txt" in capsys.readouterr().out


def test_no_text_spells_a_token_of_chargpt_s(folder):
    Path("train.txt").write_text(TEXT, encoding="utf-8")
    run("gpt2c train --model chargpt --iters 1", *SMALLER["chargpt"].split())
    tokenizer = gpt2c.load("checkpoint.bin").tokenizer
    assert tokenizer.bos is not None and tokenizer.eot is not None and tokenizer.bos != tokenizer.eot
    ids = tokenizer.encode("<|bos|>< 1 ><|eos|>")
    assert not {tokenizer.bos, tokenizer.eot} & set(ids) and tokenizer.decode(ids) == "<|bos|>< 1 ><|eos|>"


def test_mingru_s_commands(folder, capsys):
    """Each is the document's with the program's name replaced; here there is one epoch, and the model is small."""
    Path("data").mkdir()
    Path("data/tinyshakespeare.txt").write_text(TEXT[:2000], encoding="utf-8")
    found = commands("mingru")
    assert [command.split()[1] for command in found] == ["train", "generate", "train", "generate"]
    said = []
    for command in found:
        words = re.sub(r"--num-epochs \d+", "--num-epochs 2", command)
        assert run(words, *SMALLER["mingru"].split() if "train" in command else ()) == 0, command
        said.append(capsys.readouterr().out)
    for text in said[1::2]:
        assert text.startswith("Once upon a time") and len(text.encode()) > 300
    out = Path("out")
    steps = {
        name: checkpoint.metadata(out / name)["step"] for name in ("model_epoch_1.bin", "model_epoch_2.bin", "model_final.bin")
    }
    last = max(steps.values())
    assert steps == {"model_epoch_1.bin": last // 2, "model_epoch_2.bin": last, "model_final.bin": last}
    assert (out / "model_final.bin").samefile(out / f"ckpt_{last:08d}.safetensors")
    assert (out / "model_best.bin").samefile(out / "best.safetensors")
    assert (out / "config.toml").exists() and gpt2c.load(out / "model_best.bin").family == "mingru"
    assert Tokenizer.load(out / "vocab.txt").kind == "byte"


def train_mingru(*words):
    return run("gpt2c train --model mingru --data text.txt -t 16 -o out --context-length 64", *SMALLER["mingru"].split(), *words)


def test_second_names_follow_their_files(folder):
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    train_mingru("--epochs", 5, "--keep", 2)
    numbered = sorted(path.name for path in Path("out").glob("model_e*"))
    assert numbered == ["model_epoch_4.bin", "model_epoch_5.bin"]  # those of the others went with them
    train_mingru("--epochs", 1)
    assert sorted(path.name for path in Path("out").glob("model_e*")) == ["model_epoch_1.bin"]
    assert {"model_epoch_4.bin", "model_final.bin", "model_best.bin"} <= {path.name for path in Path("out/left_1").iterdir()}
    assert Path("out/model_best.bin").samefile("out/best.safetensors")


def test_where_there_are_no_links_second_names_are_copies(folder, monkeypatch):
    def link(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", link)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    train_mingru("--epochs", 1)
    assert Path("out/model_best.bin").read_bytes() == Path("out/best.safetensors").read_bytes()
    assert not Path("out/model_best.bin").samefile("out/best.safetensors")


def test_a_target_for_the_validation_loss_ends_training_before_the_epochs_do(folder, capsys):
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    train_mingru("--target-valid-loss", 4, "--max-epochs", 50, "--val-every", 5, "--learning-rate", 0.01)
    said = capsys.readouterr().out
    found = re.search(r"stopped: validation loss .* reached the target 4.000000: step (\d+) of (\d+)", said)
    done, total = map(int, found.groups())
    assert 0 < done < total == 50
    assert checkpoint.metadata("out/model_final.bin")["step"] == done
    assert read_metrics("out")[-1]["val_loss"] <= 4


def test_a_checkpoint_between_epochs_is_small(folder):
    """Inside an epoch it holds the activations that the next backward reaches back to; the lanes of an epoch end with it."""
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    train_mingru("--epochs", 2, "--backprop-chunks", 4, "--update-chunks", 1)
    tensors = checkpoint.metadata("out/model_epoch_1.bin")["tensors"]
    assert "m.emb" in tensors and not [name for name in tensors if "carried" in name]


def test_memory_counts_the_chunks_that_a_gradient_reaches_back_through(folder, capsys):
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    found = []
    for window in (1, 8):
        train_mingru("--dry-run", "--backprop-chunks", window)
        size, unit = re.search(r"activations ([\d.]+) (KB|MB)", capsys.readouterr().out).groups()
        found.append(float(size) * {"KB": 1, "MB": 1000}[unit])
    assert found[1] > 6 * found[0] > 0


def test_the_list_of_bytes(tmp_path):
    path = tmp_path / "vocab.txt"
    gpt2c.Tokenizer.make("byte").save(path)
    lines = path.read_text().splitlines()
    assert lines == [f"{byte} {byte}" for byte in range(256)]
    order = np.random.default_rng(0).permutation(256)
    path.write_text("".join(lines[i] + "\n" for i in order))  # as GRUfinity writes it
    loaded = Tokenizer.load(path)
    assert loaded.kind == "byte" and loaded.encode("é") == [0xC3, 0xA9]
    gpt2c.Tokenizer.make("char", "abc").save(path)  # any other is a tokenizer.json, whatever its name
    assert Tokenizer.load(path).kind == "char"


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:-1],
        lambda lines: [*lines, "0 0"],
        lambda lines: [*lines, "x"] * 9,
        lambda lines: [*lines[:-1], "255 254"],
    ],
)
def test_a_damaged_list_of_bytes_is_refused(tmp_path, damage):
    lines = [f"{byte} {byte}" for byte in range(256)]
    (tmp_path / "vocab.txt").write_text("\n".join(damage(lines)) + "\n")
    with pytest.raises(TokenizationError, match="expected the 256 lines of GRUfinity's vocab.txt"):
        Tokenizer.load(tmp_path / "vocab.txt")
