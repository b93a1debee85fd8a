"""Learning from rewards: GRPO's objective, its gradient, and what the updates do."""

import numpy as np
import pytest
from families import CHARACTERS, families, model_of

from gpt2c.data.tasks import TASKS, Task, by_position
from gpt2c.errors import DivergedError, InputError, UsageError
from gpt2c.formats.weights import RunState
from gpt2c.models.files import load_run
from gpt2c.tokenizers.tokenizer import Tokenizer
from gpt2c.training.grpo import Completion, Grpo, GrpoConfig, advantages, objective

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


# ---- learning


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
    with pytest.raises(UsageError, match="kl is 0.5, but the resumed run had no KL term"):
        Grpo(model, TASKS["copy"], GrpoConfig(kl=0.5), state)
    for name, value in (
        ("step", -1),
        ("step", 10**400),
        ("updates", "x"),
        ("updates", 10**400),
        ("random", {"state": 3}),
        ("random", None),
    ):
        with pytest.raises(InputError, match="run state in the checkpoint is damaged"):
            Grpo(model, TASKS["copy"], GrpoConfig(), RunState(state.values | {name: value}, state.arrays))


def test_a_small_model_learns_to_answer():
    task = Task(lambda rng: ("a:", "b"), by_position, "ab")
    grpo = Grpo(model_of(), task, GrpoConfig(learning_rate=1e-2, max_new_tokens=3, group_size=8))
    before = grpo.evaluate(100)[1]
    for _ in range(40):
        grpo.update()
    assert before < 0.1 and grpo.evaluate(100)[1] > 0.9
