"""A kernel's steps, a race and a warp's sectors as pictures: well-formed, complete, within their frame."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import simt
from minilora.errors import DataError, SimulationError
from minilora.viz.sectors import sectors
from minilora.viz.steps import Moment, over_time, race, record, walk

SOURCE = """extern "C" __global__ void absmax(const float* x, float* out) {
  __shared__ float best[N];
  int t = threadIdx.x;
  best[t] = fabsf(x[blockIdx.x * N + t]);
  __syncthreads();
  for (int half = N / 2; half > 0; half /= 2) {
    if (t < half) best[t] = fmaxf(best[t], best[t + half]);
    __syncthreads();
  }
  if (t == 0) out[blockIdx.x] = best[0];
}"""


def launched(source, n):
    """(program, arguments) of a source with N = n, in two blocks."""
    if not simt.available():
        pytest.skip("NVRTC is not installed: pip install 'minilora[simt]'")
    x = np.random.default_rng(0).standard_normal(2 * n).astype(np.float32)
    args = [simt.Buffer(x, read_only=True), simt.Buffer(np.zeros(2, np.float32))]
    return simt.load(simt.compile_cuda(source, options=(f"-DN={n}",))), args


def inside(svg) -> ElementTree.Element:
    """The root; every box lies in the picture."""
    root = ElementTree.fromstring(svg)
    assert root.find("{*}title").text and root.find("{*}desc").text
    _, _, width, height = map(float, root.get("viewBox").split())
    for box in root.findall("{*}rect"):
        x, y, w, h = (float(box.get(name)) for name in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and w > 0 and x + w <= width + 0.11 and y + h <= height
    return root


@st.composite
def moments(draw, most=32):
    """Some moments of a block."""
    threads, cells = draw(st.integers(1, most)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 9)))

    def one():
        registers = {name: rng.integers(-9, 9, threads) for name in ("%f1 = <a>", "%p1 & %p2")[: rng.integers(3)]}
        tile = np.where(rng.random(cells) < 0.2, np.nan, rng.standard_normal(cells)).astype(np.float32)
        return Moment(int(rng.integers(1, 4)), rng.random(threads) < 0.5, registers, {"tile": tile})

    return [one() for _ in range(draw(st.integers(1, 5)))]


@given(moments())
def test_a_page_for_each_moment_with_a_column_for_each_thread(moments):
    page = ElementTree.fromstring(walk(moments, "a < b\n  c;\n}"))
    tables = page.findall(".//table")
    assert len(tables) == len(moments) == len(page.findall("input"))
    for table, moment in zip(tables, moments, strict=True):
        taking_part = [cell.text or "" for cell in table.findall("tr")[1].findall("td")]
        assert taking_part == ["yes" if a else "" for a in moment.active]
        headings = [row.find("th").text for row in table.findall("tr")[1:]]
        assert headings[1 : 1 + len(moment.registers)] == list(moment.registers)
    targets = {label.get("for") for label in page.findall(".//label")}
    assert targets <= {button.get("id") for button in page.findall("input")}


@given(moments(most=256))
def test_a_cell_for_each_thread_at_each_moment(moments):
    boxes = inside(over_time(moments, "a < b\n  c;\n}", "<t>")).findall("{*}rect")
    filled = [box.get("fill") != "none" for box in boxes]
    assert filled == [bool(a) for moment in moments for a in moment.active]


def test_two_walks_do_not_share_their_buttons():
    moment = [Moment(1, np.array([True]), {}, {})] * 2
    first, second = (ElementTree.fromstring(walk(moment, "x")).findall("input") for _ in range(2))
    assert {b.get("name") for b in first}.isdisjoint(b.get("name") for b in second)
    with pytest.raises(DataError, match="33"):
        walk([Moment(1, np.ones(33, bool), {}, {})], "x")


@pytest.mark.parametrize("n", [8, 64])
def test_a_recorded_kernel(n):
    program, args = launched(SOURCE, n)
    moments = record(simt.Stepper(program, "absmax", 2, n, args, source=SOURCE), block=1)
    halves = [int(m.active.sum()) for m in moments if m.line == 7]
    assert halves == [n >> i for i in range(1, n.bit_length())]
    assert [m.line for m in moments][:3] == [4, 5, 7] and moments[-1].line == 10
    x = abs(args[0].array[n:])
    assert np.array_equal(moments[0].shared["best"], x) and moments[-1].shared["best"][0] == x.max()
    assert any(np.array_equal(values, x) for values in moments[0].registers.values())
    assert args[1].array[1] == x.max()


@pytest.mark.parametrize(
    "change, kinds, lines",
    [
        (("    __syncthreads();\n", ""), {"read", "write"}, {"7"}),
        (("  __syncthreads();\n  for", "  for"), {"read", "write"}, {"4", "6"}),
        (("if (t == 0) out[blockIdx.x]", "out[blockIdx.x]"), {"write"}, {"10"}),
    ],
)
def test_a_race_names_both_parties(change, kinds, lines):
    source = SOURCE.replace(*change)
    program, args = launched(source, 64)
    with pytest.raises(SimulationError, match="race") as caught:
        simt.launch(program, "absmax", 2, 64, args)
    picture = inside(race(caught.value, source))
    parties = [p.split(": ") for p in picture.find("{*}desc").text.split("; ")]
    assert len({who for who, _ in parties}) == 2
    assert {what.split()[0] for _, what in parties} == kinds
    assert {what.split()[-1] for _, what in parties} == lines  # the compiler loads best[t] before the loop, line 6


def test_what_is_no_race():
    with pytest.raises(DataError, match="no race"):
        race(SimulationError("kernel, line 3, thread (0, 0, 0) of block (0, 0, 0): out of bounds"), SOURCE)


@given(st.lists(st.integers(0, 4000).map(lambda i: 4 * i), min_size=1, max_size=32))
def test_what_was_asked_for_is_filled(addresses):
    root = inside(sectors({"<some>": np.array(addresses)}, "t"))
    boxes = root.findall("{*}rect")
    empty = [box for box in boxes if box.get("fill") == "none"]
    assert len(empty) == len({a // 32 for a in addresses})
    filled = sum(float(box.get("width")) for box in boxes if box.get("fill") != "none")
    part = len(set(addresses)) * 4 / (32 * len(empty))
    assert abs(filled / sum(float(box.get("width")) for box in empty) - part) < 0.02
