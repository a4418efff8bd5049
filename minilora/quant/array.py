"""QuantizedArray: an array stored as codes and the constants that scale them.

q = quantize(x, "nf4", blocksize=64, double_quant=True)
q.bits_per_weight          # 4.127: 4 bits of code, the rest constants
q.dequantize()             # float32 (or x's dtype) again, each entry a level times its block's absmax
"""

import math
from dataclasses import dataclass

import numpy as np

from minilora.backend import numpy as kernels
from minilora.errors import QuantizationError, unknown_name
from minilora.quant import double
from minilora.quant.codebooks import CODES


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedArray:
    """Codes and constants. packed: flat; uint8 with two 4-bit codes a byte, or int8. Either absmax (float32, a block
    each) is there, or, double quantized, absmax_codes (uint8), absmax2 (float32) and offset."""

    code: str
    packed: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype
    blocksize: int
    absmax: np.ndarray | None = None
    absmax_codes: np.ndarray | None = None
    absmax2: np.ndarray | None = None
    offset: np.float32 | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored, by name."""
        names = ("packed", "absmax", "absmax_codes", "absmax2", "offset")
        return {name: np.asarray(getattr(self, name)) for name in names if getattr(self, name) is not None}

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values())

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.size

    def scales(self) -> np.ndarray:
        """absmax of every block, float32, expanded if it was double quantized."""
        if self.absmax is not None:
            return self.absmax
        return double.expand(self.absmax_codes, self.absmax2, self.offset)

    def dequantize(self) -> np.ndarray:
        """The array again, of the original shape and dtype; level[code] · absmax, computed in float32."""
        if self.code == "int8":
            x = kernels.dequantize_int8(self.packed, self.scales(), self.blocksize)
        else:
            x = kernels.dequantize_4bit(self.packed, self.scales(), CODES[self.code], self.blocksize, 0, self.size)
        return x.reshape(self.shape).astype(self.dtype, copy=False)

    def matmul(self, x: np.ndarray, transpose: bool = False) -> np.ndarray:
        """x Wᵀ, or x W when transpose, for W this two-dimensional array; W is dequantized a tile at a time."""
        if self.code == "int8":
            w = self.dequantize()
            return x @ (w if transpose else w.T)
        return kernels.matmul_4bit(
            x, self.packed, self.scales(), CODES[self.code], self.blocksize, self.shape, transpose
        )

    def __eq__(self, other):
        if not isinstance(other, QuantizedArray):
            return NotImplemented
        mine, theirs = self.arrays, other.arrays
        return (self.code, self.shape, self.dtype, self.blocksize, mine.keys()) == (
            other.code, other.shape, other.dtype, other.blocksize, theirs.keys(),
        ) and all(np.array_equal(mine[k], theirs[k]) for k in mine)  # fmt: skip

    __hash__ = None

    def __repr__(self):
        nested = ", double_quant" if self.absmax is None else ""
        return (
            f"QuantizedArray({self.code}, shape={self.shape}, blocksize={self.blocksize}{nested}, "
            f"{self.bits_per_weight:.4g} bits per weight)"
        )


def quantize(
    x, code: str = "nf4", blocksize: int | str | None = 64, double_quant: bool = False, nonfinite: str = "raise"
) -> QuantizedArray:
    """Quantize a floating-point array of any shape and strides.

    code: a name in CODES, or "int8". blocksize: entries of the flattened array that share an absmax: a power of two
    from 16 to 4096; for "int8" any positive number, "row" (of the last axis) or None (one scale for all).
    double_quant: whether absmax is quantized as well (see double.py). nonfinite: "raise", or "propagate" to let
    an infinity or NaN spoil its block. Raises QuantizationError, UnknownNameError.
    """
    x = np.asarray(x)
    if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
        raise QuantizationError(f"only floating-point arrays are quantized, not {x.dtype}; convert with .astype first")
    if not x.size:
        raise QuantizationError(f"an array of shape {x.shape} has no entry to quantize")
    if code != "int8" and code not in CODES:
        raise unknown_name("code", code, [*CODES, "int8"])
    blocksize = _checked_blocksize(code, blocksize, x)
    flat = np.ascontiguousarray(x, dtype=np.float32).ravel()
    if nonfinite == "raise":
        _refuse_nonfinite(x, flat)
    elif nonfinite != "propagate":
        raise QuantizationError(f"nonfinite is 'raise' or 'propagate', not {nonfinite!r}")
    if code == "int8":
        packed, absmax = kernels.quantize_int8(flat, blocksize)
    else:
        packed, absmax = kernels.quantize_4bit(flat, CODES[code], blocksize)
    if not double_quant:
        return QuantizedArray(code, packed, x.shape, x.dtype, blocksize, absmax)
    codes, absmax2, offset = double.compress(absmax)
    return QuantizedArray(code, packed, x.shape, x.dtype, blocksize, absmax_codes=codes, absmax2=absmax2, offset=offset)


def dequantize(q: QuantizedArray, out: np.ndarray | None = None) -> np.ndarray:
    """q.dequantize(), into `out` where given (of q's shape and dtype)."""
    x = q.dequantize()
    if out is None:
        return x
    if out.shape != q.shape or out.dtype != q.dtype:
        raise QuantizationError(f"out is {out.dtype}{out.shape}, but the array is {q.dtype}{q.shape}")
    out[...] = x
    return out


def _checked_blocksize(code: str, blocksize, x: np.ndarray) -> int:
    if code == "int8" and blocksize is None:
        return x.size
    if code == "int8" and blocksize == "row":
        return x.shape[-1] if x.ndim else 1
    whole = isinstance(blocksize, (int, np.integer)) and not isinstance(blocksize, bool)
    if code == "int8":
        if whole and blocksize > 0:
            return int(blocksize)
        raise QuantizationError(f"int8's blocksize is a positive integer, 'row' or None, not {blocksize!r}")
    if whole and 16 <= blocksize <= 4096 and blocksize & (blocksize - 1) == 0:
        return int(blocksize)
    raise QuantizationError(f"{code}'s blocksize is a power of two from 16 to 4096, not {blocksize!r}")


def _refuse_nonfinite(x: np.ndarray, flat: np.ndarray):
    finite = np.isfinite(flat)
    if finite.all():
        return
    index = tuple(int(i) for i in np.unravel_index(finite.argmin(), x.shape))
    what = "which float32 cannot hold" if np.isfinite(x[index]) else "which would spoil its whole block"
    raise QuantizationError(f"x{list(index)} is {x[index]}, {what}; repair it, or pass nonfinite='propagate'")
