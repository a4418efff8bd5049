"""Where arrays live, and the kernels that work on them. Kernels take plain arrays and know nothing of the package.

    xp = array_namespace(x)                     # numpy, or cupy where x is CuPy's: xp.zeros(...) is beside x
    y = to_numpy(x); x = to_device(y, "cuda")   # NumPy, and back to the GPU
    kernels_for(x).quantize_4bit(x, levels, 64)

    with use_backend("simt"): ...               # or use_backend("simt"), until another call
    "numpy"   new arrays are NumPy's, and so are the kernels (the default)
    "simt"    the same arrays, but the kernels are the CUDA ones, run on the simulated GPU: at toy sizes
    "cupy"    new arrays (parameters, Tensor([1, 2])) are on the GPU

An array decides where work on it runs. CuPy is imported when the first array of it, or the backend, is asked for.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module

import numpy as np

from minilora.backend import numpy as numpy_kernels
from minilora.errors import BackendError, unknown_name

BACKENDS = ("numpy", "simt", "cupy")
DEVICES = ("cpu", "cuda")
_HOST = (np.ndarray, np.generic)
_current = "numpy"
# The package that an array's type comes from -> what serves it: an object with what backend/cupy.py has (xp, special,
# to_numpy, managed_zeros, kernels, require_gpu). CuPy is the one there is; the tests enter a stand-in for it.
_LIBRARIES: dict[str, Callable] = {"cupy": lambda: import_module("minilora.backend.cupy")}


def _library(x):
    """What serves x's type; None for NumPy's arrays and for what is no array."""
    if isinstance(x, _HOST):
        return None
    load = _LIBRARIES.get(_package(type(x)))
    return None if load is None else load()


@cache
def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def is_array(x) -> bool:
    """Whether x is an array, wherever it lives."""
    return isinstance(x, np.ndarray) or (_library(x) is not None and hasattr(x, "ndim"))


def array_namespace(*arrays):
    """The module whose functions make arrays beside these: that of the first that is not NumPy's, else numpy."""
    for x in arrays:
        if not isinstance(x, _HOST) and (library := _library(x)) is not None:
            return library.xp
    return np


def special_functions(x):
    """cupyx.scipy.special, or what stands in for it; None beside a NumPy array (SciPy is not needed there)."""
    library = _library(x)
    return None if library is None else library.special


def asarray(x):
    """x where it is an array, wherever it lives; else a NumPy array of it."""
    return np.asarray(x) if isinstance(x, _HOST) or _library(x) is None else x


def to_numpy(x) -> np.ndarray:
    """x as a NumPy array; on the host already, itself."""
    library = _library(x)
    return np.asarray(x) if library is None else library.to_numpy(x)


def like(x, array):
    """x where `array` lives; already there, itself."""
    xp = array_namespace(array)
    return x if xp is array_namespace(x) else xp.asarray(to_numpy(x))


def managed_zeros(x, size: int, dtype):
    """Zeros (size,) beside x, a GPU's array, that may be more than the GPU's memory holds."""
    return _library(x).managed_zeros(size, dtype)


def to_device(x, device: str):
    """x in the host's memory ("cpu", NumPy) or the GPU's ("cuda", CuPy). Raises BackendError, UnknownNameError."""
    if device not in DEVICES:
        raise unknown_name("device", device, DEVICES)
    if device == "cpu":
        return to_numpy(x)
    return x if _library(x) is not None else _cupy().xp.asarray(x)


def placed(x: np.ndarray):
    """x where new arrays go."""
    return to_device(x, "cuda") if _current == "cupy" else x


class use_backend:
    """Choose a backend: from now on, or, in a with statement, until its end. Raises BackendError for one that this
    machine lacks, saying what is missing; UnknownNameError."""

    def __init__(self, name: str):
        global _current
        if name not in BACKENDS:
            raise unknown_name("backend", name, BACKENDS)
        if name == "cupy":
            _cupy()
        elif name == "simt":
            _simulated()
        self._before, _current = _current, name

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        global _current
        _current = self._before


def current_backend() -> str:
    return _current


def kernels_for(x):
    """What has backend/numpy.py's functions for arrays such as x: that module, or DeviceKernels."""
    library = _library(x)
    if library is not None:
        return library.kernels()
    return _simulated() if _current == "simt" else numpy_kernels


class DeviceKernels:
    """backend/numpy.py's functions, on a Device (see backend/cuda)."""

    def __init__(self, device):
        from minilora.backend.cuda import matmul, quantize

        self.device, self._modules = device, (quantize, matmul)

    def __getattr__(self, name: str):
        module = next((m for m in self._modules if name in vars(m)), None)
        if name.startswith("_") or module is None:
            raise AttributeError(f"backend/cuda has no function {name!r}")
        return partial(getattr(module, name), self.device)


def _cupy():
    """What serves CuPy's arrays, if there are CuPy and a GPU. Raises BackendError."""
    try:
        library = _LIBRARIES["cupy"]()
    except ImportError as error:
        raise BackendError(f"CuPy cannot be imported ({error}); pip install 'minilora[gpu]'") from None
    library.require_gpu()
    return library


def _simulated() -> DeviceKernels:
    from minilora.backend import simt

    return simt.kernels()
