"""The pages: their Python runs as it stands, all of a page's blocks in order as one program; files that they name are there."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpt2c
from gpt2c.formats.llmc import write_debug_state

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "data/README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in (ROOT / page).read_text("utf-8")])
def test_the_python_on_a_page_runs(page, tmp_path):
    (tmp_path / "data").symlink_to(ROOT / "data")
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    write_llmc_s_files(tmp_path)
    (tmp_path / "page.py").write_text("\n".join(blocks), "utf-8")
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def write_llmc_s_files(folder):
    """A small model and its debug state, under the names of the large one's."""
    model = gpt2c.create("gpt2", num_layers=1, num_heads=2, channels=16, vocab_size=40, max_seq_len=8)
    x = np.arange(8, dtype=np.int32).reshape(1, 8)
    model.forward(x)
    logits, loss = model.logits.copy(), model.loss_and_grad(x, x + 1)
    model.save(folder / "gpt2_124M.bin")
    write_debug_state(folder / "gpt2_124M_debug_state.bin", model.config, x, x + 1, logits, loss, model.grads)


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_are_there(page):
    named = re.findall(r"[`(]((?:gpt2c|kernels|tests|docs|benchmarks)/[\w/.-]*\.\w+)[`)]", (ROOT / page).read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_leads_to_every_page_and_the_page_of_the_code_to_every_folder():
    readme, code = ((ROOT / page).read_text("utf-8") for page in ("README.md", "docs/code.md"))
    assert [page for page in PAGES[1:] if f"]({page})" not in readme] == []
    files = [path.name for path in (ROOT / "gpt2c").glob("*.py")]
    folders = [f"{path.parent.name}/" for path in (ROOT / "gpt2c").glob("*/__init__.py")]
    assert len(folders) > 10 and [name for name in files + folders if f"`{name}`" not in code] == []


def test_the_page_of_flags_is_what_the_programs_say():
    """If this fails: python docs/make_command_line.py"""
    script = runpy.run_path(str(ROOT / "docs/make_command_line.py"))
    assert script["PAGE"].read_text("utf-8") == script["page"]()
    assert script["SPELLINGS"].read_text("utf-8") == script["spellings"]()
