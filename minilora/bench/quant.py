"""`minilora bench quant`: quantize and dequantize against copying the floats, and against bitsandbytes where installed.

    rows(["nf4", "mine"])                                 # codes in CODES, so those of register_code too
    rows([], {"half": lambda x: x.astype("float16")})     # a quantizer of your own: x -> x as it comes back

Times are CPU seconds of one process at one thread (set OPENBLAS_NUM_THREADS=1): functions take turns, each's minimum
counts, and only ratios are quoted, as machines differ. Memory is what tracemalloc sees beyond what a call returns.

bitsandbytes is timed twice. Importing minilora lets glibc keep freed memory (backend/malloc.py), which spares every
function of this process the page faults of its output; "alone" is bitsandbytes in a process without minilora.
"""

import importlib.util
import inspect
import json
import math
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from minilora.doctor import blas, cpu
from minilora.errors import MiniloraError
from minilora.quant import CODES, dequantize, quantize

SIZE, WIDTH, BLOCKSIZE, ROUNDS = 1 << 24, 4096, 64, 10
BATCHES = (16, 256)
PEER_CODES = ("nf4", "fp4")  # the codes that bitsandbytes has


@dataclass(frozen=True)
class Row:
    """Times over memcpy's of the same floats, over bitsandbytes' (None: not there), and MiB beyond input and output."""

    name: str
    operation: str
    memcpy: float
    bitsandbytes: float | None
    alone: float | None
    overhead: float


def minima(functions: dict, rounds: int) -> dict:
    """The least CPU seconds of each function, all called once in each round."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.process_time()
            function()
            best[name] = min(best[name], time.process_time() - start)
    return best


def overhead(function: Callable) -> float:
    """MiB that NumPy allocates during a call beyond what the call returns."""
    tracemalloc.start()
    result = function()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    return (peak - held) / 2**20


def rows(
    codes: Iterable[str] | None = None,
    quantizers: dict[str, Callable] | None = None,
    size: int = SIZE,
    rounds: int = ROUNDS,
) -> list[Row]:
    """Measure codes (all, unless given) and quantizers, functions x -> x_hat, on `size` normal float32.

    x is of shape (size // 4096, 4096), in blocks of 64; a 4-bit code is measured with double quantization too. Raises
    UnknownNameError for a code, MiniloraError for a quantizer that returns another shape and for a size below 1.
    """
    x = _normal(size)
    y = np.empty_like(x)
    ours = {}
    for code in [*CODES, "int8"] if codes is None else codes:
        ours |= {(code, operation): f for operation, f in _operations(x, y, code).items()}
    for name, quantizer in (quantizers or {}).items():
        if np.shape(quantizer(x)) != x.shape:
            raise MiniloraError(f"quantizer {name!r} makes {np.shape(quantizer(x))} of {x.shape}; it is to keep shape")
        ours[name, "x -> x_hat"] = lambda quantizer=quantizer: quantizer(x)
    theirs, alone = {}, {}
    peers = [code for code in PEER_CODES if (code, "quantize") in ours] if has_bitsandbytes() else []
    if peers:
        theirs = _bitsandbytes(x, peers)
        alone = _alone(size, peers, rounds)
    theirs = {("bitsandbytes", *key): f for key, f in theirs.items()}
    best = minima({"memcpy": lambda: np.copyto(y, x)} | ours | theirs, rounds)

    def row(key: tuple[str, str], function: Callable) -> Row:
        copies, peer = best[key] / best["memcpy"], ("bitsandbytes", *key)
        return Row(
            *key, copies, best[key] / best[peer] if peer in best else None,
            copies / alone[key] if key in alone else None, overhead(function),
        )  # fmt: skip

    return [row(key, function) for key, function in ours.items()]


def _normal(size: int) -> np.ndarray:
    if size < 1:
        raise MiniloraError(f"the size is a number of floats, at least 1, not {size}")
    return np.random.default_rng(0).standard_normal((max(1, size // WIDTH), WIDTH), np.float32)


def _operations(x: np.ndarray, y: np.ndarray, code: str) -> dict[str, Callable]:
    operations = {}
    for suffix, nested in (("", False),) if code == "int8" else (("", False), (", double", True)):
        q = quantize(x, code, BLOCKSIZE, nested)
        operations["quantize" + suffix] = lambda nested=nested: quantize(x, code, BLOCKSIZE, nested)
        operations["dequantize" + suffix] = lambda q=q: dequantize(q, out=y)
    return operations


def has_bitsandbytes() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "bitsandbytes"))


def _bitsandbytes(x, codes):
    """The same operations of bitsandbytes, on the same floats, at one thread."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch.set_num_threads(1)
    x, operations = torch.from_numpy(x), {}
    for code in codes:
        for suffix, nested in (("", False), (", double", True)):
            options = {"blocksize": 64, "quant_type": code, "compress_statistics": nested}
            q = quantize_4bit(x, **options)
            operations[code, "quantize" + suffix] = lambda options=options: quantize_4bit(x, **options)
            operations[code, "dequantize" + suffix] = lambda q=q: dequantize_4bit(*q)
    return operations


def _alone(size: int, codes: list[str], rounds: int) -> dict[tuple[str, str], float]:
    """Times of bitsandbytes over memcpy's in a process that never imports minilora: it gets this file's functions."""
    script = f"""
import json, time
import numpy as np
{inspect.getsource(minima)}
{inspect.getsource(_bitsandbytes)}
x = np.random.default_rng(0).standard_normal(({max(1, size // WIDTH)}, {WIDTH}), np.float32)
y = np.empty_like(x)
best = minima({{"memcpy": lambda: np.copyto(y, x)}} | _bitsandbytes(x, {codes}), {rounds})
copy = best.pop("memcpy")
print(json.dumps([[*key, seconds / copy] for key, seconds in best.items()]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        raise MiniloraError(f"bitsandbytes failed: {done.stderr.strip().splitlines()[-1]}")
    return {(code, operation): ratio for code, operation, ratio in json.loads(done.stdout.splitlines()[-1])}


def linear_rows(code: str = "nf4", side: int = 4096, rounds: int = ROUNDS) -> list[tuple[int, str, float, float]]:
    """(batch, product, time over the float32 product's, MiB beyond the output) for a quantized (side, side) weight."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((side, side), np.float32)
    q, functions = quantize(w, code, BLOCKSIZE), {}
    for n in BATCHES:
        x = rng.standard_normal((n, side), np.float32)
        functions |= {
            (n, "x Wᵀ"): lambda x=x: q.matmul(x), (n, "x Wᵀ", "float"): lambda x=x: x @ w.T,
            (n, "g W"): lambda x=x: q.matmul(x, transpose=True), (n, "g W", "float"): lambda x=x: x @ w,
        }  # fmt: skip
    best = minima(functions, rounds)
    ours = [key for key in functions if len(key) == 2]
    return [(*key, best[key] / best[*key, "float"], overhead(functions[key])) for key in ours]


def main(size: int = SIZE):
    size = _normal(size).size
    print(f"{cpu()}; BLAS {blas()}; NumPy {np.__version__}")
    print(f"{size:,} float32 in blocks of {BLOCKSIZE}: time over that of memcpy, and over bitsandbytes' (here, alone)")
    print(f"{'code':<10}{'operation':<22}{'memcpy':>8}{'MiB':>6}   bitsandbytes", flush=True)
    missing = "" if has_bitsandbytes() else "not installed (pip install bitsandbytes)"
    for r in rows(size=size):
        peer = missing if r.name in PEER_CODES else "-"
        if r.bitsandbytes is not None:
            peer = f"{r.bitsandbytes:.3f}, {r.alone:.3f}"
        print(f"{r.name:<10}{r.operation:<22}{r.memcpy:8.2f}{r.overhead:6.1f}   {peer}", flush=True)
    side = math.isqrt(size)
    print(f"product with an nf4 weight of {side} x {side}: time over that of the float32 product")
    for n, product, ratio, beside in linear_rows(side=side):
        print(f"batch {n:<4}{product:<22}{ratio:8.2f}{beside:6.1f}", flush=True)
