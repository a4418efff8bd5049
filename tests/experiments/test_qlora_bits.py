"""Quality against bits: figures by their definitions, the Pareto front as a law, the committed page."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.cli import main
from minilora.data.stdlib import source_files
from minilora.experiments import qlora_bits as experiment
from minilora.experiments import subjects
from minilora.experiments.study import page_lacks
from minilora.models.registry import load_model
from minilora.nn import CausalLM, TransformerConfig
from minilora.quant import quantize

DOCS = Path(__file__).parents[2] / "docs/experiments"


@pytest.fixture(scope="module")
def tiny():
    model = CausalLM(TransformerConfig(64, 32, 48, 2, 2), seed=0)
    ids = np.random.default_rng(0).integers(0, 64, (5, 16))
    return subjects.language_model("tiny", model, ids, "5 rows", (16, 64))


@pytest.fixture(scope="module")
def found(tiny):
    return experiment.study(tiny)


def test_the_page_says_what_was_measured():
    assert page_lacks(DOCS / "qlora-bits", DOCS / "qlora-bits.md") == []


def test_the_quality_of_a_language_model_is_the_perplexity_of_its_texts(tiny):
    assert tiny.quality() == pytest.approx(np.exp(tiny.by_text().mean())) and tiny.by_text().shape == (5,)


@pytest.mark.parametrize(("code", "double"), [("nf4", False), ("nf4", True), ("int4", False)])
def test_a_cost_is_what_the_quantized_weights_add_to_each_text(tiny, found, code, double):
    kept, before = [p.data for p in tiny.weights], tiny.by_text()
    quantized = [quantize(w, code, 64, double_quant=double) for w in kept]
    try:
        for p, q in zip(tiny.weights, quantized, strict=True):
            p.data = q.dequantize()
        cost = tiny.by_text() - before
    finally:
        for p, w in zip(tiny.weights, kept, strict=True):
            p.data = w
    name = code + "+double" * double
    row = next(r for r in found["rows"] if (r["quantizer"], r["blocks"]) == (name, "64"))
    np.testing.assert_allclose(row["cost"], cost, rtol=1e-3, atol=1e-7)
    norms_and_embedding = found["parameters"] - sum(w.size for w in kept)
    bits = sum(8 * q.nbytes for q in quantized) + 16 * norms_and_embedding
    assert row["model_bits"] == pytest.approx(bits / found["parameters"])
    assert found["parameters"] == 64 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32


rows = st.lists(
    st.builds(
        lambda bits, cost: {"model_bits": bits, "cost": [cost, cost + 1]}, st.integers(1, 9), st.integers(-9, 9)
    ),
    min_size=1, max_size=20,
)  # fmt: skip


@given(rows)
def test_the_front_is_what_nothing_undercuts(rows):
    front = [(r["model_bits"], np.mean(r["cost"])) for r in experiment.front(rows)]
    points = {(r["model_bits"], np.mean(r["cost"])) for r in rows}
    undercut = {a for a in points for b in points if a != b and b[0] <= a[0] and b[1] <= a[1]}
    assert set(front) == points - undercut and front == sorted(front) and len(set(front)) == len(front)


def test_tables_and_pictures_follow_from_the_data(found):
    data = {"models": {"tiny": found}, "left_out": {}}
    (_, cost), (heading, against), (_, bits), (_, front) = experiment.tables(data)
    assert cost[0] == ("", "16", "64", "row", "tensor") and "nf4" in heading
    assert [row[0] for row in against[1:]] == ["int8", "nf4+double", "fp4", "e2m1", "int4", "linear16"]
    assert [row[0] for row in bits[1:]] == ["int8", "nf4, fp4, e2m1, int4, linear16", "nf4+double"]
    assert front[1][-1] == "" and all(row[-1] for row in front[2:])
    assert ElementTree.fromstring(experiment.draw(data)["tiny.svg"]) is not None


def test_documents_are_beginnings_of_texts_that_no_model_was_trained_on():
    _, tokenizer = load_model("embedded")
    ids = subjects.documents(tokenizer, 6, 64, "files")
    assert ids.shape == (6, 64) and len({tuple(row) for row in ids.tolist()}) == 6
    begun = len(tokenizer.begin())
    for row in ids:
        text = tokenizer.decode(row[begun:-2].tolist())  # the last may be half a character
        assert any(file.text.startswith(text) for file in source_files("held-out"))
    assert len(subjects.documents(tokenizer, 10**6, 64, "topics")) < 10**3


def test_models_that_are_not_fetched_are_named(tmp_path, monkeypatch, tiny):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "empty"))
    monkeypatch.setitem(experiment.MODELS, "embedded", lambda quick: tiny)
    said = []
    data = experiment.measure([0], False, said.append)
    assert list(data["models"]) == ["embedded"] and list(data["left_out"]) == ["minilm-l6", "smollm2-135m"]
    assert "smollm2-135m: not fetched; run: minilora fetch smollm2-135m" in said


@pytest.mark.slow
def test_quick_as_a_user(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "qlora-bits", "--quick"]) == 0
    assert "the Pareto front" in capsys.readouterr().out and (tmp_path / "qlora-bits/embedded.svg").exists()
