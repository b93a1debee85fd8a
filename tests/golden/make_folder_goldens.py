"""Writes the folder_*.npz files beside it: small models of transformers, as its folders have them, and what they compute.

Run with transformers 5 and PyTorch 2 on the CPU: `python tests/golden/make_folder_goldens.py`. The tests only read the files:
config and generation (the text of config.json and generation_config.json), params/* and grads/* under the names and in the
shapes of model.safetensors, tokens, targets, loss and logits computed in float64, and greedy: what follows the first five
tokens when the likeliest one is taken 20 times.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.numpy import load_file

SIZES = dict(
    vocab_size=41, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24, num_hidden_layers=2
)
SIZES |= dict(max_position_embeddings=32, bos_token_id=None, eos_token_id=None, rms_norm_eps=1e-5)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
KINDS = {
    "gpt2": transformers.GPT2Config(
        vocab_size=41, n_embd=16, n_head=2, n_layer=2, n_positions=32, bos_token_id=None, eos_token_id=None
    ),
    "llama": transformers.LlamaConfig(**SIZES, tie_word_embeddings=False, rope_parameters=dict(rope_theta=100.0, **LLAMA3)),
    "mistral": transformers.MistralConfig(**SIZES, head_dim=6, sliding_window=None),
    "qwen2": transformers.Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=6, tie_word_embeddings=True),
}


@torch.no_grad()
def randomize(model):
    """Gains near 1, biases near 0, weights of layers large enough that a token is seldom followed by itself."""
    for name, p in model.named_parameters():
        noise, scale = torch.randn(p.shape), 1 if "embed" in name or "wte" in name else 3
        p.copy_(0.2 * noise + (not name.endswith("bias")) if p.ndim == 1 else noise * scale * p.shape[-1] ** -0.5)


def in_folder(model):
    """(the tensors of the folder that a model is saved in, the text of each document there)."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        texts = {path.stem.removesuffix("_config"): path.read_text() for path in Path(folder).glob("*.json")}
        return load_file(Path(folder) / "model.safetensors"), texts


def make(name, config):
    torch.manual_seed(1337)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    randomize(model)
    params, texts = in_folder(model)
    model = model.double()
    tokens, targets = torch.randint(41, (2, 2, 30))
    logits = model(tokens).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    greedy = model.generate(tokens[:1, :5], max_new_tokens=20, do_sample=False)[0, 5:]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.grad)
    arrays = {
        **{f"params/{key}": value for key, value in params.items()},
        **{f"grads/{key}": value for key, value in in_folder(model.float())[0].items()},
        **texts,
        "tokens": tokens.numpy().astype(np.int32),
        "targets": targets.numpy().astype(np.int32),
        "loss": loss.item(),
        "logits": logits.detach().numpy().astype(np.float32),
        "greedy": greedy.numpy().astype(np.int32),
    }
    np.savez_compressed(Path(__file__).parent / f"folder_{name}.npz", **arrays)
    print(name, loss.item(), greedy.tolist())


if __name__ == "__main__":
    for name, config in KINDS.items():
        make(name, config)
