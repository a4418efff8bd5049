"""Stepping gives what running gives, and shows where it is."""

from html.parser import HTMLParser

import numpy as np
import pytest

from minilora import simt
from minilora.errors import SimulationError
from minilora.simt.stepper import Step, Stepper

SOURCE = r"""
extern "C" __global__ void reverse(const float* x, float* y, int n) {
  __shared__ float tile[64];
  __shared__ int last;
  int i = blockIdx.x * 64 + threadIdx.x;
  if (threadIdx.x == 0) last = min(n - blockIdx.x * 64, 64) - 1;
  tile[threadIdx.x] = x[i];                       // the load, the store
  __syncthreads();                                // all wait
  int j = last - threadIdx.x;
  if (j >= 0) y[i] = tile[j];
  if (i < 40 && threadIdx.x < 32) y[i] += 1.0f;   // one warp, in part
}
"""


def lines_with(text):
    return {i for i, line in enumerate(SOURCE.split("\n"), 1) if text in line}


@pytest.fixture
def stepper(cuda):
    x, y = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    stepper = Stepper(cuda(SOURCE), "reverse", 2, 64, [simt.Buffer(x), simt.Buffer(y), np.int32(128)], source=SOURCE)
    stepper.x, stepper.y = x, y
    return stepper


def test_stepping_is_running(stepper, cuda):
    steps = []
    while (step := stepper.next_instruction()) is not None:
        steps.append(step)
    assert stepper.finished and len(steps) == stepper.machine.steps
    y = np.zeros(128, np.float32)
    simt.launch(cuda(SOURCE), "reverse", 2, 64, [simt.Buffer(stepper.x), simt.Buffer(y), np.int32(128)])
    assert np.array_equal(stepper.y, y) and y[0] == 64 and y[127] == 64
    assert stepper.next_instruction() is None and stepper.next_barrier() is None


def test_a_step_says_what_and_who(stepper):
    steps = []
    while (step := stepper.next_instruction()) is not None:
        steps.append(step)
    load = next(s for s in steps if s.instruction.name == "ld" and "global" in s.instruction.modifiers)
    assert load.line in lines_with("the load") and "x[i]" in load.text
    assert list(load.lanes) == [(0, 0), (0, 1), (1, 0), (1, 1)] and all(mask.all() for mask in load.lanes.values())
    part = [s for s in steps if s.line in lines_with("one warp") and s.instruction.name == "st"]
    assert len(part) == 1 and list(part[0].lanes) == [(0, 0)] and part[0].lanes[0, 0].all()
    assert "128 lanes" in str(load) and "x[i]" in str(load)
    first = [s for s in steps if s.line in lines_with("== 0")]
    assert any(sum(int(m.sum()) for m in s.lanes.values()) == 2 for s in first)  # thread 0 of each block


def test_to_the_barrier_and_past_it(stepper):
    step = stepper.next_barrier()
    assert step.instruction.name in ("bar", "barrier") and step.line in lines_with("all wait")
    assert np.array_equal(stepper.shared(0)["tile"], stepper.x[:64])
    assert np.array_equal(stepper.shared(1)["tile"], stepper.x[64:])
    assert stepper.shared(1, np.int32)["last"].tolist() == [63]
    assert not stepper.finished and not stepper.y.any()
    assert stepper.next_barrier().instruction.name == "ret"
    assert stepper.next_barrier() is None and stepper.finished


def test_registers(stepper):
    while stepper.next_instruction().instruction.name != "bar":
        pass
    loaded = next(i for i in stepper.machine.kernel.instructions if i.opcode.startswith("ld.global"))
    name = loaded.operands[0]
    assert np.array_equal(stepper.registers(1, 1)[name], stepper.x[96:128])
    assert stepper.registers(1, 1)[name].dtype == np.float32
    assert name in stepper.written
    assert list(stepper.registers(0, 0, [name])) == [name]
    before = stepper.registers(0, 0)[name]
    before[:] = 0  # a copy
    assert stepper.registers(0, 0)[name].any()
    predicate = next(
        n for n, type in stepper.machine.kernel.registers.items() if type == "pred" and n in stepper.written
    )
    assert stepper.registers(0, 0)[predicate].dtype == bool


def test_what_is_not_there(stepper):
    stepper.next_instruction()
    with pytest.raises(SimulationError, match="warp 2: a block has 2"):
        stepper.registers(0, 2)
    with pytest.raises(SimulationError, match="block 2 does not run now; blocks 0 to 1 do"):
        stepper.shared(2)
    with pytest.raises(SimulationError, match="%nothing is not a register of reverse"):
        stepper.registers(names=["%nothing"])


def test_the_blocks_of_a_wave(cuda):
    x, y = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    args = [simt.Buffer(x), simt.Buffer(y), np.int32(256)]
    stepper = Stepper(cuda(SOURCE), "reverse", 4, 64, args, max_lanes=128)
    stepper.next_barrier()
    assert np.array_equal(stepper.shared(1)["tile"], x[64:128])
    stepper.next_barrier()
    stepper.next_barrier()
    assert np.array_equal(stepper.shared(3)["tile"], x[192:])
    with pytest.raises(SimulationError, match="blocks 2 to 3 do"):
        stepper.shared(0)
    assert stepper.step.text == "" and next(iter(stepper.step.lanes)) == (2, 0)


def test_an_error_is_raised_where_it_happens(cuda):
    x, y = np.zeros(128, np.float32), np.zeros(100, np.float32)
    stepper = Stepper(cuda(SOURCE), "reverse", 2, 64, [simt.Buffer(x), simt.Buffer(y), np.int32(128)])
    stepper.next_barrier()
    with pytest.raises(SimulationError, match="out of bounds"):
        stepper.next_barrier()


class Tables(HTMLParser):
    """Reads what is shown; every tag must be closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.cells, self.headings, self.caption = [], [], [], ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert tag in ("table", "caption", "tr", "th", "td", "p")
        assert tag != "th" or dict(attributes)["scope"] in ("row", "col")
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] == "caption":
            self.caption += data
        if self.open[-1] in ("td", "th"):
            (self.cells if self.open[-1] == "td" else self.headings).append(data)


def test_tables_in_a_notebook(stepper):
    Tables(stepper._repr_html_())
    stepper.next_barrier()
    page = Tables(stepper._repr_html_())
    assert "bar.sync" in page.caption and "__syncthreads()" in page.caption
    assert "block 1, warp 1" in page.headings and page.cells == ["1"] * 128
    page = Tables(stepper.shared(0)._repr_html_())
    assert [h for h in page.headings if "..." in h] == ["tile[0...]", "tile[32...]"]
    assert "63" in page.cells and page.caption == "Shared memory of block 0 as float32"
    registers = stepper.registers()
    page = Tables(registers._repr_html_())
    assert page.headings[32:] == list(registers) and len(page.cells) == 32 * len(registers)
    assert str(registers).startswith("Registers of block 0")
    unsafe = Step(simt.Instruction("<b>", ("&",), None, 1), "a < b", {(0, 0): np.ones(32, bool)})
    assert "&lt;b&gt; &amp;" in unsafe._repr_html_()
