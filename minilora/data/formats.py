"""From a row of a dataset to text, and from text to an example with its targets marked.

    pieces = FORMATS["alpaca"](row, tokenizer)        # [("### Instruction: ...", False), ("the answer", True)]
    encode_pieces(pieces, tokenizer)                  # {"input_ids": [...], "labels": [...]}

A piece is a text and whether its tokens are targets. Masking is by position, never by looking for a token: a padding
or end token that is part of the answer stays a target. Names of formats are axolotl's where it has them.
"""

from collections.abc import Callable

from minilora.errors import DataError

IGNORE = -100
UNANSWERABLE = "unanswerable"  # what a model is to say where a context has no answer
Pieces = list[tuple[str, bool]]

# The template of Stanford Alpaca's data set card, whose wording its models were trained on.
_ALPACA = "Below is an instruction that describes a task"
_ALPACA_WITH_INPUT = f"{_ALPACA}, paired with an input that provides further context"
_ALPACA_END = "Write a response that appropriately completes the request."


def alpaca(row: dict, tokenizer=None) -> Pieces:
    """{"instruction", "input" (may be empty or missing), "output"}."""
    instruction, output = _text(row, "instruction"), _text(row, "output")
    if given := str(row.get("input") or ""):
        head = f"{_ALPACA_WITH_INPUT}. {_ALPACA_END}\n\n### Instruction:\n{instruction}\n\n### Input:\n{given}"
    else:
        head = f"{_ALPACA}. {_ALPACA_END}\n\n### Instruction:\n{instruction}"
    return [(f"{head}\n\n### Response:\n", False), (output, True)]


def squad_v2(row: dict, tokenizer=None) -> Pieces:
    """{"context", "question", "answers": {"text": [...]}}; no answer in the list means that the context has none."""
    answers = row.get("answers")
    if not isinstance(answers, dict) or not isinstance(answers.get("text"), list):
        raise DataError('squad_v2 needs "answers": {"text": [...], "answer_start": [...]} (empty: not answerable)')
    context, question = _text(row, "context"), _text(row, "question")
    for text, start in zip(answers["text"], answers.get("answer_start", []), strict=False):
        if context[start : start + len(text)] != text:
            raise DataError(f"answer {text!r} is not at character {start} of its context")
    answer = answers["text"][0] if answers["text"] else UNANSWERABLE
    return [(f"Context: {context}\nQuestion: {question}\nAnswer: ", False), (answer, True)]


def completion(row: dict, tokenizer=None) -> Pieces:
    """{"text"}: every token is a target."""
    return [(_text(row, "text"), True)]


def chat_template(row: dict, tokenizer=None) -> Pieces:
    """{"messages": [{"role", "content"}, ...]} in the tokenizer's template; what the assistant says are the targets."""
    messages = row.get("messages", row.get("conversations"))
    if not isinstance(messages, list) or not messages:
        raise DataError('chat_template needs "messages": a list of {"role", "content"}')
    if not any(isinstance(m, dict) and m.get("role") == "assistant" for m in messages):
        raise DataError("no message of the conversation is the assistant's: there is nothing to learn from it")
    return tokenizer.chat_pieces(messages)


FORMATS: dict[str, Callable[[dict, object], Pieces]] = {
    "alpaca": alpaca,
    "squad_v2": squad_v2,
    "completion": completion,
    "chat_template": chat_template,
}


def encode_pieces(pieces: Pieces, tokenizer, template: bool = False) -> dict[str, list[int]]:
    """{"input_ids", "labels"}: begun and ended as the tokenizer does; labels are -100 where a token is no target.

    template: the pieces hold special tokens of a chat template, which then also ends the text.
    """
    ids = [*tokenizer.begin()] if not template else []
    labels = [IGNORE] * len(ids)
    for text, target in pieces:
        part = tokenizer.encode(text, parse_special=template)
        ids += part
        labels += part if target else [IGNORE] * len(part)
    if not template:
        ids.append(tokenizer.eos_token_id)
        labels.append(tokenizer.eos_token_id)
    return {"input_ids": ids, "labels": labels}


def _text(row: dict, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value:
        found = "is missing" if field not in row else f"is {value!r}"
        raise DataError(f"field {field!r} {found}; the row has {', '.join(map(repr, row)) or 'no field'}")
    return value
