"""What the training program is told besides what the Trainer takes: flags of gpt2c train."""

from dataclasses import dataclass

from gpt2c.generation.decoder import check_choice
from gpt2c.models.registry import FAMILIES
from gpt2c.support.fields import flag, require_at_least

PRETRAINED = "gpt2_124M.bin"


@dataclass
class RunConfig:
    """What to train, on what, and where it goes."""

    model: str = flag(
        "",
        "the model family, whose sizes are flags too: --model FAMILY --help-all lists them",
        choices=("", *FAMILIES),
        metavar="|".join(FAMILIES),
        group="model",
        default_text="gpt2, or the family that alone has flags that are given",
        main=True,
    )
    init_from: str = flag(
        "",
        "scratch, a checkpoint to take the weights from, or for gpt2 a size such as d12",
        "-e",
        metavar="scratch|PATH|dN",
        default_text=f"{PRETRAINED} if it is there, else scratch",
        main=True,
    )

    out_dir: str = flag(
        "",
        "the run's folder",
        "-o",
        "--output",
        metavar="DIR",
        default_text="runs/<date>-<family>",
        group="output",
        replaces=("save_path",),
        main=True,
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
        main=True,
    )
    description: str = flag("", "words about the model that its checkpoints keep")
    save_every: int = flag(
        0,
        "save a checkpoint every N updates, or epochs if the run is given in epochs (0: only at the end)",
        "-n",
        "--checkpoint-interval",
        main=True,
    )
    keep: int = flag(0, "keep only the newest N checkpoints (0: all)", "-nk")
    keep_major: int = flag(0, "but never delete those of every Nth update (0: none)", "-nm", default_text="")
    save_on_complete: bool = flag(True, "save at the end; a run that is interrupted is always saved")
    log_every: int = flag(1, "print every Nth update or epoch (0: only the last)", "--log-interval")
    report_to: str = flag("none", "write event files for TensorBoard as well", choices=("none", "tensorboard"))
    dry_run: bool = flag(False, "print what the run would take in memory and where its settings come from, and stop", main=True)
    explain: bool = flag(False, "print each setting that is not a plain default with where it comes from, and stop", main=True)
    device_id: int = flag(0, "accepted for old command lines: there is one device", hidden=True)
    threads: int = flag(0, "threads to use, of each rank where there are several", default_text="one per core", main=True)
    recompute: int = flag(
        0, "save memory by computing again in the backward pass: 1 norms and activations, 2 whole blocks", "-r", choices=(0, 1, 2)
    )
    matmul_precision: str = flag(
        "fp32", "bf16 rounds the operands of matrix products: faster, nearly the same losses", choices=("fp32", "bf16")
    )

    sample_every: int = flag(
        20, "write a sample every N updates and at the end (0: never, -1: only at the end)", "-s", group="samples", main=True
    )
    sample_len: int = flag(64, "tokens in a sample", "-g", "--gen-length", "--length")
    prompt: str = flag("", "what samples begin with", default_text="the end-of-text token")
    temperature: float = flag(1.0, "of samples; 0 always takes the likeliest token")
    sample_top_k: int = flag(0, "choose among the k likeliest tokens (0: all)", "--top-k")
    sample_top_p: float = flag(1.0, "choose among the likeliest tokens that together have this probability", "--top-p")

    def __post_init__(self):
        require_at_least(self, save_every=0, keep=0, keep_major=0, log_every=0, sample_every=-1, sample_len=0)
        check_choice(self.temperature, self.sample_top_k, self.sample_top_p)
