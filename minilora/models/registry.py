"""load_model: a model by its name or its path.

model, tokenizer = load_model("embedded")          # our own small base, shipped with the package
model, tokenizer = load_model("smollm2-135m")      # after `minilora fetch smollm2-135m`
encoder, tokenizer = load_model("minilm-l6")       # a sentence encoder, for models.embed.encode
model, tokenizer = load_model("path/to/model.gguf")   # or a Hugging Face folder; tokenizer None where it has none
"""

from pathlib import Path

from minilora.errors import FileFormatError, unknown_name
from minilora.models import checkpoint, fetch
from minilora.models.tokenizer import Tokenizer
from minilora.nn import Module

EMBEDDED = Path(__file__).parent / "embedded"


def load_model(name_or_path) -> tuple[Module, Tokenizer | None]:
    """A float32 model in eval mode, and its tokenizer: a BertModel where a folder's config.json says "bert", else a
    language model. Raises UnknownNameError, FileFormatError, FetchError.
    """
    name = str(name_or_path)
    if name == "embedded":
        return checkpoint.load_folder(EMBEDDED)
    path = fetch.cached(name) if name in fetch.PACKAGES else Path(name_or_path)
    if path.is_dir():
        return checkpoint.load_folder(path)
    if path.is_file():
        return checkpoint.load_gguf(path)
    if path.suffix == ".gguf" or "/" in name:
        raise FileFormatError(f"there is no model file or folder {name}")
    raise unknown_name("model", name, ["embedded", *fetch.PACKAGES])
