"""The README's picture: NF4's levels under the weights of the model that is shipped.

python docs/picture.py > docs/nf4.svg
"""

import numpy as np

from minilora.files import load_safetensors
from minilora.models.registry import EMBEDDED
from minilora.quant import CODES
from minilora.viz.charts import standalone
from minilora.viz.microscope import microscope


def picture() -> str:
    tensors, _ = load_safetensors(EMBEDDED / "model.safetensors")
    weights = np.concatenate([w.astype(np.float32).ravel() for name, w in tensors.items() if "_proj" in name])
    blocks = weights.reshape(-1, 64)
    scaled = blocks / np.abs(blocks).max(axis=1, keepdims=True)
    return standalone(microscope(scaled, CODES["nf4"], "NF4's sixteen levels under a model's weights"))


if __name__ == "__main__":
    print(picture())
