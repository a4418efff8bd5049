"""Packing: every example once, no row too full, few rows; and a row's arrays are the examples', side by side."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.data.packing import join, pack
from minilora.errors import DataError

SIZE = 40
lengths = st.lists(st.integers(1, SIZE), max_size=60)


@given(lengths)
def test_every_example_is_in_one_row_and_no_row_is_too_full(lengths):
    rows = pack(lengths, SIZE)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= SIZE for row in rows)


@given(lengths)
def test_no_more_rows_than_the_bound(lengths):
    least = -(-sum(lengths) // SIZE)  # no packing can need fewer
    longer_than_half = sum(2 * n > SIZE for n in lengths)  # no two of these share a row
    rows = len(pack(lengths, SIZE))
    assert rows >= max(least, longer_than_half)
    assert 2 * sum(lengths) > SIZE * (rows - 1)  # or two rows would fit into one


def test_fewest_rows_by_trying_all(rng):
    """Against the true optimum on small cases: within 11/9 and 1."""
    for _ in range(30):
        lengths = rng.integers(1, 11, 6).tolist()
        best = next(k for k in range(1, 7) if any(
            all(sum(n for n, r in zip(lengths, where, strict=True) if r == j) <= 10 for j in range(k))
            for where in itertools.product(range(k), repeat=6)
        ))  # fmt: skip
        assert len(pack(lengths, 10)) <= 11 / 9 * best + 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 5))
def test_a_row_holds_its_examples_side_by_side(lengths, spare):
    examples = [{"input_ids": list(range(10 * i, 10 * i + n)), "labels": list(range(n))} for i, n in enumerate(lengths)]
    row = join(examples, sum(lengths) + spare, pad_token_id=99)
    ends = np.cumsum(lengths)
    for number, (start, stop, example) in enumerate(zip(ends - lengths, ends, examples, strict=True), 1):
        assert row["input_ids"][start:stop].tolist() == example["input_ids"]
        assert row["labels"][start:stop].tolist() == [-100, *example["labels"][1:]]
        assert row["position_ids"][start:stop].tolist() == list(range(stop - start))
        assert (row["segment_ids"][start:stop] == number).all()
    assert (row["input_ids"][ends[-1] :] == 99).all() and not row["segment_ids"][ends[-1] :].any()
    assert (row["labels"][ends[-1] :] == -100).all()


def test_what_does_not_fit_is_named():
    with pytest.raises(DataError, match="example 1 has 50"):
        pack([3, 50], 40)
    with pytest.raises(DataError, match="6 tokens do not fit"):
        join([{"input_ids": [1, 2, 3]}] * 2, 5)
