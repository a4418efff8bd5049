import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import ops
from minilora.errors import ConfigError
from minilora.nn.positions import RopeScaling, alibi_slopes, rotary_table, sinusoidal_table

LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)


def test_sinusoids_are_the_paper_s_with_the_dimensions_in_halves():
    table = sinusoidal_table(40, 12)
    for position in range(40):
        for i in range(6):
            angle = position / 10000 ** (2 * i / 12)
            assert table[position, i] == pytest.approx(np.sin(angle), abs=1e-6)
            assert table[position, 6 + i] == pytest.approx(np.cos(angle), abs=1e-6)


@given(st.integers(0, 30), st.integers(0, 30))
def test_a_sinusoid_further_on_is_a_rotation(position, distance):
    """PE(p + k) is a linear function of PE(p) that depends on k alone: why the paper hoped that they would do."""
    table = sinusoidal_table(64, 16)
    cos, sin = table[distance, 8:], table[distance, :8]
    s, c = table[position, :8], table[position, 8:]
    np.testing.assert_allclose(table[position + distance], np.r_[s * cos + c * sin, c * cos - s * sin], atol=1e-6)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 2**32))
def test_rotary_scores_depend_on_the_distance_alone(a, shift, seed):
    rng, b = np.random.default_rng(seed), 5
    q, k = rng.standard_normal((2, 1, 1, 1, 8))
    cos, sin = rotary_table(64, 8, 100.0, LLAMA3)

    def score(i, j):
        return (ops.rope(q, cos[[i]], sin[[i]]).data * ops.rope(k, cos[[j]], sin[[j]]).data).sum()

    assert score(a, b) == pytest.approx(score(a + shift, b + shift), abs=1e-5)


@given(st.integers(1, 8), st.integers(0, 60))
def test_linear_scaling_puts_more_positions_into_the_same_angles(factor, position):
    plain, scaled = rotary_table(64, 8, 100.0), rotary_table(64 * 8, 8, 100.0, RopeScaling("linear", float(factor)))
    for a, b in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(b[position * factor], a[position], atol=1e-5)


def test_llama3_scaling_divides_slow_frequencies_only():
    frequency = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    ratio = LLAMA3(frequency) / frequency
    turns = 8192 * frequency / (2 * np.pi)
    assert (ratio[turns >= 4] == 1).all() and (turns >= 4).any()
    np.testing.assert_allclose(ratio[turns <= 1], 1 / 8, rtol=1e-12)
    between = (turns > 1) & (turns < 4)
    assert between.any() and (np.diff(ratio) <= 0).all()
    expected = (turns[between] - 1) / 3 + (1 - (turns[between] - 1) / 3) / 8  # the paper's interpolation
    np.testing.assert_allclose(ratio[between], expected)


@pytest.mark.parametrize(
    "fields", [("yarn", 2.0), ("linear", 0.5), ("llama3", 8.0, 4.0, 4.0), ("llama3", 8.0, 0.0, 4.0)]
)
def test_impossible_scalings(fields):
    with pytest.raises(ConfigError, match=r"rope_type is|low_freq_factor < high"):
        RopeScaling(*fields)


def test_alibi_s_slopes():
    np.testing.assert_array_equal(alibi_slopes(8), 2.0 ** -np.arange(1, 9))  # the paper's example
    np.testing.assert_allclose(alibi_slopes(16), 2.0 ** (-np.arange(1, 17) / 2), rtol=1e-6)
    np.testing.assert_allclose(alibi_slopes(12)[8:], 2.0 ** (-np.array([1, 3, 5, 7]) / 2), rtol=1e-6)


@given(st.integers(1, 130))
def test_alibi_s_slopes_are_distinct_and_below_one(heads):
    slopes = alibi_slopes(heads)
    assert slopes.dtype == np.float32 and len(set(slopes.tolist())) == heads
    assert (slopes > 0).all() and (slopes < 1).all()
