"""Products with a quantized matrix: launches of gemv_4bit.cu for few rows of x, of gemm_4bit.cu (gemm.py) for many.

    y = matmul_4bit(device, x, packed, absmax, levels, 64, (d_out, d_in))            # x Wᵀ
    y = gemv_4bit(device, x, packed, None, levels, 64, (d_out, d_in),
                  nested=(absmax_codes, levels256, absmax2, offset),                 # double quantization
                  lora=(A x, B, scaling))                                            # + scaling · B (A x)

In decoding x is one row, and each weight is used once: time goes into reading W, which stays in 4 bits until it is in
registers. With many rows each weight is used often, and the tiles of a matrix product pay.
"""

import numpy as np

from minilora.backend.cuda import gemm, quantize
from minilora.backend.cuda.launch import FLOATS, Device, In, Launch, Out, aligned, float_macros
from minilora.errors import LaunchError, ShapeError

FEW = 8  # rows of x up to which a product is a GEMV
THREADS, WARPS = 256, 8  # of a block
ROWS, XROWS = 4, 3  # of W and, at most, of x, that a warp of version 4 takes
TILE = 1 << 24  # entries of an int8 weight that exist as floats in a product
INT8 = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)  # the levels of int8 codes, times 127


def matmul_4bit(
    device: Device, x, packed, absmax, levels, blocksize: int, shape, transpose=False, version=None, nested=None,
    lora=None,
):  # fmt: skip
    """x Wᵀ for x (M, d_in), or x W for x (M, d_out) when transpose, W (d_out, d_in) given in 4 bits.

    nested: None, or the double-quantized scales as gemv_4bit takes them, and absmax is None. lora: as there.
    version: a step of gemv_4bit.cu for at most FEW rows and not transpose, of gemm_4bit.cu otherwise; None: the best.
    """
    if len(x) <= FEW and not transpose:
        return gemv_4bit(device, x, packed, absmax, levels, blocksize, shape, version, nested, lora)
    if nested is not None:
        codes, levels256, absmax2, offset = nested
        if levels256 is None:
            absmax = quantize.dequantize_int8(device, codes, absmax2, 256)
        else:
            absmax = quantize.dequantize_8bit(device, codes, absmax2, levels256, 256)
        absmax += np.float32(offset)
    return gemm.gemm_4bit(device, x, packed, absmax, levels, blocksize, shape, transpose, version, lora)


def matmul_int8(device, x, codes, absmax, blocksize: int, shape, transpose=False):
    """The same for W given in int8: some of its rows are dequantized at a time, by a kernel, and the product is that of
    the array's own library, BLAS or cuBLAS."""
    d_out, d_in = shape
    y = device.empty((len(x), d_in if transpose else d_out), np.float32)
    height = max(1, TILE // d_in)
    for a in range(0, d_out, height):
        b = min(a + height, d_out)
        w = quantize.dequantize_int8(device, codes, absmax, blocksize, a * d_in, b * d_in).reshape(b - a, d_in)
        if not transpose:
            y[:, a:b] = x @ w.T
        elif a == 0:
            y[:] = x[:, :b] @ w
        else:
            y += x[:, a:b] @ w
    return y


def gemv_4bit(device: Device, x, packed, absmax, levels, blocksize: int, shape, version=None, nested=None, lora=None):
    """x Wᵀ for x (..., d_in) of few rows, float32, float16 or bfloat16, W (d_out, d_in) in 4 bits; (..., d_out) of
    x's type. Sums are in float32, in a fixed order.

    packed (ceil(n/2),) uint8, absmax (ceil(n/blocksize),) float32; levels: at most 16, on the host.
    nested: None, or (absmax_codes, levels256, absmax2, offset), double-quantized constants as those of
    quantize.dequantize_4bit_double, and absmax is None.
    lora: None, or (u, B, scaling) with float32 u = x Aᵀ (..., r) and B (d_out, r): + scaling · u Bᵀ.
    version: 0 to 4; None for the best that takes these sizes.
    Raises LaunchError for a version or a type that it cannot be, ShapeError for x.
    """
    N, K = shape
    if x.dtype.name not in FLOATS:
        raise LaunchError(f"gemv_4bit takes x as {', '.join(FLOATS)}, not {x.dtype}; convert with .astype first")
    if x.shape[-1:] != (K,):
        raise ShapeError(f"x {tuple(x.shape)} cannot be multiplied by the transpose of W ({N}, {K})")
    rows = x.reshape(-1, K)
    M = len(rows)
    y = device.empty((M, N), x.dtype)
    if M:
        version = _checked_version(version, rows, packed, N, K, blocksize)
        groups = -(-M // XROWS)  # of rows of x, as equal as can be
        defines = float_macros(X=x.dtype.name, Y=x.dtype.name) | {"ROWS": ROWS, "XROWS": -(-M // groups)}
        table = np.zeros(16, np.float32)
        table[: len(levels)] = levels
        scales, adapter = (In(absmax),), ()
        if nested is not None:
            codes, levels256, absmax2, offset = nested
            factor = np.float32(1 if levels256 is not None else 1 / 127)
            table256 = INT8 if levels256 is None else levels256
            scales = (In(codes), In(device.array(table256)), In(absmax2), factor, np.float32(offset))
            defines["NESTED"] = 1
        if lora is not None:
            u, B, scaling = lora
            adapter = (In(B), In(u), np.int32(B.shape[-1]), np.float32(scaling))
            defines["LORA"] = 1
        sizes = tuple(np.int32(size) for size in (M, N, K, blocksize))
        args = (In(packed), *scales, In(device.array(table)), In(rows), Out(y), *sizes, *adapter)
        height = {0: THREADS, 4: WARPS * ROWS}.get(version, WARPS)  # rows of W a block
        grid = (-(-N // height), groups if version == 4 else M)
        device.run(Launch("gemv_4bit.cu", f"gemv_4bit_v{version}", grid, (THREADS,), args, defines))
    return y.reshape(*x.shape[:-1], N)


def _checked_version(version, x, packed, N: int, K: int, blocksize: int) -> int:
    """The version to run: 2 to 4 load 16 bytes of W at a time, which must not cross a row's or a block's end."""
    chunks = K % 32 == 0 and blocksize % 32 == 0 and blocksize & (blocksize - 1) == 0 and aligned(16, packed, x)
    if version is None:
        version = 4 if chunks else 1
    if version not in range(5) or (version > 1 and not chunks):
        raise LaunchError(
            f"gemv_4bit has versions 0 to 4, of which 2 to 4 take rows and blocks of a multiple of 32 weights, blocks "
            f"a power of two, and arrays that begin at a multiple of 16 bytes; version {version} was asked for a W of "
            f"({N}, {K}) in blocks of {blocksize}"
        )
    counted = N * K // (32 if version > 1 else 1)  # chunks or weights, in 32 bits
    if counted >= 1 << 32 or max(len(x), N, K) > (1 << 31) - 1024:
        raise LaunchError(f"W ({N}, {K}) has too many weights for gemv_4bit_v{version}; give it some rows at a time")
    return version
