"""Every launch that the launchers build, held to the kernel that it names: a GPU is given bytes, and checks nothing.

The launchers run on a device that only notes what it is asked for. The compiler then says what each kernel takes:
PTX has the parameters' number, order and widths; a template, compiled with the kernel, which pointers are const and how
large what they point to is. CuPy packs arguments by the same rule: an array's address, a NumPy scalar's own bytes.
"""

from functools import cache
from itertools import product

import ml_dtypes
import numpy as np
import pytest

from minilora import simt
from minilora.backend.cuda import launch as launches
from minilora.backend.cuda import matmul, quantize, rows
from minilora.backend.cuda.gemm import gemm_4bit
from minilora.backend.cuda.launch import Device, In, Launch, Out
from minilora.quant import CODES, DYNAMIC_MAP

pytestmark = pytest.mark.skipif(not simt.available(), reason="NVRTC is missing: pip install 'minilora[simt]'")

NF4, f32, u8 = CODES["nf4"], np.float32, np.uint8
DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
TWO = (np.float32, ml_dtypes.bfloat16)  # where the types of 16 bits take the same way through a launcher
SCALAR, READS, WRITES = 0, 1, 2
KINDS = """
template <class T> struct kind_ { enum { value = sizeof(T) }; };
template <class T> struct kind_<const T*> { enum { value = 1000 + sizeof(T) }; };
template <class T> struct kind_<T*> { enum { value = 2000 + sizeof(T) }; };
template <class F> struct kinds_;
template <class... P> struct kinds_<void (*)(P...)> { int of[sizeof...(P)] = {kind_<P>::value...}; };
"""
SIGNATURE = 'extern "C" __constant__ kinds_<decltype(&FUNCTION)> signature_FUNCTION = {};\n'


class Recorder(Device):
    """Notes the launches and runs none."""

    def __init__(self, arch: int = 80):
        self.arch, self.launches = arch, []

    def empty(self, shape, dtype):
        return np.zeros(shape, dtype)

    def array(self, host):
        return host

    def execute(self, launch: Launch):
        self.launches.append(launch)


def quantizers(device: Device):
    """Every launcher of quantize.py, in every version and type, on small arrays."""
    n = 1024
    zeros = {dtype: np.zeros(n, dtype) for dtype in (f32, u8, np.int8)}
    x, packed, absmax = zeros[f32], zeros[u8][: n // 2], zeros[f32][: n // 32]
    for version in range(4):
        quantize.quantize_4bit(device, x, NF4, 64, version)
        for dtype in DTYPES:
            quantize.dequantize_4bit(device, packed, absmax, NF4, 64, 0, n, dtype=dtype, version=version)
            for codes, levels in ((zeros[u8], DYNAMIC_MAP), (zeros[np.int8], None)):
                scales = codes[: n // 32], levels, absmax[:1], f32(0.5)
                quantize.dequantize_4bit_double(device, packed, *scales, NF4, 64, 0, n, dtype=dtype, version=version)
    for version, blocksize in product(range(3), (64, n)):
        quantize.quantize_int8(device, x, blocksize, version)
    quantize.quantize_int8(device, np.zeros(1 << 15, f32), 1 << 15)
    for version in range(2):
        quantize.quantize_8bit(device, x, DYNAMIC_MAP, 256, version)
        for dtype in DTYPES:
            quantize.dequantize_int8(device, zeros[np.int8], absmax, 64, dtype=dtype, version=version)
    quantize.dequantize_8bit(device, zeros[u8], absmax, DYNAMIC_MAP, 256)


def products(device: Device):
    """Every launcher of matmul.py and gemm.py: of a W (32, 32), and of a longer one, whose sum is split."""
    packed, absmax, codes = np.zeros(512, u8), np.zeros(16, f32), np.zeros(16, u8)
    adapters = None, (np.zeros((16, 4), f32), np.zeros((32, 4), f32), 0.5)
    long = np.zeros(1 << 17, u8), np.zeros(1 << 12, f32), NF4, 64, (512, 512)
    for dtype, transpose, adapter in product(TWO, (False, True), adapters):
        for version in range(3 if dtype is f32 else 5):
            a = np.zeros((16, 32), dtype)
            gemm_4bit(device, a, packed, absmax, NF4, 64, (32, 32), transpose, version, adapter)
        adapter = adapter and (adapter[0], np.zeros((512, 4), f32), 0.5)
        gemm_4bit(device, np.zeros((16, 512), dtype), *long, transpose, lora=adapter, splits=2)
    nested = codes, DYNAMIC_MAP, absmax[:1], f32(0.5)
    for dtype, version, scales, adapter in product(TWO, range(5), (None, nested), adapters):
        adapter = adapter and (adapter[0][:2], *adapter[1:])
        plain = absmax if scales is None else None
        matmul.gemv_4bit(device, np.zeros((2, 32), dtype), packed, plain, NF4, 64, (32, 32), version, scales, adapter)
    matmul.matmul_int8(device, np.zeros((2, 32), f32), np.zeros(1024, np.int8), absmax, 64, (32, 32))


@cache
def recorded() -> tuple[Launch, ...]:
    """Of all launchers."""
    device = Recorder()
    quantizers(device)
    products(device)
    for version in range(3):
        rows.softmax(device, np.zeros((4, 8), f32), version)
        rows.rms_norm(device, np.zeros((4, 8), f32), np.zeros(8, f32), version=version)
    return unique(device.launches)


def unique(found: list[Launch]) -> tuple[Launch, ...]:
    return tuple({(one.source, one.function, one.options, str(shape(one))): one for one in found}.values())


def shape(launch: Launch) -> list[tuple[int, str]]:
    """(kind, type) of each argument."""
    kinds = {In: READS, Out: WRITES}
    return [(kinds.get(type(a), SCALAR), (a.array if isinstance(a, (In, Out)) else a).dtype.name) for a in launch.args]


@cache
def program(source: str, options: tuple[str, ...], functions: frozenset[str]) -> simt.Program:
    """The file compiled, with a table of what each of the functions takes."""
    tables = "".join(SIGNATURE.replace("FUNCTION", function) for function in sorted(functions))
    return simt.load(simt.compile_cuda(launches.source(source) + KINDS + tables, 80, options, source))


def compiled(found: tuple[Launch, ...]) -> dict[tuple, simt.Program]:
    """(source, options) -> program, of all launches."""
    functions = {}
    for one in found:
        functions.setdefault((one.source, one.options), set()).add(one.function)
    return {key: program(*key, frozenset(names)) for key, names in functions.items()}


def differences(one: Launch, kernels: simt.Program) -> list[str]:
    """What does not fit between a launch and its kernel."""
    table = next(v for v in kernels.variables if v.name == f"signature_{one.function}").data.view(np.int32)
    types = [type_ for _, type_ in kernels.kernels[one.function].parameters]
    if not len(types) == len(table) == len(one.args):
        return [f"{len(one.args)} arguments, {len(types)} parameters"]
    found = []
    for i, ((kind, dtype), arg, type_) in enumerate(zip(shape(one), one.args, types, strict=True)):
        pointer, size = divmod(int(table[i]), 1000)
        itemsize = (arg.array if isinstance(arg, (In, Out)) else arg).dtype.itemsize
        if kind != pointer or itemsize != size:
            names = {SCALAR: "a scalar", READS: "a const pointer", WRITES: "a pointer"}
            found.append(f"argument {i} is {names[kind]} of {dtype}, the parameter {names[pointer]} of {size} bytes")
        elif kind == SCALAR and (type_[0] == "f") != (dtype[0] == "f"):
            found.append(f"argument {i} is {dtype}, the parameter .{type_}")
        elif kind != SCALAR and type_ != "u64":
            found.append(f"argument {i} is an array, the parameter .{type_}")
    return found


def wrong(found: tuple[Launch, ...]) -> dict[str, list[str]]:
    programs = compiled(found)
    checked = {f"{one.function} {one.options}": differences(one, programs[one.source, one.options]) for one in found}
    return {name: what for name, what in checked.items() if what}


@pytest.mark.slow
def test_every_launch_fits_its_kernel():
    assert wrong(recorded()) == {}


@pytest.mark.slow
def test_every_kernel_is_launched():
    """No kernel of any file is left out above: those that the compiler finds, and those that launches name."""
    named = {(one.source, one.function) for one in recorded()}
    programs = compiled(recorded())
    assert {(source, kernel) for (source, _), found in programs.items() for kernel in found.kernels} == named
    assert {source for source, _ in named} == {path.name for path in launches.FOLDER.glob("*.cu")}


def test_so_do_launches_on_arrays_that_need_64_bits(monkeypatch):
    monkeypatch.setattr(quantize, "LONGEST", 100)
    device = Recorder()
    quantizers(device)
    found = unique(device.launches)
    assert any("-DINDEX=size_t" in one.options and np.uint64 in map(type, one.args) for one in found)
    assert wrong(found) == {}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda args: args[:-1], "arguments"),
        (lambda args: (args[1], args[0], *args[2:]), "argument 0"),
        (lambda args: (Out(args[0].array), *args[1:]), "argument 0 is a pointer of"),
        (lambda args: (In(args[0].array.astype(np.float64)), *args[1:]), "argument 0 is a const pointer of float64"),
        (lambda args: (*args[:-1], np.int64(args[-1])), "of int64"),
        (lambda args: (*args[:-1], np.float32(args[-1])), "is float32, the parameter .u32"),
    ],
)
def test_the_check_sees(change, what):
    right = next(one for one in recorded() if one.function == "dequantize_4bit_v1")
    kernels = compiled((right,))[right.source, right.options]
    assert differences(right, kernels) == []
    changed = Launch(right.source, right.function, right.grid, right.block, change(right.args), right.defines)
    assert what in " ".join(differences(changed, kernels))


def test_an_array_in_the_wrong_memory_is_refused_before_the_launch():
    right = recorded()[0]
    args = tuple(In(a.array[::2]) if isinstance(a, In) else a for a in right.args)
    with pytest.raises(launches.LaunchError, match="is not contiguous"):
        Launch(right.source, right.function, right.grid, right.block, args, right.defines).check(80)
