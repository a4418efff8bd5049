"""What the studies of quantization quantize: two arrays of random numbers and the linear weights of models.

    subject = SUBJECTS["minilm-l6"](quick=False, seed=0)      # raises FetchError if it has not been fetched
    subject.weights                        # the Parameters that are quantized
    subject.quality()                      # of the model with the weights that it has now
    subject.by_text()                      # the same, of each text apart

A model's weights are those of its linear layers; embeddings, output head, norms and biases stay float, as in QLoRA.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minilora.autograd import no_grad
from minilora.data.stdlib import source_files
from minilora.models.embed import encode
from minilora.models.registry import load_model
from minilora.nn import Linear, Module, Parameter

ALL_BLOCKSIZES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
WINDOW = 512  # tokens that see each other when a perplexity is measured
SMOLLM2 = "SmolLM2-135M, from a file that is already quantized (Q4_1)"
_SKIP = ("lm_head", "pooler.dense")  # the pooler plays no part in a sentence embedding


@dataclass
class Subject:
    """weights: Parameters (rows, columns), whose .data the study replaces and puts back.

    quality: how well the model works with the weights that it has now (None for arrays): `measure`, over `texts`.
    by_text: the same of each text, whose mean is the quality; of a perplexity the loss, in nats a token.
    others: how many parameters the model has beside the weights.
    theory: whether the weights are N(0, 1), of which expected_error speaks.
    """

    title: str
    weights: list[Parameter]
    blocksizes: tuple[int, ...]
    measure: str = ""
    texts: str = ""
    quality: Callable[[], float] | None = None
    by_text: Callable[[], np.ndarray] | None = None
    others: int = 0
    theory: bool = False


def normal(quick: bool, seed: int) -> Subject:
    side = 1024 if quick else 2048
    x = np.random.default_rng([seed, 0]).standard_normal((side, side), np.float32)
    return Subject(f"N(0, 1), {side} x {side} numbers", [Parameter(x)], ALL_BLOCKSIZES, theory=True)


def student(quick: bool, seed: int) -> Subject:
    """Heavier tails than normal, as trained weights have, and a few outliers far beyond them."""
    side, rng = 1024 if quick else 2048, np.random.default_rng([seed, 1])
    x = rng.standard_t(5, (side, side)).astype(np.float32)
    x[rng.random(x.shape) < 1e-4] *= 20
    title = f"Student's t, 5 degrees of freedom, one in 10,000 times 20, {side} x {side} numbers"
    return Subject(title, [Parameter(x)], ALL_BLOCKSIZES)


def minilm(quick: bool, seed: int) -> Subject:
    model, tokenizer = load_model("minilm-l6")
    texts = sentences(16 if quick else 256)
    exact = encode(model, tokenizer, texts).astype(np.float64)

    def cosines() -> np.ndarray:
        e = encode(model, tokenizer, texts).astype(np.float64)
        return (exact * e).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(e, axis=1)

    weights = linear_weights(model)
    return Subject(
        "MiniLM-L6, a float32 sentence encoder", weights,
        (64, 512) if quick else (32, 64, 128, 256, 1024, 4096),
        "1 - cosine", f"the embeddings of {len(texts)} sentences of pydoc's topics, float and quantized",
        lambda: float(1 - cosines().mean()), lambda: 1 - cosines(), _others(model, weights),
    )  # fmt: skip


def smollm2(quick: bool, seed: int) -> Subject:
    model, tokenizer = load_model("smollm2-135m")
    ids = np.array(tokenizer.encode(_topics(every=6)))
    ids = ids[: min(17, ids.size // WINDOW) * WINDOW].reshape(-1, WINDOW)
    return language_model(SMOLLM2, model, ids, f"{ids.size:,} tokens of pydoc's topics in windows of {WINDOW}")


def language_model(title: str, model: Module, ids: np.ndarray, texts: str, blocksizes=(64, 1024)) -> Subject:
    """ids: (texts, tokens), each row a text of its own, whose first token only begins it."""

    def losses() -> np.ndarray:
        with no_grad():
            return np.array([model.loss(row[None], row[None]).item() for row in ids])

    weights = linear_weights(model)
    return Subject(title, weights, blocksizes, "perplexity", texts, lambda: float(np.exp(losses().mean())), losses,
                   _others(model, weights))  # fmt: skip


def documents(tokenizer, count: int, length: int, source: str) -> np.ndarray:
    """(count, length) token numbers: the beginnings of so many texts that are long enough, spread evenly over all.

    source: "topics", pydoc's; "files", of the standard library, of those that no model of ours was trained on.
    """
    if source == "topics":
        texts = [text for _, text in sorted(_all_topics().items())]
    else:
        texts = [file.text for file in source_files("held-out")]
    rows = [[*tokenizer.begin(), *tokenizer.encode(text)][:length] for text in texts if len(text) >= length]
    rows = [row for row in rows if len(row) == length]
    count = min(count, len(rows))
    return np.array([rows[i * len(rows) // count] for i in range(count)])


SUBJECTS = {"normal": normal, "student-t": student, "minilm-l6": minilm, "smollm2-135m": smollm2}


def _others(model: Module, weights: list[Parameter]) -> int:
    return model.num_parameters() - sum(p.size for p in weights)


def linear_weights(model: Module) -> list[Parameter]:
    """The weights of a model's linear layers, but for the output head and a pooler."""
    return [m.weight for path, m in model.named_modules() if isinstance(m, Linear) and not path.endswith(_SKIP)]


def sentences(count: int) -> list[str]:
    """English sentences of 6 to 40 words from pydoc's topics, the same on every machine with the same Python.

    They are spread evenly over all there are; fewer than `count` if there are fewer.
    """
    found = []
    for paragraph in _topics().split("\n\n"):
        for sentence in re.split(r"(?<=[a-z]\.)\s+(?=[A-Z])", " ".join(paragraph.split())):
            if re.fullmatch(r"[A-Z][a-z].*[a-z]\.", sentence) and 6 <= len(sentence.split()) <= 40:
                found.append(sentence)
    found = list(dict.fromkeys(found))
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def _topics(every: int = 1) -> str:
    topics = _all_topics()
    return "\n\n".join(topics[name] for name in sorted(topics)[::every])


def _all_topics() -> dict[str, str]:
    from pydoc_data.topics import topics  # 0.7 MB that nothing else needs

    return topics
