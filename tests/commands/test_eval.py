"""gpt2c eval: every token counts once, and answers are compared by what the model says of them."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES, model_of
from programs import call

import gpt2c
from gpt2c.commands.eval import EvalConfig, answer_losses, batches, measure
from gpt2c.data import write_choices, write_shard
from gpt2c.data.choices import Example, read_choices
from gpt2c.errors import InputError
from gpt2c.models.frozen import CHOICES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path):
    """A checkpoint with the tokenizer of the stories, and logits far from even."""
    m = gpt2c.create("gpt2", num_layers=1, channels=16, num_heads=2, vocab_size=4096, max_seq_len=16, seed=3)
    m.params.flat[...] *= 8
    m.tokenizer = gpt2c.Tokenizer.load(ROOT / "data/stories_tokenizer.bin")
    m.save(tmp_path / "m.safetensors")
    return m


def evaluate(folder, *words, code=0):
    return call(folder, "eval", *words, code=code)


def log_probabilities(model, ids):
    """(T, V) float64, from a forward of these ids alone."""
    model.forward(np.array([ids], np.int32))
    logits = model.logits[0, :, : model.config.vocab_size].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("n", [2, 16, 17, 18, 100, 131])
@pytest.mark.parametrize("B, T", [(2, 8), (3, 16)])
def test_every_token_is_a_target_once(tmp_path, n, B, T):
    write_shard(tmp_path / "a.bin", np.arange(n))
    targets = []
    for x, y, _ in batches([tmp_path / "a.bin"], B, T, 200):
        assert x.shape == y.shape and x.shape[0] <= B and x.shape[1] == T and (y[y >= 0] == x[y >= 0] + 1).all()
        targets += y[y >= 0].tolist()
    assert targets == list(range(1, n))


def numbers(done):
    """loss, perplexity, bits per byte, tokens"""
    return map(float, re.fullmatch(r"loss (\S+) ppl (\S+) bpb (\S+) \((\d+) tokens\)\n", done.stdout).groups())


def test_a_recurrent_model_reads_every_file_from_its_beginning(tmp_path):
    m, sizes = gpt2c.create("mingru", dim=16, depth=1, vocab_size=31), {"a": 50, "b": 37}
    m.params.flat[...] *= 4
    paths = {name: tmp_path / f"{name}.bin" for name in sizes}
    for number, (name, size) in enumerate(sizes.items()):
        write_shard(paths[name], np.random.default_rng(number).integers(0, 31, size))

    def loss(*names):
        return float(measure(m, [paths[name] for name in names], None, EvalConfig(batch_size=1), 8).split()[1])

    assert loss("a", "b") == loss("b", "a") == pytest.approx((49 * loss("a") + 36 * loss("b")) / 85, abs=2e-6)


def test_loss_perplexity_and_bits_per_byte(model, tmp_path):
    text = "Once upon a time there was a fox. It ran home to a small brown bear."
    ids = [model.tokenizer.eot, *model.tokenizer.encode(text)]
    write_shard(tmp_path / "a.bin", ids)
    losses = []
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17]
        table = log_probabilities(model, window[:-1])
        losses += [-table[t, i] for t, i in enumerate(window[1:])]
    found = evaluate(tmp_path, "m.safetensors", "--data", "a.bin", "-b", 1)
    loss, ppl, bpb, count = numbers(found)
    assert loss == pytest.approx(np.mean(losses), abs=1e-5) and ppl == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert bpb == pytest.approx(np.sum(losses) / math.log(2) / len(text.encode()), abs=1e-4) and count == len(ids) - 1
    assert evaluate(tmp_path, "m.safetensors", "--data", "a.bin", "-b", 5).stdout.split()[1] == found.stdout.split()[1]
    write_shard(tmp_path / "twice.bin", [*ids, *ids])  # what is between the texts is no text
    loss, _, bpb, count = numbers(evaluate(tmp_path, "m.safetensors", "--data", "twice.bin"))
    assert bpb == pytest.approx(loss * count / math.log(2) / (2 * len(text.encode())), abs=1e-4)
    (tmp_path / "a.txt").write_text(text)
    assert evaluate(tmp_path, "m.safetensors", "--data", "a.txt").stdout.split()[:2] == found.stdout.split()[:2]
    assert "(16 tokens)" in evaluate(tmp_path, "m.safetensors", "--data", "a.bin", "-b", 1, "--val-steps", 1).stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_token_by_token_is_that_of_whole_sequences(family, tmp_path):
    """Through the slots of generation, several sequences at a time, the last of them shorter; also where the state goes on."""
    m = model_of(family, seed=3)
    m.params.flat[...] *= 2
    for name, count in ("a", 83), ("b", 30):
        write_shard(tmp_path / f"{name}.bin", np.random.default_rng(count).integers(0, 27, count))
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for B in 1, 3:
        whole, decoded = (measure(m, paths, None, EvalConfig(batch_size=B, decode=way), 16).split() for way in (False, True))
        assert float(decoded[1]) == pytest.approx(float(whole[1]), rel=1e-5) and decoded[4:] == whole[4:] == ["(111", "tokens)"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decode", [[], ["--decode"]])
def test_types_of_weights_are_compared(family, decode, tmp_path):
    """Each row is what eval says of that type alone, with the bytes of such a model."""
    m = model_of(family, seed=3)
    m.params.flat[...] *= 2
    m.save(tmp_path / "m.safetensors")
    write_shard(tmp_path / "a.bin", np.random.default_rng(1).integers(0, 27, 40))
    words = ["m.safetensors", "--data", "a.bin", "--seq-len", 16, *decode]
    done = evaluate(tmp_path, *words, "--compare-weights")
    title, *rows = done.stdout.splitlines()
    table = {name: values for name, *values in map(str.split, rows)}
    assert "(39 tokens)" in title and list(table) == [line.split(",")[0] for line in done.stderr.splitlines()] == list(CHOICES)
    exact = float(table["f32"][1])
    for weights, (size, loss, ppl, more, share) in table.items():
        alone = evaluate(tmp_path, *words, "--weights", weights).stdout.split()
        assert [loss, ppl] == alone[1:4:2]
        assert int(size.replace(",", "")) == sum(t.nbytes for t in gpt2c.load(tmp_path / "m.safetensors", weights).base.values())
        assert float(more) == pytest.approx(float(loss) - exact, abs=2e-6)
        assert float(share.rstrip("%")) == pytest.approx(100 * float(more) / exact, abs=1e-3)
    assert table["stored"] == table["f32"] and float(table["f32"][3]) == 0 != float(table["bf16"][3])


def test_all_types_are_compared_or_one_is_chosen(model, tmp_path):
    said = evaluate(tmp_path, "m.safetensors", "--data", "x", "--compare-weights", "--weights", "f16", code=2).stderr
    assert "--weights is given with --compare-weights, which measures all of them" in said
    write_choices(tmp_path / "c.bin", PAIR)
    said = evaluate(tmp_path, "m.safetensors", "--data", "c.bin", "--compare-weights", code=2).stderr
    assert "--compare-weights is for the loss of a text; leave it out for a multiple-choice file" in said


def test_answers_are_scored_as_each_by_itself(model):
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0, 4096, n).tolist(), rng.integers(0, 4096, k).tolist()) for n, k in [(3, 1), (1, 5), (9, 8), (14, 6)]]
    found = answer_losses(model, rows, 16)
    for (context, answer), loss in zip(rows, found):
        ids = (context + answer)[-17:]  # what is too long loses its beginning
        table = log_probabilities(model, ids[:-1])
        expected = -sum(table[t - 1, ids[t]] for t in range(len(ids) - len(answer), len(ids)))
        assert loss == pytest.approx(expected, rel=1e-4)


def test_choices(model, tmp_path):
    """Two answers of one token and two of several, so that sums and means disagree on some."""
    rng = np.random.default_rng(1)
    examples = [
        Example(rng.integers(0, 4096, 5).tolist(), [rng.integers(0, 4096, k).tolist() for k in (1, 1, 3, 4)], n % 4)
        for n in range(30)
    ]
    write_choices(tmp_path / "hellaswag_val.bin", examples)
    sums = np.array([answer_losses(model, [(e.context, answer)], 16)[0] for e in examples for answer in e.answers]).reshape(30, 4)
    labels = [e.label for e in examples]
    acc, norm = ((table.argmin(1) == labels).sum() for table in (sums, sums / [1, 1, 3, 4]))
    assert acc != norm
    found = evaluate(tmp_path, "m.safetensors", "--data", "hellaswag_val.bin", "-b", 7).stdout.splitlines()
    assert found == [f"HellaSwag: {norm}/30 = {norm / 30:f}", f"acc {acc / 30:.4f} acc_norm {norm / 30:.4f}"]
    limited = evaluate(tmp_path, "m.safetensors", "--data", "hellaswag_val.bin", "--limit", 3).stdout
    assert limited.startswith(f"HellaSwag: {((sums / [1, 1, 3, 4]).argmin(1) == labels)[:3].sum()}/3 = ")


PAIR = [Example([5, 6], [[1], [2, 3]], 1)] * 2  # 13 numbers each: 65535, bytes, index, label, answers, then the lists


def test_choices_are_read_as_they_were_written(tmp_path):
    write_choices(tmp_path / "choices.bin", PAIR)
    assert read_choices(tmp_path / "choices.bin") == PAIR


@pytest.mark.parametrize(
    "number, value", [(0, 1), (1, 24), (1, 27), (1, 28), (2, 0), (3, 2), (4, 1), (4, 3), (5, 0), (5, 1), (8, 0), (10, 3)]
)
def test_choices_that_are_damaged_are_refused(tmp_path, number, value):
    path = tmp_path / "choices.bin"
    write_choices(path, PAIR)
    data = bytearray(path.read_bytes())
    at = 1024 + 2 * (13 + number)
    data[at : at + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match="is damaged in example 1 of 2, at byte 1050"):
        read_choices(path)


@pytest.mark.parametrize("count, message", [(1, "has 13 numbers after its last example"), (3, "is damaged in example 2 of 3")])
def test_choices_are_as_many_as_the_header_says(tmp_path, count, message):
    path = tmp_path / "choices.bin"
    write_choices(path, PAIR)
    data = bytearray(path.read_bytes())
    data[8:12] = count.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_choices(path)


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["m.safetensors"], 2, "name a checkpoint and a file"),
        (["m.safetensors", "--data", "missing.txt"], 4, "no file matches"),
        (["m.safetensors", "--data", "one.bin"], 4, "too few tokens"),
        (["m.safetensors", "--data", "one.bin", "-m", 0], 2, "nothing to evaluate"),
        (["m.safetensors", "--data", "large.bin"], 4, "expected ids from 0 to 4095"),
        (["m.safetensors", "--data", "one.bin", "-t", 17], 2, "--seq-len 17 is more than"),
        (["m.safetensors", "--data", "choices.bin"], 4, "choices.bin has id 4096"),
    ],
)
def test_errors(model, tmp_path, words, code, message):
    write_shard(tmp_path / "one.bin", [1])
    write_shard(tmp_path / "large.bin", [1, 4096])
    write_choices(tmp_path / "choices.bin", [Example([1], [[4096], [2]], 0)])
    done = evaluate(tmp_path, *words, code=code)
    assert done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


def test_importing_the_program_leaves_the_library_as_it_is():
    assert callable(gpt2c.generate)


def test_a_text_begins_as_the_model_wants_it(tmp_path):
    """And what begins it is no text."""
    m = gpt2c.create("gpt2", num_layers=1, channels=16, num_heads=2, vocab_size=258, max_seq_len=16, seed=3)
    m.params.flat[...] *= 8
    m.tokenizer = gpt2c.Tokenizer.make("byte", specials=("<|bos|>", "<|eos|>"))
    (tmp_path / "a.txt").write_text("once more")
    for adds_bos, first in ((False, 257), (True, 256)):
        m.tokenizer.adds_bos = adds_bos
        m.save(tmp_path / "m.safetensors")
        table = log_probabilities(m, [first, *b"once mor"])
        loss, _, bpb, count = numbers(evaluate(tmp_path, "m.safetensors", "--data", "a.txt"))
        assert loss == pytest.approx(-np.mean([table[t, i] for t, i in enumerate(b"once more")]), abs=1e-5)
        assert count == 9 and bpb == pytest.approx(loss / math.log(2), abs=1e-3)


def test_weights_may_be_kept_in_other_types(tmp_path):
    """Each costs as much as its bits lack."""
    m = gpt2c.create("gpt2", num_layers=1, channels=32, num_heads=2, vocab_size=4096, max_seq_len=16, seed=3)
    m.params.flat[...] *= 8
    m.tokenizer = gpt2c.Tokenizer.load(ROOT / "data/stories_tokenizer.bin")
    m.save(tmp_path / "m.safetensors")
    (tmp_path / "t.txt").write_text("Once upon a time there was a cat that liked to eat fish. " * 8)

    def loss(*words):
        found = evaluate(tmp_path, "m.safetensors", "--data", "t.txt", *words).stdout
        return float(re.search(r"loss ([\d.]+)", found)[1])

    exact = loss()
    assert loss("--weights", "f32") == exact == loss("--weights", "stored")
    far = [abs(loss("--weights", kind) - exact) for kind in ("bf16", "q8_0", "q4_0")]
    assert 0 < min(far) and far[0] < 0.05 and far[1] < 0.05 and far[2] > far[1]
    said = evaluate(tmp_path, "m.safetensors", "--data", "t.txt", "--weights", "q3", code=2).stderr
    assert "--weights: expected one of stored, f32" in said
