import json
import signal
import threading

import numpy as np
import pytest

from minilora import LoraConfig, PeftModel, Trainer, TrainingArguments, get_peft_model, quantize_model
from minilora.errors import ConfigError, DataError, TrainingError
from minilora.nn import CausalLM, TransformerConfig
from minilora.train.evaluate import evaluate


def model(seed=0):
    return CausalLM(TransformerConfig(12, 16, 24, 2, 2, max_position_embeddings=32), seed)


def adapted(**kwargs):
    return get_peft_model(quantize_model(model()), LoraConfig(r=4, lora_alpha=8, **kwargs))


def dataset(n=24, seed=0):
    """Copy three tokens: lengths and target counts differ."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        word = rng.integers(2, 12, rng.integers(1, 5)).tolist()
        rows.append({"input_ids": [*word, 1, *word, 0], "labels": [-100] * (len(word) + 1) + [*word, 0]})
    return rows


def train(folder, peft=None, data=None, **changes):
    args = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "seed": 5} | changes
    trainer = Trainer(peft or adapted(), TrainingArguments(str(folder), **args), data or dataset(), dataset(8, 1))
    return trainer, trainer.train()


def test_a_seed_gives_the_same_curve_and_files_bit_for_bit(tmp_path):
    runs = [train(tmp_path / str(i), eval_steps=3)[1] for i in range(2)]
    assert runs[0].log == runs[1].log
    files = [(tmp_path / str(i) / "adapter_model.safetensors").read_bytes() for i in range(2)]
    assert files[0] == files[1]
    assert train(tmp_path / "2", seed=6)[1].log != runs[0].log


def test_dropout_is_seeded_as_well(tmp_path):
    runs = [train(tmp_path / str(i), adapted(lora_dropout=0.3))[1].log for i in range(2)]
    assert runs[0] == runs[1]


def test_accumulated_gradients_are_the_big_batch_s(tmp_path):
    """Micro-batches with different numbers of targets: a mean of their means would differ."""

    class Fixed:
        def __init__(self, rows, parts):
            self.rows, self.parts = rows, parts

        def batch(self, step):
            from minilora import DataCollatorForLanguageModeling

            size = len(self.rows) // self.parts
            start = step % self.parts * size
            return DataCollatorForLanguageModeling()(self.rows[start : start + size])

    rows, weights, logs = sorted(dataset(), key=lambda r: len(r["input_ids"])), [], []
    for parts in (1, 4):
        peft = adapted()
        args = TrainingArguments(str(tmp_path / str(parts)), max_steps=3, gradient_accumulation_steps=parts)
        logs.append(Trainer(peft, args, Fixed(rows, parts)).train().log)
        weights.append(peft.adapter_state_dict())
    np.testing.assert_allclose([e["loss"] for e in logs[0]], [e["loss"] for e in logs[1]], rtol=1e-6)
    np.testing.assert_allclose([e["grad_norm"] for e in logs[0]], [e["grad_norm"] for e in logs[1]], rtol=1e-5)
    for name in weights[0]:
        np.testing.assert_allclose(weights[0][name], weights[1][name], atol=2e-6)


def test_it_learns_and_what_it_wrote_can_be_loaded(tmp_path):
    peft = adapted()
    before = evaluate(peft, dataset())["loss"]
    _, out = train(tmp_path / "out", peft, max_steps=150, eval_steps=20, learning_rate=2e-2)
    after = evaluate(peft, dataset())["loss"]
    assert after < before - 0.2
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines == out.log and len(lines) == 150 and "eval_loss" in lines[19] and "eval_loss" not in lines[20]
    again = PeftModel.from_pretrained(quantize_model(model()), tmp_path / "out")
    assert evaluate(again, dataset())["loss"] == after
    assert all(m.any() for name, m in peft.adapter_state_dict().items() if "lora_B" in name)


def test_exact_match_is_what_greedy_generation_gives(tmp_path):
    from minilora.models.generate import generate_tokens

    peft, rows = adapted(), dataset(30, 2)
    train(tmp_path / "out", peft, max_steps=150, learning_rate=2e-2)
    hits = 0
    for row in rows:
        prompt = [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
        answer = row["input_ids"][len(prompt) : -1]
        hits += list(generate_tokens(peft, prompt, len(answer) + 1, eos_token_id=0)) == answer
    score = evaluate(peft, rows, batch_size=7)["exact_match"]
    assert score == hits / len(rows) and score > 0


def test_ctrl_c_saves_and_returns(tmp_path):
    def press(entry):
        if entry["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    peft = adapted()
    args = TrainingArguments(str(tmp_path / "out"), max_steps=1000)
    out = Trainer(peft, args, dataset(), progress=press).train()
    assert out.interrupted and out.steps == 3 and threading.current_thread() is threading.main_thread()
    PeftModel.from_pretrained(quantize_model(model()), tmp_path / "out")


def test_a_non_finite_loss_stops_and_keeps_the_last_adapter(tmp_path):
    peft, data = adapted(), dataset()
    args = TrainingArguments(str(tmp_path / "out"), max_steps=50)

    def spoil(entry):
        if entry["step"] == 4:
            peft.base_model.model.model.norm.weight.data = np.full(16, np.nan, np.float32)

    with pytest.raises(TrainingError, match=r"step 5, batch 4: the loss is nan"):
        Trainer(peft, args, data, progress=spoil).train()
    again = PeftModel.from_pretrained(quantize_model(model()), tmp_path / "out")
    assert all(np.isfinite(a).all() for a in again.adapter_state_dict().values())


def test_bad_input(tmp_path):
    with pytest.raises(DataError, match="empty"):
        Trainer(adapted(), TrainingArguments(str(tmp_path / "a")), [])
    with pytest.raises(TrainingError, match="no trainable parameter"):
        frozen = adapted().requires_grad_(False)
        train(tmp_path / "b", frozen)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match="is not empty"):
        train(tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    with pytest.raises(TrainingError, match="cannot be written"):
        train(tmp_path / "full" / "thesis.txt" / "out")
    with pytest.raises(DataError, match="has a target"):
        train(tmp_path / "c", data=[{"input_ids": [1, 2], "labels": [-100, -100]}])
    with pytest.raises(ConfigError, match="max_steps must be positive"):
        TrainingArguments("x", max_steps=0)
    with pytest.raises(DataError, match="evaluation set is empty"):
        evaluate(adapted(), [])
