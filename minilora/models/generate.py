"""Text from a model, a token at a time, with a key/value cache.

generate(model, tokenizer, "def f(x):", max_new_tokens=32)                     # greedy
generate(model, tokenizer, "def f(x):", temperature=0.8, top_p=0.95, seed=0)   # sampled
"""

from collections.abc import Iterator

import numpy as np

from minilora.autograd import no_grad
from minilora.backend import to_numpy
from minilora.errors import ConfigError, DataError


def generate_tokens(
    model, ids: list[int], max_new_tokens: int, eos_token_id: int | None = None,
    temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, seed: int | None = None,
) -> Iterator[int]:  # fmt: skip
    """Yield new tokens after the prompt `ids` until eos_token_id (which is not yielded) or max_new_tokens.

    temperature 0 takes the likeliest token; else p ∝ exp(logits / temperature) among the top_k likeliest and, of
    these, the fewest that hold top_p of the probability (arXiv:1904.09751). Raises DataError if the model's
    positions do not suffice.
    """
    if not ids:
        raise DataError("the prompt is empty: a model needs at least one token to go on from")
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ConfigError(
            f"temperature >= 0, top_k >= 1 and 0 < top_p <= 1, please; got {temperature}, {top_k}, {top_p}"
        )
    room = model.config.max_position_embeddings
    if len(ids) + max_new_tokens > room:
        raise DataError(
            f"{len(ids)} tokens of prompt and {max_new_tokens} new ones exceed the model's {room} positions"
        )
    rng, cache = np.random.default_rng(seed), model.new_cache(1, len(ids) + max_new_tokens)
    step = np.array([ids])
    for _ in range(max_new_tokens):
        with no_grad():
            logits = to_numpy(model(step, cache=cache, last_only=True).data[0, 0])
        token = int(logits.argmax()) if temperature == 0 else _sample(logits, temperature, top_k, top_p, rng)
        if token == eos_token_id:
            return
        yield token
        step = np.array([[token]])


def _sample(logits: np.ndarray, temperature: float, top_k, top_p, rng: np.random.Generator) -> int:
    order = np.argsort(-logits, kind="stable")[:top_k]
    z = logits[order].astype(np.float64) / temperature
    p = np.exp(z - z[0])
    p /= p.sum()
    if top_p is not None:
        p = p[: int(np.searchsorted(p.cumsum(), top_p)) + 1]
        p /= p.sum()
    return int(order[rng.choice(len(p), p=p)])


def generate(
    model, tokenizer, prompt: str, max_new_tokens: int = 64, temperature: float = 0.0, top_k: int | None = None,
    top_p: float | None = None, seed: int | None = None, stream=None, parse_special: bool = False,
) -> str:  # fmt: skip
    """The text that follows `prompt`. stream: called with each piece of text as it comes.
    parse_special: read special tokens in the prompt as such (a chat template has some)."""
    if tokenizer is None:
        raise ConfigError("this model came without a tokenizer; generate_tokens(model, ids, n) takes and gives numbers")
    ids = [*tokenizer.begin(), *tokenizer.encode(prompt, parse_special)]
    tokens = generate_tokens(model, ids, max_new_tokens, tokenizer.eos_token_id, temperature, top_k, top_p, seed)
    pieces = []
    for piece in tokenizer.stream(tokens):
        pieces.append(piece)
        if stream:
            stream(piece)
    return "".join(pieces)
