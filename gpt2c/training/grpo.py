"""GRPO, group relative policy optimization: a model samples a group of completions of each prompt, and the probability of those
with a reward above their group's mean is raised.

With rewards r of a group, A = (r - mean) / std, ratio = pi / pi_old of a token, and D = log pi_ref - log pi, the loss is
minus the mean over completions of the mean over their tokens of

    min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)  -  kl (e^D - D - 1)  -  entropy ratio log pi

All of it depends on the parameters through log pi of the tokens that were written, so its gradient is cross-entropy's
with a weight for each token. The last term is the entropy as an importance-weighted mean: -log pi alone has the same
value, but a gradient that is zero on average.
"""

import dataclasses
import math
import re
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gpt2c.data.tasks import ENDS, Task
from gpt2c.errors import DivergedError, Gpt2cError, InputError, UsageError
from gpt2c.formats.weights import RunState
from gpt2c.generation.batch import BatchSampler
from gpt2c.models.family import max_seq_len
from gpt2c.models.files import save
from gpt2c.models.model import Model
from gpt2c.support.fields import flag, require_at_least
from gpt2c.support.rng import checked_seed
from gpt2c.training.optimizers import Optimizer
from gpt2c.training.ranks import world

PROGRAM = "rlvr"  # whose runs these are, as checkpoints say
SAME = 1e-8  # rewards that deviate less than this are equal
ROUND = 8  # lengths of batches are multiples of this, so that few shapes have to be recorded


@dataclass
class GrpoConfig:
    """How to learn from rewards."""

    steps: int = flag(
        100,
        "GRPO steps in total: batches of completions",
        "--rl-steps",
        "--rl-episodes",
        "--max-steps",
        "-x",
        group="reinforcement learning",
    )
    prompts: int = flag(8, "prompts per step")
    group_size: int = flag(4, "group size: completions per prompt, whose rewards are compared")
    max_new_tokens: int = flag(20, "maximum length of a completion, in tokens", "-n")
    updates: int = flag(1, "optimizer updates per batch of completions")
    learning_rate: float = flag(1e-4, "learning rate", "--rl-learning-rate", "-l", "--lr")
    weight_decay: float = flag(0.001, "AdamW: weight decay of matrices", "-c")
    grad_clip: float = flag(
        1.0, "gradient clipping by global L2 norm: the largest norm of all gradients together (0: off)", "--max-grad-norm"
    )
    clip: float = flag(0.2, "clipping range (epsilon) of the probability ratio between the new and the old policy, as in PPO")
    kl: float = flag(
        0.0, "KL coefficient (beta): weight of the divergence from the reference model, which is the model at the start (0: off)"
    )
    entropy: float = flag(0.0, "entropy coefficient: weight of the entropy bonus (0: off)")
    trailing: bool = flag(False, "reward a completion that begins with the right answer, whatever follows it")
    seed: int = flag(1337, "random seed of prompts and completions")

    def __post_init__(self):
        require_at_least(
            self,
            steps=0,
            prompts=1,
            group_size=2,
            max_new_tokens=1,
            updates=1,
            learning_rate=0,
            weight_decay=0,
            grad_clip=0,
            clip=0,
            kl=0,
            entropy=0,
        )
        checked_seed(self.seed)


class Completion(NamedTuple):
    prompt: str
    text: str  # without its end
    reward: float
    prompt_ids: list[int]
    ids: list[int]  # end included


class Step(NamedTuple):
    """One batch of completions and the updates with it."""

    step: int  # from 0
    reward: float  # mean over completions
    success: float  # the part of completions with a reward of 1
    loss: float  # of the first update, as are the following
    kl: float  # mean over tokens of the divergence from the model at the start; 0 where it is not asked for
    entropy: float  # mean over tokens of -log pi
    grad_norm: float  # before clipping
    clipped: float  # the fraction of tokens whose ratio was clipped in the last update
    skipped: int  # groups of equal rewards
    tokens: int  # written
    best: Completion | None
    ms: float


def advantages(rewards):
    """(P, G) rewards -> advantages: (r - mean) / standard deviation of the group; 0 in groups of equal rewards."""
    off = rewards - rewards.mean(axis=1, keepdims=True)
    std = off.std(axis=1, keepdims=True)
    return np.where(std > SAME, off / np.maximum(std, SAME), 0.0)


def objective(logp, old, ref, advantage, config):
    """The objective of each token, its derivative by logp, and whether the ratio was clipped."""
    ratio = np.exp(logp - old)
    free, bound = ratio * advantage, np.clip(ratio, 1 - config.clip, 1 + config.clip) * advantage
    value, slope = np.minimum(free, bound), np.where(free <= bound, free, 0.0)
    flat = free > bound
    if config.kl:
        d = ref - logp
        value, slope = value - config.kl * (np.exp(d) - d - 1), slope + config.kl * (np.exp(d) - 1)
    if config.entropy:
        value, slope = value - config.entropy * ratio * logp, slope - config.entropy * ratio * (logp + 1)
    return value, slope, flat


class Coins(NamedTuple):
    """Random numbers for some rows of a batch, drawn before: a row's do not depend on the rank that completes it."""

    rows: np.ndarray  # (rows, numbers)

    def random(self, shape):
        return self.rows


class Grpo:
    """Trains a model on a Task. Iterate over it, as often and as far as you like; `step` counts batches of completions done,
    `warnings` says what the model's vocabulary lacks.

    Where MPI has started several ranks, they take the prompts in turn, and all have the same parameters after each update.

    With the RunState of a checkpoint that `save` wrote, it resumes there, bit-identically.
    """

    def __init__(self, model, task: Task, config=None, run: RunState | None = None):
        self.model, self.task, self.config, self.tokenizer = model, task, config or GrpoConfig(), model.tokenizer
        if self.tokenizer is None:
            raise UsageError("the model has no tokenizer: set model.tokenizer")
        self.step, self.world = 0, world()
        self.warnings: list[str] = []
        self._t = 0  # updates of the optimizer
        self.recorded: dict[str, object] = {}  # more that checkpoints should say of how the run was made
        for moments in (model.m, model.v):  # those of another objective
            if moments.allocated and not run:
                moments.flat[...] = 0
        self._optimizer = Optimizer(model, weight_decay=self.config.weight_decay, world=self.world)
        self._rng = np.random.default_rng(self.config.seed)
        self._sampler = BatchSampler(model, kv="f32")
        self._reference = None
        if self.config.kl:
            self._reference = Model(model.family, model.config)
            self._reference.params.flat[...] = model.params.flat
        self._missing = self._check_characters()
        if run:
            self._go_on(run)

    def _check_characters(self):
        """The characters of prompts that the vocabulary lacks: an error for those of answers, else prompts go without."""

        def known(character):
            try:
                return self.tokenizer.decode(self.tokenizer.encode(character)) == character
            except Gpt2cError:
                return False

        if lacking := [c for c in self.task.answers if not known(c)]:
            raise UsageError(
                f"the model's vocabulary lacks {''.join(lacking)!r}, which answers are made of: train it on text "
                "that has them (--data task:NAME)"
            )
        rng = np.random.default_rng(0)
        missing = {c for c in set("".join(self.task.make(rng)[0] for _ in range(1000))) if not known(c)}
        if missing:
            self.warnings.append(f"the model's vocabulary lacks {''.join(sorted(missing))!r}: prompts go without")
        self._stops = {i for i, token in enumerate(self.tokenizer.tokens) if any(end.encode() in token for end in ENDS)}
        self._stops |= {self.tokenizer.eot, *self.tokenizer.ends} - {None}
        self._trailing = self.config.trailing or not self._stops
        if not self._stops:
            self.warnings.append(
                "the model's vocabulary has nothing to end a completion with (a line end, | or an end-of-text "
                "token): what follows an answer does not count"
            )
        return missing

    # ---- completions

    def draw(self, count, rng):
        """Prompts with their answers."""
        pairs = [self.task.make(rng) for _ in range(count)]
        return [("".join(c for c in prompt if c not in self._missing), answer) for prompt, answer in pairs]

    def complete(self, pairs, rng, temperature=1.0, group=1):
        """(a Completion for each (prompt, answer) of this rank's, the rewards of all). `group` pairs in a row are one rank's.
        Temperature 1 is the policy itself."""
        coins, rewards = rng.random((len(pairs), self.config.max_new_tokens)), np.zeros(len(pairs))
        mine = [row for row in range(len(pairs)) if row // group % self.world.size == self.world.rank]
        done = []
        if mine:
            prompts = [self.tokenizer.encode(pairs[row][0]) for row in mine]
            written = self._sampler.sample(prompts, coins.shape[1], Coins(coins[mine]), self._stops, temperature)
            done = [self._judge(*pairs[row], ids, new) for row, ids, new in zip(mine, prompts, written)]
            rewards[mine] = [completion.reward for completion in done]
        return done, self.world.all_reduce(rewards)

    def _judge(self, prompt, answer, prompt_ids, ids):
        text = self.tokenizer.decode([i for i in ids if i not in (self.tokenizer.eot, *self.tokenizer.ends)])
        text = re.split(f"[{ENDS}]", text, maxsplit=1)[0].strip()
        if self._trailing:
            text = text[: len(answer)]
        return Completion(prompt, text, float(self.task.reward(text, answer)), prompt_ids, ids)

    def evaluate(self, prompts=200, temperature=1.0):
        """(mean reward, part that is right, this rank's completions) of one completion of each of these many prompts, always
        the same."""
        rng = np.random.default_rng([self.config.seed, 1])
        done, rewards = self.complete(self.draw(prompts, rng), rng, temperature)
        return float(rewards.mean()), float((rewards >= 1).mean()), done

    # ---- learning

    def __iter__(self):
        return self.steps()

    def steps(self, before_update=lambda: True):
        """The Steps to come. `before_update` is asked before each; False, on all ranks at once, ends the iteration."""
        while self.step < self.config.steps and before_update():
            yield self.update()

    def update(self) -> Step:
        """One batch of completions, and the updates with it; none where all groups have equal rewards."""
        start, config = time.perf_counter(), self.config
        pairs = [pair for pair in self.draw(config.prompts, self._rng) for _ in range(config.group_size)]
        done, rewards = self.complete(pairs, self._rng, group=config.group_size)
        told = self.learn(done, advantages(rewards.reshape(config.prompts, config.group_size)))
        (tokens,) = self.world.all_reduce([sum(len(c.ids) for c in done)])
        self.step += 1
        return Step(
            self.step - 1,
            float(rewards.mean()),
            float((rewards >= 1).mean()),
            **told,
            tokens=int(tokens),
            best=max(done, key=lambda c: c.reward, default=None),
            ms=1000 * (time.perf_counter() - start),
        )

    def learn(self, completions, advantage):
        """Updates with these completions, this rank's; advantage is (P, G), of all. What a Step says of it."""
        told = dict(loss=0.0, kl=0.0, entropy=0.0, grad_norm=0.0, clipped=0.0, skipped=int((~advantage.any(axis=1)).sum()))
        if not advantage.any():
            return told
        ours = advantage[self.world.rank :: self.world.size]
        x, y, weight = self._batch(completions, ours)
        weight *= ours.any(axis=1).sum() / advantage.any(axis=1).sum()  # a part of the mean over those of all ranks
        counted, spread = weight > 0, ours.reshape(-1, 1)
        (tokens,) = self.world.all_reduce([counted.sum()])
        ref = self._log_probabilities(self._reference, x, y) if self._reference else None
        for number in range(self.config.updates):
            logp = self._log_probabilities(self.model, x, y)
            if number == 0:
                old = logp
            value, slope, flat = objective(logp, old, ref, spread, self.config)
            norm = self._step(slope * weight * (y >= 0).sum())
            d = (ref - logp)[counted] if ref is not None else np.zeros(0)
            clipped, gain, likelihood, kl = self.world.all_reduce(
                [flat[counted].sum(), (value * weight).sum(), logp[counted].sum(), (np.exp(d) - d - 1).sum()]
            ).tolist()
            told["clipped"] = clipped / tokens
            if number == 0:
                told |= dict(loss=-gain, entropy=-likelihood / tokens, grad_norm=norm, kl=kl / tokens)
        return told

    def _batch(self, completions, advantage):
        """Inputs and targets (B, T), -1 outside of completions, and the weight (B, T) of each token in the mean over
        completions of the mean over their tokens; 0 in groups that are skipped."""
        T = max((len(c.prompt_ids) + len(c.ids) for c in completions), default=2) - 1
        T = min(-(-T // ROUND) * ROUND, max_seq_len(self.model.config))
        x, y = np.zeros((len(completions), T), np.int32), np.full((len(completions), T), -1, np.int32)
        weight = np.zeros(x.shape)
        kept = np.repeat(advantage.any(axis=1), advantage.shape[1])
        for row, c in enumerate(completions):
            ids, first = c.prompt_ids + c.ids, len(c.prompt_ids) - 1
            x[row, : len(ids) - 1] = ids[:-1]
            y[row, first : len(ids) - 1] = c.ids
            weight[row, first : len(ids) - 1] = kept[row] / (len(c.ids) * max(1, kept.sum()))
        return x, y, weight

    def _log_probabilities(self, model, x, y):
        if not len(x):  # there are fewer prompts than ranks
            return np.zeros(x.shape)
        model.reset_state()
        model.forward(x, y)
        return -model.losses.astype(np.float64)

    def _step(self, weights):
        """One step of the optimizer with the gradient of the mean of weights * losses; its norm."""
        self.model.zero_grad()
        if len(weights):
            self.model.backward(weights)
        self._optimizer.reduce_gradients()
        norm, limit = self._optimizer.norm(), self.config.grad_clip
        if not math.isfinite(norm):
            raise DivergedError(f"at step {self.step} the gradient norm is {norm}: lower the learning rate")
        self._t += 1
        self._optimizer.update(self.config.learning_rate, self._t, min(1.0, limit / norm) if limit and norm else 1.0)
        return norm

    # ---- checkpoints

    def save(self, path):
        """A checkpoint from which a Grpo with its RunState resumes bit-identically."""
        if not math.isfinite(self._optimizer.parameter_norm()):
            raise DivergedError(f"at step {self.step} the parameters are not finite: not saved; lower the learning rate")
        values = {
            "program": PROGRAM,
            "step": self.step,
            "updates": self._t,
            "random": self._rng.bit_generator.state,
            "task": self.task.identity,
            "config": dataclasses.asdict(self.config) | self.recorded,
        }
        arrays = {"reference": self._reference.params.flat} if self._reference else {}
        try:
            if self.world.rank == 0:
                save(path, self.model, RunState(values, arrays), self._optimizer.moments(), self.step)
        finally:
            self.world.barrier()

    def _go_on(self, run):
        damaged = "the run state in the checkpoint is damaged ({}): use another checkpoint"
        self.step, self._t = run.values.get("step"), run.values.get("updates")
        if any(type(count) is not int or not 0 <= count < 2**53 for count in (self.step, self._t)):
            raise InputError(damaged.format(f"step and updates are {self.step!r} and {self._t!r}"))
        try:
            self._rng.bit_generator.state = run.values.get("random")
        except (KeyError, TypeError, ValueError, OverflowError) as error:  # NumPy's, for what is no state of it
            raise InputError(damaged.format(error)) from None
        if self._reference:
            if run.arrays.get("reference", np.zeros(0)).shape != self.model.params.flat.shape:
                raise UsageError(
                    f"kl is {self.config.kl:g}, but the resumed run had no KL term and kept no reference model: resume without "
                    "it, or start a new run"
                )
            self._reference.params.flat[...] = run.arrays["reference"]
