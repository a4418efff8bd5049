import copy
import gc

import numpy as np
import pytest

from minilora import Tensor, ledger, no_grad, ops
from minilora.autograd import primitive
from minilora.autograd.primitive import PRIMITIVES
from minilora.errors import GraphError, ShapeError
from minilora.nn import Linear


def leaf(*values):
    return Tensor(np.array(values, np.float32), requires_grad=True)


def test_a_reused_value_gets_both_gradients():
    a = leaf(3.0)
    b = a + a
    (b * b).backward()  # d(4a²)/da = 8a: without a topological order b would be walked before it is complete
    assert a.grad == 24


def test_gradients_accumulate_and_two_leaves_never_share_one_array():
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    (a + b).sum().backward()
    assert a.grad is not b.grad and not np.shares_memory(a.grad, b.grad)
    (a + b).sum().backward()
    np.testing.assert_array_equal(a.grad, [2, 2])


def test_a_graph_of_a_hundred_thousand_nodes():
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.backward()
    assert x.grad == 1


def test_a_graph_whose_paths_double_at_every_node():
    x = leaf(1.0)
    y = x
    for _ in range(60):  # 2^60 paths
        y = (y + y) * 0.5
    y.backward()
    assert x.grad == 1


def test_no_grad_records_nothing_and_detach_cuts():
    x = leaf(1.0, 2.0)
    with no_grad():
        assert not (x * x).requires_grad
    assert not (x * x).detach().requires_grad
    assert (x * x).requires_grad


def test_no_grad_ends_after_an_error():
    with pytest.raises(RuntimeError), no_grad():
        raise RuntimeError
    assert (leaf(1.0) * 2).requires_grad


def test_hooks_see_the_complete_gradient_and_may_replace_it():
    x, seen = leaf(2.0), []
    y = x * 1.0
    y.register_hook(lambda g: seen.append(g.copy()) or g * 10)
    (y + y).backward()
    assert seen == [2] and x.grad == 20


def test_backward_needs_a_gradient_for_more_than_one_element():
    with pytest.raises(GraphError, match=r"shape \(2,\) needs a gradient"):
        leaf(1.0, 2.0).backward()
    with pytest.raises(ShapeError, match=r"given a gradient of shape \(3,\)"):
        (leaf(1.0, 2.0) * 2).backward(np.ones(3))
    with pytest.raises(GraphError, match="does not depend"):
        Tensor([1.0]).backward()


def test_a_freed_graph_is_refused_before_any_gradient_changes():
    x = leaf(1.0, 2.0)
    shared = ops.exp(x)
    shared.sum().backward()
    before = x.grad.copy()
    with pytest.raises(GraphError, match="freed"):
        (shared * x).sum().backward()
    np.testing.assert_array_equal(x.grad, before)


def test_a_captured_array_cannot_be_changed_in_place():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    with pytest.raises(ValueError, match="read-only"):
        x.data[0] = 5
    y.backward()
    x.data[0] = 5  # afterwards it can


def test_a_deep_copy_has_gradients_of_its_own(rng):
    a = Linear(3, 2, rng=rng)
    b = copy.deepcopy(a)
    b(Tensor(np.ones((1, 3), np.float32))).sum().backward()
    assert b.weight.grad is not None and a.weight.grad is None
    b.weight.data[:] = 0
    assert type(b.weight) is type(a.weight) and a.weight.data.all()
    with pytest.raises(GraphError, match="detach"):
        copy.deepcopy(a.weight * 2)


def test_what_a_captured_view_looks_at_cannot_be_changed_in_place():
    b = Tensor(np.ones((4, 5), np.float32), requires_grad=True)
    v = b.T
    y = (v * v).sum()
    with pytest.raises(ValueError, match="read-only"):
        b.data[0, 0] = 7
    y.backward()
    b.data[0, 0] = 7
    v.data[1, 1] = 7


@pytest.mark.parametrize("first", ["view", "base"])
@pytest.mark.parametrize("view_first", [True, False])
def test_views_and_their_base_may_be_captured_and_freed_in_any_order(first, view_first):
    b = Tensor(np.ones((4, 5), np.float32), requires_grad=True)
    v = b.T
    makers = {"view": lambda: (v * v).sum(), "base": lambda: (b * b).sum()}
    losses = {name: makers[name]() for name in (("view", "base") if view_first else ("base", "view"))}
    losses.pop(first).backward()
    with pytest.raises(ValueError, match="read-only"):
        b.data[0, 0] = 7  # the other graph still holds it
    losses.popitem()[1].backward()
    assert b.data.flags.writeable and v.data.flags.writeable


def test_an_array_that_was_read_only_stays_so():
    a = np.ones(3, np.float32)
    view = a[:]
    a.flags.writeable = False
    x = Tensor(view, requires_grad=True)
    (x * x).sum().backward()
    assert not a.flags.writeable and view.flags.writeable


def test_a_captured_result_cannot_be_changed_in_place():
    y = ops.exp(leaf(1.0))
    with pytest.raises(ValueError, match="read-only"):
        y.data[0] = 5
    del y
    gc.collect()


def test_the_lock_goes_with_a_graph_that_is_dropped():
    x = leaf(1.0)
    y = x * x
    z = x * x
    del y
    with pytest.raises(ValueError, match="read-only"):
        x.data[0] = 2
    del z
    x.data[0] = 2


def test_a_marked_change_makes_backward_refuse():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    x.mark_changed()
    with pytest.raises(GraphError, match="input 0 of 'multiply' was changed in place"):
        y.backward()
    assert x.grad is None


def test_a_view_that_a_closure_keeps_protects_the_original(rng):
    x = Tensor(rng.standard_normal((2, 3, 4), np.float32))
    w = Tensor(rng.standard_normal((5, 4), np.float32), requires_grad=True)
    y = ops.linear(x, w)  # keeps x reshaped to two dimensions
    with pytest.raises(ValueError, match="read-only"):
        x.data[...] = 0
    del y


def test_what_is_not_captured_may_be_changed():
    x = leaf(1.0)
    y = x + 1.0
    x.data[0] = 7
    y.backward()
    assert x.grad == 1


def test_a_frozen_weight_costs_no_activation(rng):
    x = Tensor(rng.standard_normal((64, 32), np.float32), requires_grad=True)
    w = Tensor(rng.standard_normal((16, 32), np.float32), requires_grad=True)
    y = ops.linear(x * 1.0, w)
    full = ledger()
    del y
    frozen = Tensor(w.data)
    y = ops.linear(x * 1.0, frozen)
    assert full.by_op == {"linear": 64 * 32 * 4} and full.parameters == w.data.nbytes
    assert ledger().by_op == {"linear": frozen.data.nbytes}  # only the weight, needed for dx
    del y
    assert ledger().total == 0


def test_the_ledger_counts_a_buffer_once():
    x = leaf(*range(100))
    y = ops.exp(x)
    z = [y * y, y * y]
    assert ledger().total == 400
    del y, z


def test_float32_stays_float32():
    x = leaf(1.0, 2.0)
    y = x * 2.0 + np.float64(1) - x / 3
    assert y.dtype == np.float32
    y.sum().backward()
    assert x.grad.dtype == np.float32


def test_errors_name_the_op_and_the_shapes():
    with pytest.raises(ShapeError, match=r"matmul\(float32\[2, 3\], float32\[2, 3\]\)"):
        ops.matmul(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    with pytest.raises(GraphError, match="floating-point"):
        Tensor([1, 2], requires_grad=True)


def test_a_rule_of_the_wrong_shape_is_named():
    @primitive
    def bad_rule(x):
        return x * 2, (lambda g: g[:1],)

    try:
        with pytest.raises(ShapeError, match=r"vjp of 'bad_rule' gave a gradient of shape \(1,\)"):
            bad_rule(leaf(1.0, 2.0)).sum().backward()
    finally:
        del PRIMITIVES["bad_rule"]


def test_requires_grad_is_for_leaves():
    y = leaf(1.0) * 2
    with pytest.raises(GraphError, match="leaves only"):
        y.requires_grad = False


@pytest.mark.parametrize("which", ["q", "k", "v", "the result"])
def test_what_a_rule_keeps_through_a_function_that_it_calls_is_protected_too(rng, which):
    """attention's rules share a function that keeps v and the result; they are held, counted, and not to be changed."""
    q, k, v = (Tensor(rng.standard_normal((1, 2, 3, 4)), requires_grad=True) * 1.0 for _ in range(3))
    y = ops.attention(q, k, v)
    held = {"q": q, "k": k, "v": v, "the result": y}[which]
    with pytest.raises(ValueError, match="read-only"):
        held.data[...] = 0
    assert ledger().by_op["attention"] == sum(t.data.nbytes for t in (q, k, v, y)) + 8 * 2 * 3 * 3  # and p
