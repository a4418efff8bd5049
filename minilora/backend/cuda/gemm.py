"""The product of many rows of x with a 4-bit matrix, in training and prefill: launches of gemm_4bit*.cu.

    y = gemm_4bit(device, x, packed, absmax, levels, 64, (d_out, d_in))                         # x Wᵀ
    dx = gemm_4bit(device, g, packed, absmax, levels, 64, (d_out, d_in), transpose=True)        # g W
    y = gemm_4bit(device, x, packed, absmax, levels, 64, (d_out, d_in), lora=(u, B, scaling))   # + scaling · u Bᵀ

With 16-bit x the products are those of the tensor cores: W rounded to x's type, the sums in float32. A float32 x never
goes through 16 bits, and so never to the tensor cores.

A product of few tiles is split along the sum, so that all of the GPU has work; a second kernel adds the parts in their
order. How it is split depends on the sizes alone: every run, on every GPU of the same version, adds in the same order.
"""

import numpy as np

from minilora.backend import array_namespace
from minilora.backend.cuda.launch import FLOATS, Device, In, Launch, Out, aligned, float_macros
from minilora.errors import LaunchError

DEPTH = 64  # of a tile of W along the sum: 32 bytes of 4-bit codes, what a GPU reads from memory at least
BLOCKS = 256  # wanted: about two for each of the 132 multiprocessors of an H100
SHORTEST = 4 * DEPTH  # part of a sum: less is not worth the partial result's way through memory
TENSOR_CORES = 80  # the compute capability that has mma.m16n8k16 and cp.async


def gemm_4bit(
    device: Device,
    x,
    packed,
    absmax,
    levels,
    blocksize: int,
    shape: tuple[int, int],
    transpose: bool = False,
    version: int | None = None,
    lora=None,
    dtype=None,
    splits: int | None = None,
):
    """x Wᵀ for x (..., d_in), or x W for x (..., d_out) when transpose, W of `shape` (d_out, d_in) in 4 bits.

    x: float32, float16 or bfloat16. dtype: of the result, x's or float32; None is x's. The sums are in float32, in a
    fixed order. For 16-bit x, each level · absmax is rounded to x's type before it is multiplied.
    packed (ceil(n/2),) uint8, absmax (ceil(n/blocksize),) float32, over the flat W of n = d_out d_in; levels: at most
    16, float32, on the host. Double-quantized scales are dequantized before (matmul.py): here each is read many times.
    lora: None, or (u, B, scaling) with float32 u (..., r) and B (columns of y, r): + scaling · u Bᵀ in the same kernel.
    In the forward product u = x Aᵀ; in the transposed one u = g B, and Aᵀ stands in B's place.
    version: 0 to 4, the steps of gemm_4bit.cu and, from 3 on, of gemm_4bit_tensor.cu; None for the best.
    splits: the most parts that the sum is cut into; None for as many as give the GPU enough blocks.
    Raises LaunchError for what the version or the GPU cannot take.
    """
    N, K = shape
    R, C = (N, K) if transpose else (K, N)  # x (M, R), y (M, C)
    dtype = np.dtype(x.dtype if dtype is None else dtype)
    if x.shape[-1] != R or x.dtype.name not in FLOATS or dtype.name not in (x.dtype.name, "float32"):
        raise LaunchError(
            f"x {x.shape} {x.dtype} times W ({N}, {K}){'' if transpose else ' transposed'} as {dtype}: x has {R} "
            f"columns, of {', '.join(FLOATS)}, and the result is of x's type or float32"
        )
    rows = x.reshape(-1, R)
    M = len(rows)
    in_chunks = _in_chunks(rows, packed, R, K, blocksize)
    version = _checked_version(version, device.arch, x.dtype.name, in_chunks, N, K)
    y = device.empty((M, C), dtype)
    if M == 0:
        return y.reshape(*x.shape[:-1], C)

    tile_rows, tile_columns = _tile(version, M)
    columns, row_tiles = -(-C // tile_columns), -(-M // tile_rows)
    depth = _depth(R, columns * row_tiles, splits)
    splits = -(-R // depth)
    sums = y if splits == 1 else device.empty((splits, M, C), np.float32)
    adapter, adapter_defines = (), {}
    if lora is not None:
        u, B, scaling = lora
        adapter = (In(B), In(u.reshape(M, -1)), np.int32(B.shape[1]), np.float32(scaling))
        adapter_defines = {"LORA": 1}

    table = np.zeros(16, np.float32)
    table[: len(levels)] = levels
    sizes = tuple(np.int32(size) for size in (M, N, K, blocksize, depth))
    down = version > 2 and in_chunks and K % blocksize == 0
    scales = array_namespace(absmax).ascontiguousarray(absmax.reshape(N, -1).T).reshape(-1) if down else absmax
    args = (In(packed), In(scales), In(device.array(table)), In(rows), Out(sums), *sizes)
    defines = _types(x.dtype.name, sums.dtype.name) | {"TRANSPOSE": int(transpose)}
    if version > 1:
        defines |= {"ROWS": tile_rows, "ALIGNED": int(in_chunks)} | ({"DOWN": 1} if down else {})
    if splits == 1:
        args, defines = args + adapter, defines | adapter_defines
    name, arch = ("gemm_4bit", 75) if version < 3 else ("gemm_4bit_tensor", TENSOR_CORES)
    grid, block = (columns, row_tiles, splits), (128,) if version > 1 else (16, 16)
    device.run(Launch(f"{name}.cu", f"{name}_v{version}", grid, block, args, defines, arch=arch))
    if splits > 1:
        args = (In(sums), Out(y), np.int32(M), np.int32(C), np.int32(splits), *adapter)
        defines = _types(dtype.name, dtype.name) | adapter_defines
        device.run(Launch("gemm_4bit.cu", "gemm_4bit_add", (-(-M * C // 256),), (256,), args, defines))
    return y.reshape(*x.shape[:-1], C)


def _types(x: str, y: str) -> dict:
    macros = float_macros(X=x, Y=y)
    return macros | {"TYPE": FLOATS[x][2]} if "HEADER" in macros else macros


def _tile(version: int, M: int) -> tuple[int, int]:
    """Rows and columns of y that a block computes: no more rows than there are, where the version has a choice."""
    if version < 2:
        return 16, 16
    sizes = (64, 128) if version == 2 else (32, 64, 128)
    return next((size for size in sizes if size >= M), sizes[-1]), 64


def _depth(R: int, tiles: int, splits: int | None) -> int:
    """How much of the sum a block takes: a multiple of DEPTH."""
    if splits is None:
        splits = max(1, min(BLOCKS // tiles, R // SHORTEST))
    return -(-R // (splits * DEPTH)) * DEPTH


def _checked_version(version, arch: int, dtype: str, aligned: bool, N: int, K: int) -> int:
    """The version to run. 3 and 4 are for tensor cores; 4 copies 16 bytes at a time, all of one row."""
    tensor = dtype != "float32"
    if version is None:
        version = (4 if aligned else 3) if tensor and arch >= TENSOR_CORES else 2
    if version not in range(5) or (version > 2 and not tensor) or (version == 4 and not aligned):
        raise LaunchError(
            f"gemm_4bit has versions 0 to 4, of which 3 and 4 take float16 or bfloat16 x, and 4 rows and blocks of a "
            f"multiple of 32 weights, blocks a power of two, and rows of x that begin at a multiple of 16 bytes; "
            f"version {version} was asked for {dtype} and a W of ({N}, {K})"
        )
    limit = 1 << (35 if aligned and version > 1 else 31)  # the index of eight weights, or of one, has 32 bits
    if limit <= N * K:
        raise LaunchError(f"W ({N}, {K}): version {version} counts to {limit} weights; give it some rows at a time")
    return version


def _in_chunks(x, packed, R: int, K: int, blocksize: int) -> bool:
    """Whether 32 weights at a multiple of 32 have one scale, and rows of x and W can be read 16 bytes at a time."""
    of_32 = K % 32 == 0 and blocksize % 32 == 0 and blocksize & (blocksize - 1) == 0
    return of_32 and R % 8 == 0 and aligned(16, x, packed)
