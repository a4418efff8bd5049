"""AdamW with its state in 8 bits: two bytes a weight instead of eight.

    optimizer = AdamW8bit(params, lr=1e-3)

The first moment is stored in the signed dynamic map, the second, which is never negative, in the unsigned one, both in
blocks of 256 with a float32 absmax each ("8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861). An update
is computed in float32 from what the codes stand for, and stored again: each step adds the rounding of one quantization.
Parameters of fewer than 4,096 entries keep float32 state, as in bitsandbytes: they cost nothing.

One thing is not as there: a second moment above zero is never stored as zero, but as the smallest level at least. A
gradient 2,000 times smaller than its block's largest has a square below half that level. Stored as zero, it would be
divided by, and its weight take a step of m / ε.
"""

from dataclasses import dataclass

import numpy as np

from minilora.backend import array_namespace, kernels_for
from minilora.quant.codebooks import DYNAMIC_MAP, UNSIGNED_DYNAMIC_MAP
from minilora.train.optim import AdamW

BLOCKSIZE = 256
SMALLEST = 4096  # entries that a parameter needs for its state to be quantized


@dataclass
class Moment:
    """One of Adam's moments of one parameter: codes uint8 (n,), absmax float32 (ceil(n/256),)."""

    levels: np.ndarray
    codes: np.ndarray
    absmax: np.ndarray

    @classmethod
    def zeros(cls, p, levels: np.ndarray) -> "Moment":
        xp, zero = array_namespace(p.data), int(np.flatnonzero(levels == 0)[0])
        return cls(levels, xp.full(p.size, zero, np.uint8), xp.zeros(-(-p.size // BLOCKSIZE), np.float32))

    def read(self, part: slice) -> np.ndarray:
        """float32, of whole blocks."""
        blocks = slice(part.start // BLOCKSIZE, -(-part.stop // BLOCKSIZE))
        codes = self.codes[part]
        return kernels_for(codes).dequantize_8bit(codes, self.absmax[blocks], self.levels, BLOCKSIZE)

    def write(self, part: slice, values: np.ndarray):
        blocks = slice(part.start // BLOCKSIZE, -(-part.stop // BLOCKSIZE))
        codes, self.absmax[blocks] = kernels_for(values).quantize_8bit(values, self.levels, BLOCKSIZE)
        if self.levels is UNSIGNED_DYNAMIC_MAP:  # whose code 0 is zero
            codes = np.maximum(codes, values > 0)
        self.codes[part] = codes


class AdamW8bit(AdamW):
    def _new_state(self):
        maps = DYNAMIC_MAP, UNSIGNED_DYNAMIC_MAP
        return [
            self._moments(p) if p.size < SMALLEST else tuple(Moment.zeros(p, levels) for levels in maps)
            for p in self.params
        ]

    def state_arrays(self) -> dict[str, np.ndarray]:
        arrays = {}
        for i, state in enumerate(self.state):
            for name, moment in zip("mv", state, strict=True):
                if isinstance(moment, Moment):
                    arrays |= {f"{i}.{name}.codes": moment.codes, f"{i}.{name}.absmax": moment.absmax}
                else:
                    arrays[f"{i}.{name}"] = moment
        return arrays

    def _update_parameter(self, p, state, rate, correction, decay):
        if p.size < SMALLEST:
            super()._update_parameter(p, state, rate, correction, decay)
            return
        chunk = self._chunk(p)
        work = array_namespace(p.data).empty(chunk, np.float32)
        theta, g = p.data.reshape(-1), p.grad.reshape(-1).astype(np.float32, copy=False)
        for start in range(0, p.size, chunk):
            part = slice(start, min(start + chunk, p.size))
            m, v = (moment.read(part) for moment in state)
            self._update(theta[part], g[part], m, v, work, rate, correction, decay)
            for moment, values in zip(state, (m, v), strict=True):
                moment.write(part, values)
