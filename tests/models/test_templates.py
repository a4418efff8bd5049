"""Conversations as text, and which of it is to be learned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import load_model
from minilora.data.formats import FORMATS, IGNORE, encode_pieces
from minilora.errors import ConfigError, DataError
from minilora.models.checkpoint import save_folder
from minilora.models.templates import Template
from minilora.models.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}" + CHATML
)
HELLO = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
text = st.text(st.characters(codec="utf-8", exclude_characters="<|"), max_size=12)
conversations = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": text}),
    min_size=1, max_size=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers():
    """By the kind of template; the one with ChatML ends a text, and a message, with <|im_end|>."""
    from tokenizers import AddedToken

    plain = load_model("embedded")[1]
    backend = load_model("embedded")[1].backend
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    end = backend.token_to_id("<|im_end|>")
    kinds = {"chatml": CHATML, "with a system message": WITH_SYSTEM}
    return {"plain": plain} | {name: Tokenizer(backend, end, None, Template(source)) for name, source in kinds.items()}


def test_chatml():
    assert Template(CHATML).pieces(HELLO, add_generation_prompt=True) == [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        ("Hello<|im_end|>", True),
        ("\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n", False),
    ]


def test_a_template_s_own_system_message(tokenizers):
    tokenizer = tokenizers["with a system message"]
    assert tokenizer.chat_template.system == "Be brief."
    assert tokenizer.apply_chat_template(HELLO[:1]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )
    other = [{"role": "system", "content": "Be long."}, *HELLO]
    assert "Be brief" not in tokenizer.apply_chat_template(other)
    assert Template(CHATML).system is None


def test_without_a_template(tokenizers):
    assert tokenizers["plain"].chat_pieces(HELLO, add_generation_prompt=True) == [
        ("<|endoftext|>User: Hi\nAssistant:", False),
        (" Hello<|endoftext|>", True),
        ("\nUser: Bye\nAssistant:", False),
    ]


@pytest.mark.parametrize("kind", ["plain", "chatml", "with a system message"])
@given(messages=conversations)
def test_what_is_learned_is_what_is_asked_for(tokenizers, kind, messages):
    """An answer's targets follow exactly the prompt that a conversation up to there gives, and end with its end."""
    tokenizer = tokenizers[kind]
    example = encode_pieces(tokenizer.chat_pieces(messages), tokenizer, template=True)
    ids, labels = example["input_ids"], example["labels"]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages)
    assert all(label in (IGNORE, i) for label, i in zip(labels, ids, strict=True))
    learned = 0
    for n, message in enumerate(messages):
        if message["role"] == "assistant" and n:
            prompt = tokenizer.apply_chat_template(messages[:n], add_generation_prompt=True)
            start = len(tokenizer.prompt(prompt, parse_special=True))
            answer = tokenizer.encode(message["content"] if kind != "plain" else f" {message['content']}")
            assert labels[start : start + len(answer) + 1] == [*answer, tokenizer.eos_token_id]
            assert labels[start - 1] == IGNORE and ids[:start] == tokenizer.prompt(prompt, parse_special=True)
        learned += message["role"] == "assistant"
    assert labels.count(tokenizer.eos_token_id) == learned


def test_rows_of_conversations(tokenizers):
    row = {"messages": HELLO}
    assert FORMATS["chat_template"](row, tokenizers["chatml"]) == tokenizers["chatml"].chat_pieces(HELLO)


@pytest.mark.parametrize(
    "messages",
    [[], "Hi", [{"role": "user"}], [{"role": "robot", "content": "x"}], [{"role": "user", "content": 3}], ["Hi"]],
)
@pytest.mark.parametrize("kind", ["plain", "chatml"])
def test_what_is_no_conversation(tokenizers, kind, messages):
    with pytest.raises(DataError, match="conversation"):
        tokenizers[kind].chat_pieces(messages)


@pytest.mark.parametrize("source", ["[INST] {{ messages[0]['content'] }} [/INST]", CHATML + "<|im_sep|>"])
def test_other_templates_are_refused_where_they_are_used(tokenizers, source):
    tokenizer = Tokenizer(tokenizers["plain"].backend, 0, 0, Template(source))
    with pytest.raises(ConfigError, match="not ChatML"):
        tokenizer.apply_chat_template(HELLO)
    assert tokenizer.encode("x")


def test_a_prompt_is_begun_once(tokenizers):
    tokenizer = tokenizers["plain"]
    assert tokenizer.prompt("x") == [0, *tokenizer.encode("x")]
    assert tokenizer.prompt("<|endoftext|>x", parse_special=True) == [0, *tokenizer.encode("x")]
    assert tokenizer.prompt("<|endoftext|>x")[:2] == [0, tokenizer.encode("<|endoftext|>x")[0]]


@pytest.mark.parametrize("newer", [False, True])
def test_a_folder_keeps_the_model_s_template(tmp_path, tokenizers, newer):
    """In tokenizer_config.json, or, in newer folders, in a file of its own; written back as it is."""
    model, _ = load_model("embedded")
    save_folder(model, tokenizers["with a system message"], tmp_path / "a")
    if newer:
        (tmp_path / "a" / "chat_template.jinja").write_text(CHATML)
    again = load_model(tmp_path / "a")[1]
    assert again.chat_template.source == (CHATML if newer else WITH_SYSTEM)
    save_folder(model, again, tmp_path / "b")
    assert load_model(tmp_path / "b")[1].chat_template == again.chat_template
    assert load_model(tmp_path / "b")[1].eos_token_id == again.eos_token_id


def test_templates_by_name():
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    assert Template.read(named) == Template(CHATML)
    assert Template.read(None) is Template.read("") is Template.read([]) is Template.read([3]) is None
