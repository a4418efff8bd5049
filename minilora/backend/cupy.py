"""The GPU as a Device: kernels through CuPy's RawModule, on CuPy arrays. CuPy is imported here, and nowhere else.

    device = CupyDevice()
    packed, absmax = quantize_4bit(device, x, levels, 64)        # backend/cuda/quantize.py, x a CuPy array
    with use_backend("cupy"): ...                                # new arrays are CuPy's

The launches are those that the simulated GPU is given (simt.py). All work goes to CuPy's current stream.
"""

from functools import cache, lru_cache

import cupy as xp
import numpy as np
from cupyx.scipy import special  # noqa: F401 (of array_namespace's library)

from minilora.backend import DeviceKernels
from minilora.backend.cuda.launch import Device, In, Launch, Out, source
from minilora.errors import BackendError

_TABLES = 256  # constant tables kept on a GPU, of at most a KiB each


class CupyDevice(Device):
    """The GPU that is CuPy's current one when this is made."""

    def __init__(self):
        device = xp.cuda.Device()
        self.id, self.arch = device.id, int(device.compute_capability)

    def empty(self, shape, dtype):
        return xp.empty(shape, dtype)

    def array(self, host: np.ndarray):
        return _table(self.id, host.tobytes(), host.dtype.str, host.shape)

    def execute(self, launch: Launch):
        kernel = _kernel(self.id, launch.source, launch.options, launch.function)
        if launch.shared:  # static and dynamic together may exceed 48 KiB only where it is asked for
            kernel.max_dynamic_shared_size_bytes = launch.shared
        args = tuple(arg.array if isinstance(arg, (In, Out)) else arg for arg in launch.args)
        kernel(launch.grid, launch.block, args, shared_mem=launch.shared)


@lru_cache(maxsize=256)
def _module(name: str, options: tuple[str, ...]):
    """CuPy compiles it for the GPU in use, adding -ftz=true, when its first function is asked for."""
    return xp.RawModule(code=source(name), options=options, backend="nvrtc")


@lru_cache(maxsize=1024)
def _kernel(gpu: int, name: str, options: tuple[str, ...], function: str):
    return _module(name, options).get_function(function)


@lru_cache(maxsize=_TABLES)
def _table(gpu: int, data: bytes, dtype: str, shape: tuple[int, ...]):
    return xp.asarray(np.frombuffer(data, dtype).reshape(shape))


def to_numpy(x) -> np.ndarray:
    """Waits for what computes x, and copies it."""
    return xp.asnumpy(x)


def managed_zeros(size: int, dtype):
    """Zeros that the driver moves between GPU and host, a page at a time, as they are touched (unified memory)."""
    array = xp.ndarray((size,), dtype, memptr=xp.cuda.malloc_managed(size * np.dtype(dtype).itemsize))
    array.fill(0)
    return array


def kernels() -> DeviceKernels:
    return _kernels(xp.cuda.runtime.getDevice())


@cache
def _kernels(gpu: int) -> DeviceKernels:
    return DeviceKernels(CupyDevice())


def require_gpu():
    """Raise BackendError, saying what is missing, where CuPy finds no GPU that it can use."""
    try:
        count = xp.cuda.runtime.getDeviceCount()
    except xp.cuda.runtime.CUDARuntimeError as error:
        raise BackendError(
            f"CuPy {xp.__version__} is installed, but reaches no GPU ({error}); it needs an NVIDIA GPU, and its driver"
        ) from None
    if not count:
        raise BackendError(f"CuPy {xp.__version__} is installed, but this machine shows no NVIDIA GPU")
