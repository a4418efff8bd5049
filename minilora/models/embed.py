"""Sentence embeddings: texts to unit vectors, near to each other where the texts mean the same.

model, tokenizer = load_model("minilm-l6")
e = encode(model, tokenizer, ["A man is eating.", "Somebody eats."])     # (2, 384) float32
e @ e.T                                                                  # cosines

e = m / |m|, m the mean of the encoder's hidden states over a text's tokens, [CLS] and [SEP] included, padding not
(Sentence-BERT, arXiv:1908.10084; pooling, normalisation and 256 tokens as in all-MiniLM-L6-v2's files).
"""

from collections.abc import Sequence

import numpy as np

from minilora import ops
from minilora.autograd import Tensor, no_grad
from minilora.errors import DataError


def embed(model, ids, attention_mask=None) -> Tensor:
    """Unit vectors (B, d) of token ids (B, T), differentiable. attention_mask (B, T): true or 1 for tokens."""
    ids = np.asarray(ids)
    hidden = model(ids, attention_mask)  # (B, T, d)
    mask = np.ones(ids.shape) if attention_mask is None else np.asarray(attention_mask).astype(bool)
    share = (mask / mask.sum(1, keepdims=True)).astype(hidden.dtype)  # (B, T), a row's shares sum to 1
    mean = ops.matmul(share[:, None], hidden)[:, 0]  # (B, d)
    return mean / (mean * mean).sum(axis=1, keepdims=True).sqrt()  # (B, d)


def encode(model, tokenizer, texts: Sequence[str], batch_size: int = 32, max_length: int = 256) -> np.ndarray:
    """Unit vectors (N, d), float32, of N texts. A text is cut to max_length tokens, [CLS] and [SEP] included.

    Raises DataError for a max_length that the model has no positions for, or a single string in place of a list.
    """
    if isinstance(texts, str):
        raise DataError("texts is a list of strings; for a single text pass [text]")
    if not 2 <= max_length <= model.config.max_position_embeddings:
        raise DataError(f"max_length is {max_length}; the model takes 2 to {model.config.max_position_embeddings}")
    first, last = tokenizer.begin(), [tokenizer.eos_token_id]
    rows = [[*first, *tokenizer.encode(text)[: max_length - 2], *last] for text in texts]
    out = np.empty((len(rows), model.config.hidden_size), np.float32)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # texts of like length together: less padding
    for start in range(0, len(rows), batch_size):
        batch = order[start : start + batch_size]
        lengths = np.array([len(rows[i]) for i in batch])
        mask = np.arange(lengths.max()) < lengths[:, None]  # (B, T)
        ids = np.zeros(mask.shape, int)
        ids[mask] = np.concatenate([rows[i] for i in batch])
        with no_grad():
            out[batch] = embed(model, ids, mask).data
    return out
