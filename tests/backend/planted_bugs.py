"""Bugs planted in the shipped kernels: would the simulated GPU, or the comparison with NumPy, notice?

    python tests/backend/planted_bugs.py        # a table: each bug, and what it was caught by

A bug is an edit of a .cu file's text that one could make, or that a clever change could bring about. The text that it
replaces must occur exactly as often as it says, so that a bug does not vanish when its kernel is rewritten. It is run
on one small case, which the kernel as it is shipped passes (the control), and is caught by a SimulationError or by a
result that is not NumPy's; `by` says in which words, as an error for another reason would prove nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

try:
    from backend import kernel_checks as checks
except ImportError:  # run as a program
    import kernel_checks as checks

from minilora import simt
from minilora.backend.simt import SimulatedDevice
from minilora.errors import SimulationError

DIFFERS = "differ|rounding explains|Not equal to tolerance"


@dataclass(frozen=True)
class Bug:
    what: str
    source: str
    right: str
    wrong: str
    case: Callable  # of a device
    by: str = DIFFERS  # a regular expression
    times: int = 1

    def edit(self, name: str, text: str) -> str:
        """For SimulatedDevice(edit=...). Raises LookupError where the kernel is not as this bug knows it."""
        if name != self.source:
            return text
        if text.count(self.right) != self.times:
            raise LookupError(
                f"{self.what}: {name} has {text.count(self.right)} times, not {self.times}: {self.right!r}"
            )
        return text.replace(self.right, self.wrong)

    def caught(self) -> str | None:
        """What the bug was caught by, in one line, or None."""
        try:
            self.case(SimulatedDevice(edit=self.edit))
        except simt.CompileError:
            raise  # that is not what this bug is
        except SimulationError as error:
            return f"simulator: {str(error).splitlines()[0]}"
        except AssertionError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            return f"NumPy: {lines[0]}"
        return None


def case(check: Callable, version: int, **sizes) -> Callable:
    return partial(check, version=version, **sizes)


def name_of(case: Callable) -> str:
    sizes = ", ".join(f"{name}={value}" for name, value in case.keywords.items())
    return f"{case.func.__name__}({sizes})"


RACE, BOUNDS, BARRIER, WARP = "race: ", "out of bounds", "barrier divergence", "left the kernel"
Q, D, I8, V, G, T, R = (f"{name}.cu" for name in (
    "quantize_4bit", "dequantize_4bit", "int8", "gemv_4bit", "gemm_4bit", "gemm_4bit_tensor", "rows"
))  # fmt: skip

odd_blocks = case(checks.quantize_4bit, 1, n=1003, blocksize=33)
by_tree = case(checks.quantize_4bit, 1, n=1003, blocksize=64)
by_thread = case(checks.quantize_4bit, 0, n=203, blocksize=64, kind="normal")
ties = case(checks.quantize_4bit, 0, n=256, blocksize=64, kind="ties")
by_warp = case(checks.quantize_4bit, 2, n=203, blocksize=64, kind="normal")
by_fours = case(checks.quantize_4bit, 3, n=1003, blocksize=64)
long_blocks = case(checks.quantize_4bit, 3, n=5001, blocksize=512)
partial_block = case(checks.quantize_4bit, 0, n=500, blocksize=512, seed=1)
many_threads = case(checks.quantize_4bit, 3, n=9001, blocksize=4096)
pairs = case(checks.dequantize_4bit, 1, n=1001, blocksize=64)
stores = case(checks.dequantize_4bit, 2, n=1001, blocksize=64)
tiles = case(checks.dequantize_4bit, 3, n=70_000, blocksize=64)
halves = case(checks.dequantize_4bit, 2, n=1001, blocksize=64, dtype="float16")
nested = case(checks.dequantize_4bit_double, 0, n=9000, blocksize=16)
staged = case(checks.dequantize_4bit_double, 3, n=9000, blocksize=16)
int8 = case(checks.quantize_int8, 1, n=1003, blocksize=64)
int8_fours = case(checks.quantize_int8, 2, n=1003, blocksize=64)
one_block = case(checks.quantize_int8, 2, n=40_001, blocksize=50_000)
from_int8 = case(checks.dequantize_int8, 1, n=1003, blocksize=64)
table = case(checks.quantize_8bit, 1, n=1003, blocksize=256)
gemv_warp = case(checks.gemv_4bit, 1, M=2, N=11, K=40)
gemv_chunks = case(checks.gemv_4bit, 2, M=2, N=11, K=96)
gemv_tiles = case(checks.gemv_4bit, 3, M=2, N=11, K=1056)
gemv_rows = case(checks.gemv_4bit, 4, M=2, N=11, K=1056)
gemv_nested = case(checks.gemv_4bit, 4, M=2, N=300, K=96, blocksize=32, scales="dynamic")
gemm_16 = case(checks.gemm_4bit, 1, M=17, N=20, K=40)
gemm_split = case(checks.gemm_4bit, 0, M=4, N=20, K=150, splits=2)
gemm_64 = case(checks.gemm_4bit, 2, M=5, N=20, K=160)
gemm_odd = case(checks.gemm_4bit, 2, M=5, N=20, K=45)
tensor = case(checks.gemm_4bit, 3, M=20, N=40, K=96, dtype="float16")
tensor_back = case(checks.gemm_4bit, 3, M=20, N=40, K=96, dtype="bfloat16", transpose=True)
copied = case(checks.gemm_4bit, 4, M=20, N=40, K=160, dtype="float16")
softmax = case(checks.softmax, 1, R=3, n=300)
softmax_warp = case(checks.softmax, 2, R=3, n=300)
rms_norm = case(checks.rms_norm, 2, R=3, n=70)

SHUFFLE = (
    "for (unsigned offset = 16; offset; offset /= 2) largest = max(largest, __shfl_xor_sync(ALL, largest, offset));"
)
THROUGH_SHARED = """__shared__ unsigned of_lane[17][256];
  for (unsigned offset = 16; offset; offset /= 2) {
    of_lane[offset][threadIdx.x] = largest;
    __syncwarp();
    largest = max(largest, of_lane[offset][threadIdx.x ^ offset]);
  }"""

BUGS = [
    # Barriers
    Bug("quantize: no barrier before the tree is read", Q,
        "tree[threadIdx.x] = largest;\n  __syncthreads();", "tree[threadIdx.x] = largest;", by_tree, RACE),
    Bug("quantize: no barrier between rounds of the tree", Q,
        "tree[threadIdx.x + half]);\n    __syncthreads();", "tree[threadIdx.x + half]);", by_tree, RACE),
    Bug("quantize: no barrier before the tree is written again", Q,
        "  __syncthreads();  // before the tree is written again\n", "", odd_blocks, RACE),
    Bug("quantize: no barrier before the warps' maxima are read", Q,
        "of_warp[threadIdx.x / 32] = largest;\n  __syncthreads();", "of_warp[threadIdx.x / 32] = largest;",
        long_blocks, RACE),
    Bug("int8: no barrier before the warps' maxima are read", I8,
        "of_warp[threadIdx.x / 32] = most;\n  __syncthreads();", "of_warp[threadIdx.x / 32] = most;", one_block, RACE),
    Bug("dequantize: no barrier after the levels are copied", D,
        "level[threadIdx.x] = levels[threadIdx.x];\n  __syncthreads();", "level[threadIdx.x] = levels[threadIdx.x];",
        stores, RACE),
    Bug("dequantize: no barrier after the 256 levels are copied", D,
        "copy[k] = levels256[k];\n    __syncthreads();", "copy[k] = levels256[k];", staged, RACE),
    Bug("gemv: no barrier before x is staged", V,
        "    __syncthreads();  // the tile before has been read, and the pairs are written\n", "", gemv_tiles, RACE),
    Bug("gemv: no barrier after x is staged", V,
        "K - start);\n    __syncthreads();\n    if (n < N", "K - start);\n    if (n < N", gemv_tiles, RACE),
    Bug("gemv: a barrier that only double quantization needs is left out", V,
        "lane % COPIES);\n  __syncthreads();", "lane % COPIES);", gemv_nested, RACE),
    Bug("gemm: no barrier after a tile is loaded", G,
        "    __syncthreads();\n#pragma unroll\n    for (int k = 0; k < 16",
        "#pragma unroll\n    for (int k = 0; k < 16",
        gemm_16, RACE),
    Bug("gemm: no barrier before the next tile is loaded", G,
        "    __syncthreads();  // before the tiles are overwritten\n", "", gemm_16, RACE),
    Bug("tensor: no barrier before the tiles are multiplied", T,
        "    __syncthreads();\n    multiply(sums, xs, ws);", "    multiply(sums, xs, ws);", tensor, RACE),
    Bug("softmax: the sum overwrites the maximum before all have read it", R,
        "  __syncthreads();  // the result before has been read\n", "", softmax, RACE),
    Bug("quantize: maxima through shared memory without __syncwarp", Q,
        SHUFFLE, THROUGH_SHARED.replace("__syncwarp();", ""), by_warp, RACE),
    # Threads that leave
    Bug("quantize: threads beyond the end leave before a shuffle", Q,
        "  float4 v = make_float4", "  if (i >= n) return;\n  float4 v = make_float4", by_fours, WARP),
    Bug("quantize: warps without a block leave before a barrier", Q,
        "  __shared__ float border[16];\n  if (threadIdx.x < 16) border[threadIdx.x] = borders[threadIdx.x];\n"
        "  __syncthreads();",
        "  __shared__ float border[16];\n  if (threadIdx.x < 16) border[threadIdx.x] = borders[threadIdx.x];\n"
        "  if (((INDEX)blockIdx.x * blockDim.x + threadIdx.x) / 32 * blocksize >= n) return;\n  __syncthreads();",
        by_warp, BARRIER),
    Bug("gemv: rows beyond the last leave before the barriers", V,
        "  const int shift = 26 - __clz(blocksize);\n  float sum = 0;\n  for (int start",
        "  const int shift = 26 - __clz(blocksize);\n  float sum = 0;\n  if (n >= N) return;\n  for (int start",
        gemv_tiles, BARRIER),
    Bug("gemv: lanes beyond the row leave before a shuffle", V,
        "  float sum = 0;\n  for (int k = lane; k < K; k += 32) {",
        "  float sum = 0;\n  if (lane >= K % 32) return;\n  for (int k = lane; k < K; k += 32) {", gemv_warp, WARP),
    # Memory
    Bug("dequantize: one weight stored beyond the end", D,
        "if (i + 1 < stop) {", "if (i + 1 <= stop) {", pairs, BOUNDS),
    Bug("quantize: two bytes stored where one is left", Q,
        "if (i + 2 < n) *reinterpret_cast", "if (i < n) *reinterpret_cast",
        case(checks.quantize_4bit, 3, n=1001, blocksize=64), BOUNDS),
    Bug("gemm: the tail of the sum is not checked", G,
        "m < M && r + tx < end ? (float)x", "m < M ? (float)x", gemm_16, BOUNDS),
    Bug("gemm: the tail of a tile is left as it was", G,
        "xs[ty][tx] = m < M && r + tx < end ?", "if (m < M && r + tx < end) xs[ty][tx] = m < M ?",
        gemm_16, "not written before"),
    Bug("gemm: the column that pads a tile is read", G,
        "for (int k = 0; k < 16; ++k) sum =", "for (int k = 0; k <= 16; ++k) sum =", gemm_16, "not written before"),
    Bug("gemm: rows of x that are not aligned are loaded 16 bytes at a time", G,
        "#if ALIGNED\n    if (m < M", "#if 1\n    if (m < M", gemm_odd, "misaligned"),
    Bug("int8: 16 bytes are loaded from an entry too far on", I8,
        "*reinterpret_cast<const float4*>(x + i)", "*reinterpret_cast<const float4*>(x + i + 1)", int8_fours,
        "misaligned"),
    Bug("gemv: rows of W beyond the last are stored", V,
        "lane % (32 / ROWS) == 0 && n < N && m0", "lane % (32 / ROWS) == 0 && m0", gemv_rows, f"{RACE}|{BOUNDS}"),
    Bug("gemm: all parts of a split sum go to one place", G,
        "  y += (size_t)blockIdx.z * M * C;", "", gemm_split, RACE),
    Bug("gemm: parts of a split sum are added by +=", G,
        "y[(size_t)m * C + c] = (Y)WITH_ADAPTER(",
        "y += -(size_t)blockIdx.z * M * C, y[(size_t)m * C + c] += (Y)WITH_ADAPTER(",
        gemm_split, RACE),
    Bug("int8: a const input is used as room for the absolute values", I8,
        "for (INDEX i = begin + lane; i < end; i += 32) largest = max(largest, magnitude(x[i]));",
        "for (INDEX i = begin + lane; i < end; i += 32)\n"
        "    largest = max(largest, __float_as_uint(const_cast<float*>(x)[i] = fabsf(x[i])));", int8, "read-only"),
    # Asynchronous copies and tensor cores
    Bug("tensor: one group of copies too many may be on its way", T,
        "cp.async.wait_group 0;", "cp.async.wait_group 1;", copied, "still being copied"),
    Bug("tensor: the copies are not waited for", T,
        'asm volatile("cp.async.wait_group 0;" ::: "memory");', "", copied, "still being copied"),
    Bug("tensor: the stage that is being filled is multiplied", T,
        "multiply(sums, xs[stage], ws);", "multiply(sums, xs[stage ^ 1], ws);", copied, "still being copied"),
    Bug("tensor: fragments of W are not transposed", T,
        "load_matrices<true>(b[j]", "load_matrices<false>(b[j]", tensor_back),
    Bug("tensor: halves of W's fragment swapped", T,
        '"r"(b[j / 2][j % 2 * 2]), "r"(b[j / 2][j % 2 * 2 + 1])',
        '"r"(b[j / 2][j % 2 * 2 + 1]), "r"(b[j / 2][j % 2 * 2])', tensor),
    Bug("tensor: rows are read as if they were not swizzled", T,
        "load_matrices<false>(a, xs + place(warp_row + 16 * i + lane % 16, k / 8 + lane / 16))",
        "load_matrices<false>(a, xs + (warp_row + 16 * i + lane % 16) * 8 + k / 8 + lane / 16)", tensor),
    # Numbers
    Bug("quantize: nibbles swapped", Q,
        "packed[i / 2] = high << 4 | code;", "packed[i / 2] = code << 4 | high;", by_thread),
    Bug("quantize: a tie goes up", Q, "setp.gt.f32", "setp.ge.f32", ties),
    Bug("quantize: the maximum misses an offset", Q, SHUFFLE, SHUFFLE.replace("16", "8"), by_warp),
    Bug("quantize: a partial block is multiplied by its reciprocal", Q,
        "by = full ? divide(1.0f, divisor) : divisor;", "by = divide(1.0f, divisor), this->full = true;",
        partial_block),
    Bug("quantize: a block of 256 threads is taken for granted", Q,
        "INDEX i = 4 * ((INDEX)blockIdx.x * blockDim.x + threadIdx.x);",
        "INDEX i = 4 * (blockIdx.x * 256 + threadIdx.x);",
        many_threads, f"{RACE}|{DIFFERS}"),
    Bug("quantize: subnormal numbers are flushed", Q, "#ifdef __CUDA_ARCH__", "#if 0", by_fours),
    Bug("dequantize: subnormal numbers are flushed", D, "#ifdef __CUDA_ARCH__", "#if 0", stores),
    Bug("dequantize: the second-level constant is of 128 blocks", D,
        "absmax2[b / 256]), factor", "absmax2[b / 128]), factor", nested, f"{BOUNDS}|{DIFFERS}"),
    Bug("dequantize: float16 is cut off, not rounded", D, "return OUT(y);", "return __float2half_rz(y);", halves),
    Bug("dequantize: an index of 16 bits", D,
        "INDEX i = tile + WIDTH", "unsigned short i = tile + WIDTH", tiles, f"{BOUNDS}|{RACE}", times=2),
    Bug("int8: cut off, not rounded", I8, "__float2int_rn(", "__float2int_rz(", int8),
    Bug("int8: codes taken for unsigned", I8, "int8_entry(signed char code,", "int8_entry(byte code,", from_int8),
    Bug("8 bits: the binary search stops a step early", I8,
        "step; step /= 2) rank", "step > 1; step /= 2) rank", table),
    Bug("gemv: a sum over lanes misses an offset", V,
        "for (int step = 16; step; step", "for (int step = 8; step; step", gemv_warp),
    Bug("gemv: second-level constants of 128 blocks", V,
        "(block) >> 8]", "(block) >> 7]", gemv_nested, f"{BOUNDS}|{DIFFERS}"),
    Bug("gemv: a scale of twice as many weights", V,
        "26 - __clz(blocksize);  // a block is", "27 - __clz(blocksize);  // a block is", gemv_chunks),
    Bug("gemv: the bytes of a word from the highest down", V,
        "words[i / 2] >> 16 * (i % 2);", "words[i / 2] >> 16 * (1 - i % 2);", gemv_chunks),
    Bug("softmax: sums of other maxima are not corrected", R,
        "sum = sum * expf(m - larger) + other_sum * expf(other - larger);", "sum = sum + other_sum;", softmax_warp),
    Bug("rms_norm: eps is left out", R, "1 / sqrtf(sum / n + eps)", "1 / sqrtf(sum / n)", rms_norm, times=3),
]  # fmt: skip


def cases() -> list[Callable]:
    """Those of all bugs, each once: the control."""
    return list({name_of(bug.case): bug.case for bug in BUGS}.values())


def table_of(caught: dict[str, str | None]) -> str:
    """A line for each bug: what it is, and what it was caught by."""
    width = max(map(len, caught))
    return "\n".join(f"{what:{width}}  {(how or 'NOT CAUGHT')[:160]}" for what, how in caught.items())


if __name__ == "__main__":
    print(table_of({bug.what: bug.caught() for bug in BUGS}))
