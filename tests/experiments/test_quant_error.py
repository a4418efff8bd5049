"""The study of quantization error: figures by their definitions, users' quantizers, folders, what is committed."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from minilora.cli import main
from minilora.errors import ConfigError, FetchError, QuantizationError, TrainingError, UnknownNameError
from minilora.experiments import subjects
from minilora.experiments.quant_error import Quantizer, built_in, measure, run, study
from minilora.experiments.quant_tables import draw, tables
from minilora.experiments.subjects import SUBJECTS, Subject, linear_weights, sentences
from minilora.models.registry import load_model
from minilora.nn import BertModel, CausalLM, EncoderConfig, Parameter, TransformerConfig
from minilora.quant import CODES, expected_error, quantize

DOCS = Path(__file__).parents[2] / "docs"


def tiny(quick=False, seed=0) -> Subject:
    """Two matrices of normal weights and a quality that tells whether they are the original ones."""
    rng = np.random.default_rng(seed)
    weights = [Parameter(rng.standard_normal(shape, np.float32)) for shape in ((48, 80), (33, 64))]
    return Subject("tiny", weights, (16, 64), "sum", "of both", lambda: float(sum(p.data.sum() for p in weights)))


@pytest.fixture
def with_tiny(monkeypatch):
    monkeypatch.setitem(SUBJECTS, "tiny", tiny)


def silent(line: str):
    pass


def result_of(folder, **options) -> dict:
    return run(folder, subjects=["tiny"], say=silent, **options)


@pytest.mark.parametrize("quantizer", built_in((16, 64)), ids=lambda q: f"{q.name}-{q.blocks}")
def test_a_row_is_what_its_columns_say(quantizer):
    subject = tiny()
    row, _ = measure(subject, quantizer)
    w = [p.data.astype(float) for p in subject.weights]
    q = [quantizer.function(p.data) for p in subject.weights]
    error = np.concatenate([(a.dequantize() - b).ravel() for a, b in zip(q, w, strict=True)])
    flat = np.concatenate([x.ravel() for x in w])
    assert row["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert row["mse"] == pytest.approx((error**2).mean(), rel=1e-5)
    assert row["relative_error"] == pytest.approx(np.linalg.norm(error) / np.linalg.norm(flat), rel=1e-5)
    assert row["bits"] == pytest.approx(sum(8 * x.nbytes for x in q) / flat.size)
    assert row["quality"] == pytest.approx(sum(x.dequantize().sum() for x in q), rel=1e-4)


@pytest.mark.parametrize("code", ["nf4", "fp4", "e2m1", "int4", "linear16"])
def test_the_error_by_level_is_that_of_the_weights_nearest_to_it(code):
    subject = tiny()
    _, by_level = measure(subject, Quantizer(code, "64", lambda x: quantize(x, code, 64)))
    levels = np.unique(CODES[code])
    weights, error = np.zeros(levels.size), np.zeros(levels.size)
    for p in subject.weights:
        q = quantize(p.data, code, 64)
        scales = q.absmax.repeat(64)[: p.size]
        nearest = np.abs(q.dequantize().ravel()[:, None] - levels * scales[:, None]).argmin(1)
        weights += np.bincount(nearest, minlength=levels.size)
        error += np.bincount(nearest, (q.dequantize() - p.data).ravel() ** 2, minlength=levels.size)
    assert by_level["levels"] == levels.tolist()
    np.testing.assert_allclose(by_level["weights"], weights / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(by_level["error"], error / error.sum(), rtol=1e-4)


def test_weights_are_put_back_whatever_the_quantizer_does():
    def spoils_its_argument(x):
        x[...] = 0
        return x

    def fails(x):
        raise ZeroDivisionError

    subject = tiny()
    arrays = [p.data for p in subject.weights]
    copies = [a.copy() for a in arrays]
    row, _ = measure(subject, Quantizer("zero", "own", spoils_its_argument))
    assert row["relative_error"] == 1 and row["bits"] is None and row["quality"] == 0
    with pytest.raises(ZeroDivisionError):
        measure(subject, Quantizer("fails", "own", fails))
    for p, array, copy in zip(subject.weights, arrays, copies, strict=True):
        assert p.data is array and np.array_equal(array, copy)


def test_columns_go_from_small_blocks_to_large():
    own = Quantizer("mine", "own", lambda x: x)
    (_, rows), (_, quality), (_, bits) = tables(study(tiny(), [own, *built_in((128, 16, 64))]))
    assert rows[0] == quality[0] == bits[0] == ("", "16", "64", "128", "row", "tensor", "own")
    assert [row[0] for row in rows[1:3]] == ["mine", "int8"] and rows[1][1:6] == ("",) * 5
    assert bits[1][:4] == ("int8", "10.00", "8.500", "8.253")  # one last block of 128 is shorter


def test_weights_that_are_levels_have_no_error_and_still_a_picture():
    signs = np.random.default_rng(0).choice(np.array([-1, 0, 1], np.float32), (64, 64))
    result = study(Subject("signs", [Parameter(signs)], (64,)), built_in((64,)))
    assert {row["relative_error"] for row in result["rows"] if row["quantizer"] in ("nf4", "int4", "e2m1")} == {0}
    pictures = draw("signs", result, {name: np.sort(levels).tolist() for name, levels in CODES.items()})
    assert all(ElementTree.fromstring(svg) is not None for svg in pictures.values())


@pytest.mark.parametrize(
    "function",
    [lambda x: x[:-1], lambda x: x * np.float32(np.nan), lambda x: np.rint(x).astype(int), lambda x: None],
    ids=["shape", "not finite", "integers", "nothing"],
)
def test_quantizers_that_return_something_else_are_refused(function):
    with pytest.raises(QuantizationError, match=r"'mine' was given .* finite floats of the same shape"):
        measure(tiny(), Quantizer("mine", "own", function))


@pytest.mark.usefixtures("with_tiny")
def test_a_users_code_and_functions_enter_the_same_study(tmp_path, monkeypatch):
    monkeypatch.setitem(CODES, "three", np.array([0, 1, -1], np.float32))
    result = result_of(
        tmp_path / "out",
        quantizers={"identity": lambda x: x, "by row": lambda x: quantize(x, "nf4", "row"), "zero": np.zeros_like},
    )
    rows = {(row["quantizer"], row["blocks"]): row for row in result["subjects"]["tiny"]["rows"]}
    assert rows["identity", "own"]["relative_error"] == 0 and rows["zero", "own"]["relative_error"] == 1
    assert rows["three", "64"]["bits"] == rows["nf4", "64"]["bits"]
    assert 4 < rows["by row", "own"]["bits"] < 4.6 and rows["identity", "own"]["bits"] is None
    assert result["subjects"]["tiny"]["by_level"]["three"]["levels"] == [-1, 0, 1]
    assert result["functions"] == ["identity", "by row", "zero"] and result["codes"]["three"] == [-1, 0, 1]
    cells = dict((row[0], row[1:]) for row in tables(result["subjects"]["tiny"])[0][1])
    assert cells[""][-1] == "own" and cells["zero"][-1] == "100.0" and cells["identity"][-1] == "0"
    picture = (tmp_path / "out" / "bits-tiny.svg").read_text()
    for name in ("three", "by row", "zero"):
        assert f">{name}</text>" in picture


def test_theory_stands_beside_every_code_on_normal_weights(monkeypatch):
    monkeypatch.setitem(CODES, "three", np.array([0, 0.7, -0.7], np.float32))
    subject = Subject("normal", [Parameter(np.random.default_rng(1).standard_normal((256, 512), np.float32))], (16, 64),
                      theory=True)  # fmt: skip
    result = study(subject, built_in((16, 64)))
    for row in result["rows"]:
        if row["quantizer"] == "nf4+double":
            assert "expected_mae" not in row
        elif row["blocks"] != "tensor":  # which has one scale only, anybody's guess
            assert row["mae"] == pytest.approx(row["expected_mae"], rel=0.02)
            assert row["mse"] == pytest.approx(row["expected_mse"], rel=0.02)
            assert row["relative_error"] == pytest.approx(row["expected_mse"] ** 0.5, rel=0.02)
    assert result["unquantized"] is None and result["rows"][0]["quality"] is None
    (_, relative), (_, mae), (_, bits) = tables(result)
    assert ("int8, three" not in str(bits)) and bits[2][0] == "nf4, fp4, e2m1, int4, linear16, three"
    assert [row[0] for row in mae[1:5]] == ["int8", "  expected", "nf4", "  expected"]
    assert relative[0] == ("", "16", "64", "row", "tensor")


@pytest.mark.usefixtures("with_tiny")
def test_results_are_on_disk_and_the_pictures_follow_from_them(tmp_path):
    said = []
    result = run(tmp_path / "a", subjects=["tiny"], say=said.append, command="minilora x")
    stored = json.loads((tmp_path / "a" / "results.json").read_text())
    assert stored == result and stored["command"] == "minilora x"
    assert {"cpu", "blas", "numpy"} <= stored["environment"].keys()
    assert "tiny: sum, of both; not quantized" in "".join(said)
    pictures = draw("tiny", stored["subjects"]["tiny"], stored["codes"])
    assert len(pictures) == 3
    for file, svg in pictures.items():
        assert (tmp_path / "a" / file).read_text() == svg
        root = ElementTree.fromstring(svg)
        assert root.find("{*}title").text and root.find("{*}desc").text
    again = result_of(tmp_path / "b")
    assert again["subjects"] == result["subjects"]
    assert result_of(tmp_path / "c", seed=1)["subjects"] != result["subjects"]


@pytest.mark.usefixtures("with_tiny")
def test_models_that_are_not_fetched_are_named_and_the_rest_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "empty"))
    said = []
    result = run(tmp_path / "out", subjects=["minilm-l6", "tiny", "smollm2-135m"], say=said.append)
    assert list(result["subjects"]) == ["tiny"]
    for name in ("minilm-l6", "smollm2-135m"):
        assert result["left_out"][name] == f"not fetched; run: minilora fetch {name}"
        assert any(line.startswith(f"{name}: not fetched") for line in said)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == result
    only = run(tmp_path / "none", subjects=["smollm2-135m"], say=silent, quick=True)
    assert only["left_out"] == {"smollm2-135m": "left out of the quick study"}


@pytest.mark.usefixtures("with_tiny")
def test_folders_labels_and_names(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(TrainingError, match="not empty"):
        result_of(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    result_of(tmp_path, overwrite=True)
    with pytest.raises(ConfigError, match="nf4 is the label"):
        result_of(tmp_path / "a", quantizers={"nf4": np.rint})
    with pytest.raises(ConfigError, match="seed"):
        result_of(tmp_path / "a", seed=-1)
    with pytest.raises(UnknownNameError, match="normal"):
        run(tmp_path / "a", subjects=["norml"])
    assert not (tmp_path / "a").exists()


def test_linear_layers_are_quantized_and_nothing_else():
    lm = CausalLM(TransformerConfig(50, 16, 32, 2, 2))
    assert len(linear_weights(lm)) == 2 * 7 and not any(p.shape[0] == 50 for p in linear_weights(lm))
    bert = BertModel(EncoderConfig(50, 16, 32, 3, 2))
    names = {id(p): name for name, p in bert.named_parameters()}
    found = [names[id(p)] for p in linear_weights(bert)]
    assert len(found) == 3 * 6 and all(name.startswith("encoder.") for name in found)


def test_sentences_are_english_and_the_same_each_time():
    texts = sentences(256)
    assert texts == sentences(256) and len(set(texts)) == 256
    assert all(6 <= len(text.split()) <= 40 and text.endswith(".") and "\n" not in text for text in texts)
    assert len(sentences(10**6)) < 10**4


def test_the_arrays_are_what_their_titles_say():
    x = subjects.normal(True, 0).weights[0].data
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    t = subjects.student(True, 0).weights[0].data
    assert t.dtype == np.float32 and np.abs(t).max() > 50
    assert abs(np.median(np.abs(t)) - 0.727) < 0.01  # Student's t with 5 degrees of freedom
    assert np.array_equal(t, subjects.student(True, 0).weights[0].data)


def test_code_files_that_hold_no_code_are_refused_before_anything_is_written(tmp_path, capsys):
    before = dict(CODES)
    (tmp_path / "far.json").write_text("[-3, 3]")
    (tmp_path / "text.json").write_text('["a"]')
    for code, words in (("even", "NAME=FILE"), ("a=missing.json", "NAME=FILE"), (f"=x{tmp_path}", "NAME=FILE"),
                        (f"a={tmp_path}/text.json", "NAME=FILE"), (f"a={tmp_path}/far.json", r"[-1, 1]")):  # fmt: skip
        assert main(["experiment", "quant-error", "--code", code, "--output-dir", str(tmp_path / "out")]) == 1
        assert words in capsys.readouterr().err
    assert before == CODES and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch, capsys):
    """Without any model fetched: arrays only."""
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "empty"))
    (tmp_path / "mine.json").write_text(json.dumps([-1, -0.4, 0, 0.4, 1]))
    arguments = ["experiment", "quant-error", "--quick", "--code", f"mine={tmp_path}/mine.json"]
    try:
        assert main([*arguments, "--output-dir", str(tmp_path / "out")]) == 0
    finally:
        CODES.pop("mine", None)
    out = capsys.readouterr().out
    assert "minilora fetch minilm-l6" in out and "left out of the quick study" in out and "\nmine" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    row = next(r for r in results["subjects"]["normal"]["rows"] if (r["quantizer"], r["blocks"]) == ("mine", "64"))
    assert row["expected_mae"] == pytest.approx(row["mae"], rel=0.01)
    assert main([*arguments[:3], "--output-dir", str(tmp_path / "out")]) == 1
    assert "not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_minilm_has_the_errors_that_were_measured_elsewhere():
    """Relative weight errors of an independent script, on the same file."""
    try:
        model, _ = load_model("minilm-l6")
    except FetchError as error:
        pytest.skip(str(error))
    subject = Subject("MiniLM", linear_weights(model), (64,))
    rows = study(subject, built_in((64,)))["rows"]
    measured = {(row["quantizer"], row["blocks"]): row["relative_error"] for row in rows}
    expected = {"nf4": 0.0939, "nf4+double": 0.0939, "e2m1": 0.1064, "fp4": 0.1271, "int4": 0.1147, "linear16": 0.1114}
    expected = {(code, "64"): error for code, error in expected.items()}
    expected |= {("int8", "tensor"): 0.1038, ("int8", "row"): 0.0100, ("int8", "64"): 0.0064}
    assert measured == pytest.approx(expected, rel=0.01)


def test_the_page_shows_the_committed_results_and_pictures():
    results = json.loads((DOCS / "quant-error" / "results.json").read_text())
    page = (DOCS / "quant-error.md").read_text()
    rows = {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in page.splitlines() if line[:1] == "|"}
    for name, result in results["subjects"].items():
        for heading, table in tables(result)[:-1]:
            for row in table[1:]:
                assert tuple(cell.strip() for cell in row) in rows, (heading, row)
        for file, svg in draw(name, result, results["codes"]).items():
            assert (DOCS / "quant-error" / file).read_text() == svg
    assert results["command"] in page and list(results["subjects"]) == list(SUBJECTS)
    for link in re.findall(r"\]\((quant-error/[^)]*)\)", page):
        assert (DOCS / link).is_file()


@pytest.mark.parametrize("page", ["expected-error.md", "quant-error.md"])
def test_the_code_on_the_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, missing = dict(CODES), []
    try:
        for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
            try:
                exec(compile(block, page, "exec"), {"__name__": "page"})
            except FetchError as error:
                missing.append(str(error))
    finally:
        CODES.clear()
        CODES.update(before)
    if missing:
        pytest.skip(missing[0])


def test_expected_error_page_has_the_figures_of_the_function():
    page = (DOCS / "expected-error.md").read_text()
    for code, blocksize, expected in re.findall(r"\| (nf4|fp4), (\d+) \| ([\d,]+) \|", page):
        assert round(expected_error(code, int(blocksize)).mae * 1e6) == int(expected.replace(",", ""))
