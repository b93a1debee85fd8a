"""Writes tests/corpus: one small sound file of every format that is read. python tests/formats/make_corpus.py

They are what tests/formats/fuzz.py damages. model_v1.json there is of the first version, which is not written any more.
"""

import json
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

import gpt2c
from gpt2c import formats
from gpt2c.data import write_choices, write_shard
from gpt2c.data.choices import Example
from gpt2c.formats import gguf_llama
from gpt2c.formats.llmc import HEADER_BYTES, LAYERNORM, MODEL_MAGIC, write_debug_state
from gpt2c.formats.safetensors import read_folder
from gpt2c.formats.weights import Weights
from gpt2c.tokenizers import byte_list
from gpt2c.tokenizers import gguf as gguf_tokenizers
from gpt2c.tokenizers.byte_level import GPT2_BYTES
from gpt2c.tokenizers.tokenizer import Tokenizer

CORPUS = Path(__file__).parents[1] / "corpus"
LIBRARY = "char", "byte", "word", "pieces", "unigram", "subwords"  # the tokenizer.json besides that of tokenizer.bin
TINY_RANDYGPT = (4, 1, 1, 4)  # channels, heads, layers, positions
TOKENS, TYPES = ["<s>", "</s>", "<|im_end|>", "<x>", "b", "a", "Ġ", "ab", "Ġab", "0"], [3, 3, 3, 4, 1, 1, 1, 1, 1, 1]
TEMPLATE = "{% for m in messages %}{{ bos_token + m['role'] }}{{ m.content | trim }}<|im_end|>{% endfor %}"
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
    write_old_models(model, rng)
    write_gguf(tokenizer)
    write_folders()
    model.tokenizer, model.description, model.turns = Tokenizer.make("char", "abcde"), "says “é”", 2
    model.save(CORPUS / "model.json")
    write_tokenizers()
    write_folder_tokenizers()
    write_texts()
    (CORPUS / "config.toml").write_text(
        'max_steps = 7\nlearning_rate = 0.001\nmax_time = "1\\u0068"\noverfit = false\n\n[more]\nseq_len = 8\n', encoding="utf-8"
    )


def write_old_models(model, rng):
    """llm.c's versions 1, 2 and 4, whose rows of wte are not padded, or whose LayerNorm is float32; randyGPT's."""
    config = model.config
    for version in (1, 2, 4):
        sizes = config.max_seq_len, config.vocab_size, config.num_layers, config.num_heads, config.channels
        padded = config.padded_vocab_size if version == 4 else 0
        data = struct.pack("<8i", MODEL_MAGIC, version, *sizes, padded).ljust(HEADER_BYTES, b"\0")
        for name, array in model.weights().tensors.items():
            stored = array[: config.vocab_size] if name == "wte" and version < 4 else array
            half = version > 1 and name not in LAYERNORM
            data += (stored.view(np.uint32) >> 16).astype("<u2").tobytes() if half else stored.tobytes()
        (CORPUS / f"model_v{version}.bin").write_bytes(data)
    channels, _, layers, positions = TINY_RANDYGPT
    weights = channels * (2 * 3 + positions) + 12 * layers * channels**2
    for version, copies in ((1, 3), (2, 1), (3, 3)):
        head = struct.pack("<8s3If", b"RGPT000%d" % version, 3, 7, 8, 1.5)
        (CORPUS / f"randygpt_{version}.bin").write_bytes(head + rng.standard_normal(copies * weights, np.float32).tobytes())


def write_gguf(tokenizer):
    """With a tokenizer and a description; with blocks of several types; of the llama family, alone and with all that a model for
    conversations has."""
    model = gpt2c.create("gpt2", **CONFIG | {"vocab_size": 262, "padded_vocab_size": 264})
    model.tokenizer, model.description, model.turns = tokenizer, "says “é”", 2
    model.save(CORPUS / "model.gguf")
    gpt2c.create("gpt2", **CONFIG | {"channels": 32}).save(CORPUS / "model_q.gguf", dtype="q4_0")
    sizes = dict(vocab_size=5, channels=8, hidden=12, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, max_seq_len=9)
    ways = dict(rope_theta=1e4, rope_scaling="factors:1.0,2.5", norm_eps=1e-5, tied=False, qkv_bias=False, qk_norm=False)
    shapes = [(name, shape) for name, shape, _ in gguf_llama.tensors("llama", sizes | ways)]
    weights = Weights("llama", sizes | ways, {name: np.ones(shape, np.float32) for name, shape in shapes})
    formats.write(CORPUS / "llama.gguf", weights)
    sizes["vocab_size"] = len(TOKENS)
    shapes = [(name, shape) for name, shape, _ in gguf_llama.tensors("llama", sizes | ways)]
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes}
    metadata = {"tokens": TOKENS, "token_type": np.array(TYPES), "merges": ["a b", "Ġ ab"], "model": "gpt2", "pre": "smollm"}
    tokenizer, _ = gguf_tokenizers.read({gguf_tokenizers.KEY + key: value for key, value in metadata.items()}, len(TOKENS))
    tokenizer.chat_template, tokenizer.bos, tokenizer.ends, tokenizer.adds_bos = TEMPLATE, 0, [2, 1, 3, 4], True
    said = {"description": "“é”", "turns": 2, "sampling": {"temperature": 0.5, "top_k": 3, "top_p": 0.9}}
    formats.write(CORPUS / "chat.gguf", Weights("llama", sizes | ways, tensors, tokenizer, said))


def write_folders():
    """The files of two folders of Hugging Face, and an index that has the second one's tensors in a file of another name."""
    fields = dict(num_heads=2, channels=8, hidden=12, num_kv_heads=1, tied=False, rope_scaling="llama3:8.0,1.0,4.0,16")
    for family, more in ("gpt2", {}), ("llama", fields):
        model = gpt2c.create(family, **{name: value for name, value in CONFIG.items() if name != "padded_vocab_size"} | more)
        model.description, model.turns, model.sampling = "says “é”", 2, {"temperature": 0.7, "top_k": 40}
        with tempfile.TemporaryDirectory() as folder:
            model.save(folder)
            for path in Path(folder).iterdir():
                shutil.copyfile(path, CORPUS / f"{family}_{path.name}")
            names = dict.fromkeys(read_folder(folder), "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (CORPUS / "llama_model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_tokenizers():
    text = "the cat sat on the mat, it's 3.14. the cat."
    for kind in ("char", "byte", "word"):
        (CORPUS / f"tokenizer_{kind}.json").write_text(Tokenizer.make(kind, text).to_json(), encoding="utf-8")
    pieces = Library(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "##b": 4, "ab": 5}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.Sequence([normalizers.BertNormalizer(), normalizers.Replace("b", "B"), normalizers.Strip()])
    pieces.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits()])
    pieces.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    pieces.decoder = decoders.WordPiece()
    pieces.add_special_tokens(["[CLS]", "[SEP]", AddedToken("<x>", single_word=True, lstrip=True, rstrip=True)])
    unigram = Library(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b", -2.5), ("<0x41>", -9.0)], 0, byte_fallback=True))
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Prepend("▁")])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    vocab = {"<unk>": 0, "a": 1, "##b": 2, "ab": 3, "ab</w>": 4}
    subwords = Library(
        models.BPE(vocab, [("a", "##b")], unk_token="<unk>", continuing_subword_prefix="##", end_of_word_suffix="</w>")
    )
    subwords.normalizer = normalizers.Lowercase()
    subwords.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+|\w+"), "merged_with_previous")
    subwords.decoder = decoders.BPEDecoder()
    subwords.enable_truncation(8)
    subwords.enable_padding(length=4)
    for name, library in (("pieces", pieces), ("unigram", unigram), ("subwords", subwords)):
        (CORPUS / f"tokenizer_{name}.json").write_text(library.to_str(), encoding="utf-8")
    rnn = {
        "type": "BPE",
        "specialTokens": {"<EOS>": 0},
        "merges": [[1, 2]],
        "vocab": [[0, "<EOS>"], [1, "a"], [2, "b"], [3, "ab"]],
    }
    (CORPUS / "tokenizer_rnn_rust.json").write_text(json.dumps(rnn), encoding="utf-8")
    randy = {"vocab": ["<|bos|>", "<|eos|>", "a", "é", "aé"], "merges": [["a", "é"]]}
    (CORPUS / "tokenizer_randygpt.json").write_text(json.dumps(randy), encoding="utf-8")
    (CORPUS / "vocab.txt").write_text(byte_list.TEXT, encoding="utf-8")


def write_folder_tokenizers():
    """The files of two folders by name, in one file each: with a tokenizer.json, and with what there was before it."""
    vocab = {text: id for id, text in enumerate(["a", "b", "Ġ", "Ċ", "ab", "Ã", "©", "<s>", "<|im_end|>"])}
    library = Library(models.BPE(vocab, [("a", "b")], ignore_merges=True))
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 7)])
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "<|im_end|>"])
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}"
        "{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] + 'ab' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    end = {"content": "<|im_end|>", "lstrip": False}
    folder = {
        "tokenizer.json": json.loads(library.to_str()),
        "tokenizer_config.json": {"add_bos_token": None, "chat_template": [{"name": "default", "template": template}]},
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": end, "additional_special_tokens": ["<s>"]},
        "generation_config.json": {"eos_token_id": [8, 7]},
        "config.json": {"eos_token_id": 7, "bos_token_id": 7},
    }
    old = {
        "vocab.json": vocab | {"<|endoftext|>": 9},
        "merges.txt": "#version: 0.2\na b\n",
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {"8": end | {"special": True}}},
        "chat_template.jinja": "{% for m in messages %}{{ m.content ~ '<|im_end|>' }}{% endfor %}",
    }
    for name, files in ("new", folder), ("old", old):
        (CORPUS / f"folder_{name}.json").write_text(json.dumps(files), encoding="utf-8")


def write_texts():
    write_choices(CORPUS / "choices.bin", [Example([1, 2], [[3], [4, 5], [6], [7]], n) for n in range(3)])
    messages = [{"role": role, "content": "é"} for role in ("system", "user", "assistant")]
    rows = ["User: a Assistant: b </s>", {"text": "a"}, {"prompt": "a", "completion": "b"}, {"messages": messages}]
    (CORPUS / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (CORPUS / "records.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (CORPUS / "records.csv").write_text('id,text\n1,"a, ""b""\nc"\n2,é\n', encoding="utf-8")
    (CORPUS / "records.tsv").write_text("1\ta b\n2\té\n", encoding="utf-8")
    (CORPUS / "stories.json").write_text(json.dumps([{"story": "a"}, {"story": "é"}]), encoding="utf-8")
    (CORPUS / "hellaswag.jsonl").write_text(json.dumps({"ctx": "a", "endings": ["b", "c"], "label": 1}) + "\n", encoding="utf-8")
    (CORPUS / "mmlu.csv").write_text('"a, b?",c,d,e,f,B\n', encoding="utf-8")
    samples = "".join(f"--- step {n}\nsome text é\n" for n in range(4))
    (CORPUS / "samples.txt").write_text(samples, encoding="utf-8")
    (CORPUS / "main.log").write_text("".join(f"s:{n} trl:1.5000 lr:0.001000 norm:0.50\n" for n in range(4)), encoding="utf-8")
    machine = {"cpu": "x", "threads": 2, "bandwidth": 10.0, "peak": {"avx2": 100.0}}
    row = {"section": "kernels", "kernel": "linear", "case": "small", "isa": "avx2", "intensity": 2.0, "gflop_s": 50.0}
    (CORPUS / "bench.json").write_text(json.dumps({"machine": machine, "rows": [row]}), encoding="utf-8")


if __name__ == "__main__":
    main()
