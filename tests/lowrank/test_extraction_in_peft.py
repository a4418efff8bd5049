"""An extracted folder in PEFT: it opens, and the logits are those here and of the fine-tuned model."""

from pathlib import Path

import numpy as np
import pytest

from minilora import load_model, no_grad
from minilora.lowrank import extract_lora

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

GOLDEN = Path(__file__).parents[1] / "golden"
IDS = np.random.default_rng(0).integers(0, 256, (3, 12))


def logits(model):
    with no_grad(), torch.no_grad():
        if isinstance(model, torch.nn.Module):
            return model(torch.from_numpy(IDS)).logits.numpy()
        return model(IDS).data


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny_llama", {}),
        ("tiny_llama", {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["input_layernorm"]}),
        ("tiny_gpt2", {"target_modules": ["c_attn", "c_fc"]}),
    ],
)
@pytest.mark.parametrize("r", [2, 5])
def test_an_extracted_folder_in_peft(tmp_path, rng, name, options, r):
    tuned, base = load_model(GOLDEN / name)[0], load_model(GOLDEN / name)[0]
    plain = logits(base)
    targets = options.get("target_modules", ["_proj"])
    for path, p in tuned.named_parameters():
        if p.ndim == 2 and any(target in path for target in targets):  # of rank 2
            change = rng.standard_normal((p.shape[0], 2)) @ rng.standard_normal((2, p.shape[1]))
            p.data = p.data + (0.05 * change).astype(p.dtype)
        elif "input_layernorm" in path and "modules_to_save" in options:
            p.data = p.data * np.float32(1.3)
    ours = extract_lora(tuned, base, r, **options)
    ours.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / name).eval()
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    config = theirs.peft_config["default"]
    assert config.r == config.lora_alpha == r
    np.testing.assert_allclose(logits(theirs), logits(ours), atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(logits(theirs), logits(tuned), atol=1e-4, rtol=1e-4)
    assert np.abs(logits(theirs) - plain).max() > 1e-2
