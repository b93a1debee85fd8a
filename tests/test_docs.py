"""The Python on the pages runs as it stands: all of a page's blocks in order, as one program."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = {"README.md": slice(1), "docs/scripting.md": slice(None)}  # README's second block speaks of files that are not there


@pytest.mark.parametrize("page", BLOCKS)
def test_the_python_on_a_page_runs(page, tmp_path):
    (tmp_path / "data").symlink_to(ROOT / "data")
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)[BLOCKS[page]]
    assert blocks
    (tmp_path / "page.py").write_text("\n".join(blocks), "utf-8")
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
