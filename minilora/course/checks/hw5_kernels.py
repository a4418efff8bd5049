"""Homework 5, kernels: CUDA C that NVIDIA's compiler compiles (NVRTC) and minilora's simulated GPU runs.

An answer is a function that returns a kernel's body, a string. Laws about values leave races out; a law of its own
looks for them, so that a kernel without a barrier is told so, and not that it cannot add.
"""

import functools
import re

import numpy as np

from minilora import simt
from minilora.course.check import Problem, Wrong, equal
from minilora.errors import SimulationError
from minilora.quant import CODES

HEADS = {
    "dequantize_int8": "const signed char* codes, const float* absmax, float* out, int n, int blocksize",
    "unpack": "const unsigned char* packed, unsigned char* codes, int n",
    "dequantize_4bit": "const unsigned char* packed, const float* absmax, const float* levels, float* out, int n, "
    "int blocksize",
    "block_absmax": "const float* x, float* absmax, int n, int blocksize",
    "count_codes": "const unsigned char* packed, int* counts, int n",
    "gemv_4bit": "const unsigned char* packed, const float* absmax, const float* levels, const float* x, float* y, "
    "int cols, int blocksize",
}
LEVELS = CODES["nf4"]


class Kernel(Problem):
    """A problem of whose cases a quarter is tried: each is a launch, and takes milliseconds."""

    def law(self, says, draw, means):
        def some(rng, size):
            return draw(rng, size) if rng.random() < 0.25 else {}

        def add(holds):
            return Problem.law(self, says, some, means)(lambda answer, **case: holds(answer, **case) if case else None)

        return add


@functools.lru_cache(maxsize=256)
def compiled(name: str, body: str) -> simt.Program:
    """The kernel `name` with this body. Line 1 is the body's first. Raises CompileError with the compiler's words."""
    source = f'extern "C" __global__ void {name}({HEADS[name]}) {{\n#line 1\n{body}\n}}\n'
    return simt.load(simt.compile_cuda(source, options=("-w",), name=f"{name}.cu"))


def launch(answer, name: str, grid: int, block: int, *args, races: bool = False) -> simt.Machine:
    """Run the kernel: arrays that it may only read (whole numbers of 64 bits come to it as floats), `Out`s, and
    integers. races: look for them, and for what is read before it was written."""
    body = answer()
    if not isinstance(body, str):
        raise Wrong(f"the kernel's body is to be returned, a string; got {body!r:.80}")
    if "__global__" in body:
        raise Wrong("return what stands between the kernel's braces only: its head is put before it")
    arguments = [np.int32(a) if isinstance(a, int) else a.buffer() if isinstance(a, Out) else _given(a) for a in args]
    machine = simt.Machine(compiled(name, body), name, (grid,), (block,), arguments, check=races, max_steps=50_000)
    try:
        machine.run()
    except SimulationError as error:
        names = re.findall(r"(\w+)(?:,|$)", HEADS[name])
        raise Wrong(re.sub(r"argument (\d+)", lambda m: names[int(m[1])], str(error))) from None
    return machine


def _given(array: np.ndarray) -> simt.Buffer:
    return simt.Buffer(array.astype(np.float32) if array.dtype == np.int64 else array, read_only=True)


class Out:
    """An array to be written: NaN or 255 where it has not been. start: what is in it before."""

    def __init__(self, shape, dtype=np.float32, start=None):
        unset = np.nan if np.dtype(dtype).kind == "f" else 255
        self.array, self.initialized = np.full(shape, unset if start is None else start, dtype), start is not None

    def buffer(self) -> simt.Buffer:
        return simt.Buffer(self.array, initialized=self.initialized)


def packed(codes) -> np.ndarray:
    """Two codes a byte, the first in its high half; an odd number is filled up with 7, the code of 0."""
    two = np.append(codes, [7] * (len(codes) % 2)).astype(np.uint8).reshape(-1, 2)
    return two[:, 0] << 4 | two[:, 1]


def _blocks(n: int, threads: int) -> int:
    return -(-n // threads)


def _codes(rng, n: int) -> np.ndarray:
    return rng.integers(0, 16, n).astype(np.uint8)


def _scales(rng, n: int) -> np.ndarray:
    return rng.integers(1, 5, n)


# dequantize_int8: out[i] = codes[i] absmax[i / blocksize] / 127

dequantize_int8 = Kernel("dequantize_int8", 4)
OUTSIDE = "the last CUDA block has threads left over: those have nothing to do, and i = n is already too large"


def _int8(n, blocksize):
    def draw(rng, size):
        count, length = n(size), blocksize(size)
        codes = rng.integers(-127, 128, count).astype(np.int8)
        return {"codes": codes, "absmax": _scales(rng, _blocks(count, length)), "blocksize": length}

    return draw


for says, draw, means in (
    ("one CUDA block of threads and one scale: codes[i] * absmax[0] / 127", _int8(lambda s: 32, lambda s: 32),
     "in C, an integer divided by an integer is an integer: codes[i] / 127 is nearly always 0"),
    ("several CUDA blocks, one scale", _int8(lambda s: 32 * s, lambda s: 32 * s),
     "a thread's number in all is blockIdx.x * blockDim.x + threadIdx.x"),
    ("each block of blocksize entries has its own scale", _int8(lambda s: 96, lambda s: 12 * s),
     "entry i belongs to block i / blocksize, which has nothing to do with CUDA's blocks of threads"),
    ("n may be any number: nothing outside the arrays is touched", _int8(lambda s: 30 * s + 1, lambda s: 999), OUTSIDE),
):  # fmt: skip

    @dequantize_int8.law(says, draw=draw, means=means)
    def _(answer, codes, absmax, blocksize):
        out = Out(len(codes))
        launch(answer, "dequantize_int8", _blocks(len(codes), 32), 32, codes, absmax, out, len(codes), blocksize)
        equal(out.array, codes * np.repeat(absmax, blocksize)[: len(codes)] / np.float32(127), 1e-6)


# unpack: two codes from each byte

unpack = Kernel("unpack", 3)


def _unpacked(answer, codes, threads: int, races=False):
    out = Out(len(codes), np.uint8)
    launch(answer, "unpack", threads // 32, 32, packed(codes), out, len(codes), races=races)
    return out.array


@unpack.law(
    "the first code of a byte is in its high half", draw=lambda rng, size: {"codes": _codes(rng, 2 * size)},
    means="nibbles swapped: the high half is byte >> 4, the low one byte & 15, and the high one comes first",
)  # fmt: skip
def _(answer, codes):
    equal(_unpacked(answer, codes, 32), codes, 0)


@unpack.law(
    "n may be odd: the last byte then has one code", draw=lambda rng, size: {"codes": _codes(rng, 2 * size - 1)},
    means="the second code of the last byte is only there to fill it, and codes has no place for it",
)  # fmt: skip
def _(answer, codes):
    equal(_unpacked(answer, codes, 32), codes, 0)


@unpack.law(
    "there may be many CUDA blocks, and many more threads than codes",
    draw=lambda rng, size: {"codes": _codes(rng, 24 * size), "threads": 32 * (size + 2)},
    means="threads beyond the last byte have nothing to do",
)  # fmt: skip
def _(answer, codes, threads):
    equal(_unpacked(answer, codes, threads, races=True), codes, 0)


# dequantize_4bit: out[i] = levels[code i] absmax[i / blocksize]

dequantize_4bit = Kernel("dequantize_4bit", 4)


def _four_bits(n, blocksize, threads=lambda s: 128):
    def draw(rng, size):
        count, length = n(size), blocksize(size)
        return {"codes": _codes(rng, count), "absmax": _scales(rng, _blocks(count, length)), "blocksize": length,
                "threads": threads(size)}  # fmt: skip

    return draw


def _dequantized(answer, codes, absmax, blocksize, threads, races=False):
    out, n = Out(len(codes)), len(codes)
    args = (packed(codes), absmax, LEVELS, out, n, blocksize)
    launch(answer, "dequantize_4bit", threads // 32, 32, *args, races=races)
    return out.array


for says, draw, means in (
    ("out[i] is the level of code i times the scale", _four_bits(lambda s: 2 * s, lambda s: 16),
     "is it a nibble of byte i / 2, the high one for even i? And the level, not the code"),
    ("each block has its own scale, the last may be shorter", _four_bits(lambda s: 15 * s, lambda s: 4 + 6 * (s % 3)),
     "blocksize counts entries, not bytes: the scale of entry i is absmax[i / blocksize]"),
    ("threads may be fewer than entries", _four_bits(lambda s: 61 * s, lambda s: 64, lambda s: 32 * (1 + s % 3)),
     "after its first entry a thread goes on with the one that lies as far on as there are threads: "
     "i += gridDim.x * blockDim.x"),
):  # fmt: skip

    @dequantize_4bit.law(says, draw=draw, means=means)
    def _(answer, codes, absmax, blocksize, threads):
        got = _dequantized(answer, codes, absmax, blocksize, threads)
        equal(got, LEVELS[codes] * np.repeat(absmax, blocksize)[: len(codes)], 1e-6)


@dequantize_4bit.law(
    "no entry is written by two threads", draw=_four_bits(lambda s: 61 * s, lambda s: 64, lambda s: 32 * (1 + s % 3)),
    means="the step is too small, so that threads do each other's work",
)  # fmt: skip
def _(answer, codes, absmax, blocksize, threads):
    _dequantized(answer, codes, absmax, blocksize, threads, races=True)


# block_absmax: of each block of x the largest |x|, by one CUDA block

block_absmax = Kernel("block_absmax", 6)


def _numbers(n, blocksize):
    return lambda rng, size: {"x": rng.integers(-99, 100, n(size)), "blocksize": blocksize(size)}


def _largest(answer, x, blocksize, races=False):
    out = Out(_blocks(len(x), blocksize))
    machine = launch(answer, "block_absmax", len(out.array), 64, x, out, len(x), blocksize, races=races)
    return out.array, machine


for says, draw, means in (
    ("64 numbers, a thread each: the largest |x|", _numbers(lambda s: 64, lambda s: 64),
     "max of x instead of |x|; or the tree of halvings leaves some out: 32, 16, 8, 4, 2, 1"),
    ("there are several blocks, each with its own", _numbers(lambda s: 64 * s, lambda s: 64),
     "CUDA block b has the numbers from b * blocksize on, and writes absmax[b]"),
    ("a block may have more numbers than threads, or fewer", _numbers(lambda s: 80 * s, lambda s: (20, 80, 200)[s % 3]),
     "a thread takes the numbers t, t + 64, t + 128 and so on of its block, and none of the next; one that has none "
     "brings 0"),
    ("the last block may be shorter", _numbers(lambda s: 64 * s + 5, lambda s: 64), "n is where x ends"),
):  # fmt: skip

    @block_absmax.law(says, draw=draw, means=means)
    def _(answer, x, blocksize):
        expected = [abs(x[i : i + blocksize]).max() for i in range(0, len(x), blocksize)]
        equal(_largest(answer, x, blocksize)[0], np.array(expected, np.float32), 0)


@block_absmax.law(
    "no thread reads what another may not have written yet", draw=_numbers(lambda s: 70 * s, lambda s: 64),
    means="a barrier is missing: __syncthreads() between writing and reading, in each round, and for all threads alike",
)  # fmt: skip
def _(answer, x, blocksize):
    _largest(answer, x, blocksize, races=True)


@block_absmax.law(
    "the threads share the work: 2,048 numbers take far fewer than 2,048 steps",
    draw=_numbers(lambda s: 2048, lambda s: 2048), means="one thread does it all, or all do the same",
)  # fmt: skip
def _(answer, x, blocksize):
    found, machine = _largest(answer, x, blocksize)
    equal(found, np.array([abs(x).max()]), 0)
    if machine.steps > 2048:
        raise Wrong(f"it took {machine.steps} instructions one after the other")


# count_codes: how often each of the 16 codes occurs

count_codes = Kernel("count_codes", 4)


def _counts(answer, codes, threads, races=False):
    out = Out(16, np.int32, start=0)
    launch(answer, "count_codes", threads // 32, 32, packed(codes), out, len(codes), races=races)
    return out.array


for says, draw, means in (
    ("codes that are all different are each counted once",
     lambda rng, size: {"codes": rng.permutation(16).astype(np.uint8), "threads": 32},
     "each thread adds 1 to counts[its code]; both halves of a byte count"),
    ("of equal codes none is lost", lambda rng, size: {"codes": np.full(10 * size, size, np.uint8), "threads": 96},
     "two threads read the same old count, and both write it plus one: use atomicAdd(&counts[code], 1)"),
    ("n may be odd: what fills the last byte is not counted",
     lambda rng, size: {"codes": rng.permutation(16)[: 2 * size - 1].astype(np.uint8), "threads": 32},
     "the last byte's low half is no code then"),
):  # fmt: skip

    @count_codes.law(says, draw=draw, means=means)
    def _(answer, codes, threads):
        got, times = _counts(answer, codes, threads), np.bincount(codes, minlength=16)
        for code in np.flatnonzero(got != times):
            raise Wrong(f"code {code} occurs {times[code]} times and was counted {got[code]} times")


@count_codes.law(
    "no two threads change a count at the same time",
    draw=lambda rng, size: {"codes": _codes(rng, 12 * size), "threads": 96},
    means="counts[code] += 1 is a read, an addition and a write, with room for another thread in between: atomicAdd",
)  # fmt: skip
def _(answer, codes, threads):
    _counts(answer, codes, threads, races=True)


# gemv_4bit: y = W x, a CUDA block of 32 threads for each row of W

gemv_4bit = Kernel("gemv_4bit", 6)


def _product(rows, cols, blocksize):
    def draw(rng, size):
        m, k = rows(size), cols(size)
        length = blocksize(size, k)
        return {"codes": _codes(rng, m * k).reshape(m, k), "absmax": _scales(rng, _blocks(m * k, length)),
                "blocksize": length, "x": rng.integers(-3, 4, k)}  # fmt: skip

    return draw


def _gemv(answer, codes, absmax, blocksize, x, races=False):
    (m, k), out = codes.shape, Out(len(codes))
    args = (packed(codes.ravel()), absmax, LEVELS, x, out, k, blocksize)
    return out.array, launch(answer, "gemv_4bit", m, 32, *args, races=races)


for says, draw, means in (
    ("one row of 32 columns, one scale", _product(lambda s: 1, lambda s: 32, lambda s, k: 32),
     "each thread has a part of the sum; all 32 parts must come together, once each"),
    ("any number of columns", _product(lambda s: 1, lambda s: 15 * s, lambda s, k: k),
     "a thread takes the columns t, t + 32, t + 64 and so on; where there is none it brings 0"),
    ("several rows, each beginning where the last one ended", _product(lambda s: s, lambda s: 30, lambda s, k: 1000),
     "entry k of row r is number r * cols + k of all, and lies in byte (r * cols + k) / 2"),
    ("also where a row begins in the middle of a byte", _product(lambda s: 1 + s, lambda s: 31, lambda s, k: 1000),
     "high or low half depends on whether r * cols + k is even, not k"),
    ("scales go by the number of the entry in all, across rows",
     _product(lambda s: 1 + s % 3, lambda s: 10 * s, lambda s, k: 4 + 5 * s),
     "absmax[(r * cols + k) / blocksize], whatever the row"),
):  # fmt: skip

    @gemv_4bit.law(says, draw=draw, means=means)
    def _(answer, codes, absmax, blocksize, x):
        W = LEVELS[codes] * np.repeat(absmax, blocksize)[: codes.size].reshape(codes.shape)
        equal(_gemv(answer, codes, absmax, blocksize, x)[0], W @ x, 1e-5)


@gemv_4bit.law(
    "the threads share the work, and no two get in each other's way",
    draw=_product(lambda s: 2, lambda s: 1024 if s < 5 else 8 * s, lambda s, k: 64),
    means="a barrier is missing, several threads write the same y, or one thread does it all",
)  # fmt: skip
def _(answer, codes, absmax, blocksize, x):
    machine = _gemv(answer, codes, absmax, blocksize, x, races=True)[1]
    if machine.steps > 3000:
        raise Wrong(f"1,024 columns took {machine.steps} instructions one after the other")
