"""Text from a model, a token at a time, with a key/value cache.

generate(model, tokenizer, "def f(x):", max_new_tokens=32)                     # greedy
generate(model, tokenizer, "def f(x):", temperature=0.8, top_p=0.95, seed=0)   # sampled
generate_batch(model, tokenizer, ["def f(x):", "import"])                      # several at once, faster than in turn

The rows of a batch end where the next token goes, so shorter ones are padded on their left: a token there is seen by
none of the row's own, and positions are counted from the first of these. A row that has ended leaves the batch.
"""

from collections.abc import Iterator

import numpy as np

from minilora.autograd import no_grad
from minilora.backend import to_numpy
from minilora.errors import ConfigError, DataError


def generate_rows(
    model, rows: list[list[int]], max_new_tokens: int, eos_token_id: int | None = None, temperature: float = 0.0,
    top_k: int | None = None, top_p: float | None = None, seeds: list | None = None,
    adapter_names: list[str] | None = None,
) -> Iterator[tuple[int, int]]:  # fmt: skip
    """Yield (row, new token), a step of every row after the other, each row until eos_token_id (which is not yielded)
    or max_new_tokens. seeds, adapter_names: one for each row; see generate_batch.

    temperature 0 takes the likeliest token; else p ∝ exp(logits / temperature) among the top_k likeliest and, of
    these, the fewest that hold top_p of the probability (arXiv:1904.09751). Raises DataError if the model's
    positions do not suffice.
    """
    if not all(rows):
        raise DataError("the prompt is empty: a model needs at least one token to go on from")
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise ConfigError(
            f"temperature >= 0, top_k >= 1 and 0 < top_p <= 1, please; got {temperature}, {top_k}, {top_p}"
        )
    longest, room = max(map(len, rows)), model.config.max_position_embeddings
    if longest + max_new_tokens > room:
        raise DataError(f"{longest} tokens of prompt and {max_new_tokens} new ones exceed the model's {room} positions")
    ids, mask = np.zeros((len(rows), longest), int), np.zeros((len(rows), longest), bool)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :], mask[i, longest - len(row) :] = row, True
    padded, left = not mask.all(), np.arange(len(rows))  # left: the rows that have not ended
    rngs = [np.random.default_rng(seed) for seed in seeds or [None] * len(rows)]
    cache = model.new_cache(len(rows), longest + max_new_tokens)
    for _ in range(max_new_tokens):
        options = {"attention_mask": mask} if padded else {}
        if adapter_names is not None:
            options["adapter_names"] = [adapter_names[i] for i in left]
        with no_grad():
            logits = to_numpy(model(ids, cache=cache, last_only=True, **options).data[:, 0])  # (rows left, V)
        if temperature == 0:
            tokens = logits.argmax(-1)
        else:
            chosen = [_sample(z, temperature, top_k, top_p, rngs[i]) for i, z in zip(left, logits, strict=True)]
            tokens = np.array(chosen)
        on = np.ones(len(left), bool) if eos_token_id is None else tokens != eos_token_id
        tokens = tokens[on]
        if not on.all():
            left, mask = left[on], mask[on]
            if not len(left):
                return
            cache.keep(on)
        yield from zip(left.tolist(), tokens.tolist(), strict=True)
        ids, mask = tokens[:, None], np.concatenate([mask, np.ones((len(left), 1), bool)], axis=1)


def generate_tokens(
    model, ids: list[int], max_new_tokens: int, eos_token_id: int | None = None,
    temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, seed: int | None = None,
) -> Iterator[int]:  # fmt: skip
    """Yield new tokens after the prompt `ids`: generate_rows of one row."""
    rows = generate_rows(model, [ids], max_new_tokens, eos_token_id, temperature, top_k, top_p, [seed])
    return (token for _, token in rows)


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
    ids = _prompts(tokenizer, [prompt], parse_special)[0]
    tokens = generate_tokens(model, ids, max_new_tokens, tokenizer.eos_token_id, temperature, top_k, top_p, seed)
    pieces = []
    for piece in tokenizer.stream(tokens):
        pieces.append(piece)
        if stream:
            stream(piece)
    return "".join(pieces)


def generate_batch(
    model, tokenizer, prompts: list[str], max_new_tokens: int = 64, temperature: float = 0.0, top_k: int | None = None,
    top_p: float | None = None, seed: int | None = None, adapter_names: list[str] | None = None,
    parse_special: bool = False, batch_size: int = 16,
) -> list[str]:  # fmt: skip
    """The text that follows each prompt, as `generate` gives it (of sampled ones, with the seed [seed, number of the
    prompt]), within rounding.

    adapter_names: the adapter of each prompt, "__base__" for none. batch_size: prompts at once, those of like length
    together. Raises as generate, and ConfigError for names where there are no adapters or not one for each prompt.
    """
    if isinstance(prompts, str):
        raise DataError("prompts is a list of strings; for a single one there is generate()")
    if adapter_names is not None and (len(adapter_names) != len(prompts) or not hasattr(model, "peft_config")):
        raise ConfigError(f"adapter_names has {len(adapter_names)} names for {len(prompts)} prompts of a "
                          f"{type(model).__name__}; it needs one for each, and a model with adapters")  # fmt: skip
    rows = _prompts(tokenizer, prompts, parse_special)
    answers: list[list[int]] = [[] for _ in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        seeds = None if seed is None else [[seed, i] for i in batch]
        names = None if adapter_names is None else [adapter_names[i] for i in batch]
        options = max_new_tokens, tokenizer.eos_token_id, temperature, top_k, top_p, seeds, names
        for i, token in generate_rows(model, [rows[i] for i in batch], *options):
            answers[batch[i]].append(token)
    return ["".join(tokenizer.stream(tokens)) for tokens in answers]


def _prompts(tokenizer, prompts: list[str], parse_special: bool) -> list[list[int]]:
    if tokenizer is None:
        raise ConfigError("this model came without a tokenizer; generate_tokens(model, ids, n) takes and gives numbers")
    return [tokenizer.prompt(prompt, parse_special) for prompt in prompts]
