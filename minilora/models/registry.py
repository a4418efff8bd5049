"""load_model: a model by its name or its path.

model, tokenizer = load_model("embedded")          # our own small base, shipped with the package
model, tokenizer = load_model("smollm2-135m")      # after `minilora fetch smollm2-135m`
model, tokenizer = load_model("path/to/model.gguf")   # or a Hugging Face folder; tokenizer None where it has none
"""

from pathlib import Path

from minilora.errors import FileFormatError, unknown_name
from minilora.models import checkpoint, fetch
from minilora.models.tokenizer import Tokenizer
from minilora.nn import CausalLM

EMBEDDED = Path(__file__).parent / "embedded"


def load_model(name_or_path) -> tuple[CausalLM, Tokenizer | None]:
    """A float32 CausalLM in eval mode and its tokenizer. Raises UnknownNameError, FileFormatError, FetchError."""
    name = str(name_or_path)
    if name == "embedded":
        return checkpoint.load_folder(EMBEDDED)
    if name in fetch.PACKAGES:
        return checkpoint.load_gguf(fetch.cached(name))
    path = Path(name_or_path)
    if path.is_dir():
        return checkpoint.load_folder(path)
    if path.is_file():
        return checkpoint.load_gguf(path)
    if path.suffix == ".gguf" or "/" in name:
        raise FileFormatError(f"there is no model file or folder {name}")
    raise unknown_name("model", name, ["embedded", *fetch.PACKAGES])
