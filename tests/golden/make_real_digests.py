"""Writes real_digests.json: the SHA-256 of all numbers of each storage type in files of real models, as the gguf package reads
them. python tests/golden/make_real_digests.py FILE ...          (needs gguf; made with 0.19.0)

The numbers are float32, tensor by tensor in the order of their names.
"""

import hashlib
import json
import sys
from pathlib import Path

import gguf
import numpy as np


def digests(path):
    found = {}
    for tensor in sorted(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.name):
        values = np.ascontiguousarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        found.setdefault(tensor.tensor_type.name, hashlib.sha256()).update(values)
    return {kind: digest.hexdigest() for kind, digest in sorted(found.items())}


def main(paths):
    document = {Path(path).name: digests(path) for path in paths}
    Path(__file__).with_name("real_digests.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
