"""Stopped anywhere and gone on, a run has the losses and weights of one that was never stopped, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from train.test_trainer import adapted, dataset

from minilora import LoraConfig, Trainer, TrainingArguments, get_peft_model
from minilora.errors import ConfigError, FileFormatError
from minilora.nn import CausalLM, TransformerConfig
from minilora.train import snapshots

TESTS = Path(__file__).parent.parent
ARGS = {"max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "seed": 5, "save_steps": 1}


def make(folder, peft=None, **changes):
    peft = peft or adapted(lora_dropout=0.2)
    return Trainer(peft, TrainingArguments(str(folder), **(ARGS | changes)), dataset(), dataset(8, 1))


def stop_at(trainer, step):
    """Ctrl-C after an update."""
    trainer.progress = lambda entry: signal.raise_signal(signal.SIGINT) if entry["step"] == step else None
    return trainer


def curve(folder):
    return (folder / "metrics.jsonl").read_text(), (folder / "metrics.csv").read_text()


@pytest.mark.parametrize(
    "changes",
    [{}, {"optim": "muon"}, {"optim": "adamw_8bit"}, {"optim": "paged_adamw"}, {"gradient_accumulation_steps": 2},
     {"eval_steps": 4}, {"fp16": True}, {"bf16": True}],
    ids=lambda c: "-".join(c) or "plain",
)  # fmt: skip
def test_a_run_goes_on_bit_for_bit(tmp_path, changes):
    whole = make(tmp_path / "whole", **changes)
    whole.train()
    for stop in (1, 5, 11):
        place = tmp_path / str(stop)
        stop_at(make(place, **changes), stop).train()
        trainer = make(place, **changes)
        out = trainer.train(resume_from_checkpoint=True)
        assert curve(place) == curve(tmp_path / "whole") and out.steps == 12
        for name, array in whole.model.adapter_state_dict().items():
            np.testing.assert_array_equal(trainer.model.adapter_state_dict()[name], array)


def test_full_fine_tuning_goes_on_as_well(tmp_path):
    def full():
        return CausalLM(TransformerConfig(12, 16, 24, 2, 2, max_position_embeddings=32, dropout=0.1), 0)

    def run(place, stop=None, resume=False):
        trainer = Trainer(full(), TrainingArguments(str(place), **ARGS), dataset(), save=lambda folder: None)
        (stop_at(trainer, stop) if stop else trainer).train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    whole = run(tmp_path / "whole")
    run(tmp_path / "part", stop=7)
    for name, array in run(tmp_path / "part", resume=True).items():
        np.testing.assert_array_equal(array, whole[name])


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from train.test_snapshots import make
make(sys.argv[1], max_steps=40).train(resume_from_checkpoint=True)
"""


def killed(folder, seconds):
    """A real process, killed (-9) after so long; whether it had ended before."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(TESTS)], stderr=subprocess.PIPE)
    try:
        _, error = process.communicate(timeout=seconds)
        assert process.returncode == 0, error.decode()
        return False
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True


@pytest.mark.slow
def test_killed_twenty_times_it_goes_on_bit_for_bit(tmp_path):
    start = time.perf_counter()
    assert not killed(tmp_path / "whole", 300)
    length = time.perf_counter() - start
    draw, kills, round_ = random.Random(0), 0, 0
    while kills < 20:
        place, round_ = tmp_path / str(round_), round_ + 1
        while killed(place, draw.uniform(0.3, 1.1) * length):
            kills += 1
        assert curve(place) == curve(tmp_path / "whole")
        files = [p / "adapter_model.safetensors" for p in (place, tmp_path / "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_killed_while_a_snapshot_is_written(tmp_path, monkeypatch):
    """At each of the calls that touch the disk: what is there afterwards is the snapshot before, whole."""
    trainer = make(tmp_path / "out", max_steps=3)
    trainer.train()
    before = {p.name for p in (tmp_path / "out").glob("checkpoint-*")}
    for name in ("save_safetensors", "atomic_write"):

        def die(*args, **kwargs):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(snapshots, name, die)
            trainer.state.step = 9
            with pytest.raises(KeyboardInterrupt):
                trainer._snapshot(tmp_path / "out")
        assert {p.name for p in (tmp_path / "out").glob("checkpoint-*")} == before
        assert snapshots.latest(tmp_path / "out").name == "checkpoint-3"


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    trainer = make(tmp_path / "out", max_steps=12, save_total_limit=2, eval_steps=1, load_best_model_at_end=True)
    scores = iter([5.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    weights = {}

    def evaluate():
        weights[trainer.state.step] = {n: a.copy() for n, a in trainer.model.adapter_state_dict().items()}
        loss = next(scores)
        return {"eval_loss": loss, "eval_perplexity": 1.0, "eval_exact_match": 0.0}

    trainer.evaluate = evaluate
    trainer.train()
    assert list(snapshots.all_of(tmp_path / "out")) == [2, 11, 12]
    for name, array in trainer.model.adapter_state_dict().items():
        np.testing.assert_array_equal(array, weights[2][name])


def test_early_stopping(tmp_path):
    trainer = make(tmp_path / "out", eval_steps=2, early_stopping_patience=2, save_steps=None)
    losses = iter([3.0, 2.0, 2.5, 2.5, 1.0])
    trainer.evaluate = lambda: {"eval_loss": next(losses), "eval_perplexity": 1.0, "eval_exact_match": 0.0}
    assert trainer.train().steps == 8


def test_another_run_is_not_gone_on_with(tmp_path):
    make(tmp_path / "out", max_steps=3).train()
    with pytest.raises(ConfigError, match=r"learning_rate \(then 0.01, now 0.02\)"):
        make(tmp_path / "out", max_steps=3, learning_rate=2e-2).train(resume_from_checkpoint=True)
    with pytest.raises(FileFormatError, match="another model or adapter"):
        other = get_peft_model(adapted().unload(), LoraConfig(r=2))
        make(tmp_path / "out", other, max_steps=3).train(resume_from_checkpoint=True)
    data = Trainer(adapted(lora_dropout=0.2), TrainingArguments(str(tmp_path / "out"), **(ARGS | {"max_steps": 3})),
                   dataset(24, 9))  # fmt: skip
    with pytest.raises(ConfigError, match="other training data"):
        data.train(resume_from_checkpoint=True)
    with pytest.raises(FileFormatError, match="not a snapshot"):
        make(tmp_path / "out", max_steps=3).train(resume_from_checkpoint=tmp_path / "nothing")


def test_without_a_snapshot_it_begins(tmp_path):
    assert make(tmp_path / "out", max_steps=2).train(resume_from_checkpoint=True).steps == 2


def test_the_state_says_what_is_in_it(tmp_path):
    make(tmp_path / "out", max_steps=2).train()
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "state.json").read_text())
    assert state["step"] == 2 and state["tokens"] > 0 and state["args"]["seed"] == 5 and state["generators"]
    assert (tmp_path / "out" / "checkpoint-2" / "adapter_model.safetensors").exists()


DISK_FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from minilora import MiniloraError
from train.test_snapshots import make, stop_at
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
stop_at(make(sys.argv[1]), 3).train()
resource.setrlimit(resource.RLIMIT_FSIZE, (12000,) * 2)  # as a full disk: the optimizer's state is longer
try:
    make(sys.argv[1]).train(resume_from_checkpoint=True)
except MiniloraError as error:
    print(error)
"""


def test_on_a_full_disk_the_last_snapshot_stays_whole(tmp_path):
    pytest.importorskip("resource", reason="limits on a file's size are Unix's")
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path / "out"), str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "could not be written" in done.stdout, done
    assert list(snapshots.all_of(tmp_path / "out")) == [1, 2, 3] and not list((tmp_path / "out").glob(".checkpoint*"))
    make(tmp_path / "out").train(resume_from_checkpoint=True)
    make(tmp_path / "whole").train()
    assert curve(tmp_path / "out") == curve(tmp_path / "whole")
