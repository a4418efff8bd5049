"""A paged optimizer: AdamW whose state is larger than the memory it may take.

    optimizer = PagedAdamW(params, lr=1e-3, resident_bytes=64 << 20)
    optimizer.pages.resident_bytes, optimizer.pages.faults

Adam's two moments are as large as the trained weights, twice; they are touched once a step, from the first to the last.
QLoRA keeps them in pages that move out of the GPU's memory when it runs short (arXiv:2305.14314, section 3, "Paged
Optimizers"). Here a page is the moments of 32,768 weights; those used last stay in memory, the others are in a
memory-mapped file. The updates are AdamW's bit for bit: only where the numbers lie has changed.
"""

import mmap
import os
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

from minilora.backend import managed_zeros
from minilora.errors import ConfigError, FileFormatError, TrainingError
from minilora.train.optim import CHUNK, AdamW


class Pages:
    """`count` arrays of one shape, zero at first, of which at most `resident_bytes` are in memory at any time.

    A page that is not is read from the file (a fault), and the one that was used longest ago is written there. Counts
    faults, bytes_in and bytes_out. folder: where the file is made (it has no name, and goes with the process).
    """

    def __init__(self, count: int, shape: tuple[int, ...], resident_bytes: int, folder: str | None = None):
        self.count, self.shape, self.size = count, shape, int(np.prod(shape)) * 4
        if self.size % mmap.ALLOCATIONGRANULARITY:
            raise ConfigError(f"a page of {self.size} bytes is not whole units of {mmap.ALLOCATIONGRANULARITY}")
        self.most = resident_bytes // self.size
        if self.most < 1:
            raise ConfigError(f"resident_bytes={resident_bytes:,} does not hold one page of {self.size:,} bytes")
        self.resident: OrderedDict[int, np.ndarray] = OrderedDict()
        self.written: set[int] = set()
        self.faults = self.bytes_in = self.bytes_out = 0
        self._file = self._map = None
        if count > self.most:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it lives as long as the pages)
            _reserve(self._file, count * self.size)
            self._map = mmap.mmap(self._file.fileno(), count * self.size)

    @property
    def resident_bytes(self) -> int:
        return len(self.resident) * self.size

    def __getitem__(self, i: int) -> np.ndarray:
        """Page i, float32, to be read and changed until another is asked for."""
        if i in self.resident:
            self.resident.move_to_end(i)
            return self.resident[i]
        page = self._evict() if len(self.resident) == self.most else np.empty(self.shape, np.float32)
        if i in self.written:
            self.faults, self.bytes_in = self.faults + 1, self.bytes_in + self.size
            page[...] = self._in_file(i)
            self._forget(i)
        else:
            page[...] = 0
        self.resident[i] = page
        return page

    def _evict(self) -> np.ndarray:
        i, page = self.resident.popitem(last=False)
        self._in_file(i)[...] = page
        self._forget(i)
        self.written.add(i)
        self.bytes_out += self.size
        return page

    def _in_file(self, i: int) -> np.ndarray:
        return np.frombuffer(self._map, np.float32, self.size // 4, i * self.size).reshape(self.shape)

    def _forget(self, i: int):
        """The file's page need not stay in this process's memory; what was written is the kernel's to keep."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, i * self.size, self.size)


def _reserve(file, size: int):
    """Take the room now: a write to a memory-mapped file on a full disk kills the process."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        raise TrainingError(f"no room for {size:,} bytes of optimizer state on disk: {error.strerror}") from error


class PagedAdamW(AdamW):
    """AdamW with its moments in Pages: (2, CHUNK) float32 each, m and v of a chunk of one parameter.

    Of parameters on a GPU they are in managed memory instead, whose pages CUDA's driver moves between the GPU and the
    host; resident_bytes is then the driver's to choose.
    """

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, resident_bytes: int = 64 << 20,
        folder: str | None = None,
    ):  # fmt: skip
        self.resident_bytes, self.folder = resident_bytes, folder
        super().__init__(params, lr, betas, eps, weight_decay)

    def _new_state(self):
        wide = [p for p in self.params if p.dtype.itemsize > 4]
        if wide:
            raise ConfigError(f"paged state is float32; a parameter is {wide[0].dtype}")
        if not isinstance(self.params[0].data, np.ndarray):  # on a GPU the driver moves pages, and counts them
            self.pages = None
            return [tuple(managed_zeros(p.data, p.size, np.float32) for _ in range(2)) for p in self.params]
        counts = [-(-p.size // CHUNK) for p in self.params]
        self.pages = Pages(sum(counts), (2, CHUNK), self.resident_bytes, self.folder)
        return [range(stop - count, stop) for stop, count in zip(np.cumsum(counts).tolist(), counts, strict=True)]

    def save(self, folder: Path):
        """Write the state to optimizer.pages in `folder`, a page at a time."""
        if self.pages is None:
            return super().save(folder)
        with open(folder / "optimizer.pages", "wb") as file:
            np.array([self.steps], np.int64).tofile(file)
            for number in range(self.pages.count):
                self.pages[number].tofile(file)

    def load(self, folder: Path):
        if self.pages is None:
            return super().load(folder)
        path = folder / "optimizer.pages"
        if not path.exists() or path.stat().st_size != 8 + self.pages.count * self.pages.size:
            raise FileFormatError(f"{folder} holds the state of another optimizer or of other parameters")
        with open(path, "rb") as file:
            self.steps = int(np.fromfile(file, np.int64, 1)[0])
            for number in range(self.pages.count):
                page = self.pages[number]
                page[...] = np.fromfile(file, np.float32, page.size).reshape(page.shape)

    def _update_parameter(self, p, state, rate, correction, decay):
        if self.pages is None:
            return super()._update_parameter(p, state, rate, correction, decay)
        work = np.empty(min(p.size, CHUNK), np.float32)
        theta, g = p.data.reshape(-1), p.grad.reshape(-1).astype(np.float32, copy=False)
        for start, number in zip(range(0, p.size, CHUNK), state, strict=True):
            part = slice(start, start + CHUNK)
            m, v = self.pages[number][:, : theta[part].size]
            self._update(theta[part], g[part], m, v, work, rate, correction, decay)
