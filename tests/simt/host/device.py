"""A second executor of the kernels: the same .cu files, compiled as C++ by g++, each CUDA thread a fibre.

    device = HostDevice(order="backward")
    packed, absmax = quantize_4bit(device, x, levels, 64)        # the launchers of minilora/backend/cuda

It shares nothing with minilora.simt: another compiler, another model of barriers and of shuffles. Where the two differ,
one of them or the kernel is wrong. It sees no races and no uninitialised memory; but a kernel that has either mostly
gives something else in another order of its threads and blocks, or NaN, which is what memory holds before it is
written. An access far from any array may end the process.

Inline PTX cannot be run: a kernel takes part if it has an alternative in C++ where __CUDA_ARCH__ is not defined.
"""

import ctypes
import functools
import hashlib
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from minilora.backend.cuda.launch import Device, In, Launch, Out, source
from minilora.errors import LaunchError, SimulationError

HERE = Path(__file__).parent
ORDERS = {"forward": 0, "backward": 1}  # a number from 2 on: at random
MARGIN = 256  # bytes around each array in which nothing may be written
CPP = ("-x", "c++", "-std=c++17", f"-I{HERE}", "-U_FORTIFY_SOURCE", "-w")
CODE = ("-O1", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared", "-fvisibility=hidden")
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\(\s*\)\s*)?(\w+)\s*\(')
DYNAMIC = re.compile(r"extern\s+__shared__\s+(.+?)\s*(\w+)\s*\[\s*\]\s*;")


def unavailable() -> str | None:
    """Why there is no second executor here, or None."""
    if shutil.which("g++") is None:
        return "g++ is missing"
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return "the second executor is written for Linux on x86-64"
    return None


class HostDevice(Device):
    def __init__(self, order: str | int = "forward", arch: int = 80, edit=None):
        """order: of a block's threads and of the blocks, "forward", "backward" or a seed. edit: as SimulatedDevice."""
        self.order, self.arch, self.edit = ORDERS.get(order, order), arch, edit

    def empty(self, shape, dtype) -> np.ndarray:
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8).fill(0xFF)
        return array

    def array(self, host: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(host)

    def execute(self, launch: Launch):
        text = source(launch.source)
        if self.edit is not None:
            text = self.edit(launch.source, text)
        library(text, launch.options, launch.source).run(launch, self.order)


class Library:
    """The kernels of a .cu file, compiled. parameters: of each kernel the types, in NumPy's words: "const float32*"."""

    def __init__(self, path: Path, name: str):
        self.name, self.code = name, ctypes.CDLL(str(path))
        for function in ("host_name", "host_parameter", "host_run"):
            getattr(self.code, function).restype = ctypes.c_char_p
        self.index = {text: i for i, text in _until_null(self.code.host_name)}
        self.parameters = {
            kernel: [text for _, text in _until_null(functools.partial(self.code.host_parameter, i))]
            for kernel, i in self.index.items()
        }

    def run(self, launch: Launch, order: int = 0):
        """Raises LaunchError for a kernel that is not here or arguments that it does not take, SimulationError for
        threads that wait in vain and for what is written outside of an array."""
        if launch.function not in self.index:
            there = ", ".join(self.index) or "none"
            raise LaunchError(f"{self.name}: {launch.function} has no C++ without inline PTX; there are: {there}")
        given = [_type(arg) for arg in launch.args]
        if [_unsigned(t) for t in given] != [_unsigned(t) for t in self.parameters[launch.function]]:
            raise LaunchError(f"{launch.function} takes {self.parameters[launch.function]}; given were {given}")
        arrays = [None if isinstance(arg, np.generic) else Guarded(arg.array) for arg in launch.args]
        values = [np.array(a.address if a else arg) for arg, a in zip(launch.args, arrays, strict=True)]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        grid, block = ((ctypes.c_uint * 3)(*size, *(1, 1)[len(size) - 1 :]) for size in (launch.grid, launch.block))
        wrong = self.code.host_run(self.index[launch.function], grid, block, pointers, ctypes.c_uint64(order))
        if wrong is not None:
            raise SimulationError(f"{launch.function}: {wrong.decode()}")
        for i, (arg, array) in enumerate(zip(launch.args, arrays, strict=True)):
            if array is not None:
                array.check(f"{launch.function}, argument {i}", read_only=isinstance(arg, In))
                if isinstance(arg, Out):
                    arg.array.reshape(-1).view(np.uint8)[:] = array.bytes


class Guarded:
    """A copy of an array with a margin before and after, aligned as the original is."""

    def __init__(self, array: np.ndarray):
        self.before = array.reshape(-1).view(np.uint8)
        self.memory = np.full(self.before.size + 2 * MARGIN + 32, 0xFF, np.uint8)
        self.start = MARGIN + (array.ctypes.data - self.memory.ctypes.data - MARGIN) % 16
        self.bytes = self.memory[self.start : self.start + self.before.size]
        self.bytes[:] = self.before
        self.address = np.uint64(self.bytes.ctypes.data)

    def check(self, what: str, read_only: bool):
        outside = (self.memory[: self.start], self.memory[self.start + self.before.size :])
        for part, where in zip(outside, ("before", "after"), strict=True):
            if (part != 0xFF).any():
                raise SimulationError(f"{what}: written {where} the array")
        if read_only and (self.bytes != self.before).any():
            raise SimulationError(f"{what}: written, and const")


def _type(arg) -> str:
    if isinstance(arg, (In, Out)):
        return f"{'const ' * isinstance(arg, In)}{arg.array.dtype.name}*"
    return arg.dtype.name


def _unsigned(type: str) -> str:
    """Of pointers the same for int8 and uint8: a kernel may look up bytes that are codes of either."""
    return type.replace("uint", "int") if type.endswith("*") else type


def _until_null(function):
    i = 0
    while (text := function(i)) is not None:
        yield i, text.decode()
        i += 1


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="minilora-host-")  # removed when the process ends


@functools.cache
def library(text: str, options: tuple[str, ...] = (), name: str = "kernel.cu") -> Library:
    """Compile the text of a .cu file. Raises SimulationError with g++'s messages."""
    text = DYNAMIC.sub(r"static thread_local \1 \2[49152 / sizeof(\1)];", text)
    listing = "".join(f"KERNEL({kernel})" for kernel in kernels(text, options))
    keeps = "ARITHMETIC(" in text  # float32 arithmetic that is written in instructions, to keep subnormal numbers
    program = (
        f'#define FLUSH {int(not keeps)}\n#include "language.h"\n#line 1 "{name}"\n{text}\n'
        f'#line 1 "kernels"\n#define HOST_KERNELS {listing}\n#include "kernels.h"\n'
    )
    path = Path(_folder().name, hashlib.sha256((program + "".join(options)).encode()).hexdigest()[:16] + ".so")
    _compile((*CPP, *CODE, *options, "-", "-o", str(path)), program, name)
    return Library(path, name)


def kernels(text: str, options: tuple[str, ...] = ()) -> list[str]:
    """The names of a .cu file's kernels, as the preprocessor leaves them."""
    return KERNEL.findall(_compile((*CPP, "-E", "-P", "-D__launch_bounds__(...)=", *options, "-"), text, "kernel.cu"))


def _compile(arguments: tuple[str, ...], text: str, name: str) -> str:
    done = subprocess.run(["g++", *arguments], input=text, capture_output=True, text=True)
    if done.returncode:
        raise SimulationError(f"{name} does not compile as C++:\n{done.stderr[:2000]}")
    return done.stdout
