"""minilora quantize, merge and evaluate as a user meets them: real processes, what they write and what they say."""

import json
import re

import numpy as np
import pytest
from test_cli import failed, run

from minilora import LoraConfig, PeftModel, generate, get_peft_model, load_model, no_grad, quantize_model
from minilora.data.topics import write_squad
from minilora.train.evaluate import evaluate, evaluate_answers
from minilora.train.questions import from_file, from_task

IDS = np.arange(1, 25).reshape(2, 12)
TASK = ("--task", "header_json", "--limit", "12")


def logits(model) -> np.ndarray:
    with no_grad():
        return model(IDS).data


def load(folder):
    return load_model(folder)[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The embedded model in 4 bits, by the command."""
    folder = tmp_path_factory.mktemp("base") / "nf4"
    result = run("quantize", "embedded", folder)
    assert result.returncode == 0
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """By the base beside which they were made: "float" and "nf4"; weights that change what the model says."""
    folders = {}
    for kind in ("float", "nf4"):
        model = load("embedded")
        peft = get_peft_model(quantize_model(model) if kind == "nf4" else model, LoraConfig(r=2))
        rng = np.random.default_rng(0)
        for p in peft.trainable().values():
            p.data = 0.05 * rng.standard_normal(p.shape, np.float32)
        folders[kind] = tmp_path_factory.mktemp(kind)
        peft.save_pretrained(folders[kind])
    return folders


# quantize


def test_quantize(tmp_path, base):
    expected = quantize_model(load("embedded"))
    model, tokenizer = load_model(base)
    assert all(model.quantized()[path] == q for path, q in expected.quantized().items())
    np.testing.assert_array_equal(logits(model), logits(expected))
    said = run("generate", base, "def f(self, x):\n", "--max-new-tokens", 8).stdout
    assert said == generate(model, tokenizer, "def f(self, x):\n", 8) + "\n"
    result = run("quantize", "embedded", "q", "--code", "fp4", "--blocksize", 32, "--no-double-quant", cwd=tmp_path)
    assert result.returncode == 0 and not result.stderr
    assert "28 linear layers, 802,816 weights: fp4 in 5 bits a weight" in result.stdout
    q = load(tmp_path / "q").quantized()["model.layers.0.mlp.up_proj"]
    assert (q.code, q.blocksize, q.double_quant) == ("fp4", 32, None)


def test_quantize_says_where_bitsandbytes_on_a_cpu_would_be_wrong(tmp_path):
    result = run("quantize", "embedded", tmp_path / "q")
    assert result.returncode == 0 and "4.128 bits a weight" in result.stdout
    assert "warning: rows of 352 weights are not whole blocks of 64" in result.stderr
    assert result.stderr.rstrip().endswith("--blocksize 32 avoids it")


def test_quantize_refuses(tmp_path, base):
    failed(run("quantize", base, tmp_path / "again"), "no Linear layer to quantize; was the model quantized before?")
    assert not (tmp_path / "again").exists()
    failed(run("quantize", "embedded", base), "is not empty", "--overwrite")
    failed(run("quantize", "embeded", tmp_path / "x"), "unknown model", "embedded")
    (tmp_path / "file").touch()
    failed(run("quantize", "embedded", tmp_path / "file" / "x"), "cannot be written")
    failed(run("quantize", "embedded", "x", "--code", "e2m1"), "invalid choice", code=2)
    failed(run("quantize", "embedded", "x", "--blocksize", "48"), "invalid choice", code=2)
    failed(run("quantize", "embedded"), "output", code=2)
    config = json.loads((base / "config.json").read_text())
    for kind in ("gptq", "awq"):
        (tmp_path / kind).mkdir()
        fields = config | {"quantization_config": {"quant_method": kind, "bits": 4}}
        (tmp_path / kind / "config.json").write_text(json.dumps(fields))
        failed(run("generate", tmp_path / kind, "x"), f"weights quantized by {kind} are not read")


# merge


@pytest.mark.parametrize("kind", ["float", "nf4"])
def test_merge_keeps_all_of_the_adapter(tmp_path, base, adapters, kind):
    model = "embedded" if kind == "float" else base
    result = run("merge", model, "--adapter", adapters[kind], "--output", tmp_path / "merged")
    assert result.returncode == 0 and not result.stderr
    assert ("float as before" if kind == "float" else "dequantized") in result.stdout
    merged = load(tmp_path / "merged")
    assert not merged.quantized()
    peft = PeftModel.from_pretrained(load(model), adapters[kind]).eval()
    np.testing.assert_allclose(logits(merged), logits(peft), atol=1e-4)
    assert np.abs(logits(peft) - logits(load(model))).max() > 0.1
    failed(run("merge", model, "--adapter", adapters[kind], "--output", tmp_path / "merged"), "is not empty")


def test_merge_says_what_requantizing_left(tmp_path, base, adapters):
    options = ("--adapter", adapters["nf4"], "--output", tmp_path / "merged")
    result = run("merge", base, *options, "--requantize")
    assert result.returncode == 0
    with pytest.warns(UserWarning, match="rounding W") as warned:
        expected = PeftModel.from_pretrained(load(base), adapters["nf4"]).merge_and_unload(requantize=True)
    assert result.stderr == f"minilora merge: warning: {warned[0].message}\n"
    np.testing.assert_array_equal(logits(load(tmp_path / "merged")), logits(expected.eval()))
    worst = sorted(expected.merge_survival.items(), key=lambda item: item[1].gain)[:3]
    assert [f"  {path}: {part}" for path, part in worst] == result.stdout.splitlines()[2:5]
    gains = [float(gain) for gain in re.findall(r"gain (-?\d+\.\d+)", result.stdout)]
    assert len(gains) == 4 and gains[1] <= gains[2] <= gains[3] and gains[1] <= gains[0] < 1


def test_merge_refuses_and_warns(tmp_path, base, adapters):
    out = ("--output", tmp_path / "merged")
    failed(run("merge", "embedded", "--adapter", adapters["float"], *out, "--requantize"), "this base is float")
    failed(run("merge", "embedded", "--adapter", tmp_path, *out), "does not hold an adapter")
    failed(run("merge", "embedded", *out), "--adapter", code=2)
    assert not (tmp_path / "merged").exists()
    result = run("merge", "embedded", "--adapter", adapters["nf4"], *out)
    assert result.returncode == 0
    assert "warning: the adapter was trained beside nf4-64 weights, and these are float" in result.stderr


# evaluate


def shown(result) -> dict[str, float]:
    return {name: float(score) for name, score in re.findall(r"^  (\w+) +([\d.e+-]+)", result.stdout, re.MULTILINE)}


def test_evaluate_a_task(tmp_path, base, adapters):
    options = ("--generate", "--max-new-tokens", 24, "--json", tmp_path / "scores.json")
    result = run("evaluate", base, "--adapter", adapters["nf4"], *TASK, *options)
    assert result.returncode == 0 and not result.stderr
    model, tokenizer = load_model(base)
    model = PeftModel.from_pretrained(model, adapters["nf4"]).eval()
    questions = from_task("header_json", tokenizer, 512, 12)
    scores = evaluate(model, questions.examples, 16)
    written = evaluate_answers(model, tokenizer, *questions.answerable(tokenizer, 512, 24))
    written.pop("answers")
    figures = json.loads((tmp_path / "scores.json").read_text())
    assert {name: figures[name] for name in scores} == pytest.approx(scores)
    assert {name: figures["generated"][name] for name in written} == pytest.approx(written)
    assert (figures["examples"], figures["left_out"], figures["generated"]["examples"]) == (12, 0, 12)
    for name, score in shown(result).items():
        assert score == pytest.approx({**scores, **written}[name], rel=1e-3)
    assert {"loss", "perplexity", "exact_match", "rouge1", "rouge2", "rougeL"} <= shown(result).keys()
    assert f"12 examples, {scores['tokens']:,} targets" in result.stdout


@pytest.mark.parametrize("kind", ["alpaca", "squad_v2", "chat_template", "completion"])
def test_evaluate_a_file(tmp_path, kind):
    file = tmp_path / ("rows.json" if kind == "squad_v2" else "rows.jsonl")
    rows = {
        "alpaca": {"instruction": "Say hello.", "output": "Hello."},
        "chat_template": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        "completion": {"text": "import os\n"},
    }
    if kind == "squad_v2":
        write_squad(file, "validation")
    else:
        file.write_text((json.dumps(rows[kind]) + "\n") * 4)
    options = ["--generate", "--max-new-tokens", "4"] if kind != "completion" else []
    result = run("evaluate", "embedded", "--dataset", file, "--type", kind, "--limit", 3, *options)
    assert result.returncode == 0 and not result.stderr
    model, tokenizer = load_model("embedded")
    expected = evaluate(model, from_file(file, kind, tokenizer, 512, 3).examples, 16)
    assert shown(result)["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert ("rougeL" in result.stdout) == bool(options)
    assert ("f1" in shown(result)) == (kind == "squad_v2")


@pytest.mark.parametrize(
    ("args", "words", "code"),
    [
        (["--task", "headers"], ["unknown task", "header_json"], 1),
        (["--dataset", "no.jsonl", "--type", "alpaca"], ["no.jsonl cannot be read", "No such file"], 1),
        (["--dataset", "rows.jsonl", "--type", "alpacca"], ["unknown type", "Did you mean 'alpaca'"], 1),
        (["--dataset", "rows.jsonl", "--type", "alpaca"], ["rows.jsonl, row 0", "'instruction' is missing"], 1),
        (["--dataset", "rows.jsonl", "--type", "completion", "--generate"], ["no prompt to generate an answer"], 1),
        (["--dataset", "rows.jsonl"], ["--dataset needs --type"], 2),
        (["--task", "header_json", "--dataset", "rows.jsonl"], ["not allowed with"], 2),
        ([], ["one of the arguments --task --dataset is required"], 2),
        (["--task", "header_json", "--limit", "0"], ["'0' is not a whole number above 0"], 2),
        ([*TASK, "--json", "no/such/x.json"], ["there is no folder no/such"], 1),
        ([*TASK, "--generate", "--max-new-tokens", "512"], ["leaves room for 512 tokens", "--max-new-tokens"], 1),
        ([*TASK, "--adapter", "."], ["does not hold an adapter"], 1),
    ],
)
def test_evaluate_refuses(tmp_path, args, words, code):
    (tmp_path / "rows.jsonl").write_text('{"text": "x = 1"}\n')
    failed(run("evaluate", "embedded", *args, cwd=tmp_path), *words, code=code)


def test_a_model_without_a_tokenizer(tiny_llama):
    failed(run("evaluate", tiny_llama, *TASK), "has no tokenizer.json")
    failed(run("chat", tiny_llama), "came without a tokenizer")
    failed(run("generate", tiny_llama, "x", "--chat"), "has no tokenizer.json")
