"""The errors that minilora raises, and help with misspelt names.

Every error is a `MiniloraError`, itself a `ValueError`. Its message says what was asked, what was found, which
choices there are, and what to do. The command line prints it on stderr without a traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class MiniloraError(ValueError):
    """The root of minilora's own errors. The command line turns it into exit code 1."""


class UnknownNameError(MiniloraError):
    """A code, model, recipe, field or primitive that does not exist."""


class QuantizationError(MiniloraError):
    """An array that cannot be quantized, or arguments of a quantizer that do not fit together."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """An error for a `name` that is not among the `known` ones: lists them, the nearest first mentioned."""
    known = sorted(known)
    near = get_close_matches(str(name), known, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return UnknownNameError(f"unknown {kind} {name!r}.{hint} There are: {', '.join(known)}.")


class ShapeError(MiniloraError):
    """Arrays whose shapes do not fit together in an op."""


class GraphError(MiniloraError):
    """A backward pass that cannot give right gradients: the graph was freed, or an array it holds was changed."""


class GradcheckError(MiniloraError):
    """A gradient that differs from the numerical one; the message names the worst index."""


class FileFormatError(MiniloraError):
    """A model, adapter or tokenizer file that is missing, truncated, corrupt or of a kind we do not read."""


class FetchError(MiniloraError):
    """A model that could not be obtained: offline, wrong checksum, no room."""


class ConfigError(MiniloraError):
    """A recipe or a configuration with an unknown field or a value that does not fit."""


class DataError(MiniloraError):
    """A dataset or a batch that cannot be trained on: empty, too long, without target tokens."""


class TrainingError(MiniloraError):
    """A run that cannot go on: nothing trainable, a non-finite loss, an output folder that cannot be written."""


class LaunchError(MiniloraError):
    """A kernel launch that a GPU would refuse: too many threads, too much shared memory, arguments that do not fit."""


class BackendError(MiniloraError):
    """A backend that this machine lacks, or an array that lives elsewhere than the backend works."""


class SimulationError(MiniloraError):
    """What the simulated GPU found wrong in a kernel: out of bounds, a race, a barrier that not all threads reach."""
