"""The kernels on two executors that share nothing: minilora.simt, and the .cu compiled as C++ (host/device.py).

First the second executor itself, then every launcher function and version on both: NumPy's results, and the same bits
where the order of the arithmetic is written out. What needs g++ or NVRTC is skipped where they are missing.
"""

import ml_dtypes
import numpy as np
import pytest
from backend import kernel_checks as checks
from backend.kernel_checks import same
from backend.planted_bugs import BUGS
from hypothesis import given, settings
from hypothesis import strategies as st
from simt.host import device as host
from simt.host.device import HostDevice

from minilora import simt as machine
from minilora.backend.cuda.launch import FOLDER, In, Launch, Out
from minilora.backend.simt import SimulatedDevice
from minilora.errors import LaunchError, SimulationError

pytestmark = pytest.mark.skipif(host.unavailable() is not None, reason=str(host.unavailable()))

f32 = np.float32
FULL = 0xFFFFFFFF
simulated = SimulatedDevice()
orders = st.sampled_from(["forward", "backward"]) | st.integers(2, 1 << 32)


def run(text, *args, grid=1, block=32, order="forward", options=()):
    """Kernel k of a text on the second executor."""
    launch = Launch("text.cu", "k", (grid,), (block,), args)
    host.library(text, options, "text.cu").run(launch, host.ORDERS.get(order, order))


def on_both(text, *args, grid=1, block=32):
    """The arrays of Out that the two executors give."""
    copies = [Out(arg.array.copy()) if isinstance(arg, Out) else arg for arg in args]
    run(text, *args, grid=grid, block=block)
    if machine.available():
        program = machine.load(machine.compile_cuda(text))
        buffers = [a if isinstance(a, np.generic) else machine.Buffer(a.array, isinstance(a, In)) for a in copies]
        machine.launch(program, "k", (grid,), (block,), buffers)
        for arg, copy in zip(args, copies, strict=True):
            if isinstance(arg, Out):
                same(arg.array, copy.array)
    return [arg.array for arg in args if isinstance(arg, Out)]


# Numbers

CONVERT = """
#include HEADER
extern "C" __global__ void k(const float* x, TYPE* y, const TYPE* a, float* b, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) { y[i] = (TYPE)x[i]; b[i] = (float)a[i]; }
}"""


@pytest.mark.parametrize(
    "type, header, dtype",
    [("__half", "<cuda_fp16.h>", np.float16), ("__nv_bfloat16", "<cuda_bf16.h>", ml_dtypes.bfloat16)],
)
def test_16_bits_become_floats_and_floats_the_nearest_16_bits(type, header, dtype):
    """All 65,536 numbers; what lies halfway between two of them, and the floats next to that."""
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(all="ignore"):
        wide = every.astype(f32)
        halfway = ((wide[1:].astype(float) + wide[:-1]) / 2).astype(f32)
        random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, np.uint32).view(f32)
        x = np.concatenate(
            [wide[:-1], halfway, np.nextafter(halfway, f32(0)), np.nextafter(halfway, f32(4e38)), random]
        )
        expected = x.astype(dtype)
    a = np.resize(every, x.size)
    y, b = np.empty(x.size, dtype), np.empty(x.size, f32)
    options = (f"-DTYPE={type}", f"-DHEADER={header}")
    run(CONVERT, In(x), Out(y), In(a), Out(b), np.int32(x.size), grid=-(-x.size // 256), block=256, options=options)
    same(y, expected)
    same(b, a.astype(f32))


INTEGERS = """
extern "C" __global__ void k(const unsigned* x, unsigned* y) {
  unsigned a = x[3 * threadIdx.x], b = x[3 * threadIdx.x + 1], c = x[3 * threadIdx.x + 2];
  y += 9 * threadIdx.x;
  y[0] = __clz(a); y[1] = __popc(a); y[2] = __brev(a); y[3] = __byte_perm(a, b, c); y[4] = __funnelshift_l(a, b, c);
  y[5] = __funnelshift_r(a, b, c); y[6] = __ffs(a); y[7] = __dp4a(a, b, c); y[8] = min(a, b) - max(b, c);
}"""


def test_integer_functions():
    """Against the simulated GPU, and the first against Python."""
    x = (
        np.random.default_rng(0).integers(0, 1 << 32, (64, 3), np.uint32)
        >> np.arange(64, dtype=np.uint32)[:, None] % 32
    )
    x[0] = 0
    y = on_both(INTEGERS, In(x), Out(np.empty((64, 9), np.uint32)), block=64)[0]
    assert y[:, :3].tolist() == [
        [32 - int(a).bit_length(), int(a).bit_count(), int(f"{a:032b}"[::-1], 2)] for a in x[:, 0]
    ]


FLOATS = """
extern "C" __global__ void k(const float* x, float* y, int* z) {
  float a = x[2 * threadIdx.x], b = x[2 * threadIdx.x + 1];
  y += 8 * threadIdx.x;
  y[0] = a * b; y[1] = a + b; y[2] = a / b; y[3] = fmaf(a, b, a); y[4] = fmaxf(a, b); y[5] = fminf(a, b);
  y[6] = sqrtf(a); y[7] = __fadd_rn(__fmul_rn(a, b), a);
  z[2 * threadIdx.x] = __float2int_rn(a); z[2 * threadIdx.x + 1] = a < b;
}"""
SPECIAL = np.array(
    [0, -0.0, 1, -1.5, 2.5, 1e-40, -1e-45, 1e-30, 3e9, -3e9, 3e38, np.inf, -np.inf, np.nan, 1.1754944e-38], f32
)


def test_float_functions_flush_subnormal_numbers():
    """Pairs of special numbers, and of any bits: as -ftz=true has it, on both executors."""
    rng = np.random.default_rng(0)
    special = np.stack(np.meshgrid(SPECIAL, SPECIAL), -1).reshape(-1, 2)
    x = np.concatenate([special, rng.integers(0, 1 << 32, (1024 - len(special), 2), np.uint32).view(f32)])
    y, z = on_both(FLOATS, In(x), Out(np.empty((len(x), 8), f32)), Out(np.empty((len(x), 2), np.int32)), block=len(x))
    flushed = np.where(abs(x) < 2.0**-126, np.copysign(0, x), x).astype(f32)
    with np.errstate(all="ignore"):
        product = flushed[:, 0] * flushed[:, 1]
    same(y[:, 0].copy(), np.where(abs(product) < 2.0**-126, np.copysign(0, product), product).astype(f32))
    assert (z[:, 1] == (flushed[:, 0] < flushed[:, 1])).all()


def test_a_product_and_a_sum_stay_two_roundings():
    """g++ must not contract; that NVRTC does shows as a difference between the executors."""
    text = """extern "C" __global__ void k(const float* x, float* y) { y[0] = x[0] * x[0] - x[1]; }"""
    a = f32(1 + 2**-12)
    y = np.empty(1, f32)
    run(text, In(np.array([a, a * a], f32)), Out(y), block=1)
    assert y[0] == 0  # fused: 2^-24


# Warps and blocks

SHUFFLES = """
extern "C" __global__ void k(const int* x, int* y, int by, int width) {
  int i = threadIdx.x, n = blockDim.x;
  y[i] = __shfl_sync(~0u, x[i], by, width); y[n + i] = __shfl_up_sync(~0u, x[i], by, width);
  y[2 * n + i] = __shfl_down_sync(~0u, x[i], by, width); y[3 * n + i] = __shfl_xor_sync(~0u, x[i], by, width);
}"""


@given(st.integers(0, 31), st.sampled_from([1, 2, 4, 8, 16, 32]), st.sampled_from([32, 64]))
def test_shuffles(by, width, block):
    """The lane that each asks for, and its own value where that is outside of its segment."""
    x = np.random.default_rng(0).integers(0, 1 << 30, block, np.int32)
    y = on_both(SHUFFLES, In(x), Out(np.empty((4, block), np.int32)), np.int32(by), np.int32(width), block=block)[0]
    lane = np.arange(block)
    first = lane // width * width
    asked = [first + by % width, lane - by, lane + by, lane ^ by]
    inside = [True, asked[1] >= first, asked[2] < first + width, asked[3] < first + width]
    same(y, np.stack([x[np.where(ok, j, lane)] for ok, j in zip(inside, asked, strict=True)]))


VOTES = """
extern "C" __global__ void k(const int* x, unsigned* y, unsigned mask) {
  int i = threadIdx.x;
  unsigned mine = mask >> i & 1 ? mask : ~mask;  // two groups of lanes, each by itself
  y[3 * i] = __ballot_sync(mine, x[i]); y[3 * i + 1] = __any_sync(mine, x[i]); y[3 * i + 2] = __all_sync(mine, x[i]);
}"""


@given(st.integers(0, FULL), st.integers(0, FULL))
def test_votes_of_the_lanes_of_a_mask(mask, bits):
    x = np.array([bits >> i & 1 for i in range(32)], np.int32)
    y = on_both(VOTES, In(x), Out(np.empty((32, 3), np.uint32)), np.uint32(mask))[0]
    for i in range(32):
        mine = mask if mask >> i & 1 else ~mask & FULL
        assert y[i].tolist() == [bits & mine, bits & mine != 0, bits & mine == mine]


@given(st.integers(1, 32), st.integers(0, FULL), st.booleans())
def test_lanes_that_have_left_are_not_waited_for(n, bits, late):
    """CUDA C++ Programming Guide, "Warp Vote Functions": "all non-exited threads" of the mask take part."""
    text = """extern "C" __global__ void k(const int* x, unsigned* y, int n, int late) {
      int i = threadIdx.x;
      if (late) __syncwarp();
      if (i < n) { y[i] = __ballot_sync(~0u, x[i]); y[i] += __shfl_xor_sync(~0u, i, 0); } }"""
    x = np.array([bits >> i & 1 for i in range(32)], np.int32)
    y = on_both(text, In(x), Out(np.zeros(32, np.uint32)), np.int32(n), np.int32(late))[0]
    assert y[:n].tolist() == [(bits & (1 << n) - 1) + i & FULL for i in range(n)]


EXCHANGE = """
extern "C" __global__ void k(const float* x, float* y) {
  WHERE float buffer[64];
  int i = threadIdx.x;
  buffer[i] = x[blockIdx.x * 64 + i];
  WAIT;
  y[blockIdx.x * 64 + i] = buffer[i ^ OTHER];
}"""


@pytest.mark.parametrize("wait, other", [("__syncthreads()", 63), ("__syncwarp()", 31), ("__syncwarp(~0u << 0)", 1)])
def test_the_order_of_threads_shows_only_where_a_barrier_is_missing(wait, other):
    """And of blocks: shared memory is NaN at the start of each."""
    x = np.random.default_rng(0).standard_normal(256).astype(f32)
    expected = x.reshape(4, 64)[:, np.arange(64) ^ other].ravel()
    for order in ("forward", "backward", 2, 3):
        for barrier in (wait, ""):
            y = np.empty(256, f32)
            text = EXCHANGE.replace("WHERE", "__shared__").replace("WAIT", barrier).replace("OTHER", str(other))
            run(text, In(x), Out(y), grid=4, block=64, order=order)
            assert (y == expected).all() == bool(barrier)
            assert bool(barrier) or np.isnan(y).any()
    dynamic = EXCHANGE.replace("WHERE float buffer[64]", "extern __shared__ float buffer[]")
    run(dynamic.replace("WAIT", wait).replace("OTHER", str(other)), In(x), Out(y), grid=4, block=64)
    same(y, expected)


@given(st.integers(1, 40), st.sampled_from([1, 31, 64, 100]), orders)
def test_atomics(blocks, threads, order):
    text = """extern "C" __global__ void k(int* y, float* z) {
      atomicAdd(y, 1); atomicMax(y + 1, (int)(blockIdx.x * blockDim.x + threadIdx.x)); atomicAdd(z, 0.5f);
      if (atomicCAS(y + 2, 0, 7) == 0) atomicExch(y + 3, (int)threadIdx.x + 1); }"""
    y, z = np.zeros(4, np.int32), np.zeros(1, f32)
    run(text, Out(y), Out(z), grid=blocks, block=threads, order=order)
    assert y[:3].tolist() == [blocks * threads, blocks * threads - 1, 7] and z[0] == blocks * threads / 2
    assert 1 <= y[3] <= threads


WRONG = {  # text of a kernel of 64 threads, thread i -> what is said of it
    "if (i < 5) return; __syncthreads();": r"\(5, 0, 0\) waits at __syncthreads in line 3, .* \(4, 0, 0\) has ended",
    "if (i < 9) __syncthreads();": "has ended",
    "if (i < 9) __syncthreads();\nelse __syncthreads();": "waits elsewhere, at __syncthreads",
    "if (i == 40) return; x[i] = __shfl_down_sync(~0u, i, 1);": "__shfl_down_sync from lane 8, which does not",
    "if (i % 2) x[i] = __shfl_xor_sync(~0u, i, 1);": r"from lane \d+, which does not take part",
    "if (i == 3) __syncthreads(); else if (i > 3) __syncwarp();": r"\(3, 0, 0\) waits at __syncthreads",
    "if (i % 2) __syncwarp(); else __syncthreads();": "waits elsewhere, at",
    "__syncwarp(i == 3 ? 0xff : 0xf);": "not in its mask|with another mask",
    "if (i % 2) x[i] = __shfl_xor_sync(0xaaaaaaaa, i, 1);": "from lane 0, which does not take part",
    "x[i + 1] = 0;": "argument 0: written after the array",
    "x[i - 1] = 0;": "argument 0: written before the array",
    "const_cast<float*>(c)[i] = 1;": "argument 1: written, and const",
}


@pytest.mark.parametrize("body", WRONG)
def test_what_is_wrong_with_a_kernel(body):
    text = (
        'extern "C" __global__ void __launch_bounds__(64)\nk(float* x, const float* c) { int i = threadIdx.x;\nBODY\n}'
    )
    x, c = np.zeros(64, f32), np.zeros(64, f32)
    for order in ("forward", "backward", 2):
        with pytest.raises(SimulationError, match=WRONG[body] if order == "forward" else "^k"):
            run(text.replace("BODY", body), Out(x), In(c), block=64, order=order)
    run(text.replace("BODY", "x[i] = c[i] + 2; __syncthreads();"), Out(x), In(c), block=64)
    assert (x == 2).all()


def test_arguments_must_be_the_kernels():
    text = 'extern "C" __global__ void k(const float* x, unsigned char* y, int n, float s) {}'
    right = (In(np.zeros(1, f32)), Out(np.zeros(1, np.uint8)), np.int32(1), f32(1))
    run(text, *right)
    for i, wrong in enumerate([Out(np.zeros(1, f32)), In(np.zeros(1, np.uint8)), np.uint32(1), np.float64(1)]):
        with pytest.raises(LaunchError, match="k takes "):
            run(text, *right[:i], wrong, *right[i + 1 :])
    with pytest.raises(LaunchError, match="given were"):
        run(text, *right[:3])


# The kernels

LEFT_OUT = {"gemm_4bit_tensor_v3", "gemm_4bit_tensor_v4"}  # mma.sync, ldmatrix and cp.async, which C++ has not


def test_all_kernels_run_here_but_those_of_tensor_cores():
    texts = [path.read_text() for path in FOLDER.glob("*.cu")]
    all_ = {kernel for text in texts for kernel in host.kernels(text, ("-D__CUDA_ARCH__=900",))}
    here = {kernel for text in texts for kernel in host.kernels(text)}
    assert len(all_) >= 38 and all_ - here == LEFT_OUT
    x = np.zeros((1, 32), np.float16)
    with pytest.raises(LaunchError, match="gemm_4bit_tensor_v3 has no C"):
        checks.gemm.gemm_4bit(
            HostDevice(), x, x.view(np.uint8), np.ones(1, f32), np.zeros(16, f32), 64, (2, 32), version=3
        )


def agree(check, version, order, exact=True, **sizes):
    """Both executors pass the check; with the same bits if `exact`."""
    there = check(HostDevice(order), version, **sizes)
    if machine.available():
        for a, b in zip(there, check(simulated, version, **sizes), strict=True):
            if exact:
                same(a, b)


seeds = st.integers(0, 1 << 32)
sizes = st.integers(1, 600)
powers_of_32 = st.sampled_from([32, 64, 128])
powers = st.sampled_from([16, 64, 64, 512])
codes = st.sampled_from(list(checks.LEVELS))
dtypes = st.sampled_from(list(checks.DTYPES))
kinds = st.sampled_from(["dynamic", "fp8", "int8"])
few = settings(max_examples=settings().max_examples // 3)


@few
@given(sizes, powers, codes, orders, seeds)
def test_quantize_4bit(n, blocksize, code, order, seed):
    for version in range(4):
        agree(checks.quantize_4bit, version, order, n=n, blocksize=blocksize, code=code, seed=seed)


@few
@given(sizes, st.integers(1, 100), codes, orders, seeds)
def test_quantize_4bit_in_odd_blocks(n, blocksize, code, order, seed):
    for version in (0, 1):
        agree(checks.quantize_4bit, version, order, n=n, blocksize=blocksize, code=code, seed=seed)
    agree(checks.quantize_4bit, 2, order, n=n, blocksize=2 * blocksize, code=code, seed=seed)


@few
@given(st.integers(1, 3000), powers, st.integers(0, 9), dtypes, codes, kinds, orders, seeds)
def test_dequantize_4bit(n, blocksize, start, dtype, code, scales, order, seed):
    part = {"n": n + 8 * start, "blocksize": blocksize, "start": 8 * start, "dtype": dtype, "seed": seed}
    for version in range(4):
        agree(checks.dequantize_4bit, version, order, code=code, **part)
        agree(checks.dequantize_4bit_double, version, order, scales=scales, **part)


@few
@given(sizes, st.integers(1, 100), st.integers(0, 99), dtypes, codes, kinds, orders, seeds)
def test_dequantize_4bit_in_odd_blocks(n, blocksize, start, dtype, code, scales, order, seed):
    part = {"n": n + start, "blocksize": blocksize, "start": start, "dtype": dtype, "seed": seed}
    for version in (0, 1):
        agree(checks.dequantize_4bit, version, order, code=code, **part)
        agree(checks.dequantize_4bit_double, version, order, scales=scales, **part)


@pytest.mark.slow
@few
@given(sizes, st.sampled_from([16, 64, 576]), st.integers(0, 9), dtypes, orders, seeds)
def test_8_bits(n, blocksize, start, dtype, order, seed):
    for version in range(3):
        agree(checks.quantize_int8, version, order, n=n, blocksize=blocksize, seed=seed)
    part = {"n": n + 8 * start, "blocksize": blocksize, "start": 8 * start, "dtype": dtype, "seed": seed}
    for version in range(2):
        agree(checks.dequantize_int8, version, order, **part)
    agree(checks.quantize_8bit, 0, order, n=min(n, 40), blocksize=16, seed=seed)
    agree(checks.quantize_8bit, 1, order, n=n, blocksize=blocksize, seed=seed)


def test_a_whole_array_as_one_block():
    for version in (1, 2):
        agree(checks.quantize_int8, version, 3, n=40_001, blocksize=50_000)


# A few combinations of types and options: each is compiled anew, twice.
@pytest.mark.slow
@few
@given(
    st.integers(1, 40), st.sampled_from([32, 96, 1056]), st.integers(1, 99), powers_of_32,
    st.tuples(st.just(1), st.just("float32"), st.none(), st.just(0))
    | st.tuples(st.sampled_from([2, 4]), st.just("float16"), st.just("int8"), st.just(0))
    | st.tuples(st.sampled_from([3, 5, 8]), st.just("bfloat16"), st.just("dynamic"), st.just(5)),
    orders, seeds,
)  # fmt: skip
def test_gemv_4bit(N, K, odd_K, blocksize, options, order, seed):
    """Bit for bit but with an adapter: NVRTC fuses its product by `scaling` and sum."""
    M, dtype, scales, rank = options
    rest = {"M": M, "N": N, "dtype": dtype, "scales": scales, "rank": rank, "seed": seed}
    for version in range(5):
        agree(checks.gemv_4bit, version, order, K=K, blocksize=blocksize, **rest)
    for version in range(2):
        agree(checks.gemv_4bit, version, order, K=odd_K, blocksize=odd_K + 3, **rest)


@pytest.mark.slow
@few
@given(
    st.sampled_from([8, 64, 72]), st.sampled_from([32, 64, 96]), st.integers(1, 40), st.integers(1, 30),
    st.sampled_from([(3, "float32", False, 0, 1), (65, "bfloat16", True, 3, 1), (20, "float16", False, 0, 2)]),
    orders, seeds,
)  # fmt: skip
def test_gemm_4bit(N, K, odd_N, odd_K, options, order, seed):
    M, dtype, transpose, rank, splits = options
    rest = {"dtype": dtype, "rank": rank, "splits": splits, "transpose": transpose, "seed": seed}
    for version in range(3):
        agree(checks.gemm_4bit, version, order, M=M, N=N, K=K, **rest)
        agree(checks.gemm_4bit, version, order, M=min(M, 9), N=odd_N, K=odd_K, blocksize=odd_K + 3, **rest)


@few
@given(st.integers(1, 9), st.sampled_from([1, 31, 255, 256, 257]) | st.integers(1, 70), orders, seeds)
def test_rows(rows, n, order, seed):
    """softmax within its bound: the C library's expf is not CUDA's."""
    for version in range(3):
        agree(checks.softmax, version, order, exact=False, R=rows, n=n, seed=seed)
        agree(checks.rms_norm, version, order, R=rows, n=n, seed=seed)


@pytest.mark.parametrize(
    "what",
    [
        "quantize: no barrier before the warps' maxima are read",
        "quantize: threads beyond the end leave before a shuffle",
        "quantize: nibbles swapped",
        "dequantize: one weight stored beyond the end",
        "gemm: no barrier after a tile is loaded",
    ],
)
def test_a_bug_shows_here_too(what):
    """Also a race, as one of the orders brings it about."""
    bug = next(bug for bug in BUGS if bug.what == what)
    found = 0
    for order in ("forward", "backward", 2):
        bug.case(HostDevice(order))
        try:
            bug.case(HostDevice(order, edit=bug.edit))
        except (AssertionError, SimulationError):
            found += 1
    assert found
