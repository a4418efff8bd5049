"""A run's parts: the base as the configuration wants it."""

import numpy as np
import pytest

from minilora import load_model, quantize_model
from minilora.config import load_recipe
from minilora.models.checkpoint import save_folder
from minilora.train.run import adapt, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded model in fp4 with plain scales: not what QLoRA's recipe would make of the float model."""
    model, tokenizer = load_model("embedded")
    quantize_model(model, "fp4", double_quant=False)
    path = tmp_path_factory.mktemp("base") / "fp4"
    save_folder(model, tokenizer, path)
    return path


def test_a_base_in_4_bits_already_stays_as_it_is(folder):
    base = load_model(str(folder))[0]
    before = {path: q.packed.copy() for path, q in base.quantized().items()}
    model, bits = adapt(base, load_recipe("demo", {"base_model": str(folder)}))
    after = model.quantized()
    assert bits == pytest.approx(4.5) and len(after) == len(before) > 0
    for (path, codes), q in zip(before.items(), after.values(), strict=True):
        np.testing.assert_array_equal(codes, q.packed, err_msg=path)


def test_a_run_on_such_a_base(folder, tmp_path):
    changes = {"base_model": str(folder), "max_steps": 2, "test_examples": 8, "output_dir": str(tmp_path / "out")}
    seen = []
    result = run(load_recipe("demo", changes), seen.append)
    assert result.bits_per_weight == pytest.approx(4.5) and [e["step"] for e in seen] == [1, 2]
