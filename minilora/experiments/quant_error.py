"""`minilora experiment quant-error`: how far quantized weights lie from the weights, and what that costs a model.

    results = run("quant-error")                       # tables on the terminal; results.json and pictures in the folder
    run("mine", quantizers={"halves": lambda x: np.round(2 * x) / 2})           # a quantizer of your own beside ours

relative error = ||W - W_hat|| / ||W||, over all weights of a subject together (Frobenius norm); on N(0, 1), whose
square has mean 1, it is the root of `expected_error`'s mse.

A quantizer is a function of a float array that returns one of the same shape, or a QuantizedArray (or whatever else has
dequantize() and nbytes), whose bits per weight are then counted too. Codes added with `register_code` take part
wherever the 4-bit codes do.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minilora.backend.numpy import TINY, block_absmax
from minilora.errors import ConfigError, FetchError, QuantizationError, unknown_name
from minilora.experiments.quant_tables import PICTURED, draw, tables
from minilora.experiments.study import environment
from minilora.experiments.subjects import SUBJECTS, Subject
from minilora.files import atomic_write
from minilora.quant import CODES, expected_error, quantize, register_code
from minilora.tables import format_table
from minilora.train.trainer import prepare_output_dir

BINS = 96
SLOW = ("smollm2-135m",)


@dataclass(frozen=True)
class Quantizer:
    """name: a row of the tables. blocks: its column: a blocksize, "row", "tensor", or "own" for a user's function."""

    name: str
    blocks: str
    function: Callable


def built_in(blocksizes: tuple[int, ...]) -> list[Quantizer]:
    """int8 for a tensor, for rows and in blocks; every code in CODES, and nf4 also double quantized, in blocks."""
    out = [Quantizer("int8", "tensor", lambda x: quantize(x, "int8", None)),
           Quantizer("int8", "row", lambda x: quantize(x, "int8", "row"))]  # fmt: skip
    for code in ("int8", *CODES):
        out += [Quantizer(code, str(b), lambda x, c=code, b=b: quantize(x, c, b)) for b in blocksizes]
        if code == "nf4":
            double = [lambda x, b=b: quantize(x, "nf4", b, double_quant=True) for b in blocksizes]
            out += [Quantizer("nf4+double", str(b), f) for b, f in zip(blocksizes, double, strict=True)]
    return out


def run(
    output_dir="quant-error", *, quick: bool = False, seed: int = 0, quantizers: Mapping[str, Callable] | None = None,
    subjects=tuple(SUBJECTS), overwrite: bool = False, say: Callable[[str], None] = print, command: str = "",
) -> dict:  # fmt: skip
    """The study. Gives each subject's tables to `say`, writes results.json and SVG pictures, returns the results.

    quantizers: your own, by a label. subjects: names in SUBJECTS; a model that has not been fetched is named and left
    out. quick: smaller arrays, fewer sentences, no SmolLM2. command: recorded as the way to repeat it.
    Raises TrainingError for a folder that is not empty (unless overwrite) or cannot be written, QuantizationError for
    a quantizer that does not return what it should, ConfigError for a label that is taken or a seed below 0.
    """
    if seed < 0:
        raise ConfigError(f"the seed is an integer of at least 0, not {seed}")
    for name in subjects:
        if name not in SUBJECTS:
            raise unknown_name("subject", name, SUBJECTS)
    own = [Quantizer(label, "own", function) for label, function in (quantizers or {}).items()]
    if taken := {"int8", "nf4+double", *CODES} & {quantizer.name for quantizer in own}:
        raise ConfigError(f"{', '.join(sorted(taken))} is the label of a quantizer that is built in; choose another")
    folder = prepare_output_dir(output_dir, overwrite)
    results = {
        "command": command, "seed": seed, "quick": quick,
        "environment": environment(),
        "codes": {name: np.sort(levels).tolist() for name, levels in CODES.items()},
        "functions": [quantizer.name for quantizer in own], "subjects": {}, "left_out": {},
    }  # fmt: skip
    for name in subjects:
        why = "left out of the quick study" if quick and name in SLOW else ""
        try:
            subject = None if why else SUBJECTS[name](quick, seed)
        except FetchError:
            why = f"not fetched; run: minilora fetch {name}"
        if why:
            results["left_out"][name] = why
            say(f"{name}: {why}\n")
        else:
            result = study(subject, [*built_in(subject.blocksizes), *own])
            results["subjects"][name] = result
            for heading, rows in tables(result):
                say(f"{heading}\n{format_table(rows)}\n")
            for file, svg in draw(name, result, results["codes"]).items():
                atomic_write(folder / file, svg)
        atomic_write(folder / "results.json", json.dumps(results, indent=1) + "\n")  # each time: a run may be cut short
    say(f"wrote {folder}/ (results.json and {len(list(folder.glob('*.svg')))} pictures)")
    return results


def register_files(pairs: list[str]):
    """Register a code for each "NAME=FILE", a JSON list of levels in FILE. Raises ConfigError, QuantizationError."""
    for pair in pairs:
        name, _, file = pair.partition("=")
        try:
            if not name:
                raise ValueError("no name")
            levels = np.array(json.loads(Path(file).read_text(encoding="utf-8")), np.float32)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"--code {pair}: give NAME=FILE, a JSON list of numbers in FILE ({error})") from error
        register_code(name, levels)


def study(subject: Subject, quantizers: list[Quantizer]) -> dict:
    """One subject under every quantizer: plain data, as in results.json."""
    size = sum(p.size for p in subject.weights)
    result = {
        "title": subject.title, "weights": size, "measure": subject.measure, "texts": subject.texts,
        "unquantized": subject.quality() if subject.quality else None, "rows": [],
        "histogram": _histogram(subject), "by_level": {},
    }  # fmt: skip
    for quantizer in quantizers:
        row, by_level = measure(subject, quantizer)
        result["rows"].append(row)
        if by_level is not None:
            result["by_level"][quantizer.name] = by_level
    return result


def measure(subject: Subject, quantizer: Quantizer) -> tuple[dict, dict | None]:
    """Put the dequantized weights in place, measure, and put the weights back.

    Returns a row of results.json, and for a 4-bit code in blocks of PICTURED its error by level (else None).
    """
    weights, size = [p.data for p in subject.weights], sum(p.size for p in subject.weights)
    absolute = squared = power = stored = 0.0
    pictured = quantizer.name in CODES and quantizer.blocks == PICTURED
    by_code = np.zeros((2, 16))  # how many weights have each code, and their squared errors
    try:
        for p, w in zip(subject.weights, weights, strict=True):
            q, p.data = _quantized(quantizer, w)
            error = p.data - w
            absolute += np.abs(error).sum(dtype=float)
            square = (error * error).ravel()
            squared += square.sum(dtype=float)
            power += (w * w).sum(dtype=float)
            stored += 8 * q.nbytes if hasattr(q, "dequantize") else np.nan
            if pictured:
                code = np.stack([q.packed >> 4, q.packed & 15], axis=1).ravel()[: w.size]
                by_code += np.bincount(code, minlength=16), np.bincount(code, square, minlength=16)
        quality = subject.quality() if subject.quality else None
    finally:
        for p, w in zip(subject.weights, weights, strict=True):
            p.data = w
    row = {
        "quantizer": quantizer.name, "blocks": quantizer.blocks, "bits": None if np.isnan(stored) else stored / size,
        "mae": absolute / size, "mse": squared / size, "relative_error": (squared / power) ** 0.5, "quality": quality,
        **_expected(subject, quantizer),
    }  # fmt: skip
    return row, _by_level(CODES[quantizer.name], *by_code) if pictured else None


def _by_level(levels: np.ndarray, counts: np.ndarray, squared: np.ndarray) -> dict[str, list[float]]:
    """Sorted levels, and the share of the weights and of the squared error that belong to each; fp4's zeros are one."""
    levels, place = np.unique(levels, return_inverse=True)
    weights, error = (np.bincount(place, x[: place.size]) / (x.sum() or 1) for x in (counts, squared))
    return {"levels": levels.tolist(), "weights": weights.tolist(), "error": error.tolist()}


def _quantized(quantizer: Quantizer, w: np.ndarray) -> tuple[object, np.ndarray]:
    """What the function returns for a copy of w, and the array that it stands for, checked."""
    q = quantizer.function(w.copy())
    x = np.asarray(q.dequantize() if hasattr(q, "dequantize") else q)
    if x.shape != w.shape or x.dtype.kind != "f" or not np.isfinite(x).all():
        raise QuantizationError(
            f"quantizer {quantizer.name!r} was given {w.dtype}{w.shape} and returned {x.dtype}{x.shape}"
            + (", not all finite" if x.shape == w.shape and x.dtype.kind == "f" else "")
            + "; it is to return finite floats of the same shape"
        )
    return q, x.astype(w.dtype, copy=False)


def _expected(subject: Subject, quantizer: Quantizer) -> dict:
    """What theory says of a code on N(0, 1), where it says something."""
    if not subject.theory or quantizer.blocks == "own" or quantizer.name == "nf4+double":
        return {}
    (p,) = subject.weights
    blocksize = {"tensor": p.size, "row": p.shape[-1]}.get(quantizer.blocks) or int(quantizer.blocks)
    expected = expected_error(quantizer.name, blocksize)
    return {"expected_mae": expected.mae, "expected_mse": expected.mse}


def _histogram(subject: Subject) -> list[float]:
    """Density of the weights, each divided by the absmax of its block of PICTURED, in BINS equal bins from -1 to 1."""
    counts, blocksize = np.zeros(BINS), int(PICTURED)
    for p in subject.weights:
        flat = p.data.ravel()
        scales = np.maximum(block_absmax(flat, blocksize), TINY).repeat(blocksize)[: flat.size]
        counts += np.histogram(flat / scales, BINS, (-1, 1))[0]
    return (counts / counts.sum() * BINS / 2).tolist()
