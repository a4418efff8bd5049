"""Every step of gemv_4bit.cu, on the simulated GPU, against float64 within what the order of its sums allows."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora import simt
from minilora.backend import numpy as reference
from minilora.backend.cuda import matmul
from minilora.backend.cuda.launch import float_macros, source
from minilora.backend.simt import SimulatedDevice
from minilora.errors import LaunchError, ShapeError
from minilora.quant import CODES, double

pytestmark = pytest.mark.skipif(not simt.available(), reason="needs NVRTC: pip install 'minilora[simt]'")

f32 = np.float32
VERSIONS = range(5)
ROUNDING = {"float32": 0, "float16": 2.0**-11, "bfloat16": 2.0**-8}  # of y, beyond that of its sum in float32
LEVELS = CODES | {"few": np.array([0.5, -1, 0.25], f32)}
device = SimulatedDevice()
slow = pytest.mark.slow


class Case:
    """A product: x of M rows, W (N, K) of random bytes (every code), scales with zeros and subnormals among them."""

    def __init__(self, M, N, K, blocksize, code="nf4", dtype="float32", nested=None, rank=0, seed=0):
        rng = np.random.default_rng(seed)
        n = N * K
        blocks = -(-n // blocksize)
        self.shape, self.blocksize, self.levels = (N, K), blocksize, LEVELS[code]
        codes = rng.integers(0, len(self.levels), n + n % 2, np.uint8)
        self.packed = codes[::2] << 4 | codes[1::2]
        self.absmax = rng.exponential(size=blocks).astype(f32)
        self.absmax[rng.random(blocks) < 0.1] = 0
        if nested is None:
            self.absmax[rng.random(blocks) < 0.1] = 1e-40
        scales, self.nested = self.absmax, None
        if nested is not None:
            kept = double.compress(self.absmax, nested)
            scales = double.expand(*kept, nested)
            self.nested, self.absmax = (kept[0], double.LEVELS.get(nested), *kept[1:]), None
        x = rng.standard_normal((M, K)) * 2.0 ** rng.integers(-6, 6, (M, 1))
        x[rng.random((M, K)) < 0.1] = 0
        self.x = x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        self.lora = None
        if rank:
            u, B = (rng.standard_normal(s).astype(f32) for s in ((M, rank), (N, rank)))
            self.lora = (u, B, 0.5)
        self.w = self.levels[codes[:n]].astype(float).reshape(N, K)
        self.scale = scales.astype(float)[np.arange(n) // blocksize].reshape(N, K)

    def run(self, version=None, rows=slice(None)):
        lora = self.lora and (self.lora[0][rows], *self.lora[1:])
        x = np.ascontiguousarray(self.x[rows])
        return matmul.gemv_4bit(
            device, x, self.packed, self.absmax, self.levels, self.blocksize, self.shape, version, self.nested, lora
        )

    def depth(self, version: int) -> int:
        """Roundings that a product passes through at most. v0 adds K products one after another, v1 every 32nd; the
        others 32 of a chunk and then every 32nd chunk. Then come the scale, five steps between lanes, and the adapter's
        products and factor, if any."""
        K = self.shape[1]
        sums = {0: K, 1: -(-K // 32)}.get(version, 32 + -(-K // 1024))
        return sums + 1 + 5 + (self.lora[1].shape[1] + 2 if self.lora else 0)

    def check(self, y, version: int):
        """|y - Σ w x| <= γ Σ |w| |x|, γ = d u / (1 - d u), u = 2^-24, d the depth above: float32 rounds by a factor of
        at most 1 ± u each time (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). To this come
        subnormal numbers, which are taken as zero: 2^-126 for each factor and sum; and the rounding to y's own type."""
        x = self.x.astype(float)
        exact, magnitude = x @ (self.w * self.scale).T, np.abs(x) @ np.abs(self.w * self.scale).T
        if self.lora:
            u, B, scaling = (np.asarray(a, float) for a in self.lora)
            exact, magnitude = exact + scaling * u @ B.T, magnitude + abs(scaling) * np.abs(u) @ np.abs(B).T
        du = self.depth(version) * 2.0**-24
        flushed = 2.0**-124 * (np.abs(x).sum(1)[:, None] + self.scale.sum(1) + self.shape[1])
        bound = du / (1 - du) * magnitude + flushed
        rounding = ROUNDING[y.dtype.name]
        bound += rounding * (np.abs(exact) + bound) + (2.0**-25 if y.dtype == np.float16 else 0)
        assert y.dtype == self.x.dtype and y.shape == exact.shape
        error = np.abs(y.astype(float) - exact)
        assert (error <= bound).all(), (error / bound).max()


def sizes_for(version: int):
    """Sizes and blocksizes that a version takes, beside and across the edges of tiles, blocks and warps."""
    any_K, chunks = st.integers(1, 150), st.sampled_from([32, 96, 1024, 1056, 2080])
    any_block, powers = st.integers(1, 300), st.sampled_from([32, 64, 256, 4096])
    return {"K": chunks, "blocksize": powers} if version > 1 else {"K": any_K, "blocksize": any_block}


# Each is compiled anew, for one, two and three rows of x: every type and option, not every combination.
COMPILED = st.sampled_from([
    ("float32", False, False), ("float32", True, False), ("float16", True, True), ("bfloat16", False, True)
])  # fmt: skip


@st.composite
def cases(draw, version, **fixed):
    sizes = {"M": st.integers(1, 8), "N": st.integers(1, 40), **sizes_for(version)}
    dtype, nested, lora = draw(COMPILED)
    options = {
        "code": st.sampled_from([*LEVELS]),
        "dtype": st.just(dtype),
        "nested": st.sampled_from(double.KINDS) if nested else st.none(),
        "rank": st.sampled_from([1, 8, 40] if lora else [0]),
        "seed": st.integers(0, 99),
    }
    return Case(**{name: fixed.get(name, draw(s)) for name, s in (sizes | options).items()})


@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=settings().max_examples // 2)
@given(data=st.data())
def test_every_step_is_within_its_bound_and_the_same_for_a_row_by_itself(version, data):
    """The order of the sums is fixed by K alone: another launch, of other rows beside it, gives a row the same bits."""
    case = data.draw(cases(version))
    y, row = case.run(version), data.draw(st.integers(0, len(case.x) - 1))
    case.check(y, version)
    assert y[row].tobytes() == case.run(version, slice(row, row + 1)).tobytes()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_pair_of_codes(version):
    """W of every byte, x a unit vector: y is a column of levels, exactly."""
    levels, packed = CODES["nf4"], np.arange(256, dtype=np.uint8)
    absmax = np.ones(8, f32)
    for k in range(0, 32, 5):
        x = np.eye(32, dtype=f32)[k : k + 1]
        y = matmul.gemv_4bit(device, x, packed, absmax, levels, 64, (16, 32), version)
        w = np.stack([levels[packed >> 4], levels[packed & 15]], axis=1).reshape(16, 32)
        assert (y == w[:, k]).all()


@settings(max_examples=settings().max_examples // 2)
@given(data=st.data(), version=st.sampled_from([1, 4]))
def test_the_adapter_is_what_it_is_by_itself(data, version):
    """With scales of zero only the adapter is left: s · B u."""
    case = data.draw(cases(version, rank=8, nested=None, dtype="float32"))
    case.absmax[:], case.scale[:] = 0, 0
    y, (u, B, scaling) = case.run(version), case.lora
    case.check(y, version)
    np.testing.assert_allclose(y, scaling * u.astype(float) @ B.T.astype(float), rtol=1e-5, atol=1e-5)


def test_one_row_may_be_a_vector_and_many_axes_are_rows():
    case = Case(8, 5, 64, 64)
    arrays = (case.packed, case.absmax, case.levels, case.blocksize, case.shape)
    y = case.run()
    assert matmul.gemv_4bit(device, case.x[3], *arrays).tobytes() == y[3].tobytes()
    folded = matmul.gemv_4bit(device, case.x.reshape(2, 4, 64), *arrays)
    assert folded.shape == (2, 4, 5) and folded.tobytes() == y.tobytes()


def test_sizes_that_have_no_chunks_take_an_earlier_step():
    for K, blocksize in ((33, 64), (32, 48), (64, 16)):
        case = Case(1, 3, K, blocksize)
        case.check(case.run(), 1)
        with pytest.raises(LaunchError, match=r"version 3 was asked for a W of \(3, "):
            case.run(3)


def test_arrays_that_begin_between_multiples_of_16_bytes_take_an_earlier_step():
    case = Case(1, 4, 64, 64)
    room = np.empty(case.packed.size + 16, np.uint8)
    offset = -room.ctypes.data % 16 + 1
    room[offset : offset + case.packed.size] = case.packed
    case.packed = room[offset : offset + case.packed.size]
    case.check(case.run(), 1)
    with pytest.raises(LaunchError, match="multiple of 16 bytes"):
        case.run(4)


def test_what_cannot_be_multiplied_is_said():
    case = Case(1, 4, 64, 64)
    with pytest.raises(LaunchError, match="versions 0 to 4"):
        case.run(5)
    arrays = (case.packed, case.absmax, case.levels, 64)
    with pytest.raises(ShapeError, match=r"x \(1, 63\)"):
        matmul.gemv_4bit(device, np.zeros((1, 63), f32), *arrays, (4, 64))
    with pytest.raises(LaunchError, match="float64"):
        matmul.gemv_4bit(device, np.zeros((1, 64)), *arrays, (4, 64))
    with pytest.raises(LaunchError, match="too many weights"):
        matmul.gemv_4bit(device, np.zeros((1, 65), f32), *arrays, (2**26, 65))
    assert matmul.gemv_4bit(device, np.zeros((0, 64), f32), *arrays, (4, 64)).shape == (0, 4)


@given(st.data(), st.integers(1, 12), st.booleans())
def test_matmul_4bit_is_that_of_numpy(data, rows, transpose):
    """For few rows it is a GEMV, for many or transposed a GEMM, also of double-quantized scales."""
    case = data.draw(cases(1, rank=0, dtype="float32", K=data.draw(st.sampled_from([1, 33, 64]))))
    N, K = case.shape
    x = np.random.default_rng(rows).standard_normal((rows, N if transpose else K)).astype(f32)
    y = matmul.matmul_4bit(
        device, x, case.packed, case.absmax, case.levels, case.blocksize, case.shape, transpose, nested=case.nested
    )
    w = case.w * case.scale
    exact, magnitude = (x @ w, abs(x) @ abs(w)) if transpose else (x @ w.T, abs(x) @ abs(w).T)
    depth = x.shape[1] + 8  # one product after another, at worst
    assert (abs(y - exact) <= depth * 2.0**-23 * magnitude + 1e-30).all()


@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 70), st.integers(1, 99), st.booleans(), st.integers(0, 9))
def test_matmul_int8_is_that_of_numpy(M, N, K, blocksize, transpose, seed):
    rng = np.random.default_rng(seed)
    codes, absmax = reference.quantize_int8(rng.standard_normal(N * K).astype(f32), blocksize)
    x = rng.standard_normal((M, N if transpose else K)).astype(f32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "TILE", 3 * K)
        y = matmul.matmul_int8(device, x, codes, absmax, blocksize, (N, K), transpose)
    expected = reference.matmul_int8(x, codes, absmax, blocksize, (N, K), transpose)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", [75, pytest.param(80, marks=slow), pytest.param(90, marks=slow), 120])
@pytest.mark.parametrize("dtype", [*ROUNDING])
def test_it_compiles_for(arch, dtype):
    for more in ({}, {"ROWS": 4, "XROWS": 3, "NESTED": 1, "LORA": 1}):
        defines = float_macros(X=dtype, Y=dtype) | more
        ptx = simt.compile_cuda(source("gemv_4bit.cu"), arch, [f"-D{k}={v}" for k, v in defines.items()])
        assert all(f".entry gemv_4bit_v{version}" in ptx for version in VERSIONS)
