"""Every version of the 4-bit matrix product, on the simulated GPU, against the product of the dequantized weight.

The bound: a sum of n products in float32, in any order, is off by at most γ_n Σ |x w|, γ_n = n u / (1 - n u) (Higham,
Accuracy and Stability of Numerical Algorithms, section 3.1). u is 2⁻²⁴ where each sum is rounded to nearest, and here
2⁻²³, since tensor cores may cut off instead. Then the result is rounded once to its type. What is flushed to zero is
less than 2⁻¹²⁶.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora import simt
from minilora.backend import numpy as reference
from minilora.backend.cuda.gemm import gemm_4bit
from minilora.backend.cuda.launch import source
from minilora.backend.simt import SimulatedDevice
from minilora.errors import LaunchError
from minilora.quant import CODES

pytestmark = pytest.mark.skipif(not simt.available(), reason="needs NVRTC: pip install 'minilora[simt]'")

f32, f16, bf16 = np.float32, np.float16, ml_dtypes.bfloat16
ROUNDING = {f32: 0.0, f16: 2.0**-11, bf16: 2.0**-8}  # of one conversion from float32, relative
SMALLEST = {f32: 0.0, f16: 2.0**-25, bf16: 2.0**-134}  # and absolute, among subnormals


class Recorder(SimulatedDevice):
    """Remembers the launches."""

    def __init__(self, arch=80):
        super().__init__(arch)
        self.launches = []

    def execute(self, launch):
        self.launches.append(launch)
        super().execute(launch)


DEVICE = Recorder()


@dataclass
class Product:
    """A quantized W, an x, and what their product should be."""

    x: np.ndarray
    packed: np.ndarray
    absmax: np.ndarray
    levels: np.ndarray
    blocksize: int
    shape: tuple
    transpose: bool
    lora: tuple | None = None

    def run(self, version=None, device=DEVICE, **options):
        arrays = (self.packed, self.absmax, self.levels, self.blocksize, self.shape, self.transpose, version)
        return gemm_4bit(device, self.x, *arrays, self.lora, **options)

    @property
    def weight(self):
        """(R, C) float64: the weights as they are multiplied, rounded to x's type."""
        w = reference.dequantize_4bit(
            self.packed, self.absmax, self.levels, self.blocksize, 0, self.shape[0] * self.shape[1]
        )
        w = w.astype(self.x.dtype).astype(np.float64).reshape(self.shape)
        return w if self.transpose else w.T

    def check(self, y):
        x, w = self.x.astype(np.float64), self.weight
        exact, size, n = x @ w, np.abs(x) @ np.abs(w), len(w) + 40  # 40: for the parts of a split sum, and the adapter
        if self.lora is not None:
            u, B, scaling = (np.asarray(a, np.float64) for a in self.lora)
            exact, size, n = exact + scaling * u @ B.T, size + np.abs(scaling * u) @ np.abs(B.T), n + B.shape[1]
        error = n * 2.0**-23 / (1 - n * 2.0**-23) * size + n * 2.0**-126 * (1 + np.abs(x).max() + np.abs(w).max())
        kind = y.dtype.type
        bound = error + ROUNDING[kind] * (np.abs(exact) + error) + SMALLEST[kind]
        wrong = ~(np.abs(y.astype(np.float64) - exact) <= bound)
        assert y.shape == exact.shape and not wrong.any(), (np.argwhere(wrong)[:5], y[wrong][:5], exact[wrong][:5])


def product(seed, M, N, K, blocksize=64, dtype=f32, transpose=False, levels=CODES["nf4"], rank=0) -> Product:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(N * K).astype(f32)
    w[: rng.integers(0, 2) * blocksize] = 0  # in half of the cases a block of zeros
    packed, absmax = reference.quantize_4bit(w, levels, blocksize)
    R, C = (N, K) if transpose else (K, N)
    x = (rng.standard_normal((M, R)) * 2.0 ** rng.integers(-3, 4)).astype(dtype)
    lora = (rng.standard_normal((M, rank)).astype(f32), rng.standard_normal((C, rank)).astype(f32), 0.5)
    return Product(x, packed, absmax, levels, blocksize, (N, K), transpose, lora if rank else None)


odd_sizes = st.one_of(st.integers(1, 20), st.sampled_from([31, 33, 63, 65, 97]))
COMPILED = [(f16, True, 1), (bf16, True, 2)]  # type, adapter, parts of the sum: each combination is compiled anew
levels = st.sampled_from([CODES["nf4"], CODES["fp4"], CODES["int4"], np.array([0.5, -1, 0.25], f32)])


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("version", range(4))
@settings(max_examples=settings().max_examples // 5)
@given(data=st.data())
def test_any_shape(version, transpose, data):
    dtype, lora, splits = data.draw(st.sampled_from([(f16 if version == 3 else f32, False, 1), *COMPILED]))
    M, N, K = (data.draw(odd_sizes) for _ in range(3))
    blocksize = data.draw(st.sampled_from([1, 3, 16, 32, 64, 4096]))
    rank = data.draw(st.sampled_from([1, 5] if lora else [0]))
    case = product(data.draw(st.integers(0, 99)), M, N, K, blocksize, dtype, transpose, data.draw(levels), rank)
    case.check(case.run(version, splits=splits))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("version", [2, 3, 4])
@settings(max_examples=settings().max_examples // 5)
@given(data=st.data())
def test_aligned_rows(version, transpose, data):
    """Rows that are read 16 bytes at a time, with tiles that are only partly inside, of every size."""
    dtype, rank, M = data.draw(st.sampled_from(
        [(f32, 0, 5), (f16, 4, 65)] if version == 2 else [(f16, 0, 31), (f16, 4, 33), (bf16, 4, 65)]
    ))  # fmt: skip
    N = data.draw(st.sampled_from([8, 64, 72, 136] if transpose else [1, 63, 64, 70]))
    K = data.draw(st.sampled_from([32, 64, 96, 160]))
    blocksize = data.draw(st.sampled_from([32, 64, 128]))
    case = product(data.draw(st.integers(0, 99)), M, N, K, blocksize, dtype, transpose, data.draw(levels), rank)
    y = case.run(version)
    assert DEVICE.launches[-1].defines["ALIGNED"] == 1
    case.check(y)


@pytest.mark.parametrize("version", range(5))
def test_a_split_sum_is_its_parts_added_in_their_order(version):
    case = product(1, 9, 20, 192, dtype=f16 if version > 2 else f32)
    split = case.run(version, splits=3, dtype="float32")
    parts = []
    for a in range(0, 192, 64):  # blocks of 64 and rows of 192: those of the part's columns are every third
        packed = np.ascontiguousarray(case.packed.reshape(20, 96)[:, a // 2 : a // 2 + 32]).ravel()
        absmax = np.ascontiguousarray(case.absmax.reshape(20, 3)[:, a // 64])
        x = np.ascontiguousarray(case.x[:, a : a + 64])
        parts.append(Product(x, packed, absmax, case.levels, 64, (20, 64), False).run(version, dtype="float32"))
    assert split.tobytes() == (parts[0] + parts[1] + parts[2]).tobytes()
    assert split.tobytes() == case.run(version, splits=3, dtype="float32").tobytes()
    case.check(split)


def test_few_tiles_with_a_long_sum_are_split():
    case = product(2, 3, 5, 1024, rank=2)
    y = case.run()
    assert DEVICE.launches[-2].grid == (1, 1, 4) and DEVICE.launches[-1].function == "gemm_4bit_add"
    case.check(y)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtype", [f32, f16])
def test_the_adapter_is_added_before_rounding(dtype, transpose):
    """As x W + scaling u Bᵀ in float32, to the last bits of their sum."""
    case = product(3, 20, 64, 64, dtype=dtype, transpose=transpose, rank=8)
    fused = case.run(dtype="float32")
    u, B, scaling = case.lora
    plain = Product(case.x, case.packed, case.absmax, case.levels, 64, case.shape, transpose).run(dtype="float32")
    size = np.abs(plain) + np.abs(scaling * u) @ np.abs(B.T)
    assert np.all(np.abs(fused - (plain + f32(scaling) * (u @ B.T))) <= 10 * 2.0**-23 * size)


@pytest.mark.parametrize("arch, dtype, K, best", [
    (75, f16, 64, "gemm_4bit_v2"), (80, f16, 64, "gemm_4bit_tensor_v4"), (80, bf16, 63, "gemm_4bit_tensor_v3"),
    (80, f32, 64, "gemm_4bit_v2"), (120, bf16, 64, "gemm_4bit_tensor_v4"),
])  # fmt: skip
def test_the_best_version_by_type_architecture_and_alignment(arch, dtype, K, best):
    device = Recorder(arch)
    case = product(4, 4, 16, K, dtype=dtype)
    y = case.run(device=device)
    assert [launch.function for launch in device.launches] == [best] and y.dtype == dtype
    case.check(y)


def test_leading_dimensions_and_no_rows():
    case = product(5, 6, 8, 32)
    y = case.run()
    case.x = case.x.reshape(2, 3, 32)
    assert case.run().shape == (2, 3, 8) and case.run().tobytes() == y.tobytes()
    case.x = case.x[:0]
    assert case.run().shape == (0, 3, 8)


def test_what_cannot_be_launched_is_said():
    for case, options, words in [
        (product(6, 4, 8, 64), dict(version=3), "versions 0 to 4"),
        (product(6, 4, 8, 48, dtype=f16), dict(version=4), "versions 0 to 4"),
        (product(6, 4, 8, 64, blocksize=16, dtype=f16), dict(version=4), "versions 0 to 4"),
        (product(6, 4, 8, 64), dict(version=5), "versions 0 to 4"),
        (product(6, 4, 8, 64, dtype=f16), dict(version=3, device=Recorder(75)), "compute capability 80"),
        (product(6, 4, 8, 64, transpose=True), dict(dtype="float16"), "of x's type or float32"),
        (product(6, 4, 8, 64, dtype=np.float64), {}, "float32, float16, bfloat16"),
    ]:
        with pytest.raises(LaunchError, match=words):
            case.run(**options)
    case = product(6, 4, 8, 64)
    with pytest.raises(LaunchError, match="x has 63 columns"):
        gemm_4bit(DEVICE, case.x, case.packed, case.absmax, case.levels, 64, (8, 63))
    with pytest.raises(LaunchError, match="counts to 2147483648 weights"):
        gemm_4bit(DEVICE, np.empty((1, 1), f32), case.packed, case.absmax, case.levels, 64, (1 << 31, 1))


@pytest.mark.parametrize("arch", [75, 80, *(pytest.param(arch, marks=pytest.mark.slow) for arch in (90, 120))])
def test_compiles(arch):
    options = ("-DX=__nv_bfloat16", "-DY=float", "-DHEADER=<cuda_bf16.h>", "-DTYPE=bf16", "-DTRANSPOSE=1", "-DLORA=1")
    for name, kernels in [("gemm_4bit.cu", 4), ("gemm_4bit_tensor.cu", 2 if arch >= 80 else 0)]:
        program = simt.load(simt.compile_cuda(source(name), arch, options, name))
        assert len(program.kernels) == kernels
