"""A conversation as text, in the form that a model was trained on.

    template = Template.read(tokenizer_config["chat_template"])
    template.pieces([{"role": "user", "content": "Hi"}])
        # [("<|im_start|>user\\nHi<|im_end|>\\n", False)]: a text, and whether it is what the assistant says

Files hold the template as a program in Jinja. One form is read, ChatML (of SmolLM2, Qwen and many others): each message
between <|im_start|>role and <|im_end|>, and, where the program has one, a system message for conversations that begin
without. The program itself is kept and written back as it is. A model without a template gets `plain_pieces`.
"""

import re
from dataclasses import dataclass

from minilora.errors import ConfigError, DataError

Pieces = list[tuple[str, bool]]
ROLES = ("system", "user", "assistant")
_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"<{}]+?)<\|im_end\|>")


@dataclass(frozen=True)
class Template:
    source: str  # Jinja

    @classmethod
    def read(cls, source) -> "Template | None":
        """From a field of a file: a text, or a list of named ones, of which "default" is meant; None for nothing."""
        if isinstance(source, list):
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        return cls(source) if isinstance(source, str) and source else None

    @property
    def is_chatml(self) -> bool:
        return "<|im_start|>" in self.source and "<|im_end|>" in self.source and "<|im_sep|>" not in self.source

    @property
    def system(self) -> str | None:
        """The message that the program puts before a conversation without one."""
        found = _SYSTEM.search(self.source)
        return found and found[1].replace("\\n", "\n")

    def pieces(self, messages: list[dict], add_generation_prompt: bool = False) -> Pieces:
        """Raises ConfigError for a template that is not ChatML, DataError for messages that are none."""
        check(messages)
        if not self.is_chatml:
            raise ConfigError("this model's chat template is not ChatML, the one that is read here; give prompts as "
                              "the model wants them, without the template")  # fmt: skip
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        pieces = []
        for message in messages:
            head = (f"<|im_start|>{message['role']}\n", False)
            pieces += [head, (f"{message['content']}<|im_end|>", message["role"] == "assistant"), ("\n", False)]
        return _joined(pieces + [("<|im_start|>assistant\n", False)] * add_generation_prompt)


def plain_pieces(messages: list[dict], begin: str, end: str, add_generation_prompt: bool = False) -> Pieces:
    """For a model that knows no template: "User: ..." and "Assistant: ..." on lines of their own, what the assistant
    says ended by the text's end. begin, end: the texts of those tokens."""
    check(messages)
    pieces = [(begin, False)] * bool(begin)
    for message in messages:
        role = message["role"].capitalize()
        if message["role"] == "assistant":
            pieces += [(f"{role}:", False), (f" {message['content']}{end}", True), ("\n", False)]
        else:
            pieces.append((f"{role}: {message['content']}\n", False))
    return _joined(pieces + [("Assistant:", False)] * add_generation_prompt)


def check(messages):
    """Raise DataError for what is not a conversation."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f'a conversation is a list of {{"role", "content"}}, not {str(messages)[:80]!r}')
    for i, message in enumerate(messages):
        role, content = (message.get(k) for k in ("role", "content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            raise DataError(f'message {i} of the conversation is {str(message)[:80]}; it needs a "role" (one of '
                            f'{", ".join(ROLES)}) and a "content", a text')  # fmt: skip


def _joined(pieces: Pieces) -> Pieces:
    """Neighbours of one kind as one piece."""
    joined: Pieces = []
    for text, target in pieces:
        if joined and joined[-1][1] == target:
            joined[-1] = joined[-1][0] + text, target
        else:
            joined.append((text, target))
    return joined
