"""Tensor: an array that remembers how it was computed, and `backward`, which walks that memory in reverse.

    w = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    loss = (x @ w.T).sum()
    loss.backward()                     # w.grad is now d loss / d w, a plain array
    print(ledger())                     # what the tape holds, in bytes, by op

Reverse-mode differentiation: for y = f(x) and a loss L, dL/dx = Jᵀ (dL/dy), where J is the Jacobian of f. A primitive
(see primitive.py) supplies g -> Jᵀ g for each of its inputs; this module applies them in reverse topological order
(Griewank and Walther, "Evaluating Derivatives", chapter 3).

The graph is made of Nodes, not of Tensors: a node holds the functions g -> Jᵀ g of the inputs that need a gradient, and
they hold the arrays that they need. An activation that no such function needs is freed when its Tensor goes.
"""

import weakref
from collections.abc import Callable
from contextlib import contextmanager
from types import FunctionType

import numpy as np

from minilora.backend import array_namespace, asarray, is_array, placed, to_numpy
from minilora.errors import GraphError, ShapeError

_grad_enabled = True
_rounding: Callable | None = None  # of float32 values and gradients (see rounding.py)
_live_nodes: "weakref.WeakSet[Node]" = weakref.WeakSet()
parameters: "weakref.WeakSet[Tensor]" = weakref.WeakSet()  # of modules, trained or not: there without any graph
_locks: dict[int, list] = {}  # id(owner) -> [owner of memory, captures of it and its views, arrays made read-only]


class Node:
    """One application of a primitive (or one leaf): its inputs' nodes and what sends a gradient to each of them."""

    __slots__ = ("__weakref__", "dtype", "freed", "guards", "hooks", "leaf", "locked", "op", "parents", "shape")

    def __init__(self, op: str, value: np.ndarray, parents=(), leaf=None):
        self.op, self.shape, self.dtype = op, value.shape, value.dtype
        self.parents: tuple[tuple[Node, Callable], ...] = parents
        self.leaf = None if leaf is None else weakref.ref(leaf)
        self.hooks: list[Callable] = []
        self.guards: tuple = ()  # (input tensor's version box, version seen, which input)
        self.locked: list[np.ndarray] = []
        self.freed = False

    def captured(self):
        """The arrays that this node's vjp closures, and the functions that these call, keep alive."""
        functions, seen = [vjp for _, vjp in self.parents], set()
        while functions:
            for cell in functions.pop().__closure__ or ():
                content = cell.cell_contents
                for item in content if isinstance(content, (tuple, list)) else (content,):
                    if is_array(item):
                        yield item
                    elif isinstance(item, FunctionType) and item not in seen:
                        seen.add(item)
                        functions.append(item)

    def lock(self, arrays: list[np.ndarray]):
        """Make captured arrays, and what they are views of, read-only until no node holds them any more, so that
        changing one in place raises. (CuPy's have no such flag: for them the version counter alone stands guard.)"""
        for array in arrays:
            if not isinstance(array, np.ndarray):
                continue
            memory = owner(array)
            lock = _locks.setdefault(id(memory), [memory, 0, []])
            lock[1] += 1
            self.locked.append(memory)
            if not memory.flags.writeable and not lock[2]:
                continue  # read-only before us, and so it stays
            for a in (memory, array):  # the owner first: NumPy makes no view writeable before it
                if a.flags.writeable:
                    a.flags.writeable = False
                    lock[2].append(a)

    def free(self):
        """Drop the closures and unlock what they had captured."""
        self.parents, self.guards, self.freed = (), (), True
        for memory in self.locked:
            lock = _locks[id(memory)]
            lock[1] -= 1
            if not lock[1]:
                del _locks[id(memory)]
                for array in lock[2]:
                    array.flags.writeable = True
        self.locked = []

    def __del__(self):
        if self.locked:
            self.free()


class Tensor:
    """An array with an optional place in a graph of computations.

    data: anything np.asarray takes; Python numbers and lists of them become float32 and go where use_backend says;
    arrays, CuPy's too, keep their dtype and place and are shared, not copied. requires_grad: whether `backward` is to
    leave dL/d(this) in `.grad` (float dtypes only).
    """

    __slots__ = ("__weakref__", "_version", "data", "grad", "node")
    __array_priority__ = 1000  # ndarray * Tensor is our product, not NumPy's

    def __init__(self, data, requires_grad: bool = False):
        if isinstance(data, Tensor):
            data = data.data
        array = asarray(data)
        if not is_array(data) and not isinstance(data, np.generic):
            array = placed(array.astype(np.float32) if array.dtype == np.float64 else array)
        self.data: np.ndarray = array
        self.grad: np.ndarray | None = None
        self.node: Node | None = None
        self._version = [0]  # a box, shared by detached tensors of the same array
        if requires_grad:
            self.requires_grad = True

    shape = property(lambda self: self.data.shape, doc="The array's.")
    dtype = property(lambda self: self.data.dtype, doc="The array's.")
    ndim = property(lambda self: self.data.ndim, doc="The array's.")
    size = property(lambda self: self.data.size, doc="The array's.")

    @property
    def requires_grad(self) -> bool:
        """Whether backward reaches this tensor. Set on leaves only, of a float dtype; else GraphError."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool):
        if self.node is not None and self.node.leaf is None:
            raise GraphError(
                f"requires_grad is set on leaves only; this tensor is the result of {self.node.op!r}. Use .detach()."
            )
        if not wanted:
            self.node = None
        elif self.node is None:
            if self.data.dtype.kind not in "fc":
                raise GraphError(f"only floating-point tensors have gradients; this one is {self.data.dtype}")
            self.node = Node("leaf", self.data, leaf=self)

    def detach(self) -> "Tensor":
        """The same array (shared), outside the graph."""
        out = Tensor(self.data)
        out._version = self._version
        return out

    def __deepcopy__(self, memo):
        """A leaf like this one, with its own array and no gradient yet. Raises GraphError for the result of an op."""
        if self.node is not None and self.node.leaf is None:
            raise GraphError(f"a tensor with a graph (the result of {self.node.op!r}) is not copied; use .detach()")
        out = memo[id(self)] = type(self)(self.data.copy(), requires_grad=self.requires_grad)
        return out

    def mark_changed(self):
        """Say that `.data` was changed in place (optimizers do); graphs that hold its old values are then invalid."""
        self._version[0] += 1

    def register_hook(self, hook: Callable):
        """hook(grad) is called once this tensor's gradient is complete; what it returns, if not None, replaces it."""
        if self.node is None:
            raise GraphError("a hook needs a tensor that requires a gradient")
        self.node.hooks.append(hook)

    def backward(self, gradient=None):
        """Add dL/dt to `.grad` of every leaf t that this tensor depends on, then free the graph.

        gradient: dL/d(self), of this tensor's shape; may be left out (1) for a tensor of one element. The graph can be
        walked once; gradients have no graph of their own (no double backward). Raises GraphError or ShapeError, and
        then no `.grad` was touched unless a primitive's own rule failed.
        """
        if self.node is None:
            raise GraphError("backward() of a tensor that does not depend on any tensor with requires_grad=True")
        if gradient is None:
            if self.size != 1:
                raise GraphError(f"backward() of shape {self.shape} needs a gradient of that shape; or .sum() it first")
            gradient = np.ones_like(self.data)
        gradient = array_namespace(self.data).asarray(gradient, self.dtype)
        if gradient.shape != self.shape:
            raise ShapeError(f"backward() of shape {self.shape} was given a gradient of shape {gradient.shape}")
        _backward(self.node, gradient)

    def item(self):
        """The value of a tensor of one element, as a Python number."""
        return self.data.item()

    def __array__(self, dtype=None, copy=None):
        return np.array(self.data, dtype, copy=copy)

    def __len__(self):
        return len(self.data)

    def __repr__(self):
        grad = (
            f", op={self.node.op!r}" if self.node and not self.node.leaf else ", requires_grad=True" * bool(self.node)
        )
        return f"Tensor({np.array2string(to_numpy(self.data), prefix='Tensor(', threshold=20)}, {self.dtype}{grad})"


@contextmanager
def _recording(wanted: bool):
    global _grad_enabled
    before, _grad_enabled = _grad_enabled, wanted
    try:
        yield
    finally:
        _grad_enabled = before


def no_grad():
    """Within it nothing is recorded: `with no_grad(): logits = model(ids)`."""
    return _recording(False)


def enable_grad():
    """Within it ops are recorded, even inside no_grad()."""
    return _recording(True)


def rounded(x: np.ndarray) -> np.ndarray:
    """x as the narrow type of autocast would hold it; a scalar, such as a loss, stays float32."""
    return x if _rounding is None or x.dtype != np.float32 or not x.ndim else _rounding(x)


def is_grad_enabled() -> bool:
    return _grad_enabled


def owner(array: np.ndarray) -> np.ndarray:
    """The array that owns a view's memory."""
    while array.base is not None and is_array(array.base):
        array = array.base
    return array


def writeable(array) -> bool:
    """Whether it may be changed in place; CuPy's arrays always may."""
    return getattr(array.flags, "writeable", True)


def unbroadcast(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum g over the axes along which an array of `shape` was broadcast: the transpose of broadcasting is summing."""
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    if len(shape) == 1 and shape[0] and g.shape[-1:] == shape and g.dtype.kind == "f":
        rows = g.reshape(-1, shape[0])
        return array_namespace(g).ones(len(rows), g.dtype) @ rows  # a bias: the sum of rows, by BLAS
    g = g.sum(axis=tuple(range(extra))) if extra else g
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=stretched, keepdims=True) if stretched else g


def _count_uses(root: Node) -> dict[Node, int]:
    """How many gradients each node will receive; refuses a graph that was freed or whose arrays have changed."""
    uses, stack = {root: 0}, [root]
    while stack:
        node = stack.pop()
        if node.freed:
            raise GraphError(
                f"backward through the result of {node.op!r} {node.shape}, whose graph an earlier backward has freed. "
                "Compute it again, or add the losses and call backward once."
            )
        for version, seen, name in node.guards:
            if version[0] != seen:
                raise GraphError(
                    f"{name} of {node.op!r} was changed in place after the forward pass, which would give wrong "
                    "gradients. Change it after backward."
                )
        for parent, _ in node.parents:
            if parent not in uses:
                uses[parent] = 0
                stack.append(parent)
            uses[parent] += 1
    return uses


def _backward(root: Node, gradient: np.ndarray):
    uses = _count_uses(root)
    grads, owned, ready = {root: gradient}, set(), [root]
    while ready:  # a node is ready when all its uses have sent their gradients: reverse topological order
        node = ready.pop()
        g = grads.pop(node)
        for hook in node.hooks:
            replaced = hook(g)
            g = g if replaced is None else array_namespace(g).asarray(replaced, node.dtype)
        if node.leaf is not None:
            _accumulate(node.leaf(), g, fresh=node in owned)
            continue
        for parent, vjp in node.parents:
            gp = rounded(_checked(node, parent, vjp(g)))
            if parent not in grads:
                grads[parent] = gp
                if gp is not g and gp.base is None:
                    owned.add(parent)  # nobody else holds this array
            elif parent in owned and writeable(grads[parent]):
                grads[parent] += gp
            else:
                grads[parent] = grads[parent] + gp
                owned.add(parent)
            uses[parent] -= 1
            if not uses[parent]:
                ready.append(parent)
        node.free()


def _checked(node: Node, parent: Node, gp: np.ndarray) -> np.ndarray:
    """A vjp's result, summed to its input's shape and cast to its dtype; says which rule is wrong if it cannot."""
    try:
        gp = unbroadcast(gp, parent.shape)
        if gp.shape != parent.shape:
            raise ValueError
    except ValueError:
        raise ShapeError(
            f"the vjp of {node.op!r} gave a gradient of shape {gp.shape} for an input of shape {parent.shape} "
            f"(the output's shape is {node.shape})"
        ) from None
    return gp if gp.dtype == parent.dtype else gp.astype(parent.dtype)


def _accumulate(leaf: Tensor | None, g: np.ndarray, fresh: bool):
    if leaf is None:
        return  # the leaf itself is gone; nobody can ask for its gradient
    if leaf.grad is not None:
        leaf.grad = leaf.grad + g
    else:
        leaf.grad = g if fresh else g.copy()  # two leaves must never share one gradient array
