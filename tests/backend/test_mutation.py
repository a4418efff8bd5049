"""The campaign's machinery: the kernel itself passes its cases, and what is surely wrong is killed."""

import pytest
from backend.mutation import KILLED, sample, subjects

from minilora import simt

pytestmark = pytest.mark.skipif(not simt.available(), reason="NVRTC is missing: pip install 'minilora[simt]'")
FATAL = ("drop barrier", "drop mma", "drop ldmatrix")


@pytest.mark.parametrize("kernel", ["dequantize_4bit_v3", "gemm_4bit_v2", "gemm_4bit_tensor_v4"])
def test_missing_barriers_and_products_are_noticed(kernel):
    tried = 0
    for subject in subjects(kernel):
        for mutant in sample(subject, 10**6, 0):
            if mutant.kind in FATAL and tried < 40:
                outcome, why = subject.outcome(mutant)
                assert outcome in KILLED, f"{mutant}: {outcome} {why}"
                tried += 1
    assert tried


def test_a_sample_of_a_kernel_is_mostly_killed():
    """A floor, not the score: a share of what survives computes the same as the kernel."""
    outcomes = [s.outcome(m)[0] for s in subjects("quantize_4bit_v3") for m in sample(s, 24, 0)]
    assert sum(o in KILLED for o in outcomes) >= 0.8 * len(outcomes) and "crash" not in outcomes
