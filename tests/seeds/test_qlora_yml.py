"""Seed 002's axolotl configuration, every key and value but base_model, the dataset's path and sequence_len."""

import json
import subprocess
import sys

import pytest
import yaml

from minilora.config import load_recipe
from minilora.errors import ConfigError

QLORA = """
base_model: embedded
model_type: LlamaForCausalLM
tokenizer_type: LlamaTokenizer
is_llama_derived_model: true
load_in_8bit: false
load_in_4bit: true
strict: false
datasets:
  - path: data.jsonl
    type: alpaca
dataset_prepared_path:
val_set_size: 0.05
output_dir: ./qlora-out
adapter: qlora
lora_model_dir:
sequence_len: 256
sample_packing: true
pad_to_sequence_len: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules:
lora_target_linear: true
lora_fan_in_fan_out:
"""


@pytest.fixture
def folder(tmp_path):
    rows = [{"instruction": f"add {i} and 1", "input": "", "output": str(i + 1)} for i in range(60)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "qlora.yml").write_text(QLORA)
    return tmp_path


def minilora(folder, *args):
    command = [sys.executable, "-m", "minilora", "train", "qlora.yml", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)


def test_it_trains(folder):
    done = minilora(folder, "--max_steps", "6", "--micro_batch_size", "2", "--learning_rate", "1e-2")
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (folder / "qlora-out" / "metrics.jsonl").read_text().splitlines()]
    assert len(log) == 6 and log[-1]["loss"] < log[0]["loss"] and log[-1]["eval_loss"] > 0
    adapter = json.loads((folder / "qlora-out" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (32, 16, 0.05)
    assert set(adapter["target_modules"]) == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert "packed into" in done.stdout


def test_show_batch_and_dry_run_start_nothing(folder):
    shown = minilora(folder, "--show-batch", "--micro_batch_size", "1").stdout
    assert "│" in shown and "【" in shown and "of padding]" in shown
    planned = minilora(folder, "--dry-run").stdout
    for word in ("updates", "packed into", "peak", "qlora"):
        assert word in planned
    assert not (folder / "qlora-out").exists()


def test_every_key_is_read(folder):
    config = load_recipe(folder / "qlora.yml")
    for key, value in yaml.safe_load(QLORA).items():
        if value is not None and key != "datasets":
            assert getattr(config, key) == value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("wandb_project", "x", "Weights & Biases"),
        ("deepspeed", "zero.json", "DeepSpeed"),
        ("flash_attention", True, "flash attention"),
        ("model_type", "GPT2LMHeadModel", None),
        ("lora_rank", 3, "lora_r"),
        ("load_in_8bit", True, "adapter: lora"),
        ("num_epochs", 1, "not both"),
    ],
)
def test_what_is_not_here_is_refused_and_never_left_out(folder, key, value, words):
    if words is None:
        done = minilora(folder, f"--{key}", str(value))
        assert done.returncode == 1 and "LlamaForCausalLM" in done.stderr
        return
    with pytest.raises(ConfigError, match=words):
        load_recipe(folder / "qlora.yml", {key: value, "max_steps": 3})
    off = load_recipe(folder / "qlora.yml", {"wandb_project": None, "deepspeed": "", "flash_attention": False})
    assert off == load_recipe(folder / "qlora.yml")
