"""QuantizedArray: an array stored as codes and the constants that scale them.

    q = quantize(x, "nf4", blocksize=64, double_quant=True)
    q.bits_per_weight          # 4.127: 4 bits of code, the rest constants
    q.dequantize()             # float32 (or x's dtype) again, each entry a level times its block's absmax
    q[128:256]                 # some of its rows, still quantized

A block of weights shares one scale. Throughout, the scale that is stored is absmax, the block's largest absolute value,
and to dequantize is to multiply by it: level[code] · absmax in 4 bits, (code / 127) · absmax in int8.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from minilora.backend import DeviceKernels, array_namespace, asarray, kernels_for, to_device
from minilora.errors import QuantizationError, unknown_name
from minilora.quant import double
from minilora.quant.codebooks import CODES

_INT8_MAX = float(np.finfo(np.float32).max) / 128  # 127 · absmax must be a float32


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedArray:
    """Codes and constants.

    packed: flat; uint8 (ceil(n/2),), two 4-bit codes a byte, the first in its high half; or int8 (n,).
    blocksize: entries of the flattened array that share an absmax; the last block may be shorter.
    absmax: float32 (ceil(n/blocksize),); or, double quantized, absmax_codes (as many, uint8 or int8), absmax2 (float32,
    one for 256 of them) and offset, and double_quant says which 8 bits they are (see double.py).
    """

    code: str
    packed: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype
    blocksize: int
    absmax: np.ndarray | None = None
    double_quant: str | None = None
    absmax_codes: np.ndarray | None = None
    absmax2: np.ndarray | None = None
    offset: np.float32 | None = None

    @property
    def size(self) -> int:
        """How many entries."""
        return math.prod(self.shape)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored, by name."""
        names = ("packed", "absmax", "absmax_codes", "absmax2", "offset")
        return {name: asarray(getattr(self, name)) for name in names if getattr(self, name) is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of all constants."""
        return sum(a.nbytes for a in self.arrays.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage an entry, constants included."""
        return 8 * self.nbytes / self.size

    def scales(self) -> np.ndarray:
        """absmax of every block, float32, expanded if it was double quantized."""
        if self.absmax is not None:
            return self.absmax
        return double.expand(self.absmax_codes, self.absmax2, self.offset, self.double_quant)

    def dequantize(self) -> np.ndarray:
        """The array again, of the original shape and dtype, computed in float32."""
        return dequantize(self)

    def matmul(self, x: np.ndarray, transpose: bool = False) -> np.ndarray:
        """x Wᵀ, or x W when transpose, for W this two-dimensional array, dequantized a tile at a time; float32."""
        kernels = kernels_for(self.packed)
        if self.code == "int8":
            return kernels.matmul_int8(x, self.packed, self.scales(), self.blocksize, self.shape, transpose)
        code = CODES[self.code], self.blocksize, self.shape, transpose
        if isinstance(kernels, DeviceKernels):
            x = array_namespace(x).ascontiguousarray(x)
            if self.double_quant:  # expanded in registers
                nested = self.absmax_codes, double.LEVELS.get(self.double_quant), self.absmax2, self.offset
                return kernels.matmul_4bit(x, self.packed, None, *code, nested=nested)
        return kernels.matmul_4bit(x, self.packed, self.scales(), *code)

    def to(self, device: str) -> "QuantizedArray":
        """The same on the GPU ("cuda") or in the host's memory ("cpu"). Raises BackendError."""
        moved = {name: to_device(array, device) for name, array in self.arrays.items() if name != "offset"}
        return replace(self, **moved)

    def __getitem__(self, rows: slice) -> "QuantizedArray":
        """Rows (of the first axis) where blocks begin and end, sharing memory; their values are the same bit for bit.

        Of a double-quantized array, a part that does not begin with a group of 256 blocks keeps its absmax as float32.
        Raises QuantizationError for rows that cut a block in two.
        """
        try:
            a, b, step = rows.indices(self.shape[0])
        except (AttributeError, TypeError, IndexError):  # not a slice, not of integers, or no axis to slice
            step = None
        if step != 1:
            raise QuantizationError(f"a QuantizedArray gives slices of its rows, q[a:b], not q[{rows!r}]")
        width = math.prod(self.shape[1:])
        start, stop = a * width, b * width
        if start >= stop or start % self.blocksize or (stop % self.blocksize and stop != self.size):
            raise QuantizationError(
                f"rows {a} to {b} of {width} entries are not whole blocks of {self.blocksize}; take a multiple of "
                f"{math.lcm(width, self.blocksize) // width} rows, at least one"
            )
        first, last = start // self.blocksize, -(-stop // self.blocksize)
        packed = self.packed[start:stop] if self.code == "int8" else self._packed_part(start, stop)
        nested = {}
        if self.double_quant is None or first % double.BLOCKSIZE:
            nested["absmax"] = self.scales()[first:last]
        else:
            groups = slice(first // double.BLOCKSIZE, -(-last // double.BLOCKSIZE))
            nested = {"double_quant": self.double_quant, "absmax_codes": self.absmax_codes[first:last],
                      "absmax2": self.absmax2[groups], "offset": self.offset}  # fmt: skip
        return QuantizedArray(self.code, packed, (b - a, *self.shape[1:]), self.dtype, self.blocksize, **nested)

    def _packed_part(self, start: int, stop: int) -> np.ndarray:
        if start % 2 == 0 and (stop % 2 == 0 or stop == self.size):
            return self.packed[start // 2 : -(-stop // 2)]
        raise QuantizationError(f"entries {start} to {stop} begin or end within a byte; take an even number of rows")

    def __eq__(self, other):
        if not isinstance(other, QuantizedArray):
            return NotImplemented
        mine, theirs = self.arrays, other.arrays
        return (self.code, self.shape, self.dtype, self.blocksize, self.double_quant) == (
            other.code, other.shape, other.dtype, other.blocksize, other.double_quant,
        ) and all(np.array_equal(mine[k], theirs[k], equal_nan=True) for k in mine)  # fmt: skip

    __hash__ = None

    def __repr__(self):
        nested = f", double_quant={self.double_quant!r}" if self.double_quant else ""
        return (
            f"QuantizedArray({self.code}, shape={self.shape}, blocksize={self.blocksize}{nested}, "
            f"{self.bits_per_weight:.4g} bits per weight)"
        )


def quantize(
    x,
    code: str = "nf4",
    blocksize: int | str | None = 64,
    double_quant: bool | str = False,
    nonfinite: str = "raise",
) -> QuantizedArray:
    """Quantize a floating-point array of any shape (0-d included, empty not) and strides, flattened row by row.

    x: float16, bfloat16 (of ml_dtypes), float32 or float64; it is rounded to float32 first.
    code: a name in CODES, or "int8".
    blocksize: entries that share an absmax: a power of two from 16 to 4096, or "row" for rows of the last axis. For
    "int8" any positive number, "row", or None for one scale in all.
    double_quant: False; True or "dynamic" as bitsandbytes; "fp8" as the QLoRA paper; "int8" (see double.py).
    nonfinite: "raise", or "propagate": a block that holds an infinity or NaN comes back as NaN, whole, and the others
    as if it were not there; its absmax is NaN, which double quantization cannot store and refuses.
    Raises QuantizationError, UnknownNameError.
    """
    x = asarray(x)
    if x.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise QuantizationError(
            f"only floating-point arrays of 16, 32 or 64 bits are quantized, not {x.dtype}; convert with .astype first"
        )
    if not x.size:
        raise QuantizationError(f"an array of shape {x.shape} has no entry to quantize")
    if code not in [*CODES, "int8"]:
        raise unknown_name("code", code, [*CODES, "int8"])
    if nonfinite not in ("raise", "propagate"):
        raise QuantizationError(f"nonfinite is 'raise' or 'propagate', not {nonfinite!r}")
    nested = _checked_double_quant(double_quant)
    blocksize = _checked_blocksize(code, blocksize, x)
    with np.errstate(over="ignore", invalid="ignore"):  # looked for below
        flat = array_namespace(x).ascontiguousarray(x, dtype=np.float32).ravel()
        kernels = kernels_for(flat)
        if code == "int8":
            packed, absmax = kernels.quantize_int8(flat, blocksize)
        else:
            packed, absmax = kernels.quantize_4bit(flat, CODES[code], blocksize)
    spoilt = np.flatnonzero(~np.isfinite(absmax))
    if code == "int8" and np.where(np.isfinite(absmax), absmax, 0).max() > _INT8_MAX:
        raise QuantizationError(
            f"int8 multiplies codes by absmax, which is exact up to {_INT8_MAX:.3g} only; scale x down"
        )
    if spoilt.size and (nonfinite == "raise" or nested):
        _refuse_nonfinite(x, flat, int(spoilt[0]) * blocksize, nested)
    absmax[spoilt] = np.nan
    if nested is None:
        return QuantizedArray(code, packed, x.shape, x.dtype, blocksize, absmax)
    return QuantizedArray(code, packed, x.shape, x.dtype, blocksize, None, nested, *double.compress(absmax, nested))


def dequantize(q: QuantizedArray, out: np.ndarray | None = None) -> np.ndarray:
    """q.dequantize(), into `out` where given (of q's shape and dtype)."""
    if out is not None and (out.shape != q.shape or out.dtype != q.dtype):
        raise QuantizationError(f"out is {out.dtype}{out.shape}, but the array is {q.dtype}{q.shape}")
    direct = out is not None and out.flags.c_contiguous and q.dtype == np.float32
    into, kernels = {"out": out.reshape(-1)} if direct else {}, kernels_for(q.packed)
    if q.code == "int8":
        x = kernels.dequantize_int8(q.packed, q.scales(), q.blocksize, **into)
    else:
        x = kernels.dequantize_4bit(q.packed, q.scales(), CODES[q.code], q.blocksize, 0, q.size, **into)
    if direct:
        return out
    if q.dtype == np.float16:  # a rounded absmax may lie beyond its largest number
        np.clip(x, -65504, 65504, out=x)
    x = x.reshape(q.shape)
    if out is None:
        return x.astype(q.dtype, copy=False)
    out[...] = x
    return out


def _checked_double_quant(double_quant) -> str | None:
    if isinstance(double_quant, bool):
        return "dynamic" if double_quant else None
    if double_quant in double.KINDS:
        return double_quant
    raise unknown_name("double_quant", double_quant, ["True", "False", *double.KINDS])


def _checked_blocksize(code: str, blocksize, x: np.ndarray) -> int:
    if isinstance(blocksize, str) and blocksize == "row":
        return x.shape[-1] if x.ndim else 1
    if code == "int8" and blocksize is None:
        return x.size
    whole = isinstance(blocksize, (int, np.integer)) and not isinstance(blocksize, bool)
    if code == "int8":
        if whole and blocksize > 0:
            return min(int(blocksize), x.size)
        raise QuantizationError(f"int8's blocksize is a positive integer, 'row' or None, not {blocksize!r}")
    if whole and 16 <= blocksize <= 4096 and blocksize & (blocksize - 1) == 0:
        return int(blocksize)
    raise QuantizationError(f"{code}'s blocksize is a power of two from 16 to 4096 or 'row', not {blocksize!r}")


def _refuse_nonfinite(x: np.ndarray, flat: np.ndarray, start: int, nested: str | None):
    """Name the first entry of x that is not finite; flat[start] begins the block that holds it."""
    first = start + int(np.isfinite(flat[start:]).argmin())
    index = tuple(int(i) for i in np.unravel_index(first, x.shape))
    what = "which float32 cannot hold" if np.isfinite(x[index]) else "which would spoil its whole block"
    repair = "repair it" if nested else "repair it, or pass nonfinite='propagate'"
    raise QuantizationError(f"x{list(index)} is {x[index]}, {what}; {repair}")
