"""gpt2c: train and run small language models on a CPU.

import gpt2c
m = gpt2c.load("gpt2_124M.bin")     # or gpt2c.create("gpt2", num_layers=4, channels=128, ...)
loss = m.forward(x, y); m.zero_grad(); m.backward(); m.update(lr=1e-4, t=1)
"""

import importlib

from gpt2c.support.version import __version__ as __version__

# Where each public name lives. It is imported when it is first asked for: help and version need neither NumPy nor the kernels.
_HOME = {
    "DataLoader": "data.loader",
    "DivergedError": "errors",
    "Gpt2cError": "errors",
    "InputError": "errors",
    "Model": "models.model",
    "ResourceError": "errors",
    "Tokenizer": "tokenizers.tokenizer",
    "TrainConfig": "training.config",
    "Trainer": "training.trainer",
    "UsageError": "errors",
    "create": "models.model",
    "generate": "generation.decoder",
    "generate_batch": "generation.slots",
    "info": "settings",
    "load": "models.files",
    "load_debug_state": "formats.llmc",
    "set_isa": "settings",
    "set_matmul_precision": "settings",
    "set_num_threads": "settings",
}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'gpt2c' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"gpt2c.{_HOME[name]}"), name)
    return value


def __dir__():
    return __all__
