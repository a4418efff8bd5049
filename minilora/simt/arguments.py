"""The arguments of a launch, held to the kernel's parameter list as the PTX has it.

A pointer takes a Buffer, everything else a NumPy scalar of the parameter's own size: a Python int has no width, and a
GPU would be given the wrong bytes (PTX ISA, section 7.1; CuPy marshals by the same rule).
"""

import numpy as np

from minilora.errors import LaunchError
from minilora.simt.memory import Buffer
from minilora.simt.ptx import Kernel, nbytes


def check_arguments(kernel: Kernel, args) -> list[tuple[str, Buffer]]:
    """The buffers among `args` with a name each. Raises LaunchError where count, kind or width do not fit."""
    if len(args) != len(kernel.parameters):
        raise LaunchError(f"{kernel.name} takes {len(kernel.parameters)} arguments, {len(args)} were given")
    buffers = []
    for i, (arg, (_, type)) in enumerate(zip(args, kernel.parameters, strict=True)):
        if isinstance(arg, Buffer) and type in ("u64", "b64"):
            buffers.append((f"argument {i}", arg))
        elif not isinstance(arg, np.generic) or not _fits(arg.dtype, type):
            found = arg.dtype if isinstance(arg, np.generic) else f"a {arg.__class__.__name__}"
            raise LaunchError(
                f"{kernel.name}: argument {i} is {found}, the parameter is .{type}; "
                "give a Buffer for a pointer, for anything else a NumPy scalar of the same size"
            )
    return buffers


def parameter_bytes(kernel: Kernel, args, addresses: list[int]) -> dict[str, np.ndarray]:
    """parameter name -> its bytes (uint8). addresses: of the buffers."""
    address = iter(addresses)
    values = (np.uint64(next(address)) if isinstance(arg, Buffer) else arg for arg in args)
    return {
        name: np.frombuffer(value.tobytes(), np.uint8)
        for (name, _), value in zip(kernel.parameters, values, strict=True)
    }


def _fits(dtype: np.dtype, type: str) -> bool:
    return dtype.itemsize == nbytes(type) and (type[0] == "b" or (dtype.kind == "f") == (type[0] == "f"))
