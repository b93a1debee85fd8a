"""Training in two phases: on facts, then on questions and answers. Each phase is a run of its own in a folder of its own,
over one vocabulary made from both files; so each is saved, interrupted and resumed as any run is.

    OUT/tokenizer.json   OUT/pretrain/   OUT/instruct/
"""

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gpt2c.data.conversations import is_conversation, prompts_and_answers
from gpt2c.data.documents import text_files, total_bytes
from gpt2c.data.records import records
from gpt2c.data.texts import tokenizer_for
from gpt2c.errors import DataError, UsageError
from gpt2c.generation.conversation import Conversation
from gpt2c.generation.sampling import Sampling
from gpt2c.models.files import load
from gpt2c.models.registry import family_named
from gpt2c.runs import folder as runs
from gpt2c.support.fields import Layer, flag
from gpt2c.support.files import shipped_data
from gpt2c.training.ranks import world

# What a phase starts from where the command line says nothing else: small texts are learned by heart, in a few minutes, by
# Adam at a constant rate. Numbers that go wrong and files that are far too large end the run.
USUAL = dict(
    batch_size=2,
    seq_len=80,
    optimizer="adam",
    lr_schedule="constant",
    lr_unit="update",
    warmup_steps=0,
    warmup_epochs=0,
    weight_decay=0.0,
    grad_clip=1.0,
    max_grad_value=1000.0,
    max_loss=1e6,
    max_file_size=0.1,
    sample_every=0,
    log_every=10,
    save_every=0,
    training_text="",
)
PHASED = "trm"  # the family that trains so where nothing else is said
SHIPPED = "facts_general.json", "dialogue_general.json", "dialogue_paraphrased.json"
SHOWN = 5  # questions of each file with their answers


@dataclass
class PhasesConfig:
    """Two phases instead of one run."""

    pretrain: str = flag(
        "",
        "pretraining data, for phase 1 of 2: a .json, .jsonl or .csv file of short texts, one per record",
        metavar="PATH",
        group="two phases",
    )
    instruct: str = flag(
        "", "instruction tuning data, for phase 2 of 2: a .json, .jsonl or .csv file of questions with answers", metavar="PATH"
    )
    pretrain_epochs: float = flag(100.0, "epochs of pretraining (phase 1 of 2)")
    pretrain_lr: float = flag(5e-4, "learning rate of pretraining (phase 1 of 2)")
    instruct_epochs: float = flag(100.0, "epochs of instruction tuning (phase 2 of 2)")
    instruct_lr: float = flag(1e-4, "learning rate of instruction tuning (phase 2 of 2)")
    test_questions: str = flag(
        "", "test set for after the two phases: a file of questions that are not trained on", metavar="PATH"
    )
    interactive: bool = flag(
        False,
        "chat with the model after training; without data of its own, train in two phases on the facts and questions that ship",
        main=True,
    )


def usual_phase(family):
    """{flag: value} of a phase where the command line says nothing else; a size for families whose own is another."""
    own = family_named(family)
    return {**own.training, **USUAL, **own.phases}


def has_phases(folder):
    return bool(folder) and (Path(folder) / "pretrain").is_dir()


def shipped(phases):
    """The phases with the files that come with gpt2c where no others are named."""
    if bool(phases.pretrain) != bool(phases.instruct):
        raise UsageError("--pretrain and --instruct go together: name a file for each phase, or none for those that ship")
    if phases.pretrain:
        return phases
    pretrain, instruct, asked = (str(shipped_data() / name) for name in SHIPPED)
    return dataclasses.replace(phases, pretrain=pretrain, instruct=instruct, test_questions=phases.test_questions or asked)


def run_phases(train, line, phases, run, chosen, reading, stop, console):
    """Both phases by `train(line, stop, console)`, then the questions. (the exit code, the model or None)"""
    if isinstance(run.resume, str):
        raise UsageError(
            "with two phases, --resume goes on in --out-dir; to resume one phase alone, leave out --pretrain and --instruct"
        )
    if run.save_path or not run.out_dir and run.resume:
        raise UsageError("two phases need a folder for their runs: use --out-dir, without --save-path")
    ranks = world()
    folder = Path(ranks.broadcast(run.out_dir or f"runs/{datetime.now():%Y%m%d-%H%M%S}-phases"))
    kind = chosen.tokenizer or ("bpe" if chosen.use_bpe else "word")
    path = ranks.rank_0_first(lambda: vocabulary(folder, phases, reading, kind, run.resume or ranks.rank))
    start = run.init_from or "scratch"
    for number, (name, data) in enumerate({"pretrain": phases.pretrain, "instruct": phases.instruct}.items(), 1):
        epochs, rate = getattr(phases, f"{name}_epochs"), getattr(phases, f"{name}_lr")
        console.info(f"--- phase {number} of 2: {name}, {epochs:g} epochs of {data}")
        begun = run.resume and runs.Run(folder / name).checkpoints()  # then what is not given stays as it was
        usually = [] if begun else [Layer(f"phase {number} of 2", usual_phase(run.model))]
        own = dict(
            data=data,
            order="items",
            tokenizer=path,
            epochs=epochs,
            learning_rate=rate,
            out_dir=str(folder / name),
            held_out=0.0,
            val_every=0,
            mask_prompt=chosen.mask_prompt and name == "instruct",
            init_from=start,
            pretrain="",
            instruct="",
        )
        code, _ = train(line.between(usually, [Layer(f"phase {number} of 2: {name}", own)]), stop, console)
        leave, _ = stop.agreed(ranks)
        if code or leave or run.dry_run:
            return code or stop.exit_code, None
        last = str(runs.Run(folder / name).checkpoints()[-1])
        start = last
    if ranks.rank:
        return 0, None
    model = load(last)
    for name, path in (("instruction questions", phases.instruct), ("paraphrased questions", phases.test_questions)):
        if path:
            ask_all(model, name, read_questions(path, reading), stop, console)
    console.info(f"model: {last}; gpt2c chat {last} talks to it")
    return stop.exit_code, model


def vocabulary(folder, phases, reading, kind, resume):
    """The path of the tokenizer of both files; the one that is there where phases are resumed."""
    path = folder / "tokenizer.json"
    if resume and path.exists():
        return str(path)
    files = text_files([phases.pretrain, phases.instruct])
    total_bytes(files, reading)
    tokenizer = tokenizer_for(kind, files, reading)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}; choose another --out-dir") from None
    tokenizer.save(path)
    return str(path)


def read_questions(path, reading):
    """[(question, answer), ...]: the first of each conversation."""
    files = text_files(path)
    total_bytes(files, reading)
    asked = [
        prompts_and_answers(record, where)[0]
        for file in files
        for record, _, where in records(file, reading)
        if is_conversation(record)
    ]
    if not asked:
        raise DataError(f"{path} has no questions; expected items with prompt and completion")
    return asked


def ask_all(model, name, questions, stop, console):
    """Asks everything, greedily, and tells how many answers are word for word as expected, with a few of each kind."""
    right, wrong = [], []
    for question, expected in questions:
        if stop:
            return
        answer = "".join(Conversation(model, model.tokenizer, Sampling(temperature=0)).answer(question)).strip()
        (right if answer.split() == expected.split() else wrong).append((question, answer, expected))
    console.info(f"{name}: {len(right)} of {len(questions)} answered word for word = {len(right) / len(questions):.1%}")
    for question, answer, _ in right[:SHOWN]:
        console.info(f"  {question}\n    {answer}")
    for question, answer, expected in wrong[:SHOWN]:
        console.info(f"  {question}\n    {answer}\n    expected: {expected}")
