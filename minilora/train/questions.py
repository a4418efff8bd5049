"""What a model is examined on: examples in tokens, and as a prompt with the answer that should follow.

    questions = from_task("header_json", tokenizer, room=512)
    questions = from_file("test.jsonl", "alpaca", tokenizer, room=512, limit=100)
    questions.examples[0], questions.prompts[0], questions.references[0]

Of a conversation the answer is what the assistant says last. Examples longer than `room` tokens are left out, counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from minilora.data.formats import FORMATS, Pieces, encode_pieces
from minilora.data.rows import open_rows
from minilora.data.tasks import load_task
from minilora.errors import DataError, unknown_name


@dataclass
class Questions:
    """examples: {"input_ids", "labels"}; template: whether prompts hold a chat template's special tokens; left_out: how
    many examples were too long. A prompt is "" where every token is a target: there is nothing to answer. references:
    of each prompt all right answers, the target first."""

    source: str
    template: bool = False
    examples: list[dict] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    references: list[list[str]] = field(default_factory=list)
    left_out: int = 0

    def add(self, pieces: Pieces, tokenizer, room: int, others: Iterable[str] = ()):
        example = encode_pieces(pieces, tokenizer, self.template)
        if len(example["input_ids"]) > room:
            self.left_out += 1
            return
        last = max(i for i, (_, target) in enumerate(pieces) if target)
        self.examples.append(example)
        self.prompts.append("".join(text for text, _ in pieces[:last]))
        end = tokenizer.token(tokenizer.eos_token_id) if self.template else ""
        self.references.append([pieces[last][0].removesuffix(end), *others])

    def answerable(self, tokenizer, room: int, max_new_tokens: int | None = None):
        """(prompts, references, new): the prompts that leave room for `new` tokens of answer, by default those of the
        longest reference and its end; the references of each. Raises DataError where there is none."""
        if not any(self.prompts):
            raise DataError(f"{self.source}: every token is a target, so there is no prompt to generate an answer to")
        lengths = [len(tokenizer.encode(right, self.template)) for rights in self.references for right in rights]
        new = max_new_tokens or max(lengths) + 1
        pairs = zip(self.prompts, self.references, strict=True)
        kept = [(p, r) for p, r in pairs if len(tokenizer.prompt(p, self.template)) + new <= room]
        if not kept:
            raise DataError(f"{self.source}: no prompt leaves room for {new} tokens of answer in the model's {room} "
                            "positions; lower --max-new-tokens")  # fmt: skip
        return [p for p, _ in kept], [r for _, r in kept], new

    def checked(self, room: int) -> "Questions":
        if not self.examples:
            raise DataError(f"{self.source}: each of its {self.left_out} examples has more than {room} tokens, which "
                            "is all that the model has positions for")  # fmt: skip
        return self


def from_task(name: str, tokenizer, room: int, limit: int | None = None) -> Questions:
    """The held-out examples of a task (data/tasks.py). Raises UnknownNameError, DataError."""
    questions = Questions(f"task {name}, held-out")
    for example in load_task(name).held_out[:limit]:
        questions.add([(example.prompt, False), (example.response, True)], tokenizer, room)
    return questions.checked(room)


def from_file(path, kind: str, tokenizer, room: int, limit: int | None = None) -> Questions:
    """The first rows of a file, of a type in data/formats.py. Raises UnknownNameError, and DataError
    naming file and row."""
    if kind not in FORMATS:
        raise unknown_name("type", kind, FORMATS)
    questions, rows = Questions(str(path), kind == "chat_template"), open_rows(path)
    for i in range(len(rows) if limit is None else min(limit, len(rows))):
        try:
            pieces = FORMATS[kind](rows[i], tokenizer)
            others = rows[i]["answers"]["text"][1:] if kind == "squad_v2" else []
            questions.add(pieces, tokenizer, room, others)
        except DataError as error:
            raise DataError(f"{path}, row {i}: {error}") from None
    return questions.checked(room)
