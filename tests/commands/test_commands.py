"""Commands as users are told them. Those of the documents that gpt2c follows, as the tables of docs/commands.md give them: all in
one folder, in their order, with fewer epochs, updates and episodes and with smaller models where the document does not say how
large. And those on the other pages, each page in a folder of its own, with two updates and small batches."""

import hashlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpt2c
from gpt2c import __main__ as program
from gpt2c.data.shards import write_shard
from gpt2c.models.published import PUBLISHED

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # a program that was imported runs as the main one
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
ELSEWHERE = ("pip", "python", "ruff", "curl", "wget")  # what installs, checks and fetches
SHORTER = re.compile(r"(--(?:epochs|num-epochs|iters|rlEpisodes|saveEvery)[= ])(\d+)")
SMALLER = {
    "rnn-rust": "",
    "randyGPT": "-b 2 -t 16 --max-seq-len 16 --num-layers 1 --num-heads 2 --channels 16 --val-every 5 --val-steps 1",
    "GRUfinity": "-b 2 --model-dim 16 --val-steps 1",
    "RustGPT": "--pretrain facts.json --instruct questions.json --test-questions questions.json --pretrain-epochs 1 "
    "--instruct-epochs 1 --channels 16 --hidden 16 --num-heads 2",
    "GPT2Rust": "--max-steps 2 --sample-every 2 --sample-len 4 -b 2 -t 16",
}
TEXT = (
    "once upon a time 3 frogs + 4 foxes = 7 friends; they jumped over 12 dogs - and 5 * 8 = 40 hens.\n"
    "jack: quick bees buzz > 1, and 9 | 6: why? hello mr. vex\nROMEO: Once upon a time\n"
) * 8


def sections():
    """{document: its tables, each the rows of cells without the header}"""
    found = {}
    for part in PAGE.split("\n## ")[1:]:
        tables = re.findall(r"\n\|.*\n\|[-|]+\|\n((?:\|.*\n)+)", part)
        found[part.partition(":")[0]] = [
            [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table.splitlines()]
            for table in tables
        ]
    return found


def code(cell):
    (text,) = re.findall(r"^`([^`]*)`", cell)
    return text


def run(words):
    """The exit code of a program of this project, in this process; what it asks is answered."""
    sys.argv, sys.stdin = ["gpt2c", *words], io.TextIOWrapper(io.BytesIO(b"How do mountains form?\nexit\n"))
    try:
        program.main()
    except SystemExit as end:
        return end.code
    return 0


# A system's own program, which Python cannot bring along: without it nothing is downloaded.
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed, which downloaddataset.sh needs")


def run_other(command):
    """A command that is not gpt2c's: words alone, nothing that only a shell understands."""
    subprocess.run(shlex.split(command), check=True, timeout=30)


def shorter(command, smaller):
    """The command with few of its epochs, updates and episodes."""
    command = SHORTER.sub(lambda match: f"{match[1]}{max(1, int(match[2]) // 250)}", command)
    words = shlex.split(command)
    if words[1:2] == ["rlvr"] or words[1:2] == ["rl"]:
        words.append("--eval-prompts=2")
    if (words[1:2] == ["train"] or "--doRL=true" in words) and "esume" not in command and "loadCheckpoint" not in command:
        words += shlex.split(smaller)
        if "--trainingFile" in command and "--epochs" not in command or "--numExperts=8" in words:
            words.append("--epochs=2")
    return words


def flags_at_once(rows):
    """One command for each verb that the rows of a table of flags speak of, with all of them."""
    verbs = dict.fromkeys(verb for _, verb, _ in rows)
    return [" ".join(["gpt2c", verb, *(code(flag) for flag, of, _ in rows if of == verb)]) for verb in verbs]


@pytest.fixture
def folder(tmp_path, undrawn, monkeypatch):
    """The current folder: what the commands read is there, and a small pack for the script that fetches llm.c's files."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "stdin", sys.stdin)
    monkeypatch.setenv("GPT2C_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GPT2C_LOG", "info")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    files_of_the_documents(tmp_path, monkeypatch)


@pytest.fixture
def with_stories(folder):
    """The data set that ships is there too."""
    for part in ("train.bin", "val.bin", "tokenizer.bin"):
        Path(f"data/stories_{part}").symlink_to(ROOT / f"data/stories_{part}")


@needs_curl
def test_every_command_and_every_flag_of_the_documents(folder, monkeypatch, capsys):
    count = 0
    for document, tables in sections().items():
        commands = [code(here) for _, here, _ in tables[0]]
        script = ""
        for table in tables[1:]:
            if table[0][0].startswith("`--"):
                commands += [
                    (command + (" --model mingru" if document == "GRUfinity" and " train " in command else ""))
                    for command in flags_at_once(table)
                ]
            else:
                script = "\n".join(["import gpt2c", *(code(here) for _, here, _ in table), "assert model.family == 'trm'"])
        for command in commands:
            if command.split()[0] in ELSEWHERE:
                continue
            count += 1
            if "my_run.bin" in command:
                shutil.copy("checkpoint.bin", "my_run.bin")
            setting = re.match(r"GPT2C_LOG=(\w+) ", command)
            monkeypatch.setenv("GPT2C_LOG", setting[1] if setting else "info")
            command = command.removeprefix(setting[0] if setting else "")
            if command.startswith("gpt2c"):
                assert run(shorter(command, SMALLER[document])[1:]) in (0, None), (command, capsys.readouterr())
            else:
                run_other(command)
        if script:
            Path("script.py").write_text(script, encoding="utf-8")
            runpy.run_path("script.py")
    assert count > 50
    said = capsys.readouterr()
    assert "from gpt2_124M.bin" in said.out and "tiny_shakespeare" in said.out  # what the last command found
    assert "--trainBPE is deprecated" in said.err and "--doRL is deprecated" in said.err


def test_flags_have_the_names_that_the_tables_say():
    """A flag of a document is a spelling of the flag in the last column, as the help of the verb shows it."""
    help_of = runpy.run_path(str(ROOT / "docs/make_command_line.py"))["help_of"]
    count = 0
    for document, family in {"rnn-rust": "hybrid", "GRUfinity": "mingru"}.items():
        for flag, verb, here in sections()[document][1]:
            if name := re.match(r"`([a-z-]+)`", here):
                verb = program.ALIASES.get(verb, verb)
                entries = re.findall(r"^  (--.*)", help_of(verb, *["--model", family] * (verb == "train")), re.MULTILINE)
                (entry,) = (re.findall(r"-[\w-]+", line) for line in entries if line.split()[0] == f"--{name[1]}")
                assert plain(code(flag).partition("=")[0]) in map(plain, entry), (flag, entry)
                count += 1
    assert count > 50


def plain(flag):
    return flag.lower().replace("-", "")


def commands_on(page):
    """The commands in blocks of a page, and those in the README's table of families; a document's own are test_documents.py's."""
    text = re.sub(r"## The document's commands.*?(?=\n## |$)", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    lines = [part.partition(" #")[0] for line in lines for part in line.split("&& ")]
    lines += re.findall(r"\n\| \[`\w+`\].*?\| `(gpt2c [^`]*)` \|", text)
    return [line.replace("python -m gpt2c.", "gpt2c ").strip() for line in lines]


def test_what_the_readme_says_that_it_does(with_stories, capsys):
    """The commands in its second table, where names in capitals stand for files of this folder."""
    here = {
        "mydata": "stories",
        "ckpt_00001000": "ckpt_00000002",
        "info FILE": "info CKPT",
        "FILE": "book.txt",
        "CKPT": "runs/mine/ckpt_00000002.safetensors",
        "--interactive": "--model trm --interactive",
    }
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What it does\n")[2].partition("\n\n`")[0]
    commands = re.findall(r"`(gpt2c [^`]*)`", table)
    assert len(commands) > 10
    for command in commands:
        if command.split()[1] not in ("bench", "plot"):  # test_bench.py, test_plot.py
            for there, name in here.items():
                command = command.replace(there, name)
            words = smallest(command) + ["--dry-run"] * (" -e " in command)
            assert run(words[1:]) in (0, None), (words, capsys.readouterr())


def smallest(command):
    """The command with two updates and small batches."""
    command = re.sub(r"--(num-)?epochs[ =]\S+", "", command).replace("ckpt_00000100", "ckpt_00000002")
    words = shlex.split(command)
    if "trm" in words:
        return words + ["--pretrain=FACTS.json", "--instruct=ITEMS.jsonl", "--pretrain-epochs=1", "--instruct-epochs=1"]
    if words[1] == "train":
        words += ["--max-steps=2", "--batch-size=2", "--val-steps=1", "--sample-len=4"]
        words += ["-t=16", "-d=64"] if "gpt2_124M.bin" in words or Path("gpt2_124M.bin").exists() else []
    return words + ["--steps=2", "--eval-prompts=2"] * (words[1] == "rlvr")


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        pytest.param("docs/gpt2.md", marks=needs_curl),
        *(f"docs/{name}.md" for name in ("chargpt", "mingru", "hybrid", "trm", "data", "chat", "rlvr")),
    ],
)
def test_the_commands_on_a_page(with_stories, page, capsys):
    commands = [command for command in commands_on(page) if command and command.split()[0] not in ELSEWHERE]
    assert commands
    for command in commands:
        if "my_run.bin" in command:
            shutil.copy("checkpoint.bin", "my_run.bin")
        if command.startswith("gpt2c"):
            assert run(smallest(command)[1:]) in (0, None), (command, capsys.readouterr())
        else:
            run_other(command)


def files_of_the_documents(tmp_path, monkeypatch):
    for name in ("data.txt", "corpus.txt", "train.txt", "my_text.txt", "book.txt", "tinyshakespeare.txt"):
        Path(name).write_text(TEXT, encoding="utf-8")
    Path("data").mkdir()
    Path("data/tinyshakespeare.txt").write_text(TEXT, encoding="utf-8")
    facts = json.loads((ROOT / "data/facts_general.json").read_text(encoding="utf-8"))[:8]
    Path("facts.json").write_text(json.dumps(facts), encoding="utf-8")
    questions = [{"prompt": "How do mountains form?", "completion": "Slowly."}] * 4
    Path("questions.json").write_text(json.dumps(questions), encoding="utf-8")
    shutil.copy("facts.json", "FACTS.json")
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    Path("chats.jsonl").write_text(4 * (json.dumps({"messages": talk}) + "\n"), encoding="utf-8")
    Path("ITEMS.jsonl").write_text("\n".join(map(json.dumps, questions)), encoding="utf-8")
    pack = tmp_path / "pack"
    pack.mkdir()
    model = gpt2c.create("gpt2", num_layers=1, num_heads=2, channels=16, vocab_size=4096, max_seq_len=16)
    model.save(pack / "gpt2_124M.bin")
    shutil.copy(ROOT / "data/stories_tokenizer.bin", pack / "gpt2_tokenizer.bin")
    for part in ("train", "val"):
        write_shard(pack / f"tiny_shakespeare_{part}.bin", np.arange(1000))
    table = "".join(
        f"{file.name} {'.' if file.name.startswith('gpt2') else 'data/tinyshakespeare'} {file.stat().st_size} "
        f"{int.from_bytes(file.read_bytes()[:4], 'little')} -\n"
        for file in sorted(pack.iterdir())
    )
    (tmp_path / "table").write_text(table, encoding="utf-8")
    monkeypatch.setenv("GPT2C_DATA_TABLE", str(tmp_path / "table"))
    monkeypatch.setenv("GPT2C_DATA_URL", pack.as_uri())
    published_here(pack, monkeypatch)
    shutil.copy(ROOT / "downloaddataset.sh", "downloaddataset.sh")


def published_here(folder, monkeypatch):
    """A small model takes the place of each that can be fetched, from a mirror in this folder."""
    model = gpt2c.create("gpt2", num_layers=1, num_heads=2, channels=32, vocab_size=257, max_seq_len=64)
    model.tokenizer = gpt2c.Tokenizer.make("byte", specials=("<|endoftext|>",))
    for name, known in PUBLISHED.items():
        if known.file:
            model.save(folder / known.file)
            body = (folder / known.file).read_bytes()
            monkeypatch.setitem(PUBLISHED, name, known._replace(size=len(body), sha256=hashlib.sha256(body).hexdigest()))
    monkeypatch.setenv("GPT2C_MODELS_URL", folder.as_uri())
