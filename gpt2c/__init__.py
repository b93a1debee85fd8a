"""gpt2c: train and run small language models on a CPU.

import gpt2c
m = gpt2c.load("gpt2_124M.bin")     # or gpt2c.create("gpt2", num_layers=4, channels=128, ...)
loss = m.forward(x, y); m.zero_grad(); m.backward(); m.update(lr=1e-4, t=1)
"""

import importlib
from typing import TYPE_CHECKING

from gpt2c.support.version import __version__ as __version__

# Where each public name lives. It is imported when it is first asked for: help and version need neither NumPy nor the kernels.
_HOME = {
    "DataLoader": "data.loader",
    "DivergedError": "errors",
    "Family": "models.family",
    "Gpt2cError": "errors",
    "InputError": "errors",
    "Model": "models.model",
    "ParamSpec": "engine.arena",
    "ResourceError": "errors",
    "Task": "data.tasks",
    "Tokenizer": "tokenizers.tokenizer",
    "TrainConfig": "training.config",
    "Trainer": "training.trainer",
    "UsageError": "errors",
    "by_position": "data.tasks",
    "create": "models.model",
    "generate": "generation.decoder",
    "generate_batch": "generation.batch",
    "info": "settings",
    "load": "models.files",
    "load_debug_state": "formats.llmc",
    "ops": "engine",
    "register_family": "models.registry",
    "set_isa": "settings",
    "set_matmul_precision": "settings",
    "set_num_threads": "settings",
    "world": "training.ranks",
}
__all__ = sorted(_HOME)

if TYPE_CHECKING:  # the same once more, for who reads this without running it
    from gpt2c.data.loader import DataLoader as DataLoader
    from gpt2c.data.tasks import Task as Task
    from gpt2c.data.tasks import by_position as by_position
    from gpt2c.engine import ops as ops
    from gpt2c.engine.arena import ParamSpec as ParamSpec
    from gpt2c.errors import DivergedError as DivergedError
    from gpt2c.errors import Gpt2cError as Gpt2cError
    from gpt2c.errors import InputError as InputError
    from gpt2c.errors import ResourceError as ResourceError
    from gpt2c.errors import UsageError as UsageError
    from gpt2c.formats.llmc import load_debug_state as load_debug_state
    from gpt2c.generation.batch import generate_batch as generate_batch
    from gpt2c.generation.decoder import generate as generate
    from gpt2c.models.family import Family as Family
    from gpt2c.models.files import load as load
    from gpt2c.models.model import Model as Model
    from gpt2c.models.model import create as create
    from gpt2c.models.registry import register_family as register_family
    from gpt2c.settings import info as info
    from gpt2c.settings import set_isa as set_isa
    from gpt2c.settings import set_matmul_precision as set_matmul_precision
    from gpt2c.settings import set_num_threads as set_num_threads
    from gpt2c.tokenizers.tokenizer import Tokenizer as Tokenizer
    from gpt2c.training.config import TrainConfig as TrainConfig
    from gpt2c.training.ranks import world as world
    from gpt2c.training.trainer import Trainer as Trainer
else:

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module 'gpt2c' has no attribute {name!r}")
        home = importlib.import_module(f"gpt2c.{_HOME[name]}")
        if not hasattr(home, name):  # it is a module itself
            importlib.import_module(f"{home.__name__}.{name}")
        value = globals()[name] = getattr(home, name)
        return value


def __dir__() -> list[str]:
    return __all__
