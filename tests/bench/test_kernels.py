"""The kernel report: its page is what it prints, its figures are those of today's kernels, its gates can fail."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from minilora import simt
from minilora.backend import simt as simulated
from minilora.backend.cuda.launch import FOLDER, source
from minilora.bench import kernels
from minilora.bench.kernel_tables import aligned, fill, report, roofline, sections
from minilora.bench.ladders import LADDERS, VARIANTS
from minilora.cli import main
from minilora.errors import DataError
from minilora.simt import nvrtc, sass
from minilora.tables import markdown_table
from minilora.viz.charts import standalone

DOCS = Path(__file__).parents[2] / "docs"
STORED = json.loads((DOCS / "kernels" / "results.json").read_text())
MACHINE, RUNS, GATES = kernels.rows_of(STORED)
FILES = ["--json", "docs/kernels/results.json", "--markdown", "docs/kernels.md", "--svg", "docs/kernels/roofline.svg"]
RENEW = f"minilora kernels report {' '.join(FILES)}"
HERE = f"NVRTC {nvrtc.version()}" if simt.available() else None
needs_nvrtc = pytest.mark.skipif(not simt.available(), reason="NVRTC is not installed: pip install 'minilora[simt]'")
same_compiler = pytest.mark.skipif(
    STORED["compiler"] != HERE, reason=f"the page has figures of {STORED['compiler']}; here is {HERE or 'no NVRTC'}"
)
needs_disassembler = pytest.mark.skipif(
    not (simt.available() and sass.available()),
    reason="NVRTC or nvdisasm and cuobjdump are not installed: pip install 'minilora[simt]'",
)


def ladder(name: str, *versions: int):
    found = next(ladder for ladder in LADDERS if ladder.name == name)
    return replace(found, versions=versions) if versions else found


@needs_nvrtc
def test_an_architecture_that_there_is_not(capsys):
    assert {75, 80, 90} <= set(nvrtc.architectures())
    assert main(["kernels", "report", "--arch", "80", "12"]) == 1
    assert "not for 12" in capsys.readouterr().err


# The page


def test_the_page_and_the_picture_are_the_stored_figures():
    page = (DOCS / "kernels.md").read_text()
    assert fill(page, sections(MACHINE, RUNS, GATES)) == page, f"renew the page: {RENEW}"
    assert (DOCS / "kernels" / "roofline.svg").read_text() == standalone(roofline(RUNS))
    asked = re.findall(r"<!-- kernels report: (.+?) -->", page)
    assert f"({STORED['compiler']})" in page
    assert sorted(asked) == sorted(sections(MACHINE, RUNS, GATES))  # each table once, none left out
    assert [kernels.Gate(**gate) for gate in STORED["gates"]] == kernels.gates(MACHINE, RUNS)


def test_the_stored_figures_are_of_these_kernels():
    """A changed kernel, other than in its comments, has other figures."""
    now = {path.name: kernels.fingerprint(path.name) for path in FOLDER.glob("*.cu")}
    assert STORED["sources"] == now, f"a kernel was changed: {RENEW}"


@same_compiler
@pytest.mark.parametrize(
    "name, versions",
    [("gemv_4bit", (4,)), ("dequantize_4bit_double", (2, 3)), ("dequantize_8bit", (0,)), ("rms_norm", (1, 2))],
)
def test_counted_again(name, versions):
    stored = [row for row in RUNS if row.ladder == name and row.version in versions]
    assert kernels.run_rows([ladder(name, *versions)]) == stored


@same_compiler
@needs_disassembler
@pytest.mark.parametrize("name, arch", [("gemv_4bit", 90), ("dequantize_4bit", 75)])
def test_compiled_again(name, arch):
    stored = [row for row in MACHINE if row.ladder == name and row.arch == arch]
    assert kernels.machine_rows([arch], [ladder(name)]) == stored


def test_all_gates_hold():
    assert GATES and not [gate for gate in GATES if not gate.passed]


@pytest.mark.slow
@same_compiler
@needs_disassembler
def test_everything_again(tmp_path):
    assert main(["kernels", "report", "--json", str(tmp_path / "r.json")]) == int(not all(g.passed for g in GATES))
    assert json.loads((tmp_path / "r.json").read_text()) == STORED


def test_every_kernel_and_every_step_is_in_the_report():
    assert {row.arch for row in MACHINE} == set(kernels.ARCHS)
    for arch in kernels.ARCHS:
        steps = {(row.ladder, row.version) for row in MACHINE if row.arch == arch}
        wanted = {(one.name, version) for one in LADDERS + VARIANTS for version in one.versions}
        lacking = {(name, version) for name, version in wanted if name.startswith("gemm") and version > 2}
        assert steps == (wanted if arch >= 80 else wanted - lacking)
    assert [(row.ladder, row.version) for row in RUNS] == [(x.name, v) for x in LADDERS for v in x.versions]


@needs_nvrtc
def test_no_kernel_of_a_file_is_left_out():
    functions = {row.function for row in MACHINE}
    for path in FOLDER.glob("*.cu"):
        program = simt.load(simt.compile_cuda(source(path.name), 80, name=path.name))
        assert set(program.kernels) <= functions, path.name


# Gates


def failing(machine, runs):
    return {gate.name for gate in kernels.gates(machine, runs) if not gate.passed}


BROKEN = [  # a figure of a row that one gate looks at, beyond its limit
    ("machine", ("gemm_4bit", 2), "spills", 1, "spilled registers"),
    ("machine", ("gemv_4bit", 4), "loads", 0, "LDG.E.128"),
    ("machine", ("dequantize_4bit", 3), "stores", 0, "STG.E.128"),
    ("machine", ("gemm_4bit", 3), "mma", 0, "HMMA"),
    ("machine", ("gemv_4bit", 4), "instructions", 4.61, "machine instructions"),
    ("runs", ("gemv_4bit", 4), "instructions", 4.61, "PTX instructions"),
    ("runs", ("gemv_4bit", 4), "memory", 0.56, "bytes of memory a weight, GEMV"),
    ("runs", ("dequantize_4bit_double", 3), "memory", 2.61, "bytes of memory a weight, dequantize"),
    ("runs", ("softmax", 2), "efficiency", 0.94, "sector efficiency"),
    ("runs", ("quantize_4bit", 3), "conflicts", 1.06, "bank passes"),
]


@pytest.mark.parametrize("where, step, figure, value, gate", BROKEN, ids=[case[-1] for case in BROKEN])
def test_each_gate_can_fail(where, step, figure, value, gate):
    runs = [row if row.efficiency is None else replace(row, efficiency=1.0) for row in RUNS]
    rows = {"machine": MACHINE, "runs": runs}
    assert not failing(**rows)
    i = next(i for i, row in enumerate(rows[where]) if (row.ladder, row.version) == step)
    rows[where] = [*rows[where][:i], replace(rows[where][i], **{figure: value}), *rows[where][i + 1 :]]
    assert [name.startswith(gate) for name in failing(**rows)] == [True]


@needs_nvrtc
def test_a_worse_kernel_is_seen():
    """Rows of the tile of x eight float4 apart: the lanes of a quarter warp meet in the same four banks."""
    worse = lambda name, text: text.replace("#define PITCH 9", "#define PITCH 8")  # noqa: E731
    (row,) = kernels.run_rows([ladder("gemv_4bit", 4)], edit=worse)
    assert row.conflicts > 2 and any("bank passes" in name for name in failing([], [row]))


# Arithmetic


def test_what_a_gpu_may_spend_on_a_weight():
    """0.516 bytes of it: 4.6, 6.5, 9.8 and 13 thread instructions."""
    allowed = [0.516 * kernels.instructions_per_byte(gpu) for gpu in kernels.GPUS]
    assert allowed == pytest.approx([4.62, 6.47, 9.81, 13.13], abs=0.005)


def test_what_a_step_is_bound_by():
    clock = kernels.clocks_per_byte("T4")
    row = replace(RUNS[0], memory=2.0, instructions=0, passes=0, moved=2.0)
    assert row.bound("T4") == ("memory", 1)
    assert replace(row, instructions=2 * 128 * clock * 3).bound("T4") == ("instructions", pytest.approx(3))
    assert replace(row, passes=2 * clock * 5).bound("T4") == ("shared memory", pytest.approx(5))
    assert replace(row, moved=2 * 128 * clock * 7, passes=2 * clock * 5).bound("T4") == ("cache", pytest.approx(7))


# Tables


def test_a_page_is_filled_once():
    page = "a\n<!-- kernels report: one -->\nold | text\n<!-- end -->\nb <!-- kernels report: x"
    filled = fill(page, {"one": "new", "two": "other"})
    assert filled == "a\n<!-- kernels report: one -->\n\nnew\n\n<!-- end -->\nb <!-- kernels report: x"
    assert fill(filled, {"one": "new"}) == filled
    with pytest.raises(DataError, match="one"):
        fill(page, {"two": "other"})


def test_columns_for_a_terminal():
    text = "words:\n\n" + markdown_table(["", "b"], [("row", 1), ("a longer row", 20)])
    assert aligned(text) == "words:\n\n              b\nrow           1\na longer row  20"


def test_the_report_says_and_writes_what_was_found(tmp_path):
    (tmp_path / "page.md").write_text("<!-- kernels report: gates -->\n<!-- end -->\n")
    said = []
    fine = STORED | {"gates": [gate | {"passed": True} for gate in STORED["gates"]]}
    assert report(fine, tmp_path / "r.json", tmp_path / "page.md", tmp_path / "p.svg", said.append)
    assert json.loads((tmp_path / "r.json").read_text()) == fine
    assert GATES[0].name in (tmp_path / "page.md").read_text() and "fails" not in (tmp_path / "page.md").read_text()
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    assert all(any(one.name in line for line in said) for one in LADDERS)

    said.clear()
    gates = [STORED["gates"][-1] | {"passed": False}]
    assert not report(STORED | {"machine": [], "gates": gates}, say=said.append)
    assert any("pip install 'minilora[simt]'" in line for line in said)


def test_where_nothing_is_installed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(nvrtc.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(nvrtc.ctypes.util, "find_library", lambda name: None)
    nvrtc.library.cache_clear()
    simulated.compiled.cache_clear()
    assert main(["kernels", "report", "--arch", "80"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
