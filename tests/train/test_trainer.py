import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from minilora import LoraConfig, PeftModel, Trainer, TrainingArguments, get_peft_model, quantize_model
from minilora.errors import ConfigError, DataError, TrainingError
from minilora.nn import CausalLM, TransformerConfig
from minilora.train.evaluate import evaluate


def model(seed=0):
    """Random, with an embedding large enough to learn: this frozen, tied head bounds every logit by ‖h‖‖e‖ = 4‖e‖, and
    at the initial ‖e‖ of 0.08 no adapter whatever could bring the loss below 2.2 (ln 12 is 2.48)."""
    tiny = CausalLM(TransformerConfig(12, 16, 24, 2, 2, max_position_embeddings=32), seed)
    tiny.model.embed_tokens.weight.data *= 10
    return tiny


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
    before, held_out_before = evaluate(peft, dataset()), evaluate(peft, dataset(8, 1))["loss"]
    _, out = train(tmp_path / "out", peft, max_steps=150, eval_steps=20, learning_rate=2e-2)
    after, held_out_after = evaluate(peft, dataset()), evaluate(peft, dataset(8, 1))["loss"]
    assert after["loss"] < 0.3 * before["loss"] and after["exact_match"] > 0.9 and before["exact_match"] == 0
    assert held_out_after < held_out_before - 0.5
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines == out.log and len(lines) == 150 and "eval_loss" in lines[19] and "eval_loss" not in lines[20]
    again = PeftModel.from_pretrained(quantize_model(model()), tmp_path / "out")
    assert evaluate(again, dataset()) == after
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


def test_divergence_keeps_the_last_weights_that_gave_a_finite_loss(tmp_path):
    """The update that spoils the weights is one before the loss that shows it: saving "the step before" saves those."""
    peft, history = adapted(), {}
    trainer = Trainer(peft, TrainingArguments(str(tmp_path / "out"), max_steps=20, learning_rate=1e-2), dataset())

    def spoil(entry):
        history[entry["step"]] = {n: a.copy() for n, a in peft.adapter_state_dict().items()}
        if entry["step"] == 4:
            trainer.args.learning_rate = 1e30  # update 5 throws the weights far away, and the loss of step 6 is nan

    trainer.progress = spoil
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match=r"step 6.*loss is nan.*after update 4"):
        trainer.train()
    assert max(abs(a).max() for a in history[5].values()) > 1e20
    again = PeftModel.from_pretrained(quantize_model(model()), tmp_path / "out").adapter_state_dict()
    for name, array in history[4].items():
        np.testing.assert_array_equal(again[name], array)
        np.testing.assert_array_equal(peft.adapter_state_dict()[name], array)


def test_a_run_that_was_never_good_overwrites_nothing(tmp_path):
    train(tmp_path / "out")
    saved = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match="nothing was saved"):
        train(tmp_path / "out", learning_rate=1e30, overwrite_output_dir=True)
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == saved


def test_adapters_that_do_not_move_are_an_error(tmp_path):
    peft = adapted()
    for layer in peft.adapters().values():
        layer.scaling["default"] = 0.0
    with pytest.raises(TrainingError, match="changed none of the 14 lora_B"):
        train(tmp_path / "out", peft)


def test_ctrl_c_never_cuts_an_update_in_two(tmp_path):
    """Pressed in the middle of an update: the update is finished, logged and saved, and then the run ends."""
    peft = adapted()
    trainer = Trainer(peft, TrainingArguments(str(tmp_path / "out"), max_steps=50), dataset())
    whole, update = trainer.optimizer._update, iter(range(10**6))

    def press(*args):
        if next(update) == 2 * 28 + 5:  # 14 layers, A and B: the third update, its sixth matrix
            signal.raise_signal(signal.SIGINT)
        whole(*args)

    trainer.optimizer._update = press
    out = trainer.train()
    assert out.interrupted and out.steps == 3 and next(update) == 3 * 28
    reference = adapted()
    trainer = Trainer(reference, TrainingArguments(str(tmp_path / "whole"), max_steps=50), dataset())
    trainer.progress = lambda entry: signal.raise_signal(signal.SIGINT) if entry["step"] == 3 else None
    trainer.train()
    for name in ("adapter_model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_saving_does_not_lose_the_file(tmp_path):
    peft = adapted()

    def save(folder):
        signal.raise_signal(signal.SIGINT)
        peft.save_pretrained(folder)

    args = TrainingArguments(str(tmp_path / "out"), max_steps=2)
    assert Trainer(peft, args, dataset(), save=save).train().interrupted
    PeftModel.from_pretrained(quantize_model(model()), tmp_path / "out")


def test_training_outside_the_main_thread(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(train(tmp_path / "out")[1].steps))
    thread.start()
    thread.join()
    assert done == [6]


DISK_FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from test_trainer import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
train(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)  # as a full disk: writes stop in the middle
try:
    train(sys.argv[1], adapted(), overwrite_output_dir=True, max_steps=int(sys.argv[4]), seed=9)
except ml.MiniloraError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("limit", "steps", "file"), [(9000, 6, "adapter_model.safetensors"), (1000, 60, "metrics.jsonl")]
)
def test_a_full_disk_is_an_error_and_the_old_adapter_stays(tmp_path, limit, steps, file):
    pytest.importorskip("resource")
    script = DISK_FULL.replace("from test_trainer", "import minilora as ml\nfrom test_trainer")
    here, root = os.path.dirname(__file__), os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    command = [sys.executable, "-c", script, str(tmp_path / "out"), here, str(limit), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root})
    assert file in done.stdout and "could not be written" in done.stdout, done
    assert not list((tmp_path / "out").glob("*.part"))
    train(tmp_path / "reference")
    old = (tmp_path / "reference" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == old


def test_epochs_and_warmup_ratio(tmp_path):
    _, out = train(tmp_path / "a", max_steps=None, num_train_epochs=2, gradient_accumulation_steps=2)
    assert out.steps == 3  # 24 examples, 8 a batch, 2 batches an update, twice
    _, out = train(tmp_path / "b", max_steps=10, warmup_ratio=0.4, lr_scheduler_type="constant")
    np.testing.assert_allclose([e["lr"] for e in out.log], 1e-2 * np.array([0.25, 0.5, 0.75, *[1] * 7]))

    class Endless:
        def batch(self, step):
            raise AssertionError

    args = TrainingArguments(str(tmp_path / "c"), num_train_epochs=1)
    with pytest.raises(ConfigError, match="needs a dataset with a length"):
        Trainer(adapted(), args, Endless())


def test_evaluation_at_the_end_and_by_hand(tmp_path):
    trainer, out = train(tmp_path / "out")
    assert [e["step"] for e in out.log if "eval_loss" in e] == [6]
    assert trainer.evaluate()["eval_loss"] == out.log[-1]["eval_loss"]
    assert trainer.evaluate(dataset(3, 7))["eval_loss"] == evaluate(trainer.model, dataset(3, 7))["loss"]
    with pytest.raises(ConfigError, match="needs a dataset"):
        Trainer(adapted(), TrainingArguments("x"), dataset()).evaluate()


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "max_steps": (0, -1, 2.5), "num_train_epochs": (0, float("nan"), "2"), "seed": (-1, 1.5),
        "per_device_train_batch_size": (0, 1.5), "gradient_accumulation_steps": (0, 1.5), "eval_steps": (0, -1),
        "save_steps": (0, 0.5), "per_device_eval_batch_size": (0,), "learning_rate": (0, float("inf"), float("nan")),
        "warmup_steps": (-1, 0.5), "warmup_ratio": (-0.1, 1.5), "weight_decay": (-1, float("inf")),
        "adam_beta1": (1.0, -0.1), "adam_beta2": (1.0, 1.5), "adam_epsilon": (0, -1), "max_grad_norm": (0, -1),
    }.items(),
)  # fmt: skip
def test_arguments_out_of_range(field, values):
    for value in values:
        with pytest.raises(ConfigError, match=f"{field} must be"):
            TrainingArguments("x", **{field: value})


def test_arguments_that_exclude_each_other():
    for pair in ({"max_steps": 3, "num_train_epochs": 1}, {"warmup_steps": 3, "warmup_ratio": 0.1}):
        with pytest.raises(ConfigError, match="give one of them"):
            TrainingArguments("x", **pair)
    assert TrainingArguments("x").max_steps == 100


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
