"""Reinforcement learning with verifiable rewards: python -m gpt2c rlvr CKPT [flags], or gpt2c rlvr.

Trains a checkpoint of any family with GRPO; it should have been trained on text of the task before (gpt2c train --data
task:copy).
"""

import dataclasses
import signal
import time
from dataclasses import dataclass

from gpt2c.commands.command_line import CommandLine, parse, peek
from gpt2c.commands.config_file import to_toml
from gpt2c.data import VocabularySource
from gpt2c.data.tasks import TASKS, task_named
from gpt2c.errors import Gpt2cError, UsageError
from gpt2c.generation.decoder import generate
from gpt2c.models.files import load
from gpt2c.runs import folder as runs
from gpt2c.runs.console import Console
from gpt2c.runs.resume import check_code, checkpoint_to_resume, names_of, recorded_flags, tell_changes
from gpt2c.runs.signals import Stop
from gpt2c.support.fields import flag, require_at_least
from gpt2c.support.progress import duration
from gpt2c.tokenizers.finding import tokenizer_of_model
from gpt2c.training.config import IDLE
from gpt2c.training.grpo import PROGRAM, Grpo, GrpoConfig
from gpt2c.training.ranks import world

SHOWN = 3  # completions before and after
RECORDED = ("checkpoint", "task", "prompt", "gen_length", "temperature", "eval_prompts")  # flags that a run that goes on keeps
SHAPING = (*RECORDED, *names_of(GrpoConfig))  # all of them


@dataclass
class RlvrConfig:
    """What to train, on which task, and where it goes."""

    checkpoint: str = flag(
        "", "model to train: a gpt2c checkpoint or an llm.c model", "--load-checkpoint", "--init-from", metavar="CKPT"
    )
    task: str = flag("copy", f"task: {', '.join(TASKS)}, or a Python file that defines one", "--rl-task", metavar="NAME|FILE")
    out_dir: str = flag(
        "",
        "output directory of the run: checkpoints and logs",
        "-o",
        "--output",
        metavar="DIR",
        default_text="runs/<date>-<family>",
    )
    save_path: str = flag("", "file for the final checkpoint, instead of or besides a directory", metavar="X")
    resume: bool | str = flag(
        False,
        "resume training from the newest valid checkpoint of --out-dir or --save-path, or from this "
        "checkpoint; flags that are not given keep the values of that run",
        "-y",
        metavar="PATH",
    )
    allow_new_data: bool = flag(False, "with --resume: go on although the task has changed, which is refused otherwise")
    save_every: int = flag(0, "save a checkpoint every N steps (0: only at the end)", "--checkpoint-interval")
    save_on_complete: bool = flag(True, "save a checkpoint at the end")
    log_every: int = flag(10, "print the reward every N steps", "--log-interval")
    eval_prompts: int = flag(200, "evaluate on this many prompts before and after training (0: never)")
    prompt: str = flag("", "text prompt that the trained model also continues at the end")
    gen_length: int = flag(100, "length of the continuation of --prompt, in tokens", "--length")
    temperature: float = flag(
        0.3, "sampling temperature of the continuation of --prompt (0: greedy); training and evaluation use 1"
    )
    tokenizer: str = flag(
        "",
        "tokenizer file, for checkpoints without a tokenizer",
        "--bpe-load-path",
        metavar="PATH",
        default_text="gpt2_tokenizer.bin here or in data/",
    )
    threads: int = flag(0, "CPU threads to use", default_text="one per core")

    def __post_init__(self):
        require_at_least(self, save_every=0, log_every=0, eval_prompts=0, gen_length=0, temperature=0)


def main(argv):
    """argv: words, or a CommandLine."""
    world().quiet()
    line = CommandLine.of(argv)
    with Stop() as stop:
        return rlvr(line, stop, Console())


def rlvr(line, stop, console):
    resume, *where = peek(line, RlvrConfig, "resume", "out_dir", "save_path")
    old = checkpoint_to_resume(resume, *where, console, PROGRAM)
    (run, config, _), given = parse(
        line,
        [RlvrConfig, GrpoConfig, VocabularySource],
        "gpt2c rlvr",
        __doc__.partition("\n\n")[2],
        ["checkpoint"],
        recorded_flags(old, RlvrConfig, GrpoConfig, names=SHAPING, out_dir=where[0]) if old else None,
    )
    if not run.checkpoint:
        raise UsageError("name a checkpoint: gpt2c rlvr CKPT [flags]; gpt2c train --data task:NAME makes one")
    if not config.learning_rate:
        raise UsageError(IDLE)
    ranks = world()
    ranks.settle(run.threads)
    if old:
        check_code(old, given)
        tell_changes(old, given & set(SHAPING), vars(run) | vars(config), console)
    task = task_of(run, old)
    model, state = old.build() if old else (load(run.checkpoint), None)
    model.tokenizer = tokenizer_of_model(model, run.tokenizer)
    grpo = Grpo(model, task, config, state)
    grpo.recorded = {name: getattr(run, name) for name in RECORDED}
    for warning in grpo.warnings:
        console.warning(warning)
    files = runs.run_at(run.out_dir, run.save_path, model.family, ranks, warn=console.warning)
    if old and grpo.step >= config.steps:
        console.info(f"already at step {grpo.step} of {config.steps}: nothing to learn; ask for more with --steps")
        return 0
    files.take()
    if aside := files.begin(to_toml(dataclasses.replace(run, resume=False, allow_new_data=False), config), grpo.step):
        console.warning(aside)
    origin = f"resumed from {old.path} at step {grpo.step}" if old else f"from {run.checkpoint}"
    console.info(
        f"rlvr: {run.task} with {model.family}, {model.num_parameters:,} parameters, {origin}; "
        f"{config.steps} steps of {config.prompts} prompts x {config.group_size} completions; files in {files}"
    )
    began = time.monotonic()
    if not old:
        measure(grpo, run, console, "before")
    stop.training = True
    learn(grpo, run, files, stop, console)
    path = "not saved (--no-save-on-complete)"
    leave, _ = stop.agreed(ranks)
    if run.save_on_complete or leave:
        path = files.last(grpo.step)
        files.save_last(grpo.save, path, ranks)
    if not leave:
        measure(grpo, run, console, "after")
    if run.prompt and not leave and ranks.rank == 0:
        new = generate(model, model.tokenizer.encode(run.prompt), run.gen_length, run.temperature, seed=config.seed or 1)
        console.info(f"---\n{run.prompt}{model.tokenizer.decode(list(new))}\n---")
    why = f"stopped: {signal.Signals(stop.signal).name}" if leave else "done"
    console.info(f"{why}: step {grpo.step} of {config.steps} in {duration(time.monotonic() - began)}; checkpoint {path}")
    return stop.exit_code


def task_of(run, old):
    """The Task of this name; an error if it is not what it was in the run that goes on."""
    task = task_named(run.task)
    if old and not run.allow_new_data and old.run.values.get("task", task.identity) != task.identity:
        raise UsageError(
            f"the task {run.task} has other prompts or answers than before; keep the same, or take these by --allow-new-data"
        )
    return task


def measure(grpo, run, console, when):
    """How the model answers now."""
    if not run.eval_prompts:
        return
    reward, success, done = grpo.evaluate(run.eval_prompts)
    console.info(f"{when}: reward {reward:.3f}, success {100 * success:.1f}% of {run.eval_prompts} prompts")
    for completion in done[:SHOWN]:
        console.info(described(completion))


def learn(grpo, run, files, stop, console):
    """Steps until all are done or it is told to stop."""
    total, first, began = grpo.config.steps, grpo.step, time.monotonic()
    saving = False

    def before_update():
        nonlocal saving
        leave, saving = stop.agreed(grpo.world)
        return not leave

    console.start_bar(total, first)
    for step in grpo.steps(before_update):
        row = {name: value for name, value in step._asdict().items() if name not in ("step", "best")}
        files.log(step.step, lr=grpo.config.learning_rate, best=[*step.best[:3]] if step.best else [], **row)
        console.advance(grpo.step, f"reward {step.reward:.3f}, success {100 * step.success:.0f}%")
        if run.log_every and (step.step == 0 or grpo.step % run.log_every == 0 or grpo.step == total):
            left = (total - grpo.step) * (time.monotonic() - began) / (grpo.step - first)
            console.info(
                f"step {grpo.step:4d}/{total} | reward {step.reward:.3f} | success {100 * step.success:.1f}% | "
                f"entropy {step.entropy:.3f} | kl {step.kl:.4f} | norm {step.grad_norm:.3f} | "
                f"skipped {step.skipped}/{grpo.config.prompts} | {step.ms:.0f} ms | eta {duration(left)}"
            )
            if step.best:
                console.info(described(step.best))
        if saving or run.save_every and grpo.step % run.save_every == 0 and grpo.step < total:
            stop.save = False
            try:
                files.save(grpo.save, files.on_the_way(grpo.step), grpo.world)
            except Gpt2cError as error:
                console.warning(f"not saved: {error}")
    console.end_bar()


def described(completion):
    return f'  "{completion.prompt}" -> "{completion.text}" (reward {completion.reward:.2f})'
