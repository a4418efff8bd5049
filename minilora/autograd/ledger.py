"""The ledger: what the tape holds for the backward pass, in bytes, by op.

    loss = model.loss(ids, labels)
    print(ledger())                      # measured by reading the vjp closures of all live nodes, not estimated

Arrays of leaves and of a module's parameters, trained or frozen, are counted apart: they would exist without a tape. A
buffer that several closures hold is counted once, for the op that captured it first.
"""

from dataclasses import dataclass

from minilora.autograd import tensor
from minilora.autograd.tensor import owner


@dataclass(frozen=True)
class Ledger:
    """by_op: op name -> bytes of activations it keeps; parameters: bytes of leaves' arrays that closures refer to."""

    by_op: dict[str, int]
    parameters: int

    @property
    def total(self) -> int:
        """Bytes of activations, parameters excluded."""
        return sum(self.by_op.values())

    def __str__(self):
        rows = sorted(self.by_op.items(), key=lambda row: -row[1])
        lines = [f"{op:<16}{size:>14,} bytes" for op, size in rows]
        lines += [f"{'total':<16}{self.total:>14,} bytes", f"{'(parameters)':<16}{self.parameters:>14,} bytes"]
        return "\n".join(lines)


def ledger() -> Ledger:
    """The bytes that all graphs alive now hold for their backward passes."""
    nodes = list(tensor._live_nodes)
    leaves = {parent.leaf() for node in nodes for parent, _ in node.parents if parent.leaf} - {None}
    owned_by_leaf = {id(owner(leaf.data)) for leaf in leaves | set(tensor.parameters)}
    seen, by_op, parameters = set(), {}, 0
    for node in nodes:
        for array in node.captured():
            buffer = owner(array)
            if id(buffer) in seen:
                continue
            seen.add(id(buffer))
            if id(buffer) in owned_by_leaf:
                parameters += buffer.nbytes
            else:
                by_op[node.op] = by_op.get(node.op, 0) + buffer.nbytes
    return Ledger(by_op, parameters)
