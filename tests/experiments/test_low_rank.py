"""What few ranks explain: the image's rank, spectra by definition, ΔW replaced as `extract_lora` does it, the page."""

import copy
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from minilora.cli import main
from minilora.experiments import low_rank as experiment
from minilora.experiments.study import page_lacks
from minilora.lowrank import eckart_young, extract_lora, numerical_rank
from minilora.nn import CausalLM, TransformerConfig

DOCS = Path(__file__).parents[2] / "docs/experiments"
CONFIG = TransformerConfig(64, 64, 80, 2, 2)


@pytest.fixture(scope="module")
def base():
    return CausalLM(CONFIG, seed=0)


@pytest.fixture(scope="module")
def tuned(base):
    model, rng = copy.deepcopy(base), np.random.default_rng(1)
    for p in model.parameters():
        p.data = p.data + 0.01 * rng.standard_normal(p.shape, np.float32)
    return model


def deltas(model, base) -> list[np.ndarray]:
    theirs = experiment.linear(base)
    return [w.data - theirs[path].data for path, w in experiment.linear(model).items()]


def test_the_page_says_what_was_measured():
    assert page_lacks(DOCS / "low-rank", DOCS / "low-rank.md") == []


def test_the_image_is_a_board_of_rank_2_beneath_things_of_many_ranks():
    A = experiment.image()
    assert A.shape == (128, 128) and A.min() == 0 and A.max() == 1
    board = A[80:, :64]  # nothing lies on it
    assert numerical_rank(board) == 2 and len(np.unique(board)) == 2 and numerical_rank(A) > 64
    found = experiment.of_image()
    assert all(a > b for a, b in zip(found["energy"], found["shuffled"], strict=True))
    assert found["numbers"][-1] > 1  # 64 of 128 ranks are more numbers than the image has
    assert ElementTree.fromstring(found["picture"]) is not None


def test_energy_is_what_the_nearest_matrix_of_that_rank_has():
    A = experiment.normal((96, 70))
    for r, found in zip(experiment.RANKS, experiment.energies(A), strict=True):
        assert found == pytest.approx(1 - (eckart_young(A, r).frobenius / np.linalg.norm(A)) ** 2, abs=1e-6)
    assert experiment.spectrum(A)["energy"] == pytest.approx(experiment.energies(A))


def test_weights_are_the_linear_layers_of_every_kind(base):
    weights = experiment.linear(base)
    assert len(weights) == 2 * len(experiment.KINDS)
    found = experiment.of_weights("tiny", weights)["kinds"]
    assert list(found) == list(experiment.KINDS) and all(len(kind["layers"]) == 2 for kind in found.values())
    assert found["down_proj"]["shape"] == [64, 80] and found["gate_proj"]["shape"] == [80, 64]
    for kind in found.values():  # drawn at random: as random as the random matrix beside them
        assert kind["layers"][0]["energy"] == pytest.approx(kind["random"]["energy"], abs=0.05)


@pytest.mark.parametrize("r", [1, 8])
def test_an_update_of_rank_r_has_that_rank_and_the_energy_that_is_said(base, tuned, r):
    peft = experiment.with_rank(str(r), tuned, base, 0)
    errors, whole = list(peft.extraction_error.values()), deltas(tuned, base)
    energies = [experiment.energies(d)[experiment.RANKS.index(r)] for d in whole]
    assert 1 - np.square(errors) == pytest.approx(energies, abs=1e-5)
    merged = peft.merge_and_unload()
    for kept, d in zip(deltas(merged, base), whole, strict=True):
        assert numerical_rank(kept, 1e-5) == r
        assert np.linalg.norm(d - kept) == pytest.approx(eckart_young(d, r).frobenius, rel=1e-3)


def test_but_for_the_linear_weights_all_is_as_tuned(base, tuned):
    ids = np.arange(12)[None]
    for name in ("0", "all", "random"):
        model = experiment.with_rank(name, tuned, base, 0)
        assert model is not tuned
        linear = experiment.linear(model).keys()
        for (path, p), q in zip(model.named_parameters(), tuned.parameters(), strict=True):
            if path.removesuffix(".weight") not in linear:
                assert np.array_equal(p.data, q.data)
        sizes = [np.linalg.norm(d) for d in deltas(model, base)]
        expected = [0.0 if name == "0" else np.linalg.norm(d) for d in deltas(tuned, base)]
        assert sizes == pytest.approx(expected, rel=1e-4)
    whole = experiment.with_rank("64", tuned, base, 0)  # all the ranks that these matrices have
    np.testing.assert_allclose(whole(ids).data, tuned(ids).data, atol=1e-5)
    assert isinstance(whole, type(extract_lora(tuned, copy.deepcopy(tuned), 1)))


@pytest.mark.slow
def test_quick_as_a_user(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", "low-rank", "--quick"]) == 0
    assert "ΔW of a full fine-tune" in capsys.readouterr().out and (tmp_path / "low-rank/energy.svg").exists()
