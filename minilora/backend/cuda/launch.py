"""A launch: which kernel, compiled how, over which grid, with which arguments. A Device runs it.

    device.run(Launch("dequantize_4bit.cu", "dequantize_4bit_v1", grid=(blocks,), block=(256,),
                      args=(In(packed), In(absmax), Out(y), np.int32(n)), defines={"OUT": "float"}))

The launchers beside this file only build Launches, so that the simulated GPU (backend/simt.py) and a real one
(backend/cupy.py) are given the very same ones, and a test can hold their arguments to the kernel's parameter list.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minilora.errors import LaunchError

FOLDER = Path(__file__).parent
MAX_THREADS = 1024  # of a block
MAX_GRID = (2**31 - 1, 65535, 65535)
STATIC_SHARED = 48 * 1024  # bytes of shared memory a block has without asking
MAX_SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block may ask for, by architecture
FLOATS = {  # the types that kernels come in: CUDA C's name, the header that declares it, PTX's name
    "float32": ("float", None, "f32"),
    "float16": ("__half", "<cuda_fp16.h>", "f16"),
    "bfloat16": ("__nv_bfloat16", "<cuda_bf16.h>", "bf16"),
}


@dataclass(frozen=True)
class In:
    """An array that the kernel only reads (const T* in CUDA C)."""

    array: object


@dataclass(frozen=True)
class Out:
    """An array that the kernel writes."""

    array: object


@dataclass(frozen=True)
class Launch:
    """source: a .cu file of this folder. function: its extern "C" name. grid, block: one to three sizes.

    args: In, Out, or NumPy scalars of the parameter's exact type, in the order of the parameter list. defines: macros,
    -Dname=value. shared: bytes of dynamic shared memory. arch: the least compute capability that the kernel needs.
    """

    source: str
    function: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple
    defines: dict[str, object] = field(default_factory=dict)
    shared: int = 0
    arch: int = 75

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(f"-D{name}={value}" for name, value in sorted(self.defines.items()))

    def check(self, arch: int):
        """Raise LaunchError where a GPU of this compute capability would refuse the launch."""
        what = f"{self.function} on grid {self.grid}, block {self.block}"
        if arch < self.arch:
            raise LaunchError(f"{what}: it needs compute capability {self.arch}, this GPU has {arch}")
        if not all(0 < n <= most for n, most in zip(self.grid, MAX_GRID, strict=False)):
            raise LaunchError(f"{what}: a grid has 1 to {MAX_GRID} blocks; give the array in smaller parts")
        if not 0 < math.prod(self.block) <= MAX_THREADS:
            raise LaunchError(f"{what}: a block has 1 to {MAX_THREADS} threads")
        most = 1024 * MAX_SHARED[max((a for a in MAX_SHARED if a <= arch), default=75)]
        if self.shared > most:
            raise LaunchError(f"{what}: {self.shared} bytes of shared memory a block; this GPU has {most}")
        for i, arg in enumerate(self.args):
            if not isinstance(arg, (In, Out, np.generic)):
                raise LaunchError(f"{what}: argument {i} is {type(arg).__name__}, not In, Out or a NumPy scalar")
            if isinstance(arg, (In, Out)) and not arg.array.flags.c_contiguous:
                raise LaunchError(f"{what}: argument {i} is not contiguous; kernels take plain memory")


def source(name: str) -> str:
    """The CUDA C of a file of this folder."""
    return (FOLDER / name).read_text()


def float_macros(**dtypes: str) -> dict[str, str]:
    """float_macros(X="float16", Y="float32") -> {"X": "__half", "Y": "float", "HEADER": "<cuda_fp16.h>"}. Two types of
    16 bits would need two headers."""
    headers = [FLOATS[dtype][1] for dtype in dtypes.values() if FLOATS[dtype][1]]
    return {macro: FLOATS[dtype][0] for macro, dtype in dtypes.items()} | ({"HEADER": headers[0]} if headers else {})


def aligned(nbytes: int, *arrays) -> bool:
    """Whether arrays, of NumPy or CuPy, begin at a multiple of nbytes."""
    interfaces = [getattr(a, "__cuda_array_interface__", None) or a.__array_interface__ for a in arrays]
    return all(interface["data"][0] % nbytes == 0 for interface in interfaces)


class Device(ABC):
    """Where kernels run. arch: its compute capability, 90 for 9.0."""

    arch: int

    @abstractmethod
    def empty(self, shape, dtype):
        """A new array there, not initialised."""

    @abstractmethod
    def array(self, host: np.ndarray):
        """A small constant table (levels, borders), copied there and kept for the next call."""

    @abstractmethod
    def execute(self, launch: Launch):
        """Compile if need be, and run."""

    def run(self, launch: Launch):
        launch.check(self.arch)
        self.execute(launch)
