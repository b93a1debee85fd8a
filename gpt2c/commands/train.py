"""Train a model: python -m gpt2c.train [flags], or gpt2c train.

Without arguments it fine-tunes gpt2_124M.bin where that file is present, and otherwise trains a small model from
scratch on the first data set below data/.
"""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from gpt2c import data, settings
from gpt2c.commands import flags
from gpt2c.commands.chat import Conversation, chat
from gpt2c.data import tokenizer_of_model
from gpt2c.data.reading import Reading
from gpt2c.data.sources import DataConfig, choose_source
from gpt2c.errors import UsageError
from gpt2c.formats.native import load
from gpt2c.generation.decoder import check_choice
from gpt2c.generation.sampling import Sampling
from gpt2c.models.family import FAMILIES, family_named, max_seq_len, other_configs, usual
from gpt2c.models.model import Model
from gpt2c.runs import folder as runs
from gpt2c.runs.console import Console
from gpt2c.runs.loop import Loop
from gpt2c.runs.phases import PHASED, PhasesConfig, has_phases, run_phases, shipped, usual_phase
from gpt2c.runs.resume import check_flags, checkpoint_to_resume, recorded_flags, shaping_flags
from gpt2c.runs.signals import Stop
from gpt2c.support.fields import flag, require_at_least
from gpt2c.support.files import shipped_data
from gpt2c.support.machine import in_units, require_memory
from gpt2c.training.config import TrainConfig
from gpt2c.training.ranks import world
from gpt2c.training.trainer import Trainer

PRETRAINED = "gpt2_124M.bin"

# The run without arguments and without a checkpoint: a model that learns to write in a minute or two on two cores.
STARTER = dict(
    num_layers=4,
    num_heads=4,
    channels=128,
    max_seq_len=128,
    batch_size=8,
    seq_len=128,
    max_steps=1500,
    learning_rate=4e-3,
    lr_schedule="cosine",
    warmup_steps=50,
    final_lr_frac=0.1,
    weight_decay=0.1,
    beta2=0.99,
    grad_clip=1.0,
    val_every=200,
    sample_every=500,
    sample_len=120,
    temperature=0.7,
    log_every=20,
)


@dataclass
class RunConfig:
    """What to train, on what, and where it goes."""

    model: str = flag(
        "",
        "the model family, whose sizes are flags too: --model FAMILY --help lists them",
        choices=("", *FAMILIES),
        metavar="|".join(FAMILIES),
        group="model",
        default_text="gpt2, or the family that alone has flags that are given",
    )
    init_from: str = flag(
        "",
        "scratch, a checkpoint to take the weights from, or for gpt2 a size such as d12",
        "-e",
        metavar="scratch|PATH|dN",
        default_text=f"{PRETRAINED} if it is there, else scratch",
    )

    out_dir: str = flag(
        "", "the run's folder", "-o", "--output", metavar="DIR", default_text="runs/<date>-<family>", group="output"
    )
    save_path: str = flag(
        "", "the checkpoint at the end, instead of a folder or beside one; on the way come X_stepN, and X_best", metavar="X"
    )
    resumable_best: bool = flag(False, "keep in the best checkpoint all that a run needs to go on from it, not its weights alone")
    resume: bool | str = flag(
        False,
        "go on from the newest whole checkpoint of --out-dir or --save-path, or from this one; "
        "flags that are not given stay as they were",
        "-y",
        "--load-checkpoint",
        metavar="PATH",
    )
    description: str = flag("", "words about the model that its checkpoints keep")
    save_every: int = flag(
        0,
        "save a checkpoint every N updates, or epochs if the run is given in epochs (0: only at the end)",
        "-n",
        "--checkpoint-interval",
    )
    keep: int = flag(0, "keep only the newest N checkpoints (0: all)", "-nk")
    keep_major: int = flag(0, "but never delete those of every Nth update (0: none)", "-nm", default_text="")
    save_on_complete: bool = flag(True, "save at the end; a run that is interrupted is always saved")
    log_every: int = flag(1, "print every Nth update or epoch (0: only the last)", "--log-interval")
    report_to: str = flag("none", "write event files for TensorBoard as well", choices=("none", "tensorboard"))
    dry_run: bool = flag(False, "print what the run would take in memory and stop")
    device_id: int = flag(0, "accepted for old command lines: there is one device", hidden=True)
    threads: int = flag(0, "threads to use, of each rank where there are several", default_text="one per core")
    recompute: int = flag(
        0, "save memory by computing again in the backward pass: 1 norms and activations, 2 whole blocks", "-r", choices=(0, 1, 2)
    )
    matmul_precision: str = flag(
        "fp32", "bf16 rounds the operands of matrix products: faster, nearly the same losses", choices=("fp32", "bf16")
    )

    sample_every: int = flag(
        20, "write a sample every N updates and at the end (0: never, -1: only at the end)", "-s", group="samples"
    )
    sample_len: int = flag(64, "tokens in a sample", "-g", "--gen-length", "--length")
    prompt: str = flag("", "what samples begin with", default_text="the end-of-text token")
    temperature: float = flag(1.0, "of samples; 0 always takes the likeliest token")
    sample_top_k: int = flag(0, "choose among the k likeliest tokens (0: all)", "--top-k")
    sample_top_p: float = flag(1.0, "choose among the likeliest tokens that together have this probability", "--top-p")

    def __post_init__(self):
        require_at_least(self, save_every=0, keep=0, keep_major=0, log_every=0, sample_every=-1, sample_len=0)
        check_choice(self.temperature, self.sample_top_k, self.sample_top_p)


def main(argv):
    world().quiet()
    (interactive,) = flags.peek(argv, PhasesConfig, "interactive")
    with Stop() as stop:
        code, model = (train_in_phases if in_phases(argv) else train)(argv, stop, Console())
    if interactive and model and not code and world().rank == 0:
        how = Sampling(temperature=0.0 if model.turns else Sampling.temperature)
        chat(Conversation(model, tokenizer_of_model(model), how))
    return code


def in_phases(argv):
    """Whether the flags ask for two phases: by name, or, with no other data or model, by a family that is meant for them or
    by asking to talk to what comes out."""
    family, start, resume, out_dir = flags.peek(argv, RunConfig, "model", "init_from", "resume", "out_dir")
    *named, interactive = flags.peek(argv, PhasesConfig, "pretrain", "instruct", "interactive")
    if any(named):
        return True
    elsewhere = any(flags.peek(argv, DataConfig, "data", "training_text", "list_datasets")) or start
    return (family == PHASED or interactive) and not elsewhere and (not resume or resume is True and has_phases(out_dir))


def train_in_phases(argv, stop, console):
    """(the exit code, the model or None)"""
    argv = ["--model", PHASED, *argv]
    (family,) = flags.peek(argv, RunConfig, "model")
    module = family_named(family)
    (run, phases, chosen, reading, *_), _ = flags.parse(
        argv,
        [RunConfig, PhasesConfig, DataConfig, Reading, TrainConfig, module.Config],
        "gpt2c train",
        __doc__.partition("\n\n")[2],
        defaults=usual_phase(family),
        elsewhere=other_configs(family),
    )
    return run_phases(train, argv, shipped(phases), run, chosen, reading, stop, console)


def train(argv, stop, console):
    """(the exit code, the model or None)"""
    ranks = world()
    family, start, resume, *where = flags.peek(argv, RunConfig, "model", "init_from", "resume", "out_dir", "save_path")
    family = family or family_of_flags(argv, start)
    if not any(where):
        where = "", getattr(family_named(family), "SAVE_PATH", "")
    old = checkpoint_to_resume(resume, *where, console)
    family = old.family if old else family
    module = family_named(family)
    plain = family == "gpt2" and not start and not old  # then the pretrained model, or a small one
    starter = plain and not Path(PRETRAINED).exists()
    size = module.describe(start) if start and hasattr(module, "describe") else None
    (run, _, chosen, reading, config, shape), given = flags.parse(
        argv,
        [RunConfig, PhasesConfig, DataConfig, Reading, TrainConfig, module.Config],
        "gpt2c train",
        __doc__.partition("\n\n")[2],
        defaults={"model": family}
        | usual(family)
        | (recorded_flags(old, RunConfig, DataConfig, Reading, TrainConfig) if old else STARTER if starter else size or {}),
        elsewhere=other_configs(family),
    )
    if not (run.out_dir or run.save_path):
        run.save_path = getattr(module, "SAVE_PATH", "")
    if "max_steps" in given and "epochs" not in given:  # what is given goes before the epochs of a family or an old run
        config.epochs = 0.0
    if "training_text" in given and "data" not in given:
        chosen.data = ""
    if not (old or config.val_every and config.val_steps):  # then nothing need be held out
        chosen.held_out = 0.0
    if chosen.list_datasets:
        console.info(data.list_datasets(data.find_datasets(data_folder())))
        return 0, None
    ranks.settle(run.threads)
    settings.set_matmul_precision(run.matmul_precision)

    if old:
        check_flags(old, given, shape, console, run, chosen, reading, config)
        part = ranks.part if config.zero else None
        (model, state), origin = old.build(part), f"resumed from {old.path} at step {old.run.values['step']}"
    else:
        anew = size or start in ("", "scratch") and (starter or not plain)
        model, state, origin = initial_model(run, shape, given, anew)
    source = ranks.rank_0_first(lambda: choose_source(chosen, reading, data_folder(), model, module))
    model = model or new_model(family, shape, given, source)
    model.recompute = run.recompute
    model.tokenizer = model.tokenizer or source.tokenizer
    model.turns, model.description = max(model.turns, source.turns), run.description or model.description
    most = max_seq_len(model.config)
    if "seq_len" not in given:
        config.seq_len = min(config.seq_len, most)
    config.batch_size, config.seq_len = source.fit(config.batch_size, config.seq_len)
    if config.seq_len > most:
        raise UsageError(f"--seq-len {config.seq_len} is more than the model's max_seq_len of {most}")

    memory = model.memory(config.batch_size, config.seq_len, config.window(config.seq_len, source.lanes))
    if config.zero:
        memory["Adam moments"] //= ranks.size
    console.info(banner(model, origin or f"from scratch, seed {config.seed}", source, memory, ranks))
    if run.dry_run:
        return 0, None
    require_memory(
        ranks.neighbours * (sum(memory.values()) - (model.params.nbytes if model.params.allocated else 0)),
        "this run",
        "try a smaller --batch-size or --seq-len",
    )
    ranks.barrier()  # none takes memory before all have looked
    if not origin:
        model.initialise(config.seed)
    trainer = make_trainer(model, source, config, ranks)
    run.init_from = run.init_from or (PRETRAINED if origin else "scratch")
    chosen = dataclasses.replace(chosen, **source.resolved)
    trainer.recorded = shaping_flags(run, chosen, reading)
    if state:
        trainer.restore(state)
    files = runs.run_at(run.out_dir, run.save_path, model.family, ranks, getattr(module, "FILES", {}))
    loop = Loop(trainer, run, files, stop, console)
    if state and not trainer.going:
        console.info(
            f"already at step {trainer.step} of {trainer.total_steps}: nothing to train; ask for more with --max-steps "
            "or --epochs"
        )
        if run.out_dir:
            files.take()
            loop.look_back()
        return stop.exit_code, model
    files.take()
    resolved = dataclasses.replace(run, resume=False)
    if aside := files.begin(flags.to_toml(resolved, chosen, reading, config, model.config), trainer.step, model.tokenizer):
        console.warning(aside)
    if not old and (aside := files.set_aside_saved()):
        console.warning(aside)
    return loop.train(), model


def family_of_flags(argv, start):
    """The family that the flags mean where no --model is given: gpt2, or for a new model the one that has flags of its own."""
    own = (name for name, module in FAMILIES.items() if not start and flags.mentions(argv, getattr(module, "FLAGS", ())))
    return next(own, "gpt2")


def data_folder():
    """data/ of the current folder, else the one that comes with gpt2c."""
    return "data" if os.path.isdir("data") else shipped_data()


def initial_model(run, shape, given, anew):
    """(model, None, where it came from); no model if it is to be made anew."""
    if anew:
        return None, None, None
    path = run.init_from or PRETRAINED
    model = load(path)
    if model.family != run.model:
        raise UsageError(f"{path} holds a {model.family} model; say --model {model.family}")
    for name in sorted(given & {field.name for field in dataclasses.fields(shape)}):
        if getattr(shape, name) != getattr(model.config, name):
            raise UsageError(
                f"--{name.replace('_', '-')} {getattr(shape, name)} does not fit {path}, "
                f"where it is {getattr(model.config, name)}"
            )
    return model, None, f"from {path}"


def new_model(family, shape, given, source):
    """A model without parameters yet, of the data's vocabulary."""
    changes = {}
    if source.tokenizer and "vocab_size" not in given:
        changes["vocab_size"] = source.tokenizer.vocab_size
        if hasattr(shape, "padded_vocab_size") and "padded_vocab_size" not in given:
            changes["padded_vocab_size"] = 0
    return Model(family, dataclasses.replace(shape, **changes))


def make_trainer(model, source, config, ranks):
    validate = bool(config.val_every and config.val_steps)
    size = config.batch_size, config.seq_len, model.config.vocab_size
    return Trainer(model, *source.loaders(*size, config.seed, validate, ranks), config)


def banner(model, origin, source, memory, ranks):
    about, size = settings.info(), ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(model.config).items())
    parts = " + ".join(f"{what} {in_units(n)}" for what, n in memory.items())
    threads = f"{about['threads']} threads"
    if ranks.size > 1:
        threads = f"{ranks.size} ranks, {ranks.neighbours} of them here with {threads} each"
    active = f" ({model.num_active_parameters:,} active)" if model.num_active_parameters < model.num_parameters else ""
    return "\n".join(
        [
            f"gpt2c {about['version']} on {about['cpu']}: {about['isa']}, {threads} ({about['cores']} cores)",
            f"model: {model.family}, {model.num_parameters:,} parameters{active}, {origin}",
            f"       {size}",
            f"data: {source.summary}",
            f"memory: {parts} = {in_units(sum(memory.values()))}",
        ]
    )
