"""Writes tests/corpus: one small sound file of every format that is read. python tests/formats/make_corpus.py

They are what tests/formats/test_fuzz.py damages.
"""

import json
from pathlib import Path

import numpy as np

import gpt2c
from gpt2c.data import write_shard
from gpt2c.formats.llmc import write_debug_state
from gpt2c.tokenizers.tokenizer import GPT2_BYTES, Tokenizer

CORPUS = Path(__file__).parents[1] / "corpus"
CONFIG = dict(num_layers=1, channels=4, num_heads=1, vocab_size=5, max_seq_len=4, padded_vocab_size=8)


def main():
    CORPUS.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    model = gpt2c.create("gpt2", **CONFIG)
    for version in (3, 5):
        model.save(CORPUS / f"model_v{version}.bin", version)
    gradients = {name: rng.standard_normal(model.params[name].shape, np.float32) for name in model.params}
    write_debug_state(
        CORPUS / "debug_state.bin",
        model.config,
        rng.integers(0, 5, (1, 3)),
        rng.integers(0, 5, (1, 3)),
        rng.standard_normal((1, 3, 5), np.float32),
        1.5,
        gradients,
    )
    write_shard(CORPUS / "gpt2_shard.bin", rng.integers(0, 5, 40))
    write_shard(CORPUS / "llama_shard.bin", rng.integers(0, 5, 40), np.uint32)
    rng.integers(0, 5, 40).astype("<i4").tofile(CORPUS / "legacy_tokens.bin")

    tokenizer = Tokenizer([*GPT2_BYTES, b"ab", b"abc", b"<|endoftext|>"], eot=258)
    tokenizer.save_bin(CORPUS / "tokenizer.bin")
    (CORPUS / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")

    loader = gpt2c.DataLoader(CORPUS / "gpt2_shard.bin", B=1, T=4, shuffle=True)
    trainer = gpt2c.Trainer(model, loader, None, gpt2c.TrainConfig(max_steps=2))
    for _ in trainer:
        pass
    trainer.save(CORPUS / "run.safetensors")
    model.save(CORPUS / "weights.safetensors")
    rows = [{"step": n, "loss": 1.5 / (n + 1), "lr": 1e-3, **({"val_loss": 2.0} if n % 2 else {})} for n in range(4)]
    (CORPUS / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (CORPUS / "config.toml").write_text(
        'max_steps = 7\nlearning_rate = 0.001\nmax_time = "1\\u0068"\noverfit = false\n\n[more]\nseq_len = 8\n', encoding="utf-8"
    )


if __name__ == "__main__":
    main()
