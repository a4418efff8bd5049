"""What every experiment has: seeds and the intervals over them, a record of the run, and a folder for its results.

    results = run("low-rank", "out", quick=True)        # out/results.json, out/*.svg, tables on the terminal
    Interval.of([.71, .74, .72])                           # 0.723 ± 0.038
    Interval.of(paired(a, b))                              # of the differences, seed by seed

An experiment is a module of this package with
    TITLE, SEEDS                       a sentence, and how many seeds the full run takes
    measure(seeds, quick, say)         plain data, each seed's figure kept
    tables(data), draw(data)           [(heading, rows)], the first row the header; {file name: SVG}
A quick run takes one seed, claims nothing, and is for looking how it works.
"""

import importlib
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import minilora
from minilora.doctor import blas, cpu
from minilora.errors import ConfigError, unknown_name
from minilora.experiments import EXPERIMENTS
from minilora.files import atomic_write
from minilora.tables import format_table, markdown_table
from minilora.train.output import prepare_output_dir


@dataclass(frozen=True)
class Interval:
    """mean ± half: where the mean over all seeds lies with 95 % confidence, by Student's t; one value has no half."""

    mean: float
    half: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Raises ConfigError for no values."""
        values = np.asarray(values, float)
        if not values.size:
            raise ConfigError("an interval needs at least one value")
        if values.size == 1:
            return cls(float(values[0]), math.nan, 1)
        from scipy.stats import t

        n = values.size
        return cls(float(values.mean()), float(t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)), n)

    @property
    def excludes_zero(self) -> bool:
        """Of a difference: it differs from zero at the 5 % level. Not known of one value: False."""
        return abs(self.mean) > self.half

    def text(self, digits: int = 3) -> str:
        mean = f"{round(self.mean, digits) + 0.0:.{digits}f}"  # never -0.000
        return mean if math.isnan(self.half) else f"{mean} ± {self.half:.{digits}f}"

    def __str__(self) -> str:
        return self.text()


def paired(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """a - b, seed by seed: what both owe to the seed cancels."""
    return [x - y for x, y in zip(a, b, strict=True)]


def run(
    name: str, output_dir=None, *, quick: bool = False, seeds: int | None = None, overwrite: bool = False,
    say: Callable[[str], None] = print, command: str = "",
) -> dict:  # fmt: skip
    """Measure, say the tables, and write results.json and the pictures to output_dir (default: the experiment's name).

    seeds: 0, 1, .. so many; by default the experiment's own number, one if quick. command: recorded as the way to
    repeat it. Raises UnknownNameError; ConfigError; TrainingError for a folder that is not empty (unless overwrite).
    """
    experiment = load(name)
    count = (1 if quick else experiment.SEEDS) if seeds is None else seeds
    if count < 1:
        raise ConfigError(f"{name} takes at least one seed, not {count}")
    folder = prepare_output_dir(output_dir or name, overwrite)
    began = time.perf_counter()
    data = experiment.measure(list(range(count)), quick, say)
    results = {
        "experiment": name, "command": command, "quick": quick, "seeds": count, "environment": environment(),
        "seconds": round(time.perf_counter() - began, 1), "data": data,
    }  # fmt: skip
    atomic_write(folder / "results.json", json.dumps(results, indent=1) + "\n")
    for heading, rows in experiment.tables(data):
        say(f"{heading}\n{format_table(rows)}\n")
    for file, svg in experiment.draw(data).items():
        atomic_write(folder / file, svg)
    say(f"wrote {folder}/ (results.json and {len(list(folder.glob('*.svg')))} pictures)")
    return results


def load(name: str):
    """The experiment's module. Raises UnknownNameError."""
    if name not in EXPERIMENTS:
        raise unknown_name("experiment", name, [*EXPERIMENTS, "quant-error"])
    return importlib.import_module(f"minilora.experiments.{name.replace('-', '_')}")


def environment() -> dict[str, str]:
    return {
        "minilora": minilora.__version__, "python": platform.python_version(), "numpy": np.__version__,
        "blas": blas(), "cpu": cpu(),
    }  # fmt: skip


def page_lacks(folder: Path, page: Path) -> list[str]:
    """What a committed page does not say of the committed results beside it: headings of tables, names of pictures."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    experiment, text = load(results["experiment"]), page.read_text(encoding="utf-8")
    tables = experiment.tables(results["data"])
    pictures = experiment.draw(results["data"])
    missing = [heading for heading, rows in tables if markdown_table(rows[0], rows[1:]) not in text]
    stale = [f for f, svg in pictures.items() if not (folder / f).exists() or (folder / f).read_text("utf-8") != svg]
    return missing + stale + [f for f in pictures if f"{folder.name}/{f}" not in text]
