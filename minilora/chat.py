"""A conversation with a model, its answers with the adapter on and off side by side.

    chat(model, tokenizer, lines, write)      # lines: what is typed; write: called with what is to be shown

The two sides share what the user says, and each goes on from its own answers. Where a conversation has grown longer
than the model has positions for, its oldest turns are left out, which is said.
"""

import textwrap
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

from minilora.errors import ConfigError, DataError
from minilora.models.generate import generate

COMMANDS = "/quit ends the conversation, /reset begins a new one"
_GAP = 3  # columns between the two answers


@dataclass
class Side:
    """One of the two conversations: its name, what to enter while it answers, and what was said."""

    name: str
    using: Callable
    messages: list[dict[str, str]] = field(default_factory=list)


def sides(model) -> list[Side]:
    """With the adapter and without, or the model alone where it has none."""
    if not hasattr(model, "disable_adapter"):
        return [Side("answer", nullcontext)]
    return [Side("adapter on", nullcontext), Side("adapter off", model.disable_adapter)]


def chat(
    model, tokenizer, lines: Iterable[str], write: Callable[[str], None], max_new_tokens: int = 128,
    template: str | None = None, width: int | None = None, **sampling,
):  # fmt: skip
    """Answer each line until /quit or the last one.

    template: a prompt to put the line into, at {}, in place of the model's chat template; then each line is a
    conversation of its own. width: of a terminal with room for two columns, which are shown when both answers are
    there; else each answer is shown as it comes, one below the other. sampling: generate's temperature and so on.
    Raises ConfigError where the model has no tokenizer or a template that is not read.
    """
    if tokenizer is None:
        raise ConfigError("this model came without a tokenizer, and text cannot be read without one")
    if template is not None and "{}" not in template:
        raise ConfigError(f"the template {template!r} has no {{}}, where what is typed goes")
    both = sides(model)
    for line in map(str.strip, lines):
        if line == "/quit":
            return
        if line == "/reset":
            for side in both:
                side.messages.clear()
        elif line.startswith("/"):
            write(f"there is no command {line.split()[0]}; {COMMANDS}\n")
        elif line:
            try:
                prompts = [_prompt(model, tokenizer, side, line, max_new_tokens, template, write) for side in both]
            except DataError as error:  # it is too long
                write(f"{error}\n")
                continue
            options = {"max_new_tokens": max_new_tokens, "parse_special": template is None} | sampling
            _answer(model, tokenizer, both, prompts, options, write, width)


def _prompt(model, tokenizer, side: Side, line: str, max_new_tokens: int, template: str | None, write) -> str:
    """The side's conversation with a new line, as text; turns that do not fit are taken out of it, the oldest first."""
    if template is not None:
        side.messages, prompt = [], template.replace("{}", line)
    room, forgotten = model.config.max_position_embeddings - max_new_tokens, 0
    messages = [*side.messages, {"role": "user", "content": line}]
    while True:
        if template is None:
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        length = len(tokenizer.prompt(prompt, parse_special=template is None))
        if length <= room or len(messages) == 1:
            break
        del messages[:2]
        forgotten += 1
    if length > room:
        raise DataError(f"{length} tokens and {max_new_tokens} of answer are more than the model's "
                        f"{room + max_new_tokens} positions; say it shorter")  # fmt: skip
    if forgotten:
        write(f"({side.name}: the model has no room any more for the oldest {2 * forgotten} messages)\n")
    side.messages = messages
    return prompt


def _answer(model, tokenizer, both: list[Side], prompts: list[str], options: dict, write, width: int | None):
    texts = []
    for side, prompt in zip(both, prompts, strict=True):
        with side.using():
            if width is None:
                write(f"[{side.name}]\n")
            text = generate(model, tokenizer, prompt, stream=write if width is None else None, **options)
            if width is None:
                write("\n")
        side.messages.append({"role": "assistant", "content": text.strip()})
        texts.append(text.strip())
    if width is not None:
        write(columns([f"[{side.name}]" for side in both], texts, width) + "\n")


def columns(names: list[str], texts: list[str], width: int) -> str:
    """Texts beside each other in `width` characters, each under its name, long lines broken."""
    each = (width - _GAP * (len(texts) - 1)) // len(texts)
    cells = []
    for name, text in zip(names, texts, strict=True):
        broken = [textwrap.wrap(line, each, drop_whitespace=False) or [""] for line in text.split("\n")]
        cells.append([name, *(part for parts in broken for part in parts)])
    rows = [[cell[i] if i < len(cell) else "" for cell in cells] for i in range(max(map(len, cells)))]
    return "\n".join((" " * _GAP).join(part.ljust(each) for part in row).rstrip() for row in rows)
