"""Old command lines without a verb, of the program that the hybrid follows: gpt2c --trainBPE=true, gpt2c --doRL=true."""

from dataclasses import dataclass

from gpt2c.commands import rlvr, train, train_tokenizer
from gpt2c.commands.command_line import CommandLine, parse, peek, split
from gpt2c.errors import UsageError
from gpt2c.models.hybrid import FAMILY
from gpt2c.support.fields import Layer, flag


@dataclass
class Verbless:
    train_bpe: bool = flag(False, "", deprecated={"--trainBPE": "use gpt2c train-tokenizer"})
    do_rl: bool = flag(False, "", deprecated={"--doRL": "use gpt2c train, then gpt2c rlvr"})


@dataclass
class ForRlvr:
    """The flags that are meant for rlvr; all others are for train."""

    rl_task: str = flag("", "")
    rl_episodes: int = flag(0, "")
    rl_learning_rate: float = flag(0.0, "")


def main(argv):
    """The exit code."""
    own, rest = split(argv, Verbless)
    (asked,), _ = parse(own, [Verbless], "gpt2c")
    if asked.train_bpe:
        return train_tokenizer.main(rest)
    if not asked.do_rl:
        raise UsageError(f"{argv[0]} stands where a verb is expected; gpt2c --help lists the verbs")
    for_rlvr, for_train = split(rest, ForRlvr)
    path = peek(for_train, train.RunConfig, "save_path")[0] or FAMILY.training["save_path"]
    usual, saved = Layer("--doRL", {"model": "hybrid"}), Layer("--doRL", {"save_path": path})
    code = train.main(CommandLine(for_train, [usual], [saved]))
    return code or rlvr.main(CommandLine(for_rlvr, above=[saved, Layer("--doRL", {"checkpoint": path})]))
