"""Data parallel training: every process computes the gradient of its share of a batch, and all add them up.

    mpiexec -n 4 minilora train run.yml

Each process holds the whole model and takes every n-th row of each batch, so that the order of the data does not depend
on n. After backward the gradients of what is trained (with LoRA, of the adapters alone) are put end to end into one
buffer and summed over the processes, and each makes the same update. The loss is normalised by the targets of the whole
batch, so that n processes and one compute the same up to the order in which floats are added.
"""

import os
import sys

import numpy as np

from minilora.backend import like, to_numpy
from minilora.errors import ConfigError


class Processes:
    """One process: nothing to share. rank: which one this is, of `size`; the first one writes files and speaks."""

    rank, size = 0, 1

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        """An error in one of several processes ends them all, with its message: the others would wait for ever."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The rows of a batch that this process computes; there may be none."""
        return batch if self.size == 1 else {name: a[self.rank :: self.size] for name, a in batch.items()}

    def separate(self, generators: list[np.random.Generator]):
        """Give each process random numbers of its own (2^128 draws apart): its rows are not another's."""
        for rng in generators if self.rank else []:
            rng.bit_generator.state = rng.bit_generator.jumped(self.rank).state

    def gather(self, value) -> list:
        """Every process's value, by rank (all of them have to ask); on others than the first, an empty list."""
        return [value]

    def add_up(self, params, loss: float) -> float:
        """Replace the gradients, and return the loss, by their sums over all processes."""
        return loss


class MpiProcesses(Processes):
    """The processes that mpiexec has started."""

    def __init__(self):
        try:
            from mpi4py import MPI
        except ImportError:
            raise ConfigError("started by mpiexec, which needs mpi4py: pip install 'minilora[mpi]'") from None
        self.comm = MPI.COMM_WORLD
        self.rank, self.size = self.comm.rank, self.comm.size

    def gather(self, value) -> list:
        return self.comm.gather(value) or []

    def add_up(self, params, loss: float) -> float:
        buffer = np.zeros(1 + sum(p.size for p in params), np.float32)
        buffer[0], a = loss, 1
        for p in params:
            if p.grad is not None:
                buffer[a : a + p.size] = to_numpy(p.grad).ravel()
            a += p.size
        total = np.empty_like(buffer)
        self.comm.Allreduce(buffer, total)
        a = 1
        for p in params:
            p.grad = like(total[a : a + p.size].reshape(p.shape).astype(p.dtype), p.data)
            a += p.size
        return float(total[0])

    def __exit__(self, kind, error, trace):
        if error is not None:
            print(f"process {self.rank} of {self.size}: {error or kind.__name__}", file=sys.stderr, flush=True)
            self.comm.Abort(1)


def processes() -> Processes:
    """Those of this job: MpiProcesses where mpiexec started more than one, else one."""
    started = max(int(os.environ.get(name, 1)) for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"))
    return MpiProcesses() if started > 1 else Processes()


def bytes_per_step(numbers: int, size: int) -> int:
    """What each process sends in a ring all-reduce of so many float32: 2 (n-1)/n times the buffer."""
    return round(4 * numbers * 2 * (size - 1) / size)
