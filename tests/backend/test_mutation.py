"""Would the tests notice? The campaign on all kernels, with a small sample; its machinery; and its page.

docs/mutation.md has the figures of a larger sample.
"""

import json
from pathlib import Path

import pytest
from backend import mutation_page
from backend.equivalent_mutants import EQUIVALENT, judge
from backend.liveness import live_after
from backend.mutants import mutants
from backend.mutation import KILLED, campaign, outcome_of, sample, subjects
from backend.mutation_cases import CASES
from backend.mutation_subjects import Subject

from minilora import simt
from minilora.backend.cuda.launch import FOLDER, source
from minilora.bench.kernel_tables import fill

DOCS = Path(__file__).parents[2] / "docs"
FOUND = json.loads((DOCS / "mutation/results.json").read_text())
needs_nvrtc = pytest.mark.skipif(not simt.available(), reason="NVRTC is missing: pip install 'minilora[simt]'")


@pytest.mark.slow
@needs_nvrtc
def test_cases_notice_a_change_of_any_kernel():
    """95 of 100 mutants that are not equivalent; and no reason is given for one that is noticed."""
    rows, wrong = [], []
    for kernel in CASES:
        found = subjects(kernel)
        assert not [str(place) for subject in found for place in subject.unproven], kernel
        results = list(campaign(found, each=8, seed=2))
        rows.append(mutation_page.kernel_row(kernel, 0, results))
        wrong += [f"{result.mutant}: {result.outcome}, {result.why}" for result in results if result.wrong]
    assert not wrong
    assert mutation_page.score(mutation_page.total(rows)) >= 0.95, [r for r in rows if r["survived"]]


@needs_nvrtc
def test_there_are_cases_of_every_kernel():
    kernels = set()
    for path in FOLDER.glob("*.cu"):
        kernels |= set(simt.load(simt.compile_cuda(source(path.name), 80, (), path.name)).kernels)
    assert kernels == set(CASES)


# The machinery


@needs_nvrtc
def test_every_mutant_of_a_small_kernel_is_noticed():
    (subject,) = subjects("dequantize_8bit_v0")
    assert len(sample(subject, 10**6, 0)) == len(subject.mutants) > 30
    for mutant in subject.mutants:
        outcome, why = outcome_of(mutant, subject)
        assert outcome in KILLED, f"{mutant}: {outcome} {why}"


@needs_nvrtc
@pytest.mark.parametrize("kernel, kind", [
    ("rms_norm_v1", "drop barrier"), ("slice_absmax", "drop shuffle"), ("rms_norm_v2", "drop shuffle"),
    pytest.param("gemm_4bit_tensor_v4", "drop mma|drop ldmatrix|drop wait|drop barrier", marks=pytest.mark.slow),
    pytest.param("dequantize_4bit_v3", "drop barrier", marks=pytest.mark.slow),
])  # fmt: skip
def test_what_is_surely_wrong_is_noticed(kernel, kind):
    noticed = 0
    for subject in subjects(kernel):
        for mutant in [mutant for mutant in subject.mutants if mutant.kind in kind.split("|")][:40]:
            killed = outcome_of(mutant, subject)[0] in KILLED
            assert killed or judge(mutant, subject), str(mutant)
            noticed += killed
    assert noticed


@needs_nvrtc
def test_too_few_cases_show():
    """The shortest case of a kernel alone leaves much of it unreached or unnoticed."""
    (subject,) = subjects("quantize_int8_v0")
    alone = Subject(subject.variant, subject.cases[:1])
    assert alone.unproven
    chosen = sample(subject, 60, 0)
    assert sum(outcome_of(mutant, alone)[0] == "survived" for mutant in chosen) > 10
    assert sum(outcome_of(mutant, subject)[0] == "survived" for mutant in chosen) < 6


LOOP = """
.version 7.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 k_param_0, .param .u32 k_param_1)
{
  .reg .pred %p<3>;
  .reg .b32 %r<5>;
  .reg .b64 %rd<2>;
  ld.param.u64 %rd1, [k_param_0];
  ld.param.u32 %r1, [k_param_1];
  mov.u32 %r2, 7;
  setp.eq.u32 %p1, %r1, 0;
  @%p1 bra $L_end;
  mov.u32 %r2, 0;
$L_loop:
  add.s32 %r2, %r2, %r1;
  add.s32 %r3, %r1, %r1;
  add.s32 %r1, %r1, -1;
  setp.ne.u32 %p2, %r1, 0;
  @%p2 bra $L_loop;
$L_end:
  st.global.u32 [%rd1], %r2;
  ret;
}
"""


def test_live_registers():
    kernel = simt.load(LOOP).kernel("k")
    every = dict.fromkeys(range(len(kernel.instructions)), 1)
    live = live_after(kernel, every)
    assert live[2] == {"%rd1", "%r1", "%r2"} and live[6] == {"%rd1", "%r1", "%r2"} and live[9] >= {"%r1"}
    assert "%r3" not in live[7]
    never = live_after(kernel, every | {4: 0})  # %r1 is not zero: the 7 is not read
    assert never[2] == {"%rd1", "%r1"} and never[5] == {"%rd1", "%r1", "%r2"}
    once = {index: count for index, count in (every | {4: 0, 10: 0}).items()}
    assert live_after(kernel, once)[8] == {"%rd1", "%r2", "%r1"} and live_after(kernel, once)[10] == {"%rd1", "%r2"}


def test_kinds_of_change():
    kernel = simt.load(LOOP).kernel("k")
    changed = {(index, kind): str(instruction) for index, kind, instruction in mutants(kernel, exact=True)}
    assert changed[3, "boundary"] == "setp.ne.u32 %p1, %r1, 0" and changed[2, "number + 1"] == "mov.u32 %r2, 8"
    assert changed[4, "always"] == "bra $L_end" and changed[4, "negate predicate"] == "@!%p1 bra $L_end"
    assert changed[10, "another predicate"] == "@%p1 bra $L_loop" and (4, "another predicate") not in changed
    assert changed[6, "another operation"] == "sub.s32 %r2, %r2, %r1" and (12, "drop return") not in changed
    assert changed[11, "an element further"] == "st.global.u32 [%rd1+4], %r2" and (11, "drop store") in changed


@needs_nvrtc
def test_what_is_said_to_be_equivalent():
    """A loop that always has a round: its guard may be gone; it may not be turned round, nor the loop left early."""
    (subject,) = subjects("rms_norm_v0")
    guard = next(i for i in subject.reached if subject.one_way(i) is False)
    of_guard = {mutant.kind: judge(mutant, subject) for mutant in subject.mutants if mutant.index == guard}
    assert of_guard["never branch"][0] == EQUIVALENT and "at least one round" in of_guard["never branch"][1]
    assert of_guard["always"] is None and of_guard["negate predicate"] is None
    loop = next(i for i in subject.reached if subject.variant.kernel.instructions[i].name == "bra" and i > guard
                and subject.one_way(i) is None)  # fmt: skip
    assert all(judge(mutant, subject) is None for mutant in subject.mutants if mutant.index == loop)


# The page


def test_the_page_has_the_figures_that_were_found():
    page = (DOCS / "mutation.md").read_text()
    assert page == fill(page, mutation_page.sections(FOUND), "mutation")
    assert [row["kernel"] for row in FOUND["kernels"]] == list(CASES)


def test_the_figures_are_what_is_promised():
    assert all(mutation_page.score(row) >= 0.95 and not row.get("crash") for row in FOUND["kernels"])
    assert all(row["why"] for row in FOUND["survivors"])
