"""The text of a conversation is transformers', whose template engine runs the program in the model's files."""

import pytest
from models.test_templates import CHATML, WITH_SYSTEM

from minilora import load_model
from minilora.models.checkpoint import save_folder
from minilora.models.templates import Template
from minilora.models.tokenizer import Tokenizer

pytestmark = pytest.mark.peers

USER, ASSISTANT, SYSTEM = ({"role": role, "content": f"I am\n{role}."} for role in ("user", "assistant", "system"))
CONVERSATIONS = [[USER], [USER, ASSISTANT, USER], [SYSTEM, USER, ASSISTANT], [ASSISTANT]]


@pytest.mark.parametrize("source", [CHATML, WITH_SYSTEM])
def test_a_folder_s_template(tmp_path, source):
    pytest.importorskip("jinja2")
    transformers = pytest.importorskip("transformers")
    model, tokenizer = load_model("embedded")
    save_folder(model, Tokenizer(tokenizer.backend, 0, 0, Template(source)), tmp_path)
    ours, theirs = load_model(tmp_path)[1], transformers.AutoTokenizer.from_pretrained(tmp_path)
    for messages in CONVERSATIONS:
        for prompt in (False, True):
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert ours.apply_chat_template(messages, add_generation_prompt=prompt) == text
            assert ours.encode(text, parse_special=True) == theirs.encode(text, add_special_tokens=False)


def test_smollm2_s_template(tmp_path, smollm2_file):
    pytest.importorskip("jinja2")
    transformers = pytest.importorskip("transformers")
    ours = load_model(smollm2_file)[1]
    assert ours.chat_template.system
    save_folder(load_model("embedded")[0], ours, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for messages in CONVERSATIONS:
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert ours.apply_chat_template(messages, add_generation_prompt=True) == text
        assert ours.encode(text, parse_special=True) == theirs.encode(text, add_special_tokens=False)
