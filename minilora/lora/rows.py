"""A batch whose rows use different adapters: model(ids, adapter_names=["a", "b", "__base__"]), as in PEFT."""

from collections.abc import Callable

import numpy as np

from minilora import ops
from minilora.autograd import Tensor
from minilora.errors import ConfigError

BASE = "__base__"


def by_rows(adapter_names: list[str], run: Callable, *arrays) -> Tensor:
    """run(name, the rows of `arrays` that use it) for each adapter; the results in the batch's order again.

    arrays: Tensors or arrays (B, ...), one name for each of the B rows. Raises ConfigError where B is another number.
    """
    for array in arrays:
        if array.ndim < 2 or len(array) != len(adapter_names):
            raise ConfigError(
                f"adapter_names has {len(adapter_names)} names, but the input of a layer has shape "
                f"{tuple(array.shape)}: one name for each row of the batch, please"
            )
    if len(set(adapter_names)) == 1:
        return run(adapter_names[0], *arrays)
    rows = {name: [i for i, n in enumerate(adapter_names) if n == name] for name in dict.fromkeys(adapter_names)}
    parts = [run(name, *(array[np.array(where)] for array in arrays)) for name, where in rows.items()]
    order = np.argsort(np.concatenate(list(rows.values())))
    return ops.concatenate(parts)[order]
