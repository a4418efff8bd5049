"""The order of execution: forwards along every jump but those back to where a loop is entered; a loop in one piece."""

from hypothesis import given
from hypothesis import strategies as st

from minilora.simt.order import ranks

# Of each instruction: an index to jump to or None, whether it may go on to the next.
programs = st.integers(1, 14).flatmap(
    lambda n: st.lists(
        st.tuples(st.none() | st.integers(0, n - 1), st.booleans()), min_size=n, max_size=n
    )
)  # fmt: skip


def edges(jumps):
    """All (from, to)."""
    for i, (target, on) in enumerate(jumps):
        if target is not None:
            yield i, target
        if on and i + 1 < len(jumps):
            yield i, i + 1


def reachable(jumps, start):
    found, todo = {start}, [start]
    while todo:
        at = todo.pop()
        new = {b for a, b in edges(jumps) if a == at} - found
        found |= new
        todo += new
    return found


def test_a_loop_laid_out_of_order():
    jumps = [
        (7, True),  # 0  loop: leave it?
        (5, True),  # 1  if
        (None, True),  # 2    then
        (None, True),  # 3  both join here
        (0, False),  # 4  again
        (None, True),  # 5    else, which lies behind where it leads to
        (3, False),
        (None, False),  # 7  after the loop
    ]
    order = ranks(jumps)
    assert order[0] < order[1] < order[2] < order[3] and order[1] < order[5] < order[3] < order[7]
    assert order[3] == order[4] and order[5] == order[6]


@given(programs)
def test_code_without_loops_goes_forwards(jumps):
    jumps = [(target if target is None or target > i else None, on) for i, (target, on) in enumerate(jumps)]
    order = ranks(jumps)
    assert all(order[a] < order[b] or (b == a + 1 and order[a] == order[b]) for a, b in edges(jumps))


@given(programs)
def test_loops_are_whole_and_come_before_what_follows(jumps):
    order, reach = ranks(jumps), [reachable(jumps, i) for i in range(len(jumps))]
    for a in range(len(jumps)):
        for b in reach[a]:
            if a not in reach[b]:  # b follows, and there is no way back
                assert order[a] <= order[b]
                loop = [order[c] for c in reach[a] if a in reach[c]]
                assert max(loop) <= order[b]


@given(programs)
def test_runs_of_instructions_stay_together(jumps):
    order = ranks(jumps)
    targets = {target for target, _ in jumps}
    for i in range(1, len(jumps)):
        plain = jumps[i - 1] == (None, True) and i not in targets
        assert (order[i] == order[i - 1]) == plain
