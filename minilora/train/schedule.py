"""Learning-rate schedules: step -> a factor of the learning rate. All begin with a linear warm-up.

"constant" with a warm-up warms up (Hugging Face's silently does not; its name for this is constant_with_warmup).
"""

import math

from minilora.errors import unknown_name


def _linear(rest: float) -> float:
    return rest


def _cosine(rest: float) -> float:
    return 0.5 * (1 - math.cos(math.pi * rest))


def _constant(rest: float) -> float:
    return 1.0


def _stable_decay(rest: float) -> float:
    """Constant for two fifths, then linear, and never below a fiftieth."""
    return max(0.02, min(1.0, rest / 0.6))


SCHEDULES = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "constant_with_warmup": _constant,
    "warmup_stable_decay": _stable_decay,
}


def learning_rate_factor(kind: str, step: int, total: int, warmup: int = 0) -> float:
    """The factor of update `step` (from 0) of `total`."""
    if kind not in SCHEDULES:
        raise unknown_name("lr_scheduler_type", kind, SCHEDULES)
    if step < warmup:
        return (step + 1) / warmup
    return SCHEDULES[kind]((total - step) / max(1, total - warmup))
