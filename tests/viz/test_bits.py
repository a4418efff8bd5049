"""Every bit is drawn, in the part of the number that it belongs to."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import DataError
from minilora.viz.bits import float_bits

row = st.integers(1, 12).flatmap(
    lambda exponent: st.tuples(
        st.sampled_from(["float32", "<b>&"]), st.text("01", min_size=1 + exponent, max_size=32), st.just(exponent),
        st.just("≈ 3 & more"),
    )
)  # fmt: skip


@given(st.lists(row, min_size=1, max_size=6))
def test_bits(rows):
    root = ElementTree.fromstring(float_bits(rows, "<title>"))
    _, _, width, height = map(float, root.get("viewBox").split())
    boxes = [box for box in root.findall("{*}rect") if box.get("class") == "bit"]
    assert len(boxes) == sum(len(bits) for _, bits, *_ in rows)
    assert [box.get("fill-opacity") != "0" for box in boxes] == [bit == "1" for _, bits, *_ in rows for bit in bits]
    for box in boxes:
        assert 0 <= float(box.get("x")) <= width - 11 and 0 <= float(box.get("y")) <= height - 22
    for name, colour in (("sign", "green"), ("exponent", "orange"), ("fraction", "blue")):
        count = sum({"sign": 1, "exponent": e, "fraction": len(bits) - 1 - e}[name] for _, bits, e, _ in rows)
        assert sum(colour in box.get("fill") for box in boxes) == count


@pytest.mark.parametrize(("bits", "exponent"), [("01x", 1), ("01", 2), ("0" * 33, 5), ("", 1)])
def test_what_is_no_number(bits, exponent):
    with pytest.raises(DataError, match="a sign"):
        float_bits([("mine", bits, exponent, "")], "t")
