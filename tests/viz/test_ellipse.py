"""The ellipse's half axes are the singular values, and it lies inside."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minilora.errors import DataError
from minilora.viz.ellipse import circle_to_ellipse


@given(arrays(np.float64, (2, 2), elements=st.floats(-20, 20)))
def test_axes(A):
    root = ElementTree.fromstring(circle_to_ellipse(A, "a & b"))
    width, height = map(float, root.get("viewBox").split()[2:])
    circle, image = (
        np.array([point.split(",") for point in line.get("points").split()], float)
        for line in root.findall("{*}polyline")
    )
    assert (image >= 0).all() and (image <= [width, height]).all()
    centre = circle[:-1].mean(0)
    unit = np.linalg.norm(circle - centre, axis=1).mean()
    distances = np.linalg.norm(image - image[:-1].mean(0), axis=1) / unit
    S = np.linalg.svd(A, compute_uv=False)
    assert distances.max() == pytest.approx(S[0], abs=0.02 * max(1, S[0]))
    assert distances.min() == pytest.approx(S[1], abs=0.05 * max(1, S[0]))
    assert f"σ₁ = {S[0]:.2f}" in "".join(root.itertext())


def test_another_shape():
    with pytest.raises(DataError, match=r"\(3, 3\)"):
        circle_to_ellipse(np.eye(3))
