"""A paged optimizer is AdamW bit for bit, and its state stays within the memory that it was given."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import Tensor
from minilora.errors import ConfigError
from minilora.train.optim import CHUNK, AdamW
from minilora.train.paged import PagedAdamW, Pages

PAGE = 2 * CHUNK * 4


@given(st.integers(0, 99), st.lists(st.sampled_from([1, 7, CHUNK, CHUNK + 3, 3 * CHUNK - 1]), min_size=1, max_size=4),
       st.integers(1, 4), st.floats(0, 0.1))  # fmt: skip
def test_updates_are_those_of_adamw_bit_for_bit(seed, sizes, pages, decay):
    rng = np.random.default_rng(seed)
    starts = [rng.standard_normal((n, 1), np.float32) for n in sizes]
    ours, theirs = ([Tensor(x.copy(), requires_grad=True) for x in starts] for _ in range(2))
    paged = PagedAdamW(ours, 0.01, weight_decay=decay, resident_bytes=pages * PAGE)
    plain = AdamW(theirs, 0.01, weight_decay=decay)
    for step in range(3):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = b.grad = None if (step, i) == (1, 0) else rng.standard_normal(a.shape, np.float32)
        paged.step()
        plain.step()
        assert paged.pages.resident_bytes <= pages * PAGE
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a.data, b.data)


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 10))
def test_pages_hold_what_was_written_and_count_what_moved(asked, most):
    """Against a dict: the last value written is read, whatever was evicted between."""
    pages, wanted = Pages(10, (PAGE // 4,), most * PAGE), {}
    for value, i in enumerate(asked, 1):
        page = pages[i]
        assert (page == wanted.get(i, 0)).all()
        page[...] = wanted[i] = value
    assert pages.resident_bytes <= most * PAGE
    assert pages.bytes_in == pages.faults * PAGE and pages.bytes_out - pages.bytes_in <= 10 * PAGE
    if most >= len(set(asked)):
        assert pages.faults == pages.bytes_out == 0


def test_a_step_over_state_that_does_not_fit_moves_each_page_once_each_way():
    p = Tensor(np.zeros(8 * CHUNK, np.float32), requires_grad=True)
    optimizer = PagedAdamW([p], resident_bytes=2 * PAGE)
    for steps in (1, 2, 3):
        p.grad = np.ones(p.shape, np.float32)
        optimizer.step()
        assert optimizer.pages.faults == 8 * (steps - 1)
        assert optimizer.pages.bytes_out == (8 * steps - 2) * PAGE


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/statm, which tells a process's resident memory")
def test_the_process_really_stays_below_its_budget():
    """192 MiB of state, 16 MiB allowed: the process grows by less than those and a little."""
    code = """
import numpy as np
from minilora import Tensor
from minilora.train.optim import AdamW
from minilora.train.paged import PagedAdamW
import sys
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
params = [Tensor(np.zeros(1 << 20, np.float32), requires_grad=True) for _ in range(24)]
for p in params:
    p.data += 1  # touched
    p.grad = np.ones(p.shape, np.float32)
kind = {"paged": lambda: PagedAdamW(params, resident_bytes=16 << 20), "plain": lambda: AdamW(params)}[sys.argv[1]]
before = resident()
optimizer, most = kind(), 0
for _ in range(2):
    optimizer.step()
    most = max(most, resident())
print(most - before)
"""

    def growth(kind):
        return int(
            subprocess.run([sys.executable, "-c", code, kind], capture_output=True, text=True, check=True).stdout
        )

    assert growth("paged") < 24 << 20 < 160 << 20 < growth("plain")


def test_too_small_a_budget_and_wide_parameters_are_refused():
    p = Tensor(np.zeros(3, np.float32), requires_grad=True)
    with pytest.raises(ConfigError, match="one page"):
        PagedAdamW([p], resident_bytes=1000)
    with pytest.raises(ConfigError, match="float64"):
        PagedAdamW([Tensor(np.zeros(3), requires_grad=True)])
