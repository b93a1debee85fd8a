"""safetensors files packed and taken apart by hand, without gpt2c; and folders of the models in tests/golden."""

import json
import struct

import numpy as np

SIZES = {"F32": 4, "F16": 2, "BF16": 2}


def pack(tensors, metadata=None):
    """The file of {name: (dtype, shape, bytes)}."""
    table, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, (dtype, shape, content) in tensors.items():
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return together([table, data.hex()])


def unpack(data):
    """{name: (dtype, shape, bytes)} of a file."""
    table, content = apart(data)
    content = bytes.fromhex(content)
    table.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], content[slice(*entry["data_offsets"])]) for name, entry in table.items()}


def apart(data):
    """[the table, the data in hexadecimal] of a file."""
    start = 8 + struct.unpack("<Q", data[:8])[0]
    return [json.loads(data[8:start]), data[start:].hex()]


def together(parts):
    header = json.dumps(parts[0]).encode()
    return struct.pack("<Q", len(header)) + header + bytes.fromhex(parts[1])


def stored(array, dtype):
    """(dtype, shape, bytes) of a float32 array; to bf16 by cutting."""
    if dtype == "BF16":
        return dtype, array.shape, (array.view(np.uint32) >> 16).astype("<u2").tobytes()
    return dtype, array.shape, array.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def golden_folder(path, kind, dtype="F32", of="params", shards=1):
    """The folder of a model of transformers in tests/golden, or of its gradients; in several files, if that is asked for."""
    import goldens  # here, because tests/formats/fuzz.py does without, which has this folder alone

    golden = goldens.golden(f"folder_{kind}")
    tensors = {name: stored(array, dtype) for name, array in golden[of].items()}
    path.mkdir()
    (path / "config.json").write_text(golden["config"].item())
    (path / "generation_config.json").write_text(golden["generation"].item())
    if shards == 1:
        (path / "model.safetensors").write_bytes(pack(tensors, {"format": "pt"}))
        return golden
    names, index = list(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        (path / file).write_bytes(pack({name: tensors[name] for name in names[shard::shards]}))
        index |= dict.fromkeys(names[shard::shards], file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    return golden
