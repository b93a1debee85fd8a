"""Settings of a training run besides the Trainer's: flags of gpt2c train."""

from dataclasses import dataclass

from gpt2c.models.registry import FAMILIES
from gpt2c.support.choice import check_choice
from gpt2c.support.fields import flag, require_at_least

PRETRAINED = "gpt2_124M.bin"


@dataclass
class RunConfig:
    """The model to train, its output, and its samples."""

    model: str = flag(
        "",
        "model family (architecture); its sizes are flags too: --model FAMILY --help-all lists them",
        choices=("", *FAMILIES),
        metavar="|".join(FAMILIES),
        group="model",
        default_text="gpt2, or the family that alone has flags that are given",
        main=True,
    )
    init_from: str = flag(
        "",
        "initial weights: scratch (random), the checkpoint of a pretrained model to fine-tune, or the name of a size of the "
        "family, such as d12 of gpt2 or smollm2-135m of llama",
        "-e",
        metavar="scratch|PATH|SIZE",
        default_text=f"{PRETRAINED} if it is there, else scratch",
        main=True,
    )

    out_dir: str = flag(
        "",
        "output directory of the run: checkpoints, logs, samples",
        "-o",
        "--output",
        metavar="DIR",
        default_text="runs/<date>-<family>",
        group="output",
        replaces=("save_path",),
        main=True,
    )
    save_path: str = flag(
        "",
        "file for the final checkpoint, instead of or besides a directory; checkpoints during training are X_stepN and X_best",
        metavar="X",
    )
    resumable_best: bool = flag(
        False, "make the best checkpoint resumable: save the optimizer and run state in it, not the weights alone"
    )
    resume: bool | str = flag(
        False,
        "resume training from the newest valid checkpoint of --out-dir or --save-path, or from this "
        "checkpoint; flags that are not given keep the values of that run",
        "-y",
        "--load-checkpoint",
        metavar="PATH",
        main=True,
    )
    allow_new_data: bool = flag(
        False, "with --resume: go on although the training or validation data have changed, which is refused otherwise"
    )
    description: str = flag("", "description of the model, stored in its checkpoints")
    save_every: int = flag(
        0,
        "save a checkpoint every N updates, or every N epochs if the run is given in epochs (0: only at the end)",
        "-n",
        "--checkpoint-interval",
        main=True,
    )
    keep: int = flag(0, "keep only the newest N checkpoints (0: all)", "-nk")
    keep_major: int = flag(
        0, "with --keep: never delete the checkpoints whose step is a multiple of N (0: none)", "-nm", default_text=""
    )
    save_on_complete: bool = flag(True, "save a checkpoint at the end; an interrupted run is always saved")
    log_every: int = flag(1, "print the loss every N updates or epochs (0: only the last)", "--log-interval")
    report_to: str = flag("none", "also write event files for TensorBoard", choices=("none", "tensorboard"))
    dry_run: bool = flag(False, "print the memory that the run needs and where its settings come from, then stop", main=True)
    explain: bool = flag(
        False,
        "print every setting that is not at its default with where it comes from (command line, config file, "
        "resumed run, family), then stop",
        main=True,
    )
    device_id: int = flag(0, "accepted for old command lines: there is one device", hidden=True)
    threads: int = flag(0, "CPU threads to use, per rank where there are several", default_text="one per core", main=True)
    recompute: int = flag(
        0,
        "save memory by activation checkpointing: recompute activations in the backward pass; 1: norms and "
        "activation functions, 2: whole blocks, 0: keep all",
        "-r",
        choices=(0, 1, 2),
    )
    matmul_precision: str = flag(
        "fp32",
        "precision of matrix products; bf16 rounds their operands to bfloat16: faster, nearly the same losses",
        choices=("fp32", "bf16"),
    )

    sample_every: int = flag(
        20, "generate a sample every N updates and at the end (0: never, -1: only at the end)", "-s", group="samples", main=True
    )
    sample_len: int = flag(64, "length of a sample, in tokens", "-g", "--gen-length", "--length")
    prompt: str = flag("", "prompt that samples begin with", default_text="the end-of-text token")
    temperature: float = flag(1.0, "sampling temperature of samples (0: greedy, always the most likely token)")
    sample_top_k: int = flag(0, "top-k sampling of samples: choose among the k most likely tokens (0: off)", "--top-k")
    sample_top_p: float = flag(
        1.0,
        "top-p (nucleus) sampling of samples: choose among the most likely tokens whose probabilities add up to p (1: off)",
        "--top-p",
    )

    def __post_init__(self):
        require_at_least(self, save_every=0, keep=0, keep_major=0, log_every=0, sample_every=-1, sample_len=0)
        check_choice(temperature=self.temperature, top_k=self.sample_top_k, top_p=self.sample_top_p)
