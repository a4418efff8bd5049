"""Several real processes under mpiexec compute what one does, and end together."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from train.test_snapshots import make
from train.test_trainer import adapted

from minilora.train import snapshots
from minilora.train.distributed import Processes, bytes_per_step

MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
TESTS = Path(__file__).parent.parent


@given(st.integers(0, 9), st.integers(1, 5))
def test_each_row_belongs_to_one_process(rows, size):
    batch, seen = {"input_ids": np.arange(rows)[:, None]}, []
    for rank in range(size):
        part = Processes()
        part.rank, part.size = rank, size
        seen += part.share(batch)["input_ids"].ravel().tolist()
    assert sorted(seen) == list(range(rows))


def test_ring_traffic():
    assert bytes_per_step(1000, 1) == 0 and bytes_per_step(1000, 2) == 4000 and bytes_per_step(1000, 4) == 6000


def make_plain(folder, dropout=0.0, **changes):
    """By default without dropout, which is drawn for each process's rows apart."""
    return make(folder, adapted(lora_dropout=dropout), **({"max_steps": 20, "save_steps": 5} | changes))


def test_processes_draw_apart():
    states = []
    for rank in range(3):
        part, rng = Processes(), np.random.default_rng(0)
        part.rank = rank
        part.separate([rng])
        states.append(rng.random())
    assert len(set(states)) == 3 and states[0] == np.random.default_rng(0).random()


SCRIPT = """
import os, sys
sys.path.insert(0, sys.argv[2])
from minilora.train import snapshots
from minilora.train.distributed import processes
from train.test_distributed import make_plain
trainer = make_plain(sys.argv[1])
trainer.processes = processes()
if len(sys.argv) > 3 and trainer.processes.rank == 1:
    share = trainer.processes.share
    def dies(batch):
        if trainer.state.step == 12:
            print("the third process says why", file=sys.stderr, flush=True)
            os._exit(3)
        return share(batch)
    trainer.processes.share = dies
trainer.train()
"""


def mpi(folder, size, *more, script=SCRIPT):
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install 'minilora[mpi]'")
    if MPIEXEC is None:
        pytest.skip("mpiexec is not installed: pip install 'minilora[mpi]'")
    command = [MPIEXEC, "-n", str(size), sys.executable, "-c", script, str(folder), str(TESTS), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_same_curve_as_one_process(tmp_path, size):
    make_plain(tmp_path / "one").train()
    done = mpi(tmp_path / "many", size)
    assert done.returncode == 0, done.stderr
    curves = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "many")
    ]
    assert len(curves[1]) == 20
    for name in ("loss", "grad_norm"):
        ours, theirs = ([e[name] for e in curve] for curve in curves)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6 if name == "loss" else 1e-5)


def test_one_that_dies_ends_them_all_and_the_last_snapshot_is_whole(tmp_path):
    start = time.monotonic()
    done = mpi(tmp_path / "many", 2, "die")
    assert done.returncode != 0 and "says why" in done.stderr and time.monotonic() - start < 60
    trainer = make_plain(tmp_path / "many")
    assert trainer.train(resume_from_checkpoint=True).steps == 20


DROPOUT = """
import signal, sys
sys.path.insert(0, sys.argv[2])
from minilora.train import snapshots
from minilora.train.distributed import processes
from train.test_distributed import make_plain
workers = processes()
for place, stop in (("whole", None), ("stopped", 7)):
    for resume in (False, True)[: 1 + (stop is not None)]:
        trainer = make_plain(f"{sys.argv[1]}/{place}", dropout=0.3, max_steps=12)
        trainer.processes = workers
        if stop and not resume:
            trainer.progress = lambda entry: signal.raise_signal(signal.SIGINT) if entry["step"] == stop else None
        trainer.train(resume_from_checkpoint=resume)
"""


def test_every_process_takes_up_its_own_random_numbers(tmp_path):
    """Stopped after 7 updates and gone on from the snapshot of 5: the dropped numbers are those of the whole run."""
    done = mpi(tmp_path, 2, script=DROPOUT)
    assert done.returncode == 0, done.stderr
    whole, stopped = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "stopped"))
    assert whole == stopped and len(whole.splitlines()) == 12


def test_another_number_of_processes_goes_on(tmp_path):
    mpi(tmp_path / "many", 2)
    trainer = make_plain(tmp_path / "many")
    path = snapshots.all_of(tmp_path / "many")[15]
    states = []
    for rank in range(3):
        part = Processes()
        part.rank, part.size = rank, 3
        assert snapshots.read(path, trainer.model, trainer.optimizer, False, part).step == 15
        states.append(trainer.model.generators()[0].random())
    assert len(set(states)) == 3
