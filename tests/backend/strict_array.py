"""A stand-in for CuPy's arrays on a machine without a GPU: NumPy's memory behind CuPy's interface, and no more of it.

    x = xp.asarray(np.ones((2, 3)))       # a copy, as to a GPU
    with registered(): ...                # minilora takes these arrays for CuPy's, this machine for one with a GPU

What the installed cupy lacks is refused: a function or method that it has not (or not with these arguments: its own
signatures are asked), ufunc methods but those of cupy.ufunc, NumPy arrays mixed in, every implicit way to the host.
Numbers are computed by NumPy: this says what CuPy accepts, not what a GPU computes.
"""

import inspect
import math
import re
from contextlib import contextmanager
from types import SimpleNamespace

import cupy
import numpy as np

from minilora import backend
from minilora.backend import DeviceKernels
from minilora.backend import numpy as numpy_kernels
from minilora.backend.cuda.launch import Device, In, Launch, Out

SCALARS = (bool, int, float, complex, np.generic)
TRANSFERS = ("array", "asarray", "asanyarray")  # what takes NumPy's arrays and lists: explicit copies to the GPU
GUFUNC = type(cupy.matmul)
UFUNC_KEYWORDS = {"out", "dtype", "casting", "where"}  # of cupy.ufunc.__call__, whose signature is (*args, **kwargs)
REDUCEAT = ("add",)  # cupy.ufunc.reduceat raises NotImplementedError for all others
PROPERTIES = ("T", "mT", "real", "imag")
FACTS = ("dtype", "shape", "size", "ndim", "nbytes", "itemsize", "strides")


def _signature(method: str) -> inspect.Signature:
    """Of a method of cupy.ndarray, as the first line of its docstring has it."""
    line = (getattr(cupy.ndarray, method).__doc__ or "").split("\n")[0]
    if not (match := re.match(r"\w+\.\w+\((.*?)\)(\s*->.*)?$", line)):
        return inspect.signature(getattr(cupy.ndarray, method))
    parameters = re.sub(r"\b(Py_ssize_t|int|_ndarray_base)\s+(?=\w)", "", match[1])
    return inspect.signature(eval(f"lambda {parameters}: None"))


METHODS = {
    name: _signature(name)
    for name in dir(cupy.ndarray)
    if not name.startswith("_") and callable(getattr(cupy.ndarray, name)) and name not in ("get", "set")
}


def _memory(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _inner(x, host: bool = False):
    """x with NumPy's arrays in the place of these, in tuples and lists too. host: whether NumPy's are welcome."""
    if isinstance(x, ndarray):
        return x._array
    if isinstance(x, (tuple, list)):
        return type(x)(_inner(item, host) for item in x)
    if isinstance(x, np.ndarray) and x.ndim and not host:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>: CuPy converts nothing implicitly")
    return x


def _outer(result, sources=()):
    """A result as CuPy would give it: arrays of 0 dimensions for NumPy's scalars; views know what they are of."""
    if isinstance(result, (tuple, list)):
        return tuple(_outer(item, sources) for item in result)
    if not isinstance(result, (np.ndarray, np.generic)):
        return result
    for source in sources:
        if result is source._array:
            return source
    array = np.asarray(result)
    shared = [s for s in sources if isinstance(result, np.ndarray) and _memory(result) is _memory(s._array)]
    base = (shared[0].base if shared[0].base is not None else shared[0]) if shared else None
    return ndarray(array, base)


def _arrays(*values):
    """These arrays among arguments."""
    for value in values:
        if isinstance(value, ndarray):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _arrays(*value)


class ndarray:
    """What cupy.ndarray has."""

    __array_priority__ = 100
    __hash__ = None

    def __init__(self, array: np.ndarray, base=None):
        self._array, self.base = array, base

    @property
    def flags(self):
        flags = self._array.flags
        return SimpleNamespace(c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=flags.owndata)

    @property
    def data(self):
        return SimpleNamespace(ptr=self._array.ctypes.data)

    @property
    def __cuda_array_interface__(self):
        return self._array.__array_interface__

    def get(self):
        return self._array.copy()

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __getattr__(self, name: str):
        if name.startswith("_") or not hasattr(cupy.ndarray, name):
            raise AttributeError(f"cupy.ndarray has no attribute {name!r}")
        if name in FACTS:
            return getattr(self._array, name)
        if name in PROPERTIES:
            return _outer(getattr(self._array, name), [self])

        def method(*args, **kwargs):
            METHODS[name].bind(self, *args, **kwargs)
            result = getattr(self._array, name)(*_inner(args), **{k: _inner(v) for k, v in kwargs.items()})
            return result if name in ("item", "tolist", "tobytes") else _outer(result, [self, *_arrays(args)])

        return method

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        if not any(i is Ellipsis for i in index):
            index = (*index, Ellipsis)  # a view even of one entry
        return _outer(self._array[_inner(index, host=True)], [self])

    def __setitem__(self, index, value):
        self._array[_inner(index, host=True)] = _inner(value)

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __bool__(self):
        return bool(self._array)

    def __int__(self):
        return int(self._array)

    def __float__(self):
        return float(self._array)

    def __repr__(self):
        return f"strict {self._array!r}"

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__" or not hasattr(cupy, ufunc.__name__):
            return NotImplemented
        kwargs |= {"out": kwargs["out"][0]} if "out" in kwargs else {}
        return getattr(xp, ufunc.__name__)(*inputs, **kwargs)

    def __array_function__(self, function, types, args, kwargs):
        place = xp
        for part in function.__module__.split(".")[1:]:
            place = getattr(place, part)
        try:
            return getattr(place, function.__name__)(*args, **kwargs)
        except AttributeError:
            return NotImplemented


def _operators():
    """The binary and unary operators that cupy.ndarray has, each by NumPy's of the same name."""

    def binary(name, in_place):
        def operate(self, other):
            if not isinstance(other, (ndarray, np.ndarray, *SCALARS)):
                return NotImplemented  # a Tensor, which is asked next
            result = getattr(np.asarray(self._array), name)(_inner(other))
            return self if in_place else _outer(result)

        return operate

    def unary(name):
        return lambda self: _outer(getattr(self._array, name)())

    pairs = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"]
    for name in (*pairs, *(f"r{p}" for p in pairs), *(f"i{p}" for p in pairs), "lt", "le", "gt", "ge", "eq", "ne"):
        if hasattr(cupy.ndarray, f"__{name}__"):
            setattr(ndarray, f"__{name}__", binary(f"__{name}__", name[0] == "i" and name[1:] in pairs))
    for name in ("neg", "pos", "abs", "invert"):
        setattr(ndarray, f"__{name}__", unary(f"__{name}__"))


_operators()


class Ufunc:
    """cupy.<name>, a ufunc or, as matmul, a generalized one."""

    def __init__(self, name: str):
        self.name, self.cupy, self.numpy = name, getattr(cupy, name), getattr(np, name)

    def __call__(self, *inputs, out=None, **kwargs):
        if isinstance(self.cupy, GUFUNC):
            inspect.signature(GUFUNC.__call__).bind(None, *inputs, out=out, **kwargs)
        elif odd := kwargs.keys() - UFUNC_KEYWORDS:
            raise TypeError(f"cupy.{self.name} takes no {odd}")
        kwargs = {name: _inner(value) for name, value in kwargs.items()}
        if out is not None:
            self.numpy(*_inner(inputs), out=_inner(out), **kwargs)
            return out
        return _outer(self.numpy(*_inner(inputs), **kwargs))

    def at(self, a, indices, b=None):
        if not getattr(self.cupy, "_scatter_op", None):
            raise NotImplementedError(f"cupy.{self.name}.at is not supported")
        self.numpy.at(_inner(a), _inner(indices, host=True), _inner(b))

    def reduceat(self, array, indices, axis=0, dtype=None, out=None):
        if self.name not in REDUCEAT:
            raise NotImplementedError(f"cupy.{self.name}.reduceat is not supported")
        return _outer(self.numpy.reduceat(_inner(array), _inner(indices), axis, dtype, out))


class Namespace:
    """cupy, or one of its modules: what it has, computed by NumPy's function of the same name."""

    def __init__(self, module, own):
        self.__name__, self._module, self._own = "strict_array", module, own

    def __getattr__(self, name: str):
        theirs = getattr(self._module, name)  # AttributeError where CuPy lacks it
        if inspect.ismodule(theirs):
            return Namespace(theirs, getattr(self._own, name))
        if isinstance(theirs, (cupy.ufunc, GUFUNC)):
            return Ufunc(name)
        if not callable(theirs) or isinstance(theirs, type):
            return ndarray if name == "ndarray" else theirs

        def function(*args, **kwargs):
            inspect.signature(theirs).bind(*args, **kwargs)
            host = name in TRANSFERS
            if host and not any(True for _ in _arrays(args)):
                kwargs["copy"] = True  # a GPU's memory is another
            result = getattr(self._own, "array" if host else name)(
                *_inner(args, host), **{key: _inner(value) for key, value in kwargs.items()}
            )
            return _outer(result, list(_arrays(args)))

        return function


xp = Namespace(cupy, np)
ndarray.__module__ = "strict_array"


def _erf(x: ndarray) -> ndarray:
    return _outer(np.vectorize(math.erf, otypes=[x.dtype])(x._array)) if x.size else x.copy()


class StrictDevice(Device):
    """A Device for these arrays, on the simulated GPU."""

    def __init__(self, simulated):
        self.simulated, self.arch = simulated, simulated.arch

    def empty(self, shape, dtype):
        return ndarray(self.simulated.empty(shape, dtype))

    def array(self, host):
        return ndarray(self.simulated.array(host))

    def execute(self, launch: Launch):
        args = tuple(type(a)(a.array._array) if isinstance(a, (In, Out)) else a for a in launch.args)
        self.simulated.execute(Launch(launch.source, launch.function, launch.grid, launch.block, args, launch.defines,
                                      launch.shared, launch.arch))  # fmt: skip


class HostKernels:
    """backend/numpy.py's functions on these arrays: quicker than the simulated GPU."""

    def __getattr__(self, name: str):
        def kernel(*args, **kwargs):
            result = getattr(numpy_kernels, name)(*_inner(args, host=True), **{k: _inner(v) for k, v in kwargs.items()})
            return kwargs["out"] if kwargs.get("out") is not None else _outer(result)

        return kernel


@contextmanager
def registered(device: Device | None = None):
    """Within it minilora takes these arrays for CuPy's. device: whose kernels serve them; backend/numpy.py's where
    None."""
    kernels = HostKernels() if device is None else DeviceKernels(StrictDevice(device))
    library = SimpleNamespace(
        xp=xp, special=SimpleNamespace(erf=_erf), to_numpy=lambda x: x.get(), kernels=lambda: kernels,
        require_gpu=lambda: None, managed_zeros=lambda size, dtype: xp.zeros(size, dtype),
    )  # fmt: skip
    before = dict(backend._LIBRARIES)
    backend._LIBRARIES.update(strict_array=lambda: library, cupy=lambda: library)
    try:
        yield library
    finally:
        backend._LIBRARIES.clear()
        backend._LIBRARIES.update(before)
