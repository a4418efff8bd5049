"""`minilora bench gpu`: the CUDA kernels on a GPU, against copying the same bytes, cuBLAS and bitsandbytes.

    for row in rows(cases(device, xp, SIZE), Timer(xp)): ...      # device, xp: CupyDevice(), cupy

No GPU was at hand when this was written, and none of it has been measured. What runs without one does, in a test: all
cases, on the simulated GPU and NumPy's arrays, each held to the product or the weights that it is to compute.

A time is what the GPU takes between two events on its stream, with its cache overwritten before: a layer's weights come
from memory, as those of a model do that is larger than the cache. Functions take turns; each one's median counts.
"""

import importlib.util
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from minilora.backend import numpy as reference
from minilora.backend import use_backend
from minilora.backend.cuda import gemm, matmul, quantize
from minilora.errors import MiniloraError
from minilora.quant import CODES, double

SIZE = (11008, 4096)  # W: an up-projection of LLaMA 7B
BATCHES = (1, 4, 16, 64, 256, 2048)  # rows of x
BLOCKSIZE, ROUNDS = 64, 30
OVERWRITTEN = 1 << 29  # bytes: more than any cache, and long enough that the next launch is waiting when it is done
TOLERANCE = 0.02  # of the largest entry: float16 and its sums in another order


@dataclass(frozen=True)
class Case:
    """ours(): what is measured. moves: bytes to and from memory, each once. cublas: the same product of float16
    weights, or None. peer: what bitsandbytes calls it, with the rows of x. holds(result): whether it is right."""

    name: str
    ours: Callable
    moves: int
    cublas: Callable | None
    peer: tuple
    holds: Callable


@dataclass(frozen=True)
class Row:
    """Milliseconds; over those in which the GPU copies as many bytes; over cuBLAS' and bitsandbytes' (None: none)."""

    name: str
    milliseconds: float
    memcpy: float
    cublas: float | None
    bitsandbytes: float | None


class Timer:
    """Medians of GPU milliseconds. xp: cupy."""

    def __init__(self, xp, rounds: int = ROUNDS):
        self.xp, self.rounds, self.scratch = xp, rounds, xp.empty(OVERWRITTEN, np.uint8)

    def __call__(self, functions: dict) -> dict:
        times = {name: [] for name in functions}
        for turn in range(self.rounds + 2):  # the first two compile, and fill the memory pool
            for name, function in functions.items():
                self.scratch.fill(turn)
                start, end = self.xp.cuda.Event(), self.xp.cuda.Event()
                start.record()
                function()
                end.record()
                end.synchronize()
                if turn > 1:
                    times[name].append(self.xp.cuda.get_elapsed_time(start, end))
        return {name: statistics.median(found) for name, found in times.items()}


def cases(device, xp, size=SIZE, batches=BATCHES) -> Iterator[Case]:
    """Every kernel in the version that would be chosen, on normal weights (d_out, d_in), their scales quantized too."""
    n, k = size
    count = n * k
    w = np.random.default_rng(0).standard_normal(count, np.float32)
    host = reference.quantize_4bit(w, CODES["nf4"], BLOCKSIZE)
    dense = reference.dequantize_4bit(*host, CODES["nf4"], BLOCKSIZE, 0, count)
    codes, absmax2, offset = double.compress(host[1])
    x, packed, absmax, codes, absmax2 = map(xp.asarray, (w, *host, codes, absmax2))
    nested = (codes, double.LEVELS["dynamic"], absmax2, offset)
    half = xp.asarray(dense.astype(np.float16)).reshape(n, k)
    scales = host[1].nbytes
    small = codes.nbytes + absmax2.nbytes

    def call(function, *args, **options):
        return lambda: function(device, *args, **options)

    def equal(expected, tolerance=0.0):
        expected = xp.asarray(expected)
        largest = float(abs(expected).max())
        return lambda got: float(abs(got.astype(np.float32) - expected).max()) <= tolerance * largest

    same = lambda got: bool((got[0] == packed).all() and (got[1] == absmax).all())  # noqa: E731
    yield Case("quantize", call(quantize.quantize_4bit, x, CODES["nf4"], BLOCKSIZE), 4 * count + count // 2 + scales,
               None, ("quantize", 0), same)  # fmt: skip
    args = (packed, absmax, CODES["nf4"], BLOCKSIZE, 0, count)
    yield Case("dequantize", call(quantize.dequantize_4bit, *args, dtype=np.float16), 2 * count + count // 2 + scales,
               None, ("dequantize", 0), equal(dense, 2**-11))  # fmt: skip
    args = (packed, *nested, CODES["nf4"], BLOCKSIZE, 0, count)
    yield Case("dequantize, double", call(quantize.dequantize_4bit_double, *args, dtype=np.float16),
               2 * count + count // 2 + small, None, ("dequantize, double", 0), equal(dense, TOLERANCE))  # fmt: skip
    for m in batches:
        for name, transpose in (("x Wᵀ", False), ("g W", True)):
            a = xp.asarray(np.random.default_rng(m).standard_normal((m, n if transpose else k)).astype(np.float16))
            few = m <= matmul.FEW and not transpose
            args = (a, packed, None if few else absmax, CODES["nf4"], BLOCKSIZE, size)
            function = call(matmul.gemv_4bit, *args, nested=nested) if few else call(gemm.gemm_4bit, *args, transpose)
            weights = half if transpose else half.T
            moves = count // 2 + (small if few else scales) + 2 * m * (n + k)
            expected = a.astype(np.float32) @ weights.astype(np.float32)
            yield Case(f"{name}, {m} rows", function, moves, lambda a=a, weights=weights: a @ weights,
                       ("g W" if transpose else "x Wᵀ", m), equal(expected, TOLERANCE))  # fmt: skip


def rows(cases, timer, copied: Callable[[int], Callable], peers: Callable | None = None) -> Iterator[Row]:
    """timer(functions) -> their times. copied(bytes): a function that copies so many. peers: see bitsandbytes_peers.

    Raises MiniloraError for a kernel that gives wrong results.
    """
    for case in cases:
        if not case.holds(case.ours()):
            raise MiniloraError(f"{case.name}: the result is wrong, so that its time means nothing; run pytest -m gpu")
        functions = {"ours": case.ours, "memcpy": copied(case.moves // 2)}  # a copy reads and writes
        if case.cublas is not None:
            functions["cublas"] = case.cublas
        if peers is not None and (peer := peers(*case.peer)) is not None:
            functions["bitsandbytes"] = peer
        times = timer(functions)
        ours = times.pop("ours")
        ratio = {name: ours / time for name, time in times.items()}
        yield Row(case.name, ours, ratio["memcpy"], ratio.get("cublas"), ratio.get("bitsandbytes"))


def bitsandbytes_peers(size=SIZE) -> Callable | None:
    """(operation, rows of x) -> bitsandbytes' function on normal weights of that size, or None; None if not installed.

    PyTorch and CuPy both work on the default stream, so that CuPy's events measure PyTorch's work too.
    """
    if not all(importlib.util.find_spec(name) for name in ("torch", "bitsandbytes")):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    from bitsandbytes import matmul_4bit
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    w = torch.randn(size, device="cuda", dtype=torch.float32)
    options = {"blocksize": BLOCKSIZE, "quant_type": "nf4"}
    plain = quantize_4bit(w.half(), **options)
    nested = quantize_4bit(w.half(), compress_statistics=True, **options)

    def peer(operation: str, m: int):
        x = torch.randn(m, size[1], device="cuda", dtype=torch.float16) if m else None

        def product():
            with torch.no_grad():
                return matmul_4bit(x, nested[0], nested[1])

        return {
            "quantize": lambda: quantize_4bit(w, **options),
            "dequantize": lambda: dequantize_4bit(*plain),
            "dequantize, double": lambda: dequantize_4bit(*nested),
            "x Wᵀ": product,
        }.get(operation)

    return peer


def main():
    """Raises BackendError, saying what is missing, where there is no GPU."""
    with use_backend("cupy"):
        import cupy

        from minilora.backend.cupy import CupyDevice

        device, peers = CupyDevice(), bitsandbytes_peers()
        name = cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
        print(f"{name}, compute capability {device.arch / 10}; CuPy {cupy.__version__}; W {SIZE[0]} x {SIZE[1]}, NF4")
        if peers is None:
            print("bitsandbytes is not installed, or its PyTorch sees no GPU: pip install bitsandbytes")

        def copied(nbytes: int):
            source, target = cupy.zeros(nbytes, np.uint8), cupy.empty(nbytes, np.uint8)
            return lambda: cupy.copyto(target, source)

        print(f"{'':<22}{'ms':>9}{'/ memcpy':>10}{'/ cuBLAS':>10}{'/ bitsandbytes':>16}")
        for row in rows(cases(device, cupy), Timer(cupy), copied, peers):
            ratios = [row.memcpy, row.cublas, row.bitsandbytes]
            text = [f"{ratio:.2f}" if ratio is not None else "-" for ratio in ratios]
            print(f"{row.name:<22}{row.milliseconds:9.3f}{text[0]:>10}{text[1]:>10}{text[2]:>16}", flush=True)
