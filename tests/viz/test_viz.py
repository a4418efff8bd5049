from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import DataError
from minilora.quant import CODES
from minilora.viz.charts import loss_curve, megabytes, memory_bars, weight_histogram
from minilora.viz.report import report_page, table

positive = st.floats(1e-6, 1e6)


@given(st.lists(positive, min_size=1, max_size=30))
def test_loss_curve_is_xml_with_a_point_for_each_step(losses):
    log = [{"step": i + 1, "loss": loss} for i, loss in enumerate(losses)]
    log[-1]["eval_loss"] = losses[0]
    svg = ElementTree.fromstring(loss_curve(log))
    line = svg.find("{*}polyline").get("points").split()
    assert len(line) == len(losses) and len(svg.findall("{*}circle")) == 1
    assert all(0 <= float(v) <= 640 for point in line for v in point.split(","))


def test_weight_histogram_draws_every_level(rng):
    svg = ElementTree.fromstring(weight_histogram(rng.uniform(-1, 1, 1000), CODES["nf4"]))
    assert len([l for l in svg.findall("{*}line") if "orange" in l.get("stroke")]) == 16
    ElementTree.fromstring(weight_histogram(np.zeros(3), CODES["nf4"]))


def test_text_is_escaped():
    nasty = "<script>alert('&')</script>"
    page = report_page(nasty, nasty, [(nasty, [("a", nasty), (nasty, 1)])], [("<svg/>", nasty)], [(nasty,) * 4], nasty)
    assert "<script" not in page
    assert table([("a",), ("<b>",)]).count("&lt;b&gt;") == 1


def test_an_empty_log_is_an_empty_plot():
    assert ElementTree.fromstring(loss_curve([])).tag.endswith("svg")


@given(st.lists(st.lists(st.floats(0, 1e12), min_size=1, max_size=5), min_size=1, max_size=4))
def test_memory_bars_are_to_one_scale_and_end_to_end(sizes):
    rows = {f"<row {i}>": {f"part & {j}": size for j, size in enumerate(parts)} for i, parts in enumerate(sizes)}
    svg = ElementTree.fromstring(memory_bars(rows))
    bars = [r for r in svg.findall("{*}rect") if r.get("height") == "24"]
    assert len(bars) == sum(map(len, sizes))
    largest = max(map(sum, sizes)) or 1
    widths = iter(float(bar.get("width")) for bar in bars)
    for parts in sizes:
        for size in parts:
            assert abs(next(widths) - size / largest * 440) <= 0.006
    assert all(float(b.get("x")) + float(b.get("width")) <= 640 for b in bars)


@pytest.mark.parametrize("size", [-1, float("nan"), float("inf")])
def test_memory_bars_refuse_what_is_no_size(size):
    with pytest.raises(DataError, match=r"'float32', 'head' has .* give a finite number"):
        memory_bars({"float32": {"head": size}})


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1_870_080, "1.87 MB"), (123_400, "123 kB"),
                                            (999_600_000, "1,000 MB"), (2.5e12, "2,500 GB")])  # fmt: skip
def test_megabytes(size, text):
    assert megabytes(size) == text


def test_a_page_stands_alone_and_marks_right_and_wrong():
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "eval_loss": 1.5}]
    page = report_page("t", "s", [], [(loss_curve(log), "c")], [("p", "yes", "no", "yes"), ("p", "yes", "", "no")], "r")
    for outside in ("src=", "href=", "url(", "@import", "<script"):
        assert outside not in page
    assert page.count('class="right"') == 1 and page.count('class="wrong"') == 3 and "(nothing)" in page
    assert page.count("<dt>expected</dt>") == 1  # shown where the answer after training is not it
    ElementTree.fromstring(page.partition("<body>")[2].partition("</body>")[0].join(("<body>", "</body>")))
