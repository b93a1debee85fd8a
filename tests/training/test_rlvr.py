"""Learning from rewards: tasks, completions in batches, GRPO's objective and its gradient, and the program."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpt2c
from gpt2c.data.tasks import TASKS, Task, by_number, by_position, by_position_or_half, task_named, task_pairs
from gpt2c.engine.runner import Runner, Work
from gpt2c.errors import DivergedError, InputError, UsageError
from gpt2c.formats.weights import RunState
from gpt2c.generation.slots import BatchSampler, choose_rows
from gpt2c.models.files import load, load_run
from gpt2c.tokenizers.tokenizer import Tokenizer
from gpt2c.training.grpo import Completion, Grpo, GrpoConfig, advantages, objective

FAMILIES = {
    "gpt2": dict(num_layers=2, channels=32, num_heads=2, max_seq_len=64),
    "chargpt": dict(num_layers=2, channels=32, num_heads=2, max_seq_len=64),
    "mingru": dict(dim=32, depth=2),
    "hybrid": dict(hidden=16, num_layers=2, num_experts=2),  # where choices of experts make no jumps
    "trm": dict(channels=32, hidden=48, num_heads=2, max_seq_len=64),
}
families = pytest.mark.parametrize("family", FAMILIES)
CHARACTERS = "\n0123456789+-*=:>abcdefghij"


def model_of(family="chargpt", characters=CHARACTERS, seed=1, **fields):
    tokenizer = Tokenizer.make("char", characters)
    model = gpt2c.create(family, seed=seed, vocab_size=tokenizer.vocab_size, **FAMILIES[family] | fields)
    model.tokenizer = tokenizer
    return model


# ---- tasks


@pytest.mark.parametrize("name, end, sizes", [("copy", ":", range(2, 7)), ("reverse", ">", range(2, 6))])
def test_words_are_copied_and_reversed(name, end, sizes):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        prompt, answer = TASKS[name].make(rng)
        assert prompt[-1] == end and answer == (prompt[:-1] if name == "copy" else prompt[-2::-1])
        assert set(answer) <= set("abcdefghij")
        seen.add(len(answer))
    assert seen == set(sizes)


def test_sums_differences_and_products_are_right():
    rng, signs = np.random.default_rng(0), set()
    for _ in range(300):
        prompt, answer = TASKS["arithmetic"].make(rng)
        a, sign, b, equals = prompt
        assert equals == "=" and int(answer) == {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[sign](int(a), int(b))
        signs.add(sign)
    assert signs == set("+-*")


@pytest.mark.parametrize(
    "reward, text, answer, expected",
    [
        (by_position, "abc", "abc", 1),
        (by_position, "abd", "abc", 2 / 3),
        (by_position, "", "abc", 0),
        (by_position, "abcd", "abc", 0.75),
        (by_position, "ab", "abc", 2 / 3),
        (by_position, "bca", "abc", 0),
        (by_position_or_half, "cba", "cba", 1),
        (by_position_or_half, "cbaa", "cba", 0.375),
        (by_position_or_half, "cbb", "cba", 1 / 3),
        (by_number, "12", "12", 1),
        (by_number, "012", "12", 1),
        (by_number, "-3", "-3", 1),
        (by_number, "12x", "12", 1 / 3),
        (by_number, "1_2", "12", 1 / 6),
        (by_number, "13", "12", 0.25),
        (by_number, "", "0", 0),
        (by_number, "٣", "3", 0),
    ],
)
def test_rewards(reward, text, answer, expected):
    assert reward(text, answer) == pytest.approx(expected)


def test_pairs_of_a_task_are_always_the_same():
    pairs = TASKS["copy"].pairs(50)
    assert len(pairs) == 50 and pairs == TASKS["copy"].pairs(50) == task_pairs("copy:50") != TASKS["copy"].pairs(50, seed=1)


OWN = """
from gpt2c.data.tasks import Task, by_position

def ask(rng):
    n = rng.integers(50)
    return f"{n}+{n}=", str(2 * n)

task = Task(ask, by_position, answers="0123456789")
"""


def test_a_task_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "double.py").write_text(OWN)
    task = task_named(str(tmp_path / "double.py"))
    prompt, answer = task.make(np.random.default_rng(0))
    assert 2 * int(prompt.split("+")[0]) == int(answer)
    assert Grpo(model_of(), task, GrpoConfig(prompts=2)).update().tokens
    monkeypatch.setitem(TASKS, "double", task)
    assert task_named("double") is task
    (tmp_path / "none.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="defines no `task`"):
        task_named(str(tmp_path / "none.py"))
    with pytest.raises(InputError, match="cannot read"):
        task_named(str(tmp_path / "missing.py"))
    with pytest.raises(UsageError, match="no task 'revers'; did you mean reverse"):
        task_named("revers")


# ---- batches of completions


@families
def test_a_row_of_a_batch_is_what_its_prompt_gives_alone(family):
    model = model_of(family)
    model.params.flat[...] *= 3  # so that choices are not all a matter of chance
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 27, n).tolist() for n in (3, 1, 7, 5, 3)]
    coins = np.random.default_rng(7).random((5, 12))

    class Coins:
        def __init__(self, rows):
            self.rows = rows

        def random(self, shape):
            return coins[self.rows]

    together = BatchSampler(model).sample(prompts, 12, Coins(slice(None)), stops={4})
    for row, prompt in enumerate(prompts):
        assert BatchSampler(model).sample([prompt], 12, Coins([row]), stops={4}) == [together[row]]
    for prompt, new in zip(prompts, BatchSampler(model).sample(prompts, 12, rng, temperature=0)):
        assert new == list(gpt2c.generate(model, prompt, 12, temperature=0))


@families
def test_rows_side_by_side_do_not_change_each_others_bits(family):
    """More than one row: a single one goes through other kernels, which round otherwise."""
    model = model_of(family)
    ids = np.random.default_rng(0).integers(0, 27, (9, 8))

    def logits(rows):
        runner = Runner(model, context=32)
        runner.begin(len(rows))
        work = None
        for first, last in ((0, 3), (3, 4), (4, 5)):
            work = runner.prepare(Work(len(rows), last - first, targets=False))
            work.tokens[...], work.position[0] = ids[rows][:, first:last], first
            work.forward()
        return work.output.logits.array.reshape(len(rows), -1)[:, :27].copy()

    every = logits(range(9))
    for threads in (1, 2, 3):
        gpt2c.set_num_threads(threads)
        assert (logits(range(9)) == every).all()
    np.testing.assert_allclose(logits([4]), every[4:5], rtol=1e-4, atol=1e-5)


def test_completions_end_with_a_stop_and_a_full_context_is_refused():
    model = model_of()
    new = BatchSampler(model).sample([[1], [2, 3]] * 20, 15, np.random.default_rng(0), stops={0, 5})
    assert all(len(ids) <= 15 and not {0, 5} & set(ids[:-1]) for ids in new)
    assert any(len(ids) < 15 for ids in new) and all(len(ids) == 15 or ids[-1] in (0, 5) for ids in new)
    with pytest.raises(UsageError, match="66 tokens, more than the model's max_seq_len of 64"):
        BatchSampler(model).sample([[1] * 60], 6, np.random.default_rng(0))
    with pytest.raises(UsageError, match="empty"):
        BatchSampler(model).sample([[1], []], 6, np.random.default_rng(0))


def test_choices_have_the_probabilities_of_the_softmax(rng):
    logits = np.tile(np.log([[0.5, 0.3, 0.15, 0.05]]), (20000, 1)).astype(np.float32)
    for temperature, expected in ((1.0, [0.5, 0.3, 0.15, 0.05]), (0.5, np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365)):
        counts = np.bincount(choose_rows(logits, rng.random(20000), temperature), minlength=4) / 20000
        np.testing.assert_allclose(counts, expected, atol=4 * 0.5 / 20000**0.5)
    assert (choose_rows(logits, rng.random(20000), 0) == 0).all()
    assert choose_rows(np.float32([[0, 0]]), np.array([1 - 1e-17]))[0] == 1


# ---- advantages and the objective


def test_advantages_are_deviations_from_the_groups_mean_and_none_where_all_are_equal():
    got = advantages(np.array([[1, 0, 0, 1], [0.25] * 4, [0, 0, 0, 1.0]]))
    np.testing.assert_allclose(got[0], [1, -1, -1, 1])
    assert not got[1].any()
    np.testing.assert_allclose((got[2].mean(), got[2].std()), (0, 1), atol=1e-12)
    assert got[2].argmax() == 3


@pytest.mark.parametrize("kl, entropy", [(0, 0), (0.3, 0), (0, 0.2), (0.3, 0.2)])
def test_slopes_are_the_derivatives_of_the_objective(rng, kl, entropy):
    config = GrpoConfig(clip=0.2, kl=kl, entropy=entropy)
    old = -rng.random((40, 6)) * 3
    (logp, ref), a = (old + 0.3 * rng.standard_normal((40, 6)) for _ in range(2)), rng.standard_normal((40, 1))
    h = 1e-6
    numeric = (objective(logp + h, old, ref, a, config)[0] - objective(logp - h, old, ref, a, config)[0]) / (2 * h)
    np.testing.assert_allclose(objective(logp, old, ref, a, config)[1], numeric, rtol=1e-6, atol=1e-7)


def test_clipping_stops_what_has_moved_far_enough_and_never_what_goes_back():
    config, old = GrpoConfig(clip=0.2), np.zeros(1)
    for ratio, a, flat in ((1.3, 1, True), (1.3, -1, False), (0.7, 1, False), (0.7, -1, True), (1.1, 1, False), (0.9, -1, False)):
        value, slope, told = objective(np.log([ratio]), old, None, np.float64(a), config)
        assert told[0] == (slope[0] == 0) == flat, (ratio, a)
        assert value[0] == pytest.approx(a * (np.clip(ratio, 0.8, 1.2) if flat else ratio))


def test_divergence_pulls_towards_the_model_at_the_start():
    config, old = GrpoConfig(kl=1.0), np.zeros(2)
    value, slope, _ = objective(np.array([-1.0, -1.0]), old - 1, np.array([-0.5, -2.0]), np.float64(0), config)
    assert (value < 0).all() and slope[0] > 0 > slope[1]


def test_the_entropy_term_has_the_gradient_of_the_entropy():
    """In expectation: summed over all tokens with their probabilities."""
    p = np.array([0.6, 0.3, 0.1])
    slope = objective(np.log(p), np.log(p), None, np.zeros(3), GrpoConfig(entropy=1.0))[1]
    by_logits = sum(p[k] * slope[k] * ((np.arange(3) == k) - p) for k in range(3))
    exact = -p * (np.log(p) - p @ np.log(p))
    np.testing.assert_allclose(by_logits, exact, atol=1e-12)
    assert abs(exact).max() > 0.05


# ---- the gradient of it all


def completions_of(grpo, texts, prompts=None):
    encode = grpo.tokenizer.encode
    return [
        Completion(prompt, text, 0.0, encode(prompt), encode(text + "\n"))
        for prompt, text in zip(prompts or ["abc:"] * len(texts), texts)
    ]


@families
def test_the_gradient_is_that_of_the_whole_objective(family):
    model, config = model_of(family, seed=2), GrpoConfig(kl=0.3, entropy=0.05)
    grpo = Grpo(model_of(family, seed=2), TASKS["copy"], config)  # keeps its parameters as the reference
    done = completions_of(grpo, ["abc", "ab", "bb", "c"], ["abc:", "abc:", "ji:", "ji:"])
    advantage = np.array([[1.0, -1.0], [0.5, -0.5]])
    x, y, weight = grpo._batch(done, advantage)
    model.params.flat[...] += 0.01 * np.random.default_rng(0).standard_normal(model.params.size, np.float32)
    old = grpo._log_probabilities(model, x, y)
    ref = grpo._log_probabilities(grpo._reference, x, y)

    def loss(slopes=False):
        logp = grpo._log_probabilities(model, x, y)
        value, slope, _ = objective(logp, old, ref, advantage.reshape(-1, 1), config)
        return slope if slopes else -float((value * weight).sum())

    slope = loss(slopes=True)
    model.zero_grad()
    model.backward(slope * weight * (y >= 0).sum())
    norm = float(np.linalg.norm(model.grads.flat.astype(np.float64)))
    kept, along, eps = model.params.flat.copy(), model.grads.flat / norm, 3e-3  # along the gradient most can be seen
    sides = []
    for sign in (1, -1):
        model.params.flat[...] = kept + sign * eps * along
        sides.append(loss())
    assert (sides[0] - sides[1]) / (2 * eps) == pytest.approx(norm, rel=1e-2) and norm > 0.01


@families
def test_weights_scale_each_targets_gradient(family, rng):
    model = model_of(family)
    x, y = rng.integers(0, 27, (2, 3, 6))
    y[0, :3] = -1

    def gradient(weights=None):
        model.reset_state()
        model.forward(x, y)
        model.zero_grad()
        model.backward(weights)
        return model.grads.flat.copy()

    plain = gradient()
    assert (gradient(np.ones(x.shape)) == plain).all() and (gradient(-2 * np.ones(x.shape)) == -2 * plain).all()
    assert not gradient(np.where(y < 0, 5.0, 0.0)).any() and (gradient() == plain).all()
    parts = [gradient(np.where(np.arange(6) % 2 == k, 1.0, 0.0) * np.ones((3, 1))) for k in (0, 1)]
    np.testing.assert_allclose(sum(parts), plain, atol=1e-5 * abs(plain).max())
    losses = model.losses
    assert losses.shape == (3, 6) and not losses[0, :3].any()
    assert losses.sum() / 15 == pytest.approx(model.metrics["cross_entropy"])


def test_losses_are_there_after_a_forward_with_targets_alone(rng):
    model, x = model_of(), rng.integers(0, 27, (1, 4))
    for run in (lambda: None, lambda: model.forward(x), lambda: model.loss_and_grad(x, x)):
        run()
        with pytest.raises(UsageError, match="losses are there after forward with targets"):
            print(model.losses)


# ---- GRPO


@families
def test_the_one_good_answer_becomes_likelier_and_the_others_less(family):
    model = model_of(family)
    grpo = Grpo(model, TASKS["copy"], GrpoConfig(learning_rate=1e-3))
    done = completions_of(grpo, ["abc", "dde", "eje", "jjj"])
    x, y, _ = grpo._batch(done, np.ones((1, 4)))
    before = grpo._log_probabilities(model, x, y).sum(axis=1)
    grpo.learn(done, advantages(np.array([[1.0, 0, 0, 0]])))
    gained = grpo._log_probabilities(model, x, y).sum(axis=1) - before
    assert gained[0] > 0 > gained[1:].mean()


def test_the_loss_is_on_completions_only_and_the_prompt_is_fed():
    grpo = Grpo(model_of(), TASKS["copy"])
    done = completions_of(grpo, ["ab", "b"], ["ab:", "ab:"])
    x, y, weight = grpo._batch(done, np.array([[1.0, -1.0]]))
    ids = grpo.tokenizer.encode("ab:ab\n")
    assert x.shape == (2, 8) and x[0, :5].tolist() == ids[:-1]
    assert y[0].tolist() == [-1, -1, *ids[3:], -1, -1, -1] and (y[1] >= 0).tolist() == [False, False, True, True] + [False] * 4
    np.testing.assert_allclose(weight.sum(axis=1), [0.5, 0.5])  # the same for long and short completions
    assert ((weight > 0) == (y >= 0)).all()


def test_groups_of_equal_rewards_are_skipped():
    grpo = Grpo(model_of(), TASKS["copy"], GrpoConfig(entropy=0.1))
    done = completions_of(grpo, ["ab", "b", "a", "j"])
    assert not grpo._batch(done, np.array([[0, 0], [1, -1.0]]))[2][:2].any()
    before = grpo.model.params.flat.copy()
    told = grpo.learn(done, np.zeros((2, 2)))
    assert told["skipped"] == 2 and (grpo.model.params.flat == before).all()
    assert grpo.learn(done, np.array([[0, 0], [1, -1.0]]))["skipped"] == 1 and (grpo.model.params.flat != before).any()


def test_several_updates_are_clipped():
    def moved(clip):
        grpo = Grpo(model_of(), TASKS["copy"], GrpoConfig(updates=20, clip=clip, learning_rate=1e-3))
        done = completions_of(grpo, ["abc", "jjj"])
        x, y, _ = grpo._batch(done, np.ones((1, 2)))
        before = grpo._log_probabilities(grpo.model, x, y)[0, 3:7]
        told = grpo.learn(done, np.array([[1.0, -1.0]]))
        return told["clipped"], (grpo._log_probabilities(grpo.model, x, y)[0, 3:7] - before).mean()

    (clipped, near), (free, far) = moved(0.1), moved(1e6)
    assert clipped > 0.5 and free == 0 and 0 < near < far / 2


def test_a_penalty_on_divergence_keeps_the_model_near_its_start():
    ends = []
    for kl in (1e-6, 10.0):
        grpo = Grpo(model_of(), TASKS["copy"], GrpoConfig(kl=kl, learning_rate=1e-3))
        done = completions_of(grpo, ["abc", "jjj"])
        told = [grpo.learn(done, np.array([[1.0, -1.0]]))["kl"] for _ in range(20)]
        assert told[0] == 0
        ends.append(told[-1])
    assert 0 < ends[1] < ends[0] / 10


def test_steps_are_the_same_for_the_same_seed():
    def run(seed):
        grpo = Grpo(model_of(), TASKS["copy"], GrpoConfig(seed=seed, prompts=3))
        steps = [grpo.update()._replace(ms=0) for _ in range(3)]
        return steps, grpo.model.params.flat.copy()

    (first, a), (second, b), (_, c) = run(1), run(1), run(2)
    assert first == second and (a == b).all() and (a != c).any()


def test_moments_of_another_objective_are_forgotten():
    model = model_of()
    model.m.flat[...], model.v.flat[...] = 5, 5
    fresh = model_of()
    for each in (model, fresh):
        Grpo(each, TASKS["copy"], GrpoConfig(seed=3)).update()
    assert (model.params.flat == fresh.params.flat).all()


def test_what_follows_an_answer_is_rewarded_only_if_asked_for():
    ids = Tokenizer.make("char", CHARACTERS).encode("abcj\nab")
    for trailing, expected in ((False, 0.75), (True, 1.0)):
        grpo = Grpo(model_of(), TASKS["copy"], GrpoConfig(trailing=trailing))
        assert grpo._judge("abc:", "abc", [], ids).reward == expected
        assert grpo._judge("abc:", "abc", [], ids[:3]).reward == 1


def test_characters_that_the_vocabulary_lacks():
    with pytest.raises(UsageError, match="lacks 'ij'"):
        Grpo(model_of(characters="\nabcdefgh:"), TASKS["copy"])
    grpo = Grpo(model_of(characters="abcdefghij"), TASKS["copy"])
    assert "lacks ':': prompts go without" in grpo.warnings[0] and "nothing to end a completion" in grpo.warnings[1]
    assert all(prompt == answer for prompt, answer in grpo.draw(20, np.random.default_rng(0)))
    assert grpo._judge("abc", "abc", [], grpo.tokenizer.encode("abcdef")).reward == 1
    assert grpo.update().tokens and not Grpo(model_of(), TASKS["copy"]).warnings


def test_what_diverges_says_so_and_is_not_saved(tmp_path):
    grpo = Grpo(model_of(), TASKS["copy"])
    grpo.model.params["wte"][...] = np.nan
    with pytest.raises(DivergedError, match="not finite: not saved"):
        grpo.save(tmp_path / "x.safetensors")
    with pytest.raises(DivergedError, match="gradient norm is nan"):
        grpo.learn(completions_of(grpo, ["a", "b"]), np.array([[1.0, -1.0]]))


@pytest.mark.parametrize("family", ["chargpt", "hybrid"])
def test_what_goes_on_from_a_checkpoint_has_the_same_bits(family, tmp_path):
    config = GrpoConfig(kl=0.1, entropy=0.05, updates=2, prompts=3, learning_rate=1e-3)
    straight = Grpo(model_of(family), TASKS["copy"], config)
    for _ in range(2):
        straight.update()
    straight.save(tmp_path / "half.safetensors")
    then = [straight.update()._replace(ms=0) for _ in range(2)]
    model, state = load_run(tmp_path / "half.safetensors")
    resumed = Grpo(model, TASKS["copy"], config, state)
    assert resumed.step == 2 and [resumed.update()._replace(ms=0) for _ in range(2)] == then and then[0].kl > 0
    for mine, theirs in ((model.params, straight.model.params), (model.m, straight.model.m), (model.v, straight.model.v)):
        assert mine.flat.tobytes() == theirs.flat.tobytes()


def test_what_a_checkpoint_does_not_hold_is_said(tmp_path):
    grpo = Grpo(model_of(), TASKS["copy"], GrpoConfig(prompts=2))
    grpo.update()
    grpo.save(tmp_path / "x.safetensors")
    model, state = load_run(tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="kl is 0.5, but the run that goes on had none"):
        Grpo(model, TASKS["copy"], GrpoConfig(kl=0.5), state)
    for name, value in (("step", -1), ("updates", "x"), ("random", {"state": 3}), ("random", None)):
        with pytest.raises(InputError, match="account of its run is damaged"):
            Grpo(model, TASKS["copy"], GrpoConfig(), RunState(state.values | {name: value}, state.arrays))


def test_a_small_model_learns_to_answer():
    task = Task(lambda rng: ("a:", "b"), by_position, "ab")
    grpo = Grpo(model_of(), task, GrpoConfig(learning_rate=1e-2, max_new_tokens=3, group_size=8))
    before = grpo.evaluate(100)[1]
    for _ in range(40):
        grpo.update()
    assert before < 0.1 and grpo.evaluate(100)[1] > 0.9


# ---- the program


def program(folder, *words, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "gpt2c", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@families
def test_the_program_trains_and_saves_what_others_load(family, tmp_path):
    model_of(family).save(tmp_path / "start.safetensors")
    out, _ = program(
        tmp_path,
        "rlvr",
        "start.safetensors",
        "--steps",
        "3",
        "--prompts",
        "2",
        "--out-dir",
        "run",
        "--log-every",
        "1",
        "--save-every",
        "2",
        "--eval-prompts",
        "4",
        "--prompt",
        "abc:",
        "--gen-length",
        "5",
    )
    assert "before: reward" in out and "after: reward" in out and "step    3/3 | reward" in out and "eta" in out
    assert '" -> "' in out and out.rstrip().endswith("checkpoint run/ckpt_00000003.safetensors")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2] and {"reward", "success", "loss", "grad_norm", "best"} <= set(rows[0])
    assert {path.name for path in (tmp_path / "run").glob("ckpt*")} == {f"ckpt_0000000{n}.safetensors" for n in (2, 3)}
    model = load(tmp_path / "run/ckpt_00000003.safetensors")
    assert model.tokenizer.encode("abc") and (model.params.flat != model_of(family).params.flat).any()


def test_flags_of_the_document(tmp_path):
    model_of("hybrid").save(tmp_path / "checkpoint.safetensors")
    out, _ = program(
        tmp_path,
        "rl",
        "--loadCheckpoint=./checkpoint.safetensors",
        "--useBPE=true",
        "--bpeLoadPath=./tokenizer.json",
        "--trainingFile=./data.txt",
        "--trainingText=abc",
        "--rlTask=arithmetic",
        "--rlEpisodes=2",
        "--rlLearningRate=0.0001",
        "--savePath=./model.bin",
        "--evalPrompts=0",
        "--saveOnComplete=true",
    )
    assert "rlvr: arithmetic with hybrid" in out and load(tmp_path / "model.bin").family == "hybrid"
    _, err = program(tmp_path, "rlvr", code=2)
    assert "name a checkpoint" in err
    _, err = program(tmp_path, "rlvr", "checkpoint.safetensors", "--group-size", "1", code=2)
    assert "group_size is 1, expected at least 2" in err


def test_tasks_are_something_to_train_on(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2C_CACHE", str(tmp_path / "cache"))
    program(
        tmp_path,
        "train",
        "--model",
        "chargpt",
        "--data",
        "task:copy:300",
        "--seq-len",
        "16",
        "--num-layers",
        "1",
        "--channels",
        "16",
        "--num-heads",
        "1",
        "--max-steps",
        "3",
        "--out-dir",
        "run",
        "-v",
        "0",
        "-s",
        "0",
    )
    model = load(tmp_path / "run/ckpt_00000003.safetensors")
    assert sorted(model.tokenizer.decode([i]) for i in range(model.tokenizer.vocab_size)) == sorted("\n:abcdefghij")


def test_a_run_that_goes_on_is_the_same_run(tmp_path):
    model_of("hybrid").save(tmp_path / "start.safetensors")
    words = ["rlvr", "start.safetensors", "--task", "reverse", "--prompts", "3", "--lr", "1e-3", "--eval-prompts", "3"]
    program(tmp_path, *words, "--steps", "4", "--out-dir", "straight")
    program(tmp_path, *words, "--steps", "2", "--out-dir", "again", "--threads", "1")
    out, err = program(tmp_path, "rlvr", "--resume", "--out-dir", "again", "--steps", "4")
    assert "resumed from again/ckpt_00000002.safetensors at step 2" in out and "steps 2 -> 4" in out and "before:" not in out
    last = "ckpt_00000004.safetensors"
    assert (tmp_path / "again" / last).read_bytes() == (tmp_path / "straight" / last).read_bytes() and not err
    one, other = (
        [
            {name: value for name, value in json.loads(line).items() if name != "ms"}
            for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in ("again", "straight")
    )
    assert one == other and [row["step"] for row in one] == [0, 1, 2, 3]
    out, _ = program(tmp_path, "rlvr", "--resume", f"again/{last}")
    assert "already at step 4 of 4: nothing to learn" in out
    _, err = program(tmp_path, "train", "--resume", f"again/{last}", code=4)
    assert "holds a run of gpt2c rlvr, which that resumes" in err
    _, err = program(tmp_path, "rlvr", "--resume", "start.safetensors", code=4)
    assert "holds weights only" in err


def test_a_run_that_is_stopped_keeps_what_it_learned(tmp_path):
    model_of().save(tmp_path / "start.safetensors")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gpt2c",
            "rlvr",
            "start.safetensors",
            "--steps",
            "100000",
            "--out-dir",
            "run",
            "--log-every",
            "1",
            "--eval-prompts",
            "0",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    for line in process.stdout:
        if line.startswith("step    3/"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "stopped: SIGINT" in out and "Traceback" not in err
    (saved,) = (tmp_path / "run").glob("ckpt*")
    model, state = load_run(saved)
    assert (model.params.flat != model_of().params.flat).any() and state.values["step"] >= 3
    done = state.values["step"]
    out, _ = program(tmp_path, "rlvr", "--resume", "--out-dir", "run", "--steps", str(done + 1))
    assert f"resumed from {saved.relative_to(tmp_path)} at step {done}" in out and f"done: step {done + 1}" in out
