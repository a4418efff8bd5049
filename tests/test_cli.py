"""The command line as a user meets it: a real process, its exit code and what it prints."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from minilora.doctor import report


def run(*args, cwd=None, typed=None, **env):
    """typed: what comes at its standard input."""
    return subprocess.run(
        [sys.executable, "-m", "minilora", *map(str, args)],
        capture_output=True, text=True, timeout=300, cwd=cwd, env=os.environ | env, input=typed,
    )  # fmt: skip


def failed(result, *words, code=1):
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if "step/s" not in line and "s/step" not in line]
    assert code == 2 or 1 <= len(lines) <= 2, lines
    for word in words:
        assert word in result.stderr
    return result


def test_import_is_quick_and_pulls_in_numpy_only():
    code = (
        "import sys, time; import numpy; t = time.process_time(); import minilora; t = time.process_time() - t\n"
        "names = {m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)\n"
        "names -= {'minilora', 'numpy', 'cython_runtime'}\n"
        "print(t, sorted(n for n in names if not n.startswith('_')))"
    )
    lines = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(3)]
    assert min(float(line.split()[0]) for line in lines) < 0.3
    assert all(line.split(maxsplit=1)[1].strip() == "[]" for line in lines), lines


def test_help_of_every_command():
    text = run("--help").stdout
    for name in ("demo", "train", "fetch", "generate", "chat", "quantize", "merge", "evaluate", "bench", "doctor"):
        assert name in text and run(name, "--help").returncode == 0


def test_doctor():
    result = run("doctor")
    assert result.returncode == 0
    for word in ("Python", "NumPy", "BLAS", "memory", "threads", "cache", "extra"):
        assert word in result.stdout


def test_doctor_where_the_system_tells_nothing(monkeypatch):
    """As on Windows: no sysconf, no /proc."""
    monkeypatch.delattr(os, "sysconf")
    assert any("memory    unknown" in line for line in report())


def test_generate():
    result = run("generate", "embedded", "def f(self, x):\n", "--max-new-tokens", "8")
    assert result.returncode == 0 and result.stdout.strip()
    sampled = [run("generate", "embedded", "import", "--temperature", "1", "--top-p", "0.9", "--top-k", "50",
                   "--seed", s, "--max-new-tokens", "12").stdout for s in (1, 1, 2)]  # fmt: skip
    assert sampled[0] == sampled[1] != sampled[2]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["generate", "embeded", "x"], ["unknown model", "embedded"]),
        (["generate", "no/such.gguf", "x"], ["no model file"]),
        (["generate", "embedded", "x", "--max-new-tokens", "9999"], ["exceed the model's 512 positions"]),
        (["generate", "embedded", "x", "--temperature", "-1"], ["temperature >= 0"]),
        (["fetch", "smollm3"], ["unknown model", "smollm2-135m"]),
        (["train", "demoo"], ["unknown recipe", "demo"]),
        (["train", "demo", "--lora_rank", "3"], ["unknown field", "lora_r"]),
        (["train", "demo", "--lora_r"], ["--key value"]),
        (["train", "demo", "--lora_r", "[1"], ["not a YAML value"]),
        (["train", "pretrain-stdlib", "--pretrain", "{hidden: 3}"], ["unknown field of pretrain", "hidden_size"]),
        (["train", "demo", "--task", "headers"], ["unknown task", "header_json"]),
        (["train", "demo", "--base_model", "gpt5"], ["unknown model"]),
        (["train", "demo", "--sequence_len", "20"], ["more than sequence_len 20"]),
        (["train", "demo", "--lora_target_modules", "[qproj]"], ["matches no linear layer", "q_proj"]),
    ],
)
def test_bad_input(tmp_path, args, words):
    failed(run(*args, cwd=tmp_path), *words)


def test_wrong_usage():
    failed(run("trian"), "invalid choice", code=2)
    failed(run(), "required", code=2)


def test_files_that_are_no_models(tmp_path):
    for name, content in (("a.gguf", b""), ("b.gguf", b"GGUF" + b"\xff" * 100), ("c.txt", b"hello" * 100)):
        (tmp_path / name).write_bytes(content)
        failed(run("generate", tmp_path / name, "x"), "not a whole GGUF file")


def test_output_folders(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    failed(run("demo", "--output-dir", tmp_path / "mine"), "is not empty")
    failed(run("demo", "--output-dir", tmp_path / "mine" / "thesis.txt" / "y"), "cannot be written")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_a_short_run_writes_everything(tmp_path):
    fields = ["--test_examples", "16", "--eval_examples", "8", "--eval_steps", "2"]
    result = run("train", "demo", "--max-steps", 4, *fields, "--output-dir", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {"adapter_config.json", "adapter_model.safetensors", "metrics.jsonl", "report.html", "result.json"} <= set(
        os.listdir(tmp_path / "out")
    )
    assert "4.128" in result.stdout and "78,848" in result.stdout
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 4
    assert json.loads((tmp_path / "out" / "result.json").read_text())["trainable"] == 78848
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 2 and "<script" not in page
    again = run("generate", "embedded", "def f(a):\n>>> ", "--adapter", "out", "--max-new-tokens", 4, cwd=tmp_path)
    assert again.returncode == 0
    failed(run("train", "demo", "--output-dir", "out", cwd=tmp_path), "is not empty")


def test_ctrl_c_saves_the_adapter(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "minilora", "train", "demo", "--test_examples", "8", "--output-dir", "out"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = tmp_path / "out" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") >= 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in err
    assert "interrupted after" in out and (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_full_disk_while_saving(tmp_path):
    """A limit on file size refuses the adapter's write as a full disk would."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from minilora.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    args = ["train", "demo", "--max-steps", "1", "--test_examples", "8", "--output-dir", str(tmp_path / "out")]
    result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=300)
    failed(result, "could not be written")
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_pretraining_is_reproducible(tmp_path):
    """A few steps of the base's recipe, twice: the same files, bit for bit."""
    for place in ("a", "b"):
        result = run("train", "pretrain-stdlib", "--max-steps", 3, "--output-dir", place, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    for name in ("model.safetensors", "tokenizer.json", "base.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert run("generate", tmp_path / "a", "import", "--max-new-tokens", 3).returncode == 0


@pytest.mark.slow
def test_the_demo_reaches_what_the_readme_says(tmp_path):
    result = run("demo", "--output-dir", tmp_path / "demo")
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "demo" / "result.json").read_text())
    assert figures["before"]["exact_match"] == 0 and figures["after"]["exact_match"] >= 0.75
