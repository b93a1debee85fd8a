"""The door between Python and the kernels, which kernels/stream.pyx is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

class DType(NamedTuple):
    itemsize: int
    array: str
    c: str

class Blocks(NamedTuple):
    columns: int
    nbytes: int
    planes: tuple[int, ...]

DTYPES: dict[str, DType]
STORED: dict[str, Blocks]
GROUP: int
LINE: int
ANY: str

CACHED: tuple[str, ...]

def nbytes(dtype: str, shape: tuple[int, ...]) -> int: ...
def row_bytes(dtype: str, columns: int) -> int: ...

class Buffer:
    name: str
    shape: tuple[int, ...]
    dtype: str
    owner: Any
    def __init__(self, name: str, shape: tuple[int, ...], address: int, owner: Any, dtype: str = "f32") -> None: ...
    def shaped(self, *shape: int) -> Buffer: ...
    def rows(self, first: int, last: int, *row_shape: int) -> Buffer: ...
    @property
    def array(self) -> np.ndarray: ...

class Door:
    name: str
    def __getattr__(self, name: str) -> Any: ...  # what tests of the kernels look at

class Program:
    def run(self, seconds: np.ndarray | None = None) -> None: ...
    def __len__(self) -> int: ...
    @property
    def calls(self) -> list[tuple[str, dict[str, int]]]: ...

class Stream:
    mode: str
    def __init__(self, mode: str = "run") -> None: ...
    def program(self) -> Program: ...
    def __getattr__(self, name: str) -> Callable[..., None]: ...  # a method for each kernel

DOORS: dict[str, Door]

def buffer_of(name: str, array: np.ndarray, writable: bool = True, where: str = "") -> Buffer: ...
def isas() -> list[str]: ...
def use_isa(name: str) -> None: ...
def use_threads(n: int) -> None: ...
def has_had_threads() -> bool: ...
def use_matmul_bf16(on: bool) -> None: ...
def build_info() -> dict[str, Any]: ...
