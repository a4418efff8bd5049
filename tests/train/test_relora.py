"""ReLoRA: a restart changes no output, and the sum of adapters has a rank that one of them cannot have."""

import numpy as np
import pytest
from train.test_trainer import adapted, dataset, model

from minilora import LoraConfig, Trainer, TrainingArguments, get_peft_model
from minilora.errors import ConfigError
from minilora.train import relora
from minilora.train.optim import AdamW

R = 2


def trained(folder, **changes):
    peft = get_peft_model(model(), LoraConfig(r=R, lora_alpha=4))
    args = {"max_steps": 30, "relora_steps": 10, "learning_rate": 1e-2} | changes
    trainer = Trainer(peft, TrainingArguments(str(folder), **args), dataset(), save=lambda folder: None)
    return trainer, trainer.train()


def test_a_restart_keeps_the_function_and_forgets_the_rest(rng):
    peft = get_peft_model(model(), LoraConfig(r=R, lora_alpha=4))
    for p in peft.trainable().values():
        p.data = rng.standard_normal(p.shape).astype(np.float32)
    ids = rng.integers(0, 12, (2, 9))
    before, optimizer = peft(ids).data, AdamW(peft.parameters())
    optimizer.steps = 5
    old = {n: p.data.copy() for n, p in peft.trainable().items()}
    relora.restart(peft, optimizer, rng)
    np.testing.assert_allclose(peft(ids).data, before, rtol=1e-4, atol=1e-4)
    assert optimizer.steps == 0 and not any(a.any() for a in optimizer.state_arrays().values())
    for name, p in peft.trainable().items():
        assert not p.data.any() if "lora_B" in name else not np.array_equal(p.data, old[name])


def test_the_rank_grows_with_each_restart(tmp_path):
    start = model().state_dict()
    for steps, rank in ((10, R), (20, 2 * R), (30, 3 * R)):
        trainer, _ = trained(tmp_path / str(steps), max_steps=steps)
        merged = trainer.model.merge_and_unload().state_dict()
        name = "model.layers.0.mlp.up_proj.weight"
        values = np.linalg.svd((merged[name] - start[name]).astype(np.float64), compute_uv=False)
        assert (values > 1e-5 * values[0]).sum() == rank


def test_it_goes_on_bit_for_bit(tmp_path):
    _, whole = trained(tmp_path / "whole", save_steps=5)
    trained(tmp_path / "part", save_steps=5)
    for step in (10, 15, 30):  # as if killed after the snapshot of step 5, before and after restarts
        for path in (tmp_path / "part").glob(f"checkpoint-{step}"):
            path.rename(tmp_path / f"gone-{path.name}")
    for step in (20, 25):
        (tmp_path / "part" / f"checkpoint-{step}").rename(tmp_path / f"gone-{step}")
    _, again = trained(tmp_path / "part", save_steps=5, overwrite_output_dir=True)
    assert again.log == whole.log


def test_warm_up_after_a_restart():
    factors = [relora.warmup_factor(step, 10, 4) for step in range(20)]
    assert factors[:10] == [1.0] * 10 and factors[10:15] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_what_cannot_be_merged_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="quantized"):
        Trainer(adapted(), TrainingArguments(str(tmp_path), relora_steps=5), dataset())
    with pytest.raises(ConfigError, match="this model has none"):
        Trainer(model(), TrainingArguments(str(tmp_path), relora_steps=5), dataset(), save=print)
    with pytest.raises(ConfigError, match="use_dora"):
        peft = get_peft_model(model(), LoraConfig(r=R, use_dora=True))
        Trainer(peft, TrainingArguments(str(tmp_path), relora_steps=5), dataset())
