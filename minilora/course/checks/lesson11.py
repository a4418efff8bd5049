"""Lesson 11's exercises."""

from collections import OrderedDict

from minilora.course.check import Problem, Wrong, equal

most_kept = Problem("most_kept", 1)
better_order = Problem("better_order", 2)


@most_kept.law(
    "what is kept and what is computed again are counted together",
    draw=lambda rng, size: {"n": int(rng.integers(1, 4 * size + 1)), "every": int(rng.integers(1, 3 * size + 1))},
    means="while a part is computed again, the inputs of the parts before it are kept as well; a part of k layers has "
    "k + 1 arrays",
)  # fmt: skip
def _(answer, n, every):
    parts = [min(every, n - start) for start in range(0, n, every)]
    equal(answer(n, every), max(before + layers + 1 for before, layers in enumerate(parts)))


def _faults(order, room, resident, seen):
    """LRU's, going on from `resident` (oldest first) and the pages `seen`; both are changed."""
    faults = 0
    for page in order:
        if page not in resident:
            faults += page in seen
            if len(resident) == room:
                resident.popitem(last=False)
        resident[page] = True
        resident.move_to_end(page)
        seen.add(page)
    return faults


def _order(answer, pages):
    order = answer(pages)
    order = [int(page) for page in order] if order is not None else []
    steps = order[:pages], order[pages:]
    if any(sorted(step) != list(range(pages)) for step in steps):
        raise Wrong(f"each of two steps is to touch pages 0 to {pages - 1} once, got {order}")
    if steps[0] != list(range(pages)):
        raise Wrong(f"the first step is to go 0, 1, 2, ..., got {steps[0]}")
    return steps


@better_order.law(
    "the second step makes the fewest faults: one for each page that there is no room for",
    draw=lambda rng, size: {"pages": int(rng.integers(1, 2 * size + 1)), "room": int(rng.integers(1, size + 2))},
    means="begin with what was used last: it is still there",
)
def _(answer, pages, room):
    first, second = _order(answer, pages)
    resident, seen = OrderedDict(), set()
    _faults(first, room, resident, seen)
    found, fewest = _faults(second, room, resident, seen), max(0, pages - room)
    if found != fewest:
        raise Wrong(f"{found} faults in the second step, with room for {room}; {fewest} are possible")
