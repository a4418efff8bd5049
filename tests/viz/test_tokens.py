"""Tokens with their losses: all are there, targets have a number, nothing is markup."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import DataError
from minilora.viz.tokens import MOST, token_losses

token = st.tuples(st.text("ab <&\n", max_size=4), st.none() | st.floats(0, 20))


@given(st.lists(token, max_size=12), st.lists(token, min_size=1, max_size=3))
def test_each_token_and_each_loss_is_shown(before, after):
    root = ElementTree.fromstring(token_losses({"<before>": before, "after": after}, "a & b"))
    cells = root.findall("./div/span")
    assert len(cells) == len(before) + len(after)
    for cell, (text, loss) in zip(cells, before + after, strict=True):
        assert cell.find("span").text.replace("␣", " ").replace("⏎", "\n") == (text or "·")
        assert cell.find("small").text == ("\xa0" if loss is None else f"{loss:.1f}")
    assert "nats" in root.find("figcaption").text


@given(st.floats(0, 20), st.floats(0, 20))
def test_more_surprise_is_darker(a, b):
    def shade(loss):
        text = token_losses({"row": [("x", loss)]}, "t")
        return float(text.split("rgba(192,86,33,")[1].split(")")[0])

    assert (shade(a) <= shade(b)) == (a <= b) or abs(shade(a) - shade(b)) <= 0.01
    assert shade(MOST) == shade(20) == 0.75


@pytest.mark.parametrize("loss", [-0.1, float("nan"), float("inf")])
def test_a_loss_is_a_finite_number(loss):
    with pytest.raises(DataError, match="finite"):
        token_losses({"row": [("x", loss)]}, "t")
