"""Which numbers a training step computes in, and what float16's short range asks for.

    precision = Precision("float16")
    with precision.autocast():
        (loss * precision.scale).backward()
    fine = precision.unscale(params)          # False: the gradients overflowed, leave this update out

float16's smallest normal number is 6e-5: small gradients vanish. So the loss is multiplied by a large power of two,
which multiplies every gradient, and the gradients are divided by it afterwards in float32. The factor halves when a
gradient overflows, and that update is skipped; it doubles after `patience` updates that did not (Micikevicius et al.,
"Mixed Precision Training", arXiv:1710.03740, section 3.2). bfloat16 has float32's range and needs none of this.
"""

from contextlib import contextmanager

import numpy as np

from minilora import autograd


class Precision:
    """dtype: "float32", "bfloat16" or "float16"."""

    def __init__(self, dtype: str = "float32", scale: float = 2.0**16, patience: int = 2000):
        self.dtype, self.patience, self.good = dtype, patience, 0
        self.scale = scale if dtype == "float16" else 1.0

    @contextmanager
    def autocast(self):
        """Within it ops are computed in this type; float16's overflows are expected, and no warning."""
        expected = {"over": "ignore", "invalid": "ignore"} if self.dtype == "float16" else {}
        with np.errstate(**expected), autograd.autocast(None if self.dtype == "float32" else self.dtype):
            yield

    def unscale(self, params) -> bool:
        """Divide the gradients by the scale; whether they are finite, where overflow is to be expected (float16)."""
        if self.dtype != "float16":
            return True
        finite = True
        for p in params:
            if p.grad is not None:
                p.grad *= np.float32(1 / self.scale)
                finite = finite and bool(np.isfinite(p.grad).all())
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale = max(1.0, self.scale / 2)
        elif self.good == self.patience:
            self.scale, self.good = self.scale * 2, 0
        return finite

    def state(self) -> dict:
        return {"scale": self.scale, "good": self.good}

    def restore(self, state: dict):
        self.scale, self.good = state["scale"], state["good"]
