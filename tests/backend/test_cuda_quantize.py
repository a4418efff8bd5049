"""Every step of quantize_4bit.cu, dequantize_4bit.cu and int8.cu, on the simulated GPU: bit for bit backend/numpy.py.

That GPU fills new arrays with NaN, so that an entry that is not written shows, and refuses reads and writes beyond an
array and races between threads.
"""

from contextlib import contextmanager
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import simt
from minilora.backend import numpy as reference
from minilora.backend.cuda import quantize as cuda
from minilora.backend.cuda.launch import FLOATS, In, Launch, Out, source
from minilora.backend.simt import SimulatedDevice
from minilora.errors import LaunchError
from minilora.quant import CODES, DYNAMIC_MAP, E4M3, double
from minilora.simt import sass

pytestmark = pytest.mark.skipif(not simt.available(), reason="needs NVRTC: pip install 'minilora[simt]'")

f32 = np.float32
device = SimulatedDevice()
LEVELS = CODES | {
    "few": np.array([0.5, -1, 0.25], f32),
    "falling": -np.sort(-CODES["nf4"]),
    "tiny": np.array([1, -1, 0, 1e-39, -4e-45], f32),  # with borders that are subnormal
}
DTYPES = {"float32": f32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EXPONENTS = [0, 0, 5, 60, 127, -60, -120, -126, -130, -149]  # of a block: 2^127 overflows, 2^-149 is the last subnormal
ABSMAX = np.array([0, 1, 0.7, 3e4, 1e5, 3e38, np.inf, np.nan, 1e-38, 1e-38, 4e-39, 1e-42, 1e-45, 2e-37], f32)


def same(a: np.ndarray, b: np.ndarray):
    """Equal in type, shape and every bit; only NaN may be written in different ways."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    differ = a.view(f"u{a.itemsize}") != b.view(f"u{a.itemsize}")
    if a.dtype.kind not in "iu":
        differ &= ~(np.isnan(a) & np.isnan(b))
    assert not differ.any(), (np.flatnonzero(differ)[:5], a[differ][:5], b[differ][:5])


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """As quant/array.py gives it: float16 ends at 65504."""
    with np.errstate(all="ignore"):
        return (np.clip(x, -65504, 65504) if dtype == "float16" else x).astype(DTYPES[dtype])


def weights(n: int, blocksize: int, levels: np.ndarray, seed: int) -> np.ndarray:
    """Normal numbers, or those where codes are decided (levels, borders and their neighbours), zeros; each block of its
    own magnitude, from the largest to the smallest that float32 has."""
    rng = np.random.default_rng(seed)
    borders = reference.midpoints(np.sort(levels[np.isfinite(levels)]))
    near = [np.nextafter(borders, f32(to)) for to in (-2, 2)]
    x = rng.choice(np.concatenate([levels[np.isfinite(levels)], borders, *near, [-0.0]]).astype(f32), n)
    normal = rng.random(n) < rng.choice([0, 0.5, 1])
    x[normal] = rng.standard_normal(normal.sum()) / 4
    x[::blocksize] = rng.choice([1, -1, 0.77])
    blocks = -(-n // blocksize)
    exponents = rng.choice(EXPONENTS, blocks) if rng.random() < 0.7 else np.zeros(blocks, int)
    x = np.clip(np.ldexp(x.astype(float), exponents.repeat(blocksize)[:n]), -3.4e38, 3.4e38).astype(f32)
    x[(rng.random(blocks) < 0.1).repeat(blocksize)[:n]] = rng.choice([0.0, -0.0])
    return x


seeds = st.integers(0, 1 << 32)
sizes = st.integers(1, 700) | st.sampled_from([8, 64, 256, 512])
blocksizes = st.sampled_from([16, 32, 64, 64, 128, 256, 1024, 1, 7, 33, 12, 576])
codes_4bit = st.sampled_from(list(LEVELS))
dtypes = st.sampled_from(list(DTYPES))


@contextmanager
def small(**sizes):
    """Limits of the launcher that are reached at toy sizes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(cuda, name, value)
        yield


def call(fits: bool, function, *args, **options):
    """function(device, ...); None where the version does not take these arguments, which it must then say."""
    if fits:
        return function(device, *args, **options)
    with pytest.raises(LaunchError, match=r"_v\d needs .*; versions that take these arguments: \["):
        function(device, *args, **options)
    return None


# Quantize


def fits_quantize(version, blocksize: int) -> bool:
    power = 4 <= blocksize <= 4096 and blocksize & (blocksize - 1) == 0
    return {2: blocksize % 2 == 0, 3: power}.get(version, True)


def check_quantize(version, n, blocksize, levels, seed, on=device):
    x = weights(n, blocksize, levels, seed)
    with np.errstate(all="ignore"):
        packed, absmax = reference.quantize_4bit(x, levels, blocksize)
    got = cuda.quantize_4bit(on, x, levels, blocksize, version)
    same(got[1], absmax)
    same(got[0], packed)


@pytest.mark.parametrize("version", [0, 1, 2, 3, None])
@given(sizes, blocksizes, codes_4bit, seeds)
def test_quantize_4bit(version, n, blocksize, code, seed):
    n = min(n, 150) if version == 0 else n  # entry by entry: its simulation takes long
    if fits_quantize(version, blocksize):
        check_quantize(version, n, blocksize, LEVELS[code], seed)
    else:
        call(False, cuda.quantize_4bit, np.zeros(n, f32), LEVELS[code], blocksize, version)


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize(("n", "blocksize"), [(4096, 4096), (9001, 4096), (383, 1024), (3000, 512), (1300, 576)])
def test_quantize_4bit_in_long_blocks(version, n, blocksize):
    """Longer than a warp, a CUDA block, or the array."""
    if fits_quantize(version, blocksize):
        check_quantize(version, n, blocksize, CODES["nf4"], n)


@pytest.mark.parametrize("version", [0, 1, 2, 3])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_absmax_and_stays_in_its_block(version, bad):
    """fmaxf(NaN, m) is m: a maximum by it would hide NaN."""
    x = np.random.default_rng(0).standard_normal(330).astype(f32)
    x[[70, 329]] = bad
    with np.errstate(all="ignore"):
        packed, absmax = reference.quantize_4bit(x, CODES["nf4"], 64)
    got = cuda.quantize_4bit(device, x, CODES["nf4"], 64, version)
    same(got[1], absmax)
    same(got[0], packed)


# Dequantize


def fits_dequantize(version, blocksize: int, start: int, stop: int, dtype: str) -> bool:
    width = 16 // np.dtype(DTYPES[dtype]).itemsize
    one = blocksize % width == 0 or start // blocksize == (stop - 1) // blocksize
    return version in (0, 1, None) or (start % width == 0 and one)


@st.composite
def ranges(draw):
    """n, blocksize, start, stop: what is asked of an array, often from a multiple of 8 on."""
    n = draw(st.integers(1, 3000) | st.sampled_from([64, 512, 2048]))
    start = draw(st.integers(0, n // 8).map(lambda k: 8 * k) | st.integers(0, n) | st.just(0))
    return n, draw(blocksizes), start, draw(st.integers(start, n) | st.just(n))


@pytest.mark.parametrize("version", [0, 1, 2, 3, None])
@given(ranges(), codes_4bit, dtypes, seeds)
def test_dequantize_4bit(version, part, code, dtype, seed):
    n, blocksize, start, stop = part
    rng, levels = np.random.default_rng(seed), LEVELS[code]
    packed = rng.integers(0, 256, -(-n // 2)).astype(np.uint8)
    absmax = rng.choice(ABSMAX, -(-n // blocksize))
    fits = fits_dequantize(version, blocksize, start, stop, dtype)
    got = call(
        fits, cuda.dequantize_4bit, packed, absmax, levels, blocksize, start, stop, dtype=DTYPES[dtype], version=version
    )
    if fits:
        with np.errstate(all="ignore"):
            expected = reference.dequantize_4bit(packed, absmax, levels, blocksize, start, stop)
        same(got, rounded(expected, dtype))


@pytest.mark.parametrize("version", range(4))
@given(ranges(), st.sampled_from(double.KINDS), dtypes, st.sampled_from([0, 0, -126, 100]), seeds)
def test_dequantize_4bit_double(version, part, kind, dtype, exponent, seed):
    n, blocksize, start, stop = part
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, -(-n // 2)).astype(np.uint8)
    absmax = np.ldexp(rng.exponential(size=-(-n // blocksize)), exponent).astype(f32)
    codes, absmax2, offset = double.compress(absmax, kind)
    if rng.random() < 0.3:  # every code, also those that cannot result
        codes = rng.integers(0, 256, codes.size).astype(np.uint8).view(codes.dtype)
    nested = (codes, double.LEVELS.get(kind), absmax2, offset)
    fits = fits_dequantize(version, blocksize, start, stop, dtype)
    got = call(
        fits, cuda.dequantize_4bit_double, packed, *nested, CODES["nf4"], blocksize, start, stop,
        dtype=DTYPES[dtype], version=version,
    )  # fmt: skip
    if fits:
        with np.errstate(all="ignore"):
            scales = double.expand(codes, absmax2, offset, kind)
            expected = reference.dequantize_4bit(packed, scales, CODES["nf4"], blocksize, start, stop)
        same(got, rounded(expected, dtype))


def test_many_second_level_blocks():
    """More than 256 blocks of 16 in a tile, and a tile that begins within 256."""
    n = 20_000
    rng = np.random.default_rng(0)
    packed, absmax = rng.integers(0, 256, n // 2).astype(np.uint8), rng.exponential(size=n // 16).astype(f32)
    codes, absmax2, offset = double.compress(absmax)
    expected = reference.dequantize_4bit(packed, double.expand(codes, absmax2, offset), CODES["nf4"], 16, 1000, n)
    for version in range(4):
        args = (packed, codes, DYNAMIC_MAP, absmax2, offset, CODES["nf4"], 16, 1000, n)
        same(cuda.dequantize_4bit_double(device, *args, version=version), expected)


# 8 bits


@pytest.mark.parametrize("version", range(3))
@given(sizes, blocksizes | st.just(10_000), st.sampled_from([8, 100, cuda.SLICE]), seeds)
def test_quantize_int8(version, n, blocksize, piece, seed):
    x = weights(n, blocksize, CODES["linear16"], seed)
    x = np.clip(x, -1e36, 1e36)  # beyond, 127 · absmax is not a float32
    fits = version != 2 or blocksize % 4 == 0 or blocksize >= n
    with small(SLICE=piece, SLICES=5):
        got = call(fits, cuda.quantize_int8, x, blocksize, version)
    if fits:
        codes, absmax = reference.quantize_int8(x, blocksize)
        same(got[1], absmax)
        same(got[0], codes)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_int8_of_a_whole_array(version):
    """One scale in all, of several CUDA blocks; the largest at either end. NaN shows."""
    n = 39_999 if version else 999  # v0 is one thread, the simulation of which takes long
    for at in (0, n - 1):
        x = np.random.default_rng(at).standard_normal(n).astype(f32)
        x[at] = -9
        with small(SLICE=4096):
            codes, absmax = cuda.quantize_int8(device, x, x.size, version)
            same(codes, reference.quantize_int8(x, x.size)[0])
            same(absmax, np.array([9], f32))
            x[n // 2] = np.nan
            assert np.isnan(cuda.quantize_int8(device, x, x.size, version)[1]).all()


@pytest.mark.parametrize("version", range(2))
@given(ranges(), dtypes, seeds)
def test_dequantize_int8(version, part, dtype, seed):
    n, blocksize, start, stop = part
    rng = np.random.default_rng(seed)
    codes, absmax = rng.integers(-128, 128, n).astype(np.int8), rng.choice(ABSMAX, -(-n // blocksize))
    fits = fits_dequantize(2 * version, blocksize, start, stop, dtype)
    got = call(fits, cuda.dequantize_int8, codes, absmax, blocksize, start, stop, dtype=DTYPES[dtype], version=version)
    if fits:
        with np.errstate(all="ignore"):
            same(got, rounded(reference.dequantize_int8(codes, absmax, blocksize, start, stop), dtype))


@pytest.mark.parametrize("version", range(2))
@given(sizes, st.sampled_from([256, 256, 64, 33, 1]), st.sampled_from([DYNAMIC_MAP, E4M3, CODES["fp4"]]), seeds)
def test_8bit(version, n, blocksize, levels, seed):
    if version == 0:  # 255 comparisons an entry, one after another: their simulation takes long
        n, blocksize = min(n, 20), min(blocksize, 4)
    x = weights(n, blocksize, levels, seed)
    with np.errstate(all="ignore"):
        codes, absmax = reference.quantize_8bit(x, levels, blocksize)
        expected = reference.dequantize_8bit(codes, absmax, levels, blocksize)
    got = cuda.quantize_8bit(device, x, levels, blocksize, version)
    same(got[1], absmax)
    same(got[0], codes)
    same(cuda.dequantize_8bit(device, codes, absmax, levels, blocksize), expected)


# Subnormal numbers


def naive(text: str) -> str:
    """Arithmetic as one would write it, without the instructions that keep subnormal numbers."""
    return text.replace("#ifdef __CUDA_ARCH__", "#if 0")


def through_double(text: str) -> str:
    return naive(text).replace("return a symbol b;", "return (float)((double)a symbol (double)b);")


def by_fabsf(text: str) -> str:
    return text.replace("return __float_as_uint(x) & 0x7fffffffu;", "return __float_as_uint(fabsf(x));")


@pytest.mark.parametrize("change", [naive, through_double, by_fabsf])
@pytest.mark.parametrize("magnitude", [1e-39, 2.0**-149, 3e38])
@pytest.mark.parametrize("version", [0, 3])
def test_subnormal_numbers_count(change, magnitude, version):
    """A block of subnormal weights; one whose 1 / absmax is subnormal. NumPy keeps them, float arithmetic under CuPy's
    -ftz=true does not, and then codes or absmax differ."""
    levels = CODES["fp4"]  # two codes for zero: what rounds up to it, and what rounds down

    def check(on):
        x = (np.linspace(-1, 1, 128) * magnitude).astype(f32)
        for n in (128, 120):  # full blocks, and a partial one
            got = cuda.quantize_4bit(on, x[:n], levels, 64, version)
            with np.errstate(all="ignore"):
                packed, absmax = reference.quantize_4bit(x[:n], levels, 64)
            same(got[1], absmax)
            same(got[0], packed)
        y = cuda.dequantize_4bit(on, packed, absmax, levels, 64, 0, n, version=version)
        same(y, reference.dequantize_4bit(packed, absmax, levels, 64, 0, n))

    check(device)
    if magnitude == 3e38 and change is by_fabsf:
        return  # no weight is subnormal there
    with pytest.raises(AssertionError):
        check(SimulatedDevice(edit=lambda name, text: change(text)))


# Launches


def test_nothing_is_nothing():
    empty, levels = np.empty(0, f32), CODES["nf4"]
    for quantized in (cuda.quantize_4bit(device, empty, levels, 64), cuda.quantize_int8(device, empty, 64)):
        assert [a.size for a in quantized] == [0, 0]
    packed, absmax = cuda.quantize_4bit(device, np.ones(64, f32), levels, 64)
    for version in (0, 1, None):
        assert cuda.dequantize_4bit(device, packed, absmax, levels, 64, 33, 33, version=version).size == 0


def test_64_bits_index_what_32_cannot():
    x = weights(1111, 64, CODES["nf4"], 3)
    packed, absmax = reference.quantize_4bit(x, CODES["nf4"], 64)
    nested = double.compress(absmax)
    with small(LONGEST=1, SLICE=100):
        for version in range(4):
            same(cuda.quantize_4bit(device, x, CODES["nf4"], 64, version)[0], packed)
            same(
                cuda.dequantize_4bit(device, packed, absmax, CODES["nf4"], 64, 8, 1110, version=version),
                reference.dequantize_4bit(packed, absmax, CODES["nf4"], 64, 8, 1110),
            )
            same(
                cuda.dequantize_4bit_double(
                    device, packed, nested[0], DYNAMIC_MAP, *nested[1:], CODES["nf4"], 64, 8, 1110, version=version
                ),
                reference.dequantize_4bit(packed, double.expand(*nested), CODES["nf4"], 64, 8, 1110),
            )
        for version in range(3):
            same(cuda.quantize_int8(device, x, x.size, version)[0], reference.quantize_int8(x, x.size)[0])


def test_out_is_filled_and_only_it():
    packed, absmax = reference.quantize_4bit(np.linspace(-1, 1, 300, dtype=f32), CODES["nf4"], 64)
    expected = reference.dequantize_4bit(packed, absmax, CODES["nf4"], 64, 0, 300)
    for dtype in DTYPES:
        for version in range(4):
            out = np.full(300, np.nan).astype(DTYPES[dtype])
            y = cuda.dequantize_4bit(device, packed, absmax, CODES["nf4"], 64, 0, 300, out, version=version)
            assert y is out
            same(out, rounded(expected, dtype))


def test_unaligned_arrays_are_left_to_the_steps_that_take_them():
    x, levels = np.linspace(-1, 1, 301, dtype=f32), CODES["nf4"]
    part = x[1:] if x.ctypes.data % 16 == 0 else x[:-1]
    packed, absmax = reference.quantize_4bit(part, levels, 64)
    same(cuda.quantize_4bit(device, part, levels, 64)[0], packed)
    with pytest.raises(LaunchError, match=r"aligned to 16 bytes; versions that take these arguments: \[0, 1, 2\]"):
        cuda.quantize_4bit(device, part, levels, 64, 3)
    out = np.full(301, np.nan, f32)
    out = out[1:] if out.ctypes.data % 16 == 0 else out[:-1]
    same(
        cuda.dequantize_4bit(device, packed, absmax, levels, 64, 0, 300, out),
        reference.dequantize_4bit(packed, absmax, levels, 64, 0, 300),
    )


def test_wrong_arguments_are_refused():
    x, levels = np.ones(100, f32), CODES["nf4"]
    packed, absmax = reference.quantize_4bit(x, levels, 64)
    codes, ones = np.zeros(2, np.uint8), np.ones(1, f32)

    def dequantize(packed=packed, absmax=absmax, levels=levels, blocksize=64, start=0, stop=100, **options):
        return cuda.dequantize_4bit(device, packed, absmax, levels, blocksize, start, stop, **options)

    def double_(codes=codes, levels256=DYNAMIC_MAP, absmax2=ones):
        return cuda.dequantize_4bit_double(device, packed, codes, levels256, absmax2, 0, levels, 64, 0, 100)

    wrong = {
        r"x is float64\(100,\); needed is one row of float32": lambda: cuda.quantize_4bit(
            device, x.astype(float), levels, 64
        ),
        r"x is float32\(10, 10\)": lambda: cuda.quantize_int8(device, x.reshape(10, 10), 64),
        "not contiguous": lambda: cuda.quantize_4bit(device, x[::2], levels, 64),
        r"at most 16 of float32": lambda: cuda.quantize_4bit(device, x, np.zeros(17, f32), 64),
        "levels are float64": lambda: cuda.quantize_8bit(device, x, np.zeros(16), 64),
        "blocks of 0": lambda: cuda.quantize_4bit(device, x, levels, 0),
        r"no version 4; there are: \[0, 1, 2, 3\]": lambda: cuda.quantize_4bit(device, x, levels, 64, 4),
        r"dequantize_4bit has no version -1": lambda: dequantize(version=-1),
        r"packed is uint8\(49,\); .*at least 50": lambda: dequantize(packed[:49]),
        r"absmax is float32\(1,\); .*at least 2": lambda: dequantize(absmax=absmax[:1]),
        r"entries 9 to 3": lambda: dequantize(start=9, stop=3),
        r"entries -1 to 3": lambda: dequantize(start=-1, stop=3),
        r"blocks of -2": lambda: dequantize(blocksize=-2),
        r"float32, float16, bfloat16, not float64": lambda: dequantize(dtype=float),
        r"out is float32\(99,\); asked for are float32\(100,\)": lambda: dequantize(out=np.empty(99, f32)),
        r"out is float32\(100,\); asked for are float16": lambda: dequantize(out=np.empty(100, f32), dtype=np.float16),
        r"absmax_codes is int8": lambda: double_(codes.view(np.int8)),
        r"absmax_codes is uint8": lambda: double_(levels256=None),
        r"absmax2 is float32\(0,\)": lambda: double_(absmax2=ones[:0]),
        r"levels256 are 16 levels": lambda: double_(levels256=levels),
        r"codes is uint8": lambda: cuda.dequantize_int8(device, codes, ones, 64),
        r"at least 3 long": lambda: cuda.dequantize_8bit(device, np.zeros(3, np.uint8), ones, DYNAMIC_MAP, 1),
    }
    for message, wrongly in wrong.items():
        with pytest.raises(LaunchError, match=message):
            wrongly()


def test_launches_that_a_gpu_would_refuse():
    x, sizes = np.ones(64, f32), (np.uint32(64), np.uint32(64))
    codes, absmax = np.empty(64, np.int8), np.empty(1, f32)
    good = Launch("int8.cu", "quantize_int8_v0", (1,), (32,), (In(x), Out(codes), Out(absmax), *sizes))
    device.run(good)
    same(codes, reference.quantize_int8(x, 64)[0])
    for change, message in [
        ({"grid": (0,)}, "a grid has 1 to"),
        ({"grid": (1, 65536)}, "give the array in smaller parts"),
        ({"block": (32, 33)}, "1 to 1024 threads"),
        ({"shared": 164 * 1024}, "bytes of shared memory a block; this GPU has"),
        ({"arch": 90}, "needs compute capability 90, this GPU has 80"),
        ({"args": (x, *good.args[1:])}, "argument 0 is ndarray"),
        ({"args": (*good.args[:3], 64, 64)}, "argument 3 is int"),
    ]:
        with pytest.raises(LaunchError, match=message):
            device.run(replace(good, **change))


# Machine code

FILES = ["quantize_4bit.cu", "dequantize_4bit.cu", "int8.cu"]
OPTIONS = {name: [f"-D{key}={value}" for key, value in cuda.macros(name).items()] for name in FLOATS}
slow = pytest.mark.slow


@pytest.mark.parametrize("arch", [75, 80, 90, 120])
@pytest.mark.parametrize("name", FILES)
def test_compiles_for_every_gpu_and_type(name, arch):
    for options in OPTIONS.values() if name != "quantize_4bit.cu" else [[]]:
        assert simt.compile_cubin(source(name), arch, tuple(options), name)


@pytest.mark.skipif(not sass.available(), reason="needs nvdisasm and cuobjdump: pip install 'minilora[simt]'")
@pytest.mark.parametrize("dtype", ["float16", *(pytest.param(name, marks=slow) for name in ("float32", "bfloat16"))])
@pytest.mark.parametrize("index", ["unsigned", pytest.param("size_t", marks=slow)])
@pytest.mark.parametrize("arch", [90, *(pytest.param(arch, marks=slow) for arch in (75, 80, 120))])
@pytest.mark.parametrize("name", FILES)
def test_no_register_spills_and_vectors_are_loaded_and_stored_whole(name, arch, index, dtype):
    cubin = simt.compile_cubin(source(name), arch, (*OPTIONS[dtype], f"-DINDEX={index}"), name)
    for kernel, code in sass.disassemble(cubin).items():
        assert code.spills == code.local == code.stack == 0, kernel
        if kernel == "dequantize_int8_v1" or ("dequantize" in kernel and kernel[-2:] in ("v2", "v3")):
            assert code.count("STG", "128") >= 1, kernel
        if kernel in ("quantize_4bit_v3", "quantize_int8_v2"):
            assert code.count("LDG", "128") == 1, kernel
