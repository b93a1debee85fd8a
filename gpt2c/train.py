"""Train a model: python -m gpt2c.train [flags], or gpt2c train.

Without arguments it fine-tunes gpt2_124M.bin where that file is present, and otherwise trains a small model from
scratch on the first data set below data/.
"""
import dataclasses
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import gpt2c
from gpt2c import data, flags, pictures, runs
from gpt2c.checkpoint import load_run
from gpt2c.cli import run_program
from gpt2c.data.reading import Reading
from gpt2c.data.sources import DataConfig, choose_source
from gpt2c.errors import Gpt2cError, InputError, UsageError
from gpt2c.flags import flag
from gpt2c.machine import in_units, require_memory
from gpt2c.model import Model
from gpt2c.models import FAMILIES, family_named
from gpt2c.peak import measured_peak
from gpt2c.progress import duration
from gpt2c.trainer import TrainConfig, Trainer

PRETRAINED = "gpt2_124M.bin"

# The run without arguments and without a checkpoint: a model that learns to write in a minute or two on two cores.
STARTER = dict(num_layers=4, num_heads=4, channels=128, max_seq_len=128, batch_size=8, seq_len=128, max_steps=1500,
               learning_rate=4e-3, lr_schedule="cosine", warmup_steps=50, final_lr_frac=0.1, weight_decay=0.1, beta2=0.99,
               grad_clip=1.0, val_every=200, sample_every=500, sample_len=120, temperature=0.7, log_every=20)


@dataclass
class RunConfig:
    """What to train, on what, and where it goes."""

    model: str = flag("gpt2", "the model family", choices=tuple(FAMILIES), group="model")
    init_from: str = flag("", "scratch, a checkpoint to take the weights from, or for gpt2 a size such as d12", "-e",
                          metavar="scratch|PATH|dN", default_text=f"{PRETRAINED} if it is there, else scratch")

    out_dir: str = flag("", "the run's folder", "-o", "--output", metavar="DIR", default_text="runs/<date>-<family>",
                        group="output")
    resume: bool | str = flag(False, "go on from the newest checkpoint in --out-dir, or from this one", "-y", metavar="PATH")
    save_every: int = flag(0, "save a checkpoint every N updates (0: only at the end)", "-n", "--checkpoint-interval")
    keep: int = flag(0, "keep only the newest N checkpoints (0: all)", "-nk")
    log_every: int = flag(1, "print every Nth update (0: only the last)", "--log-interval")
    dry_run: bool = flag(False, "print what the run would take in memory and stop")
    threads: int = flag(0, "threads to use", default_text="one per core")
    recompute: int = flag(0, "save memory by computing again in the backward pass: 1 norms and activations, 2 whole blocks",
                          "-r", choices=(0, 1, 2))
    matmul_precision: str = flag("fp32", "bf16 rounds the operands of matrix products: faster, nearly the same losses",
                                 choices=("fp32", "bf16"))

    sample_every: int = flag(20, "write a sample every N updates (0: never)", "-s", group="samples")
    sample_len: int = flag(64, "tokens in a sample", "-g")
    prompt: str = flag("", "what samples begin with", default_text="the end-of-text token")
    temperature: float = flag(1.0, "of samples; 0 always takes the likeliest token")
    sample_top_k: int = flag(0, "choose among the k likeliest tokens (0: all)", "--top-k")
    sample_top_p: float = flag(1.0, "choose among the likeliest tokens that together have this probability", "--top-p")


def main(argv):
    family, start = flags.peek(argv, RunConfig, "model", "init_from")
    module = family_named(family)
    starter = family == "gpt2" and not start and not Path(PRETRAINED).exists()
    size = module.describe(start) if start and family == "gpt2" else None
    (run, chosen, reading, config, shape), given = flags.parse(
        argv, [RunConfig, DataConfig, Reading, TrainConfig, module.Config], "gpt2c train", __doc__.partition("\n\n")[2],
        defaults=STARTER if starter else size)
    if chosen.list_datasets:
        print(data.list_datasets(data.find_datasets(data_folder())))
        return 0
    if run.threads:
        gpt2c.set_num_threads(run.threads)
    gpt2c.set_matmul_precision(run.matmul_precision)

    folder = runs.Run(run.out_dir) if run.out_dir else None
    model, state, origin = initial_model(run, folder, shape, given, scratch=starter or size or start == "scratch")
    source = choose_source(chosen, reading, data_folder(), model, module)
    model = model or new_model(family, shape, given, source)
    model.recompute = run.recompute
    model.tokenizer = model.tokenizer or source.tokenizer
    config.batch_size, config.seq_len = source.fit(config.batch_size, config.seq_len)
    if config.seq_len > model.config.max_seq_len:
        raise UsageError(f"--seq-len {config.seq_len} is more than the model's max_seq_len of {model.config.max_seq_len}")

    memory = model.memory(config.batch_size, config.seq_len)
    print(banner(model, origin or f"from scratch, seed {config.seed}", source, memory))
    if run.dry_run:
        return 0
    require_memory(sum(memory.values()) - (model.params.nbytes if model.params.allocated else 0), "this run",
                   "try a smaller --batch-size or --seq-len")
    if not origin:
        model.initialise(config.seed)
    trainer = make_trainer(model, source, config)
    if state:
        trainer.restore(state)
    folder = folder or runs.Run.new(family)
    folder.begin(flags.to_toml(run, chosen, reading, config, model.config), trainer.step)
    return train(trainer, run, folder)


def data_folder():
    """data/ of the current folder, else the one that comes with gpt2c."""
    return "data" if os.path.isdir("data") else Path(gpt2c.__file__).parents[1] / "data"


def initial_model(run, folder, shape, given, scratch):
    """(model, run state, where it came from); no model if it is to be made anew."""
    if run.resume:
        path = run.resume if isinstance(run.resume, str) else newest_checkpoint(folder)
        if path:
            model, state = load_run(path)
            if not state:
                raise InputError(f"{path} holds weights only, no run to resume; take it with --init-from")
            return model, state, f"resumed from {path} at step {state.values['step']}"
        print(f"nothing to resume in {folder.folder}: starting afresh")
    if scratch:
        return None, None, None
    path = run.init_from or PRETRAINED
    model = load_run(path)[0]
    if model.family != run.model:
        raise UsageError(f"{path} holds a {model.family} model; say --model {model.family}")
    for name in sorted(given & {field.name for field in dataclasses.fields(shape)}):
        if getattr(shape, name) != getattr(model.config, name):
            raise UsageError(f"--{name.replace('_', '-')} {getattr(shape, name)} does not fit {path}, "
                             f"where it is {getattr(model.config, name)}")
    return model, None, f"from {path}"


def newest_checkpoint(folder):
    if folder is None:
        raise UsageError("--resume needs --out-dir, or the path of a checkpoint")
    return (folder.checkpoints() or [None])[-1]


def new_model(family, shape, given, source):
    """A model without parameters yet, of the data's vocabulary."""
    changes = {}
    if source.tokenizer and "vocab_size" not in given:
        changes["vocab_size"] = source.tokenizer.vocab_size
        if "padded_vocab_size" not in given:
            changes["padded_vocab_size"] = 0
    return Model(family, dataclasses.replace(shape, **changes))


def make_trainer(model, source, config):
    validate = bool(config.val_every and config.val_steps)
    size = config.batch_size, config.seq_len, model.config.vocab_size
    return Trainer(model, *source.loaders(*size, config.seed, validate), config)


def banner(model, origin, source, memory):
    about, size = gpt2c.info(), ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(model.config).items())
    parts = " + ".join(f"{what} {in_units(n)}" for what, n in memory.items())
    return "\n".join([
        f"gpt2c {about['version']} on {about['cpu']}: {about['isa']}, {about['threads']} threads ({about['cores']} cores)",
        f"model: {model.family}, {model.num_parameters:,} parameters, {origin}",
        f"       {size}",
        f"data: {source.summary}",
        f"memory: {parts} = {in_units(sum(memory.values()))}"])


class Stop:
    """The first SIGINT or SIGTERM asks the loop to end after this step, the second ends the program."""

    def __init__(self):
        self.signal = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.ask)

    def ask(self, number, frame):
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        print(f"\n{signal.Signals(number).name}: saving after this step; once more to leave at once", file=sys.stderr)


def train(trainer, run, folder):
    """The loop: train, tell, sample, save. Returns the exit code."""
    if trainer.step >= trainer.total_steps:
        print(f"already at step {trainer.step} of {trainer.total_steps}: nothing to train; ask for more with --max-steps")
        return 0
    stop, began, first = Stop(), time.monotonic(), trainer.step
    peak, work = measured_peak(gpt2c.info()["isa"]), trainer.flops_per_step
    print(f"run: {trainer.total_steps} updates of {trainer.micro_steps * trainer.loader.B * trainer.loader.T} tokens, "
          f"{work / 1e9:.1f} GFLOP each; peak {peak:.0f} GFLOP/s; files in {folder.folder}", flush=True)
    for step in trainer:
        if step.val_loss is not None:
            print(f"val loss {step.val_loss:.6f}", flush=True)
        done, total = trainer.step, trainer.total_steps
        if run.log_every and step.step % run.log_every == 0 or done == total:
            left = (total - done) * (time.monotonic() - began) / (done - first)
            print(f"step {done:4d}/{total} | loss {step.loss:.6f} | norm {step.grad_norm:.4f} | lr {step.lr:.2e} | "
                  f"{step.ms:.2f} ms | {100 * work / (1e6 * step.ms * peak):.1f}% of fp32 peak | {step.tok_s:.0f} tok/s | "
                  f"eta {duration(left)}", flush=True)
        folder.log(step.step, step.val_loss, tokens=step.tokens, loss=step.loss, lr=step.lr, grad_norm=step.grad_norm,
                   ms=round(step.ms, 3), tok_s=round(step.tok_s, 1))
        if stop.signal:
            trainer.stopped = signal.Signals(stop.signal).name
        elif run.sample_every and done % run.sample_every == 0 and done < total:
            show_sample(trainer, run, folder)
        if run.save_every and done % run.save_every == 0 and done < total and not trainer.stopped:
            try:
                trainer.save(folder.checkpoint(done))
                folder.retain(run.keep)
            except Gpt2cError as error:  # a full disk may have room again the next time
                print(f"not saved: {error}", file=sys.stderr)

    if trainer.val_loader and not stop.signal:
        val_loss = trainer.evaluate()
        print(f"val loss {val_loss:.6f}")
        folder.log(trainer.step, val_loss, tokens=trainer.tokens)
    trainer.save(folder.checkpoint(trainer.step))
    folder.retain(run.keep)
    if run.sample_every and not stop.signal:
        show_sample(trainer, run, folder)
    if pictured := pictures.available():
        pictures.loss_curves({folder.folder.name: runs.read_metrics(folder.folder)}, folder.folder / "loss.png")
    print(f"{'stopped: ' + trainer.stopped if trainer.stopped else 'done'}: step {trainer.step} of {trainer.total_steps} in "
          f"{duration(time.monotonic() - began)}, peak memory "
          f"{in_units(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)}; checkpoint "
          f"{folder.checkpoint(trainer.step)}{', curve in loss.png' if pictured else ''}")
    return 128 + stop.signal if stop.signal else 0


def show_sample(trainer, run, folder):
    """Prints a sample as llm.c does and adds it to samples.txt; ids where there is no tokenizer."""
    tokenizer = trainer.model.tokenizer
    if run.prompt and tokenizer is None:
        raise UsageError("--prompt needs a tokenizer; name its file with --tokenizer")
    start = tokenizer.encode(run.prompt) if run.prompt else [tokenizer.eot or 0 if tokenizer else 0]
    ids = trainer.sample(start, run.sample_len, run.temperature, run.sample_top_k, run.sample_top_p)
    if tokenizer:
        texts = [[]]
        for i in ids:
            texts.append([]) if i == tokenizer.eot else texts[-1].append(i)
        text = run.prompt + "\n\n".join(map(tokenizer.decode, texts))
    else:
        text = " ".join(map(str, ids))
    print(f"generating:\n---\n{text}\n---", flush=True)
    folder.append("samples.txt", f"--- step {trainer.step}\n{text}")


if __name__ == "__main__":
    run_program("gpt2c train", main)
