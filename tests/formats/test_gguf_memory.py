"""What GGUF files cost in memory, measured in processes of their own: `info` no more than the file's size and 64 MB, `load` what
the shapes need that are proved to be in the file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hand_gguf import BLOCKS, pack
from test_gguf_models import model

from gpt2c.models import files

PROC = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(not PROC.exists(), reason="peak memory is read from /proc")

PROGRAM = """
import json, sys
from contextlib import suppress
from gpt2c.commands import info
from gpt2c.errors import InputError
from gpt2c.models import files

def now(what):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(what + ":"))

kept, (way, small, path) = [], sys.argv[1:]
use = info.model_file if way == "info" else lambda path: kept.append(files.load(path))
use(small)  # and what is imported on the way is there
before = now("VmRSS")
with suppress(InputError):
    use(path)
print(json.dumps(now("VmHWM") - before))
"""


def taken(way, path, tmp_path):
    """Bytes that it takes at most to do this with a file, beyond what a small one does."""
    model().save(tmp_path / "small.gguf")
    words = [sys.executable, "-c", PROGRAM, way, tmp_path / "small.gguf", path]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout)


def sparse(path, V, C, kind=0):
    """A GPT-2 of one layer that is a hole from the first of its numbers on."""
    shapes = {"token_embd.weight": (V, C), "position_embd.weight": (64, C), "output_norm.weight": (C,), "output_norm.bias": (C,)}
    sides = {"attn_qkv": (3 * C, C), "attn_output": (C, C), "ffn_up": (4 * C, C), "ffn_down": (C, 4 * C)}
    for name, shape in sides.items():
        shapes |= {f"blk.0.{name}.weight": shape, f"blk.0.{name}.bias": shape[:1]}
    shapes |= {f"blk.0.{name}.{end}": (C,) for name in ("attn_norm", "ffn_norm") for end in ("weight", "bias")}
    tensors, end = [], 0
    for name, shape in shapes.items():
        of = kind if len(shape) > 1 else 0
        elements, size = BLOCKS[of]
        tensors.append((name, list(shape[::-1]), of, end))
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        end += -(-count // elements * size // 32) * 32
    said = [("general.architecture", 8, "gpt2"), ("gpt2.block_count", 4, 1), ("gpt2.attention.head_count", 4, 1)]
    head = pack(said, tensors, b"")
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + end)
    return path


def test_info_reads_no_weights(tmp_path):
    path = sparse(tmp_path / "x.gguf", 2**20, 512)
    assert path.stat().st_size > 2**31 and taken("info", path, tmp_path) < 2**23


@pytest.mark.parametrize("kind", [0, 8, 3, 14])
def test_load_takes_its_parameters_and_little_more(kind, tmp_path):
    """What is decoded at a time, and its blocks, are a few times 2^18 numbers."""
    path = sparse(tmp_path / "x.gguf", 2**16, 512, kind)
    content = files.read(path)
    size = sum(tensor.nbytes for tensor in content.weights.tensors.values())
    assert 2**27 < size <= taken("load", path, tmp_path) < size + 2**25


@pytest.mark.parametrize("way", ["info", "load"])
@pytest.mark.parametrize("damage", ["cut", "rows", "layers"])
def test_what_is_only_said_takes_nothing(damage, way, tmp_path):
    path = sparse(tmp_path / "x.gguf", 2**16, 512)
    data = path.read_bytes()[: 2**20]
    if damage == "rows":
        data = data.replace((2**16).to_bytes(8, "little"), (2**40).to_bytes(8, "little"))
    if damage == "layers":
        data = data.replace(
            b"block_count" + (4).to_bytes(4, "little") + b"\1", b"block_count" + (4).to_bytes(4, "little") + b"\xff"
        )
    path.write_bytes(data)
    assert taken(way, path, tmp_path) < len(data) + 2**23


def test_info_of_smollm2(smollm2, tmp_path):
    """Its 49,152 tokens and 48,900 merges become a tokenizer."""
    assert taken("info", smollm2, tmp_path) < 2**26
