"""Automatic differentiation: Tensor and backward, primitives, a gradient checker, a ledger of what the tape holds."""

from minilora.autograd.gradcheck import gradcheck
from minilora.autograd.ledger import Ledger, ledger
from minilora.autograd.primitive import PRIMITIVES, primitive
from minilora.autograd.tensor import Tensor, no_grad

__all__ = ["PRIMITIVES", "Ledger", "Tensor", "gradcheck", "ledger", "no_grad", "primitive"]
