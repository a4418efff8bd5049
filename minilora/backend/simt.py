"""The simulated GPU as a Device: kernels run in minilora.simt, on NumPy arrays, with every mistake reported.

    device = SimulatedDevice(arch=80)
    packed, absmax = quantize_4bit(device, x, levels, 64)        # backend/cuda/quantize.py
    with use_backend("simt"): ...                                # the whole library, at toy sizes

edit(name, text) -> text changes a .cu file's text before it is compiled: a bug planted in a kernel must be found.
"""

from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np

from minilora import simt
from minilora.backend import DeviceKernels
from minilora.backend.cuda.launch import Device, In, Launch, source
from minilora.errors import BackendError


class SimulatedDevice(Device):
    def __init__(self, arch: int = 80, check=True, counters=None, edit: Callable[[str, str], str] | None = None):
        """arch: compute capability, 80 for 8.0. check, counters: as simt.launch takes them."""
        self.arch, self.check, self.counters, self.edit = arch, check, counters, edit

    def empty(self, shape, dtype) -> np.ndarray:
        """Filled with 0xFF, which is NaN in every float type: what a kernel forgets to write is seen."""
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8).fill(0xFF)
        return array

    def array(self, host: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(host)

    def program(self, launch: Launch) -> simt.Program:
        """The launch's file as compiled for it."""
        text = source(launch.source)
        if self.edit is not None:
            text = self.edit(launch.source, text)
        return compiled(text, launch.options, self.arch, launch.source)

    def machine(self, launch: Launch, program: simt.Program | None = None, **options) -> simt.Machine:
        """What runs the launch, or steps through it. options: as simt.Machine takes them."""
        options = {"shared": launch.shared, "check": self.check, "counters": self.counters} | options
        program, args = program or self.program(launch), [_argument(arg) for arg in launch.args]
        return simt.Machine(program, launch.function, launch.grid, launch.block, args, **options)

    def execute(self, launch: Launch):
        self.machine(launch).run()


def _argument(arg):
    """As simt.Machine takes it. A slice that begins off its allocation's alignment does so there too."""
    if isinstance(arg, np.generic):
        return arg
    return simt.Buffer(arg.array, read_only=isinstance(arg, In), offset=arg.array.ctypes.data % 16)


@lru_cache(maxsize=256)
def compiled(text: str, options: tuple[str, ...], arch: int, name: str) -> simt.Program:
    """A .cu file's text compiled and parsed, once."""
    return simt.load(simt.compile_cuda(text, arch, options, name))


@cache
def kernels() -> DeviceKernels:
    """Those of use_backend("simt"). Raises BackendError where kernels cannot be compiled."""
    if not simt.available():
        raise BackendError("the simulated GPU needs NVRTC, NVIDIA's compiler: pip install 'minilora[simt]'")
    return DeviceKernels(SimulatedDevice())
