"""A conversation: two histories, what no longer fits, two columns; and a real process at a pipe and at a terminal."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import run

from minilora import LoraConfig, generate, get_peft_model, load_model
from minilora.chat import chat, columns
from minilora.errors import ConfigError
from minilora.models.templates import Template

NEW = 12


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A folder with an adapter of random weights: what it says is not sense, but another than the base's."""
    peft = get_peft_model(load_model("embedded")[0], LoraConfig(r=2))
    rng = np.random.default_rng(0)
    for p in peft.trainable().values():
        p.data = 0.1 * rng.standard_normal(p.shape, np.float32)
    folder = tmp_path_factory.mktemp("adapter")
    peft.save_pretrained(folder)
    return folder


@pytest.fixture
def model(adapter):
    from minilora import PeftModel

    return PeftModel.from_pretrained(load_model("embedded")[0], adapter).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return load_model("embedded")[1]


def talk(model, tokenizer, *lines, **options) -> str:
    shown = []
    chat(model, tokenizer, iter(lines), shown.append, **{"max_new_tokens": NEW} | options)
    return "".join(shown)


def expected(model, tokenizer, *said) -> list[str]:
    """The answers of one side, each following from the ones before."""
    messages, answers = [], []
    for line in said:
        messages.append({"role": "user", "content": line})
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        answers.append(generate(model, tokenizer, prompt, NEW, parse_special=True))
        messages.append({"role": "assistant", "content": answers[-1].strip()})
    return answers


def test_each_side_goes_on_from_its_own_answers(model, tokenizer):
    said = ["def f(x):", "and now?", "again"]
    on = expected(model, tokenizer, *said)
    with model.disable_adapter():
        off = expected(model, tokenizer, *said)
    assert all(a != b for a, b in zip(on, off, strict=True))
    shown = [f"[adapter on]\n{a}\n[adapter off]\n{b}\n" for a, b in zip(on, off, strict=True)]
    assert talk(model, tokenizer, *said) == "".join(shown)
    assert talk(model, tokenizer, said[0], "/reset", said[0]) == 2 * shown[0]
    assert talk(model, tokenizer, said[0], "/quit", said[1]) == shown[0]
    assert talk(model, tokenizer, "", "  ", said[0]) == shown[0]


def test_a_model_without_adapters_talks_too(tokenizer):
    model, _ = load_model("embedded")
    assert talk(model, tokenizer, "hello") == f"[answer]\n{expected(model, tokenizer, 'hello')[0]}\n"


def test_a_template_makes_each_line_a_prompt_of_its_own(model, tokenizer):
    answer = generate(model, tokenizer, "def f(a): {1}\n>>> ", NEW)
    shown = talk(model, tokenizer, "def f(a): {1}", "def f(a): {1}", template="{}\n>>> ")
    first, second = shown[: len(shown) // 2], shown[len(shown) // 2 :]
    assert first == second and first.startswith(f"[adapter on]\n{answer}\n[adapter off]\n")
    with pytest.raises(ConfigError, match=r"has no \{\}, where"):
        talk(model, tokenizer, "x", template=">>> ")


def test_the_oldest_turns_are_left_out_where_there_is_no_room(model, tokenizer):
    """What is left is a conversation of the last ones; the adapter's and the base's may lose more or fewer."""
    said = [f"say it again, number {i}:" + " the same" * 30 for i in range(7)]
    shown = talk(model, tokenizer, *said, max_new_tokens=2)
    assert shown.count("[adapter on]") == shown.count("[adapter off]") == len(said)
    assert "(adapter on: the model has no room any more for the oldest 2 messages)" in shown


def test_what_is_too_long_is_said_and_the_conversation_goes_on(model, tokenizer):
    shown = talk(model, tokenizer, "word " * 600, "hello")
    first, rest = shown.split("\n", 1)
    assert "more than the model's 512 positions; say it shorter" in first
    assert rest == talk(model, tokenizer, "hello")


def test_commands_that_are_none(model, tokenizer):
    assert talk(model, tokenizer, "/exit now") == (
        "there is no command /exit; /quit ends the conversation, /reset begins a new one\n"
    )


def test_models_that_cannot_talk(model, tokenizer):
    with pytest.raises(ConfigError, match="came without a tokenizer"):
        talk(model, None, "x")
    other = load_model("embedded")[1]
    other.chat_template = Template("[INST] {{ messages }}")
    with pytest.raises(ConfigError, match="not ChatML"):
        talk(model, other, "x")


texts = st.lists(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]) | st.just("\n")), min_size=1,
                 max_size=3)  # fmt: skip


@given(texts, st.integers(40, 120))
def test_columns_hold_all_of_every_text(texts, width):
    names = [f"[{i}]" for i in range(len(texts))]
    each = (width - 3 * (len(texts) - 1)) // len(texts)
    lines = columns(names, texts, width).split("\n")
    assert all(len(line) <= width for line in lines)
    for i, text in enumerate(texts):
        start = i * (each + 3)
        column = [line[start : start + each] for line in lines]
        assert column[0].strip() == names[i]
        assert "".join("".join(column[1:]).split()) == "".join(text.split())


def test_indented_text_in_columns():
    shown = columns(["a", "b"], ["if x:\n    y", "z"], 20)
    assert shown == "a          b\nif x:      z\n    y"


def test_two_columns_where_there_is_room(model, tokenizer):
    shown = talk(model, tokenizer, "def f(x):", width=100)
    on, off = talk(model, tokenizer, "def f(x):").split("[adapter off]\n")
    heading, *rest = shown.split("\n")
    assert heading.split("  ")[0] == "[adapter on]" and heading.endswith("[adapter off]")
    assert on.removeprefix("[adapter on]\n").split()[0] in rest[0] and off.split()[0] in rest[0]


# As a process.


def test_at_a_pipe(adapter):
    result = run("chat", "embedded", "--adapter", adapter, "--max-new-tokens", 4, typed="hello\nagain\n")
    assert result.returncode == 0 and not result.stderr
    assert result.stdout.count("[adapter on]\n") == result.stdout.count("[adapter off]\n") == 2
    assert result.stdout == run("chat", "embedded", "--adapter", adapter, "--max-new-tokens", 4,
                                typed="hello\nagain\n/quit\nmore\n").stdout  # fmt: skip
    sampled = [run("chat", "embedded", "--max-new-tokens", 8, "--temperature", 1, "--seed", seed, typed="hello").stdout
               for seed in (1, 1, 2)]  # fmt: skip
    assert sampled[0] == sampled[1] != sampled[2]


def test_nothing_typed():
    result = run("chat", "embedded", typed="")
    assert result.returncode == 0 and result.stdout == result.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal needs Linux or macOS")
@pytest.mark.parametrize("answering", [False, True])
def test_ctrl_c_at_a_terminal(adapter, answering):
    """Answers in two columns; Ctrl-C leaves quietly, in the middle of an answer too."""
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "minilora", "chat", "embedded", "--adapter", str(adapter), "--max-new-tokens"]
    process = subprocess.Popen(
        [*command, "400" if answering else "4"],
        stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"COLUMNS": "110", "TERM": "dumb"},
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = read_until(ours, "> ")
    assert "/quit ends the conversation" in seen
    os.write(ours, b"hello\n")
    if not answering:
        seen = read_until(ours, "> ")
        assert any("[adapter on]" in line and "[adapter off]" in line for line in seen.splitlines())
    for _ in range(4):  # between prompt and waiting for a key Python can miss Ctrl-C: one presses it again
        time.sleep(0.3)  # into the answer, or the waiting
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            break
    rest = read_until(ours)
    assert process.wait(30) == 0
    assert "Traceback" not in rest and "adapter" not in rest
    os.close(ours)


def read_until(terminal: int, end: str | None = None) -> str:
    """What the process shows until `end`, or until it ends."""
    seen, last = b"", time.monotonic() + 20
    while time.monotonic() < last and not (end and seen.decode(errors="replace").endswith(end)):
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            seen += os.read(terminal, 1000)
        except OSError:  # so Linux says that the other side is closed
            break
    return seen.decode(errors="replace")
