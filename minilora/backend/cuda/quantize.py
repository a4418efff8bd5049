"""Quantize and dequantize: launches of quantize_4bit.cu, dequantize_4bit.cu and int8.cu.

    packed, absmax = quantize_4bit(device, x, levels, 64)
    dequantize_4bit(device, packed, absmax, levels, 64, 0, x.size, dtype=np.float16)

The functions are those of backend/numpy.py, take the Device first, and give the same arrays bit for bit, subnormal
numbers included. version: a step of the kernel's ladder, or None for the best that these sizes and addresses allow; a
LaunchError says what a step needs. `levels` are on the host, all other arrays on the device.

dequantize_* can give float16 and bfloat16 as well: the float32 product, rounded to nearest even; what is beyond
float16's largest number becomes that, 65504, as in quant/array.py.
"""

from functools import lru_cache

import numpy as np

from minilora.backend.cuda.launch import FLOATS, Device, In, Launch, Out, aligned, float_macros
from minilora.backend.numpy import midpoints
from minilora.errors import LaunchError

LONGEST = 1 << 30  # entries that 32 bits index, with room for the threads beyond the end; above, 64 bits are used
THREADS = 256  # of a CUDA block, where its kernel has no reason for another number
TILE = 4  # stores of 16 bytes by a thread of dequantize_4bit_v3
SLICE = 1 << 14  # entries of a block that one CUDA block looks at, in quantize_int8_v2
SLICES = 1024  # of a block, at most


def quantize_4bit(device: Device, x, levels: np.ndarray, blocksize: int, version: int | None = None):
    """Codes of the nearest of at most 16 levels of a flat float32 x: packed (ceil(n/2),) uint8 and absmax
    (ceil(n/blocksize),) float32. version: 0 to 3."""
    n, blocks = _checked_input(x, blocksize, levels, 16)
    packed, absmax = device.empty((-(-n // 2),), np.uint8), device.empty((blocks,), np.float32)
    fours = 4 <= blocksize <= 4096 and blocksize & (blocksize - 1) == 0 and aligned(16, x)
    version = _chosen("quantize_4bit", version, {
        3: "a blocksize that is a power of two from 4 to 4096, and x aligned to 16 bytes" * (not fours),
        2: "an even blocksize" * (blocksize % 2),
        1: "", 0: "",
    })  # fmt: skip
    borders, stored = _borders(levels.tobytes(), 16)
    nibbles = np.uint64(sum(int(code) << 4 * rank for rank, code in enumerate(stored)))
    groups = -(-blocks // (1 + blocksize % 2))  # blocks of odd length are taken by twos, as they share a byte
    threads = {0: 128, 1: 128, 2: THREADS, 3: max(THREADS, blocksize // 4)}[version]
    work = {0: groups, 1: 128 * groups, 2: 32 * blocks, 3: -(-n // 4)}[version]
    args = (In(x), In(device.array(borders)), nibbles, Out(packed), Out(absmax))
    sizes = (n, blocksize if version == 3 else min(blocksize, n + 1))  # a partial block stays one, a power of two too
    _run(device, "quantize_4bit.cu", f"quantize_4bit_v{version}", work, threads, args, sizes)
    return packed, absmax


def dequantize_4bit(
    device: Device, packed, absmax, levels, blocksize: int, start: int, stop: int, out=None, dtype=None, version=None
):
    """Entries start to stop of the flat array: level[code] · absmax of the block, (stop - start,).

    out: contiguous, to fill and return. dtype: of a new one, float32 if None. version: 0 to 3.
    """
    _check("absmax", absmax, "float32", _blocks(start, stop, blocksize))
    return _dequantize_4bit(device, "", packed, (In(absmax),), levels, blocksize, start, stop, out, dtype, version)


def dequantize_4bit_double(
    device: Device, packed, absmax_codes, levels256, absmax2, offset, levels, blocksize: int, start: int, stop: int,
    out=None, dtype=None, version=None,
):  # fmt: skip
    """The same straight from double-quantized constants, bit for bit quant.double.expand followed by dequantize_4bit:
    absmax is level256[code] · absmax2 of 256 codes + offset, with two roundings.

    levels256: the 256 float32 levels of absmax_codes (on the host), or None for int8 codes (double_quant="int8").
    """
    blocks = _blocks(start, stop, blocksize)
    _check("absmax_codes", absmax_codes, "int8" if levels256 is None else "uint8", blocks)
    _check("absmax2", absmax2, "float32", -(-blocks // 256))
    factor = np.float32(1 if levels256 is not None else 1 / 127)
    if levels256 is None:
        levels256 = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
    elif len(_at_most(levels256, 256)) < 256:
        raise LaunchError(f"levels256 are {len(levels256)} levels; codes of 8 bits have 256")
    scale = (In(absmax_codes), In(device.array(levels256)), In(absmax2), factor, np.float32(offset))
    return _dequantize_4bit(device, "double_", packed, scale, levels, blocksize, start, stop, out, dtype, version)


def _dequantize_4bit(device, name, packed, scale, levels, blocksize, start, stop, out, dtype, version):
    _check("packed", packed, "uint8", -(-stop // 2))
    table = np.zeros(16, np.float32)
    table[: len(_at_most(levels, 16))] = levels
    out, width = _output(device, out, dtype, stop - start)
    apart = _why_not_together(width, start, stop, blocksize, out, packed, 4)
    version = _chosen(f"dequantize_4bit_{name}"[:-1], version, {3: apart, 2: apart, 1: "", 0: ""})
    size = stop - start
    work = {0: size, 1: -(-stop // 2) - start // 2, 2: -(-size // width), 3: -(-size // (TILE * width))}[version]
    args = (In(packed), *scale, In(device.array(table)), Out(out))
    function, sizes = f"dequantize_4bit_{name}v{version}", (start, stop, min(blocksize, stop + 1))
    _run(device, "dequantize_4bit.cu", function, work if size else 0, THREADS, args, sizes, macros(out.dtype.name))
    return out


def quantize_int8(device: Device, x, blocksize: int, version: int | None = None):
    """round(127 x / absmax), half to even, of a flat float32 x: codes (n,) int8, absmax (ceil(n/blocksize),) float32.

    version: 0 to 2; the last takes several launches, and is the best where blocks are long.
    """
    n, blocks = _checked_input(x, blocksize)
    blocksize = min(blocksize, max(n, 1))
    codes, absmax = device.empty((n,), np.int8), device.empty((blocks,), np.float32)
    together = (blocksize % 4 == 0 or blocks <= 1) and aligned(16, x)
    why = "a blocksize that is a multiple of 4, or one block in all, and x aligned to 16 bytes" * (not together)
    steps = {2: why, 1: "", 0: ""} if blocksize > SLICE else {1: "", 2: why, 0: ""}
    version = _chosen("quantize_int8", version, steps)
    work = {0: blocks, 1: 32 * blocks, 2: -(-n // 4)}[version]
    if version == 2 and n:
        _absmax_by_slices(device, x, absmax, n, blocksize)
    args = (In(x), Out(codes), In(absmax) if version == 2 else Out(absmax))
    _run(device, "int8.cu", f"quantize_int8_v{version}", work, THREADS, args, (n, blocksize))
    return codes, absmax


def _absmax_by_slices(device: Device, x, absmax, n: int, blocksize: int):
    """The largest of each slice, and then of the slices of each block."""
    slices = min(-(-blocksize // SLICE), SLICES)
    largest = absmax if slices == 1 else device.empty((absmax.size * slices,), np.float32)
    sizes = (n, blocksize, -(-blocksize // slices))
    _run(device, "int8.cu", "slice_absmax", absmax.size * THREADS, THREADS, (In(x), Out(largest)), sizes, rows=slices)
    if slices > 1:
        sizes = (largest.size, slices, slices)
        _run(device, "int8.cu", "slice_absmax", absmax.size * THREADS, THREADS, (In(largest), Out(absmax)), sizes)


def dequantize_int8(
    device: Device, codes, absmax, blocksize: int, start: int = 0, stop: int | None = None, out=None, dtype=None,
    version=None,
):  # fmt: skip
    """(code · absmax) · (1/127), of entries start to stop; out and dtype as of dequantize_4bit. version: 0 or 1."""
    stop = codes.size if stop is None else stop
    _check("codes", codes, "int8", stop)
    _check("absmax", absmax, "float32", _blocks(start, stop, blocksize))
    out, width = _output(device, out, dtype, stop - start)
    apart = _why_not_together(width, start, stop, blocksize, out, codes, 8)
    version = _chosen("dequantize_int8", version, {1: apart, 0: ""})
    work = -(-(stop - start) // (width if version else 1))
    args, sizes = (In(codes), In(absmax), Out(out)), (start, stop, min(blocksize, stop + 1))
    _run(device, "int8.cu", f"dequantize_int8_v{version}", work, THREADS, args, sizes, macros(out.dtype.name))
    return out


def quantize_8bit(device: Device, x, levels: np.ndarray, blocksize: int, version: int | None = None):
    """Codes (n,) uint8 of the nearest of at most 256 levels, and absmax; a level that is NaN is never taken.
    version: 0 or 1."""
    n, blocks = _checked_input(x, blocksize, levels, 256)
    codes, absmax = device.empty((n,), np.uint8), device.empty((blocks,), np.float32)
    version = _chosen("quantize_8bit", version, {1: "", 0: ""})
    borders, order = _borders(levels.tobytes(), 256)
    args = (In(x), In(device.array(borders)), In(device.array(order)), Out(codes), Out(absmax))
    threads, sizes = (THREADS if version else 128), (n, min(blocksize, n + 1))
    _run(device, "int8.cu", f"quantize_8bit_v{version}", blocks * threads if version else blocks, threads, args, sizes)
    return codes, absmax


def dequantize_8bit(device: Device, codes, absmax, levels: np.ndarray, blocksize: int, version: int | None = None):
    """level[code] · absmax of the block, float32 (n,). version: 0."""
    n = codes.size
    _check("codes", codes, "uint8", n)
    _check("absmax", absmax, "float32", _blocks(0, n, blocksize))
    version = _chosen("dequantize_8bit", version, {0: ""})
    table = np.zeros(256, np.float32)
    table[: len(_at_most(levels, 256))] = levels
    out = device.empty((n,), np.float32)
    args = (In(codes), In(absmax), In(device.array(table)), Out(out))
    _run(device, "int8.cu", f"dequantize_8bit_v{version}", n, THREADS, args, (n, min(blocksize, n + 1)))
    return out


@lru_cache(maxsize=32)
def _borders(levels: bytes, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The borders between the sorted levels, filled up with infinity, which nothing exceeds, and the code of each level
    from the lowest up: (most,) float32 and uint8."""
    levels = np.frombuffer(levels, np.float32)
    order = np.argsort(levels, kind="stable")[: np.isfinite(levels).sum()]  # NaN sorts last
    borders, codes = np.full(most, np.inf, np.float32), np.zeros(most, np.uint8)
    borders[: order.size - 1], codes[: order.size] = midpoints(levels[order]), order
    borders.flags.writeable = codes.flags.writeable = False  # shared by every call
    return borders, codes


def _run(device: Device, source, function, work: int, threads: int, args, sizes, defines=None, rows: int = 1):
    """Launch `work` threads (none if 0) over CUDA blocks of `threads`. sizes: counts and indices of entries, the last
    arguments; the largest decides how many bits they have."""
    if not work:
        return
    wide = max(sizes) > LONGEST + 1
    defines = {**(defines or {}), "INDEX": "size_t" if wide else "unsigned"}
    args += tuple((np.uint64 if wide else np.uint32)(size) for size in sizes)
    grid = (-(-work // threads), rows) if rows > 1 else (-(-work // threads),)
    device.run(Launch(source, function, grid, (threads,), args, defines))


def _chosen(name: str, version: int | None, steps: dict[int, str]) -> int:
    """version, or the first of steps that needs nothing. steps: version -> what it needs and these arguments lack."""
    if version is None:
        return next(v for v, why in steps.items() if not why)
    if version not in steps:
        raise LaunchError(f"{name} has no version {version!r}; there are: {sorted(steps)}, None for the best")
    if steps[version]:
        fit = sorted(v for v, why in steps.items() if not why)
        raise LaunchError(f"{name}_v{version} needs {steps[version]}; versions that take these arguments: {fit}")
    return version


def _why_not_together(width: int, start: int, stop: int, blocksize: int, out, codes, alignment: int) -> str:
    """Why a thread cannot take `width` entries at once, in one block and aligned; empty if it can."""
    one = blocksize % width == 0 or (stop - 1) // blocksize == start // blocksize
    if start % width == 0 and one and aligned(16, out) and aligned(alignment, codes):
        return ""
    return (
        f"start and blocksize to be multiples of {width} (here {start} and {blocksize}), "
        f"out aligned to 16 bytes and the codes to {alignment}"
    )


def macros(dtype: str) -> dict[str, str]:
    """How dequantize is compiled for an output of this type. LARGEST: its largest number where float32 has larger."""
    return float_macros(OUT=dtype) | ({"LARGEST": "65504.0f"} if dtype == "float16" else {})


def _output(device: Device, out, dtype, size: int) -> tuple[object, int]:
    """out, or a new array of dtype, and how many entries 16 bytes of it hold."""
    name = np.dtype(dtype or (np.float32 if out is None else out.dtype)).name
    if name not in FLOATS:
        raise LaunchError(f"dequantize gives {', '.join(FLOATS)}, not {name}")
    if out is None:
        out = device.empty((size,), np.dtype(dtype or np.float32))
    elif out.shape != (size,) or out.dtype.name != name:
        raise LaunchError(f"out is {out.dtype}{out.shape}; asked for are {name}({size},)")
    return out, 16 // out.dtype.itemsize


def _checked_input(x, blocksize: int, levels: np.ndarray | None = None, most: int = 0) -> tuple[int, int]:
    """How many entries x has, and blocks."""
    _check("x", x, "float32", 0)
    if levels is not None:
        _at_most(levels, most)
    return x.size, _blocks(0, x.size, blocksize)


def _at_most(levels: np.ndarray, most: int) -> np.ndarray:
    if len(levels) > most or levels.dtype != np.float32:
        raise LaunchError(f"levels are {levels.dtype}{levels.shape}; needed are at most {most} of float32, on the host")
    return levels


def _blocks(start: int, stop: int, blocksize: int) -> int:
    """How many blocks the entries up to stop lie in."""
    if blocksize < 1 or not 0 <= start <= stop:
        raise LaunchError(
            f"entries {start} to {stop} in blocks of {blocksize}: needed are 0 <= start <= stop, blocksize >= 1"
        )
    return -(-stop // blocksize)


def _check(name: str, array, dtype: str, size: int):
    if array.ndim != 1 or array.dtype.name != dtype or array.size < size:
        raise LaunchError(f"{name} is {array.dtype}{array.shape}; needed is one row of {dtype}, at least {size} long")
