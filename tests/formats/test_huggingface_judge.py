"""transformers itself judges folders: it loads what gpt2c writes, and gpt2c what it writes, and both compute the same."""

import numpy as np
import pytest
from judge import asked

import gpt2c
from gpt2c.tokenizers.tokenizer import Tokenizer

SIZES = dict(vocab_size=257, num_layers=2, num_heads=4, channels=32, max_seq_len=24)
MODELS = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama", dict(num_kv_heads=2, tied=False, rope_scaling="llama3:8.0,1.0,4.0,16", rope_theta=100.0)),
    "mistral": ("llama", dict(num_heads=6, head_dim=8, num_kv_heads=3)),
    "qwen2": ("llama", dict(num_kv_heads=1, qkv_bias=True, norm_eps=1e-6)),
    "qwen3": ("llama", dict(qk_norm=True, head_dim=12)),
}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_what_is_written_is_the_same_model_there_and_comes_back(dtype, tmp_path):
    rng = np.random.default_rng(7)
    tokens = rng.integers(0, SIZES["vocab_size"], (2, 24))
    for name, (family, fields) in MODELS.items():
        model = gpt2c.create(family, **SIZES | fields)
        model.params.flat[...] += 0.05 * rng.standard_normal(model.params.size, np.float32)
        model.tokenizer, model.sampling = Tokenizer.make("byte", specials=("</s>",)), {"temperature": 0.7, "top_p": 0.9}
        model.save(f"{tmp_path}/{name}/", dtype=dtype)
    prompt = tokens[0, :4].tolist()
    answers = asked(
        "transformers_folders", folders=[str(tmp_path / name) for name in MODELS], tokens=tokens.tolist(), prompt=prompt
    )
    for name in MODELS:
        model = gpt2c.load(tmp_path / name)
        model.forward(tokens)
        assert abs(model.logits[..., : SIZES["vocab_size"]] - np.load(tmp_path / f"{name}.npy")).max() <= 1e-4
        assert list(gpt2c.generate(model, prompt, 20, temperature=0))[-20:] == answers[str(tmp_path / name)]
        again = gpt2c.load(tmp_path / f"{name}.again")  # in several files, by transformers
        assert again.params.flat.tobytes() == model.params.flat.tobytes() and again.config == model.config
        assert again.sampling == {"temperature": 0.7, "top_p": 0.9}
