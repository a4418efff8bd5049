from xml.etree import ElementTree

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minilora.quant import CODES
from minilora.viz.charts import loss_curve, weight_histogram
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
