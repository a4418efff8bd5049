"""The bar is there without asking, on stderr, and goes when it is not wanted."""

from train.test_snapshots import make, stop_at
from train.test_trainer import adapted


def test_a_run_shows_its_steps_and_losses(tmp_path, capsys):
    make(tmp_path, max_steps=4, eval_steps=2).train()
    out, err = capsys.readouterr()
    assert not out and "4/4" in err and "loss=" in err and "validation=" in err and "tokens/s=" in err


def test_disable_tqdm_and_a_callback_of_ones_own_are_silent(tmp_path, capsys):
    make(tmp_path / "a", max_steps=2, disable_tqdm=True).train()
    stop_at(make(tmp_path / "b", max_steps=2), None).train()
    assert capsys.readouterr() == ("", "")


def test_a_resumed_run_begins_in_the_middle(tmp_path, capsys):
    stop_at(make(tmp_path), 5).train()
    make(tmp_path, adapted(lora_dropout=0.2)).train(resume_from_checkpoint=True)
    err = capsys.readouterr().err
    assert "12/12" in err and "1/12" not in err.replace("11/12", "")
