"""Snapshots: all that a run needs to go on as if it had never stopped, in a folder that is there whole or not at all.

    write(folder, state, model, optimizer, save)     # folder/checkpoint-200/
    state = read(latest(folder), model, optimizer, everything=False, processes=Processes())

    training.safetensors    the weights that are trained, exactly
    optimizer.*             its state (see optim.py)
    state.json              updates made, the generators of random numbers, the arguments, the best evaluation so far
    and the adapter or model itself, to be used

Batches depend on the seed and the step alone (data/collate.py), so that a step is also a position in the data. A
snapshot is written beside its place and renamed into it: killed at any moment, a run leaves the previous one.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from minilora.backend import like, to_numpy
from minilora.errors import FileFormatError, TrainingError
from minilora.files import atomic_write, load_safetensors, save_safetensors
from minilora.nn import Module
from minilora.train.distributed import Processes

_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass
class RunState:
    """Where a run stands. best: {"step", "value"} of the best evaluation; waited: evaluations since then."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: dict | None = None
    waited: int = 0
    args: dict = field(default_factory=dict)
    data: str = ""  # names the training set
    scaler: dict = field(default_factory=dict)  # of fp16's loss
    generators: list[list[dict]] = field(default_factory=list)  # of each process


def write(
    folder: Path, state: RunState, model: Module, optimizer, save: Callable[[Path], None], everything: bool = False
) -> Path:  # fmt: skip
    """Raises TrainingError where it cannot be written; earlier snapshots are then intact.

    everything: with the weights that are not trained (where they change all the same).
    """
    place = folder / f"checkpoint-{state.step}"
    aside = folder / f".{place.name}.part"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save(aside)
        save_safetensors(aside / "training.safetensors", _weights(model, everything))
        optimizer.save(aside)
        atomic_write(aside / "state.json", json.dumps(asdict(state)) + "\n")
        shutil.rmtree(place, ignore_errors=True)
        os.rename(aside, place)
    except OSError as error:
        raise TrainingError(f"snapshot {place} could not be written: {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return place


def read(path: Path, model: Module, optimizer, everything: bool, processes: Processes) -> RunState:
    """Put the weights, the optimizer's state and this process's generators back. Raises FileFormatError where they do
    not fit. Another number of processes than wrote it goes on too; what dropout draws is then another."""
    try:
        state = RunState(**json.loads((path / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise FileFormatError(f"{path} is not a snapshot: state.json cannot be read ({error})") from None
    weights, _ = load_safetensors(path / "training.safetensors")
    wanted = _weights(model, everything)
    if weights.keys() != wanted.keys() or any(weights[n].shape != wanted[n].shape for n in wanted):
        odd = sorted(weights.keys() ^ wanted.keys()) or [n for n in wanted if weights[n].shape != wanted[n].shape]
        raise FileFormatError(f"{path} is of another model or adapter: {odd[0]!r} is in one of them only, or differs")
    own = dict(model.named_parameters())
    for name, array in weights.items():
        own[name].data = like(array, own[name].data)
        own[name].mark_changed()
    optimizer.load(path)
    as_many = len(state.generators) == processes.size
    for rng, saved in zip(model.generators(), state.generators[processes.rank if as_many else 0], strict=True):
        rng.bit_generator.state = saved
    if not as_many:
        processes.separate(model.generators())
    return state


def _weights(model: Module, everything: bool) -> dict[str, np.ndarray]:
    return {name: to_numpy(p.data) for name, p in model.named_parameters() if everything or p.requires_grad}


def all_of(folder: Path) -> dict[int, Path]:
    """step -> snapshot, in order."""
    found = {int(m[1]): p for p in Path(folder).glob("checkpoint-*") if (m := _NAME.fullmatch(p.name))}
    return dict(sorted(found.items()))


def latest(folder: Path) -> Path | None:
    return next(reversed(all_of(folder).values()), None)


def keep(folder: Path, limit: int | None, best: int | None):
    """Delete all but the last `limit` snapshots and that of step `best`."""
    snapshots = all_of(folder)
    for step in list(snapshots)[: -limit or None] if limit else []:
        if step != best:
            shutil.rmtree(snapshots[step])
