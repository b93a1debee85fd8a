"""transformers itself judges folders: it loads what gpt2c writes, and gpt2c what it writes, with the same logits.

GPT2C_JUDGE names a Python that has transformers, PyTorch and NumPy, such as `GPT2C_JUDGE=venv/bin/python`.
"""

import os
import subprocess

import numpy as np
import pytest
from hand_safetensors import golden_folder

import gpt2c
from gpt2c.tokenizers.tokenizer import Tokenizer

JUDGE = os.environ.get("GPT2C_JUDGE", "")
pytestmark = pytest.mark.skipif(not JUDGE, reason="GPT2C_JUDGE names no Python with transformers")
SIZES = dict(vocab_size=300, num_layers=2, num_heads=4, channels=32, max_seq_len=24)
MODELS = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama", dict(num_kv_heads=2, tied=False, rope_scaling="llama3:8.0,1.0,4.0,16", rope_theta=100.0)),
    "mistral": ("llama", dict(num_heads=6, head_dim=8, num_kv_heads=3)),
    "qwen2": ("llama", dict(num_kv_heads=1, qkv_bias=True, norm_eps=1e-6)),
    "qwen3": ("llama", dict(qk_norm=True, head_dim=12)),
}
SCRIPT = """
import sys
import numpy as np, torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert model.config.model_type in folder, model.config
    tokens = torch.tensor(np.load(folder + "/../tokens.npy"))
    np.save(folder + ".npy", model.eval()(tokens).logits.detach().numpy())
    model.save_pretrained(folder + ".again", max_shard_size="10KB")
"""


def ask(script, *words):
    """Runs a script in the judge's Python, which knows nothing of this one."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([JUDGE, "-c", script, *map(str, words)], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_what_is_written_is_the_same_model_there_and_comes_back(dtype, tmp_path):
    rng = np.random.default_rng(7)
    tokens = rng.integers(0, SIZES["vocab_size"], (2, 24))
    np.save(tmp_path / "tokens.npy", tokens)
    for name, (family, fields) in MODELS.items():
        model = gpt2c.create(family, **SIZES | fields)
        model.params.flat[...] += 0.05 * rng.standard_normal(model.params.size, np.float32)
        model.tokenizer, model.sampling = Tokenizer.make("byte", specials=("</s>",)), {"temperature": 0.7, "top_p": 0.9}
        model.save(f"{tmp_path}/{name}/", dtype=dtype)
    ask(SCRIPT, *(tmp_path / name for name in MODELS))
    for name in MODELS:
        model = gpt2c.load(tmp_path / name)
        model.forward(tokens)
        assert abs(model.logits[..., : SIZES["vocab_size"]] - np.load(tmp_path / f"{name}.npy")).max() <= 1e-4
        again = gpt2c.load(tmp_path / f"{name}.again")  # in several files, by transformers
        assert again.params.flat.tobytes() == model.params.flat.tobytes() and again.config == model.config
        assert again.sampling == {"temperature": 0.7, "top_p": 0.9}


def test_answers_are_written_as_there(tmp_path):
    script = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=20, do_sample=False, eos_token_id=None)
print(*ids[0].tolist())
"""
    golden_folder(tmp_path / "a", "llama")
    model = gpt2c.load(tmp_path / "a")
    model.save(f"{tmp_path}/b/")
    found = [int(word) for word in ask(script, tmp_path / "b").split()]
    assert found[3:] == list(gpt2c.generate(model, [1, 2, 3], 20, temperature=0))[-20:]
