"""Tokens through the `tokenizers` library: our byte-level BPE for the embedded model, and what others' files hold.

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.decode(tokenizer.encode("def f(x):")) == "def f(x):"
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from minilora.errors import FileFormatError
from minilora.models.templates import Pieces, Template, plain_pieces

END_OF_TEXT = "<|endoftext|>"
# Newline with its indentation, spaces, words split at a change of case, single digits, single signs.
_SOURCE_WORDS = r"\n *| +|[A-Z]?[a-z]+|[A-Z]+|[0-9]|[^A-Za-z0-9\s]|\s"


class Tokenizer:
    """Text to token numbers and back. eos_token_id ends a text, bos_token_id, if any, begins it.
    chat_template: how the model writes conversations, where it says so (see templates.py)."""

    def __init__(
        self, backend, eos_token_id: int, bos_token_id: int | None = None, chat_template: Template | None = None
    ):
        self.backend = backend
        self.eos_token_id, self.bos_token_id = eos_token_id, bos_token_id
        self.chat_template = chat_template

    @classmethod
    def from_file(
        cls, path, eos_token: str = END_OF_TEXT, bos_token: str | None = None, chat_template: Template | None = None
    ) -> "Tokenizer":
        """Read a tokenizer.json. Raises FileFormatError where there is none or it lacks a token."""
        import tokenizers

        path = Path(path)
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise FileFormatError(f"{path} is not a readable tokenizer.json: {error}") from error
        backend.no_truncation()  # a file may ask to cut and pad texts, as MiniLM's does; batches are made elsewhere
        backend.no_padding()
        for token in (eos_token, bos_token):
            if token is not None and backend.token_to_id(token) is None:
                raise FileFormatError(f"{path} has no token {token!r} to begin or end a text with")
        return cls(backend, backend.token_to_id(eos_token), bos_token and backend.token_to_id(bos_token), chat_template)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """A byte-level BPE vocabulary for source code, learned from texts; the same texts give the same one."""
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SOURCE_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        end = backend.token_to_id(END_OF_TEXT)
        return cls(backend, end, end)  # a text also begins with it

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def token(self, number: int) -> str:
        return self.backend.id_to_token(number)

    def begin(self) -> list[int]:
        """The tokens that a text begins with: one or none."""
        return [] if self.bos_token_id is None else [self.bos_token_id]

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Token numbers. Text that spells a special token is plain text unless parse_special (as for a template)."""
        self.backend.encode_special_tokens = not parse_special
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of tokens as they come, held back while a character's bytes are incomplete."""
        seen, done = [], ""
        for i in ids:
            seen.append(i)
            text = self.decode(seen)
            if not text.endswith("\ufffd"):
                yield text[len(done) :]
                done = text

    def to_json(self) -> str:
        return self.backend.to_str()

    def prompt(self, text: str, parse_special: bool = False) -> list[int]:
        """The tokens of a text to go on from, begun as texts are, unless the text itself begins so (a template's)."""
        ids, begin = self.encode(text, parse_special), self.begin()
        return ids if ids[: len(begin)] == begin else begin + ids

    def chat_pieces(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> Pieces:
        """A conversation, [{"role": "user", "content": "..."}, ...], as texts, and whether each is what the assistant
        says, with the token that ends it: what a model is to learn. Encode them with parse_special.

        Raises DataError for messages that are none, ConfigError where the model's template is of a kind we do not read.
        """
        if self.chat_template is not None:
            return self.chat_template.pieces(messages, add_generation_prompt)
        begin = "".join(map(self.token, self.begin()))
        return plain_pieces(messages, begin, self.token(self.eos_token_id), add_generation_prompt)

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        """The conversation as one text; add_generation_prompt: up to where the assistant's answer begins."""
        return "".join(text for text, _ in self.chat_pieces(messages, add_generation_prompt))
