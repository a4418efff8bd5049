"""Three ways to tell a transformer where its tokens are, each a table of constants computed once.

    sinusoidal_table(length, d)               # added to the embeddings (arXiv:1706.03762, section 3.5)
    rotary_table(length, head_dim, theta)     # angles by which queries and keys are turned (arXiv:2104.09864)
    alibi_slopes(heads)                       # a penalty on the distance, per head (arXiv:2108.12409)

The fourth way, learned positions as in GPT-2, is an Embedding.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from minilora.errors import ConfigError


@functools.lru_cache(maxsize=8)
def sinusoidal_table(length: int, d: int) -> np.ndarray:
    """(length, d) float32: the sines of position · 10000^(-2i/d), then their cosines, i < d/2.

    The paper's formula interleaves sines and cosines. That is the same model with its dimensions in another order; in
    halves is how Marian's files have it.
    """
    cos, sin = rotary_table(length, d, 10000.0)
    return np.concatenate([sin, cos], axis=1)


@dataclass(frozen=True)
class RopeScaling:
    """How a rotary model was taken to longer texts than it was first trained on; fields as in Hugging Face's files.

    "linear" divides every frequency by `factor` (arXiv:2306.15595). "llama3" leaves alone the frequencies that turn
    more than high_freq_factor times within the original length, divides by `factor` those that turn less than
    low_freq_factor times, and interpolates between the two (arXiv:2407.21783). Raises ConfigError.
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self):
        if self.rope_type not in ("linear", "llama3"):
            raise ConfigError(f"rope_type is 'linear' or 'llama3', not {self.rope_type!r}")
        if not (self.factor >= 1 and 0 < self.low_freq_factor < self.high_freq_factor
                and self.original_max_position_embeddings > 0):  # fmt: skip
            raise ConfigError(f"factor >= 1, 0 < low_freq_factor < high_freq_factor, a positive length; not {self}")

    def __call__(self, frequency: np.ndarray) -> np.ndarray:
        """frequency: radians per position."""
        if self.rope_type == "linear":
            return frequency / self.factor
        turns = self.original_max_position_embeddings * frequency / (2 * math.pi)
        kept = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return frequency * (kept + (1 - kept) / self.factor)


@functools.lru_cache(maxsize=8)
def rotary_table(
    length: int, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin (length, head_dim/2) of position · theta^(-2i/head_dim), float32."""
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angle = np.arange(length)[:, None] * (frequency if scaling is None else scaling(frequency))
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def alibi_slopes(heads: int) -> np.ndarray:
    """(heads,) float32: head h adds -slope · distance to its scores, slopes 2^(-8 (h+1) / heads).

    Where heads is not a power of two, the slopes of the next smaller one are followed by every other slope of the next
    larger one, as in the authors' code.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = 2.0 ** (-8 / power * np.arange(1, power + 1))
    between = 2.0 ** (-8 / (2 * power) * np.arange(1, 2 * power, 2))
    return np.concatenate([slopes, between[: heads - power]]).astype(np.float32)
