"""Automatic differentiation: Tensor and backward, primitives, checkpointing, a gradient checker, a ledger of what
the tape holds."""

from minilora.autograd.checkpoint import checkpoint
from minilora.autograd.gradcheck import gradcheck
from minilora.autograd.ledger import Ledger, ledger
from minilora.autograd.primitive import PRIMITIVES, primitive
from minilora.autograd.rounding import autocast
from minilora.autograd.tensor import Tensor, no_grad

__all__ = ["PRIMITIVES", "Ledger", "Tensor", "autocast", "checkpoint", "gradcheck", "ledger", "no_grad", "primitive"]
