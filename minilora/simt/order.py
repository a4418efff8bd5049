"""In which order lanes that have parted go on, so that they meet again as early as they can.

A kernel's instructions fall into blocks: runs that are entered at the first and left at the last. Lanes in a block wait
as long as others are in an earlier one, earlier meaning that the code there may still lead here. A loop comes as a
whole before what follows it; within it, the block where it is entered comes first, and the rest is ordered the same way
without the jumps back (a weak topological order: F. Bourdoncle, "Efficient chaotic iteration strategies with
widenings", 1993; why to execute in such an order: G. Diamos and others, "SIMD Re-Convergence at Thread Frontiers",
MICRO 2011). A GPU has the lanes of a warp meet where all ways join; for code without goto that is the same.
"""


def ranks(jumps: list[tuple[int | None, bool]]) -> list[int]:
    """jumps: of each instruction, (index that it may jump to or None, whether it may go on to the next).

    The place in the order of the block that each instruction is in.
    """
    end = len(jumps)
    targets = {target for target, _ in jumps if target is not None}
    leaders = sorted({0, *targets, *(i + 1 for i, (target, on) in enumerate(jumps) if target is not None or not on)})
    leaders = [i for i in leaders if i < end]
    after = {}  # block -> blocks that may follow
    for first, stop in zip(leaders, [*leaders[1:], end], strict=True):
        target, on = jumps[stop - 1]
        after[first] = {i for i in (target, stop if on else None) if i is not None and i < end}
    place = {first: k for k, first in enumerate(_arrange(leaders, after))}
    result, block = [], 0
    for i in range(end):
        block = i if i in place else block
        result.append(place[block])
    return result


def _arrange(blocks: list[int], after: dict[int, set[int]]) -> list[int]:
    """The blocks in order. What reaches more blocks comes first, so a block before all that it leads to."""
    inside = set(blocks)
    bit = {b: 1 << i for i, b in enumerate(blocks)}
    reach = dict(bit)  # the blocks that one may come to from each, as bits
    changed = True
    while changed:
        changed = False
        for b in reversed(blocks):
            new = reach[b]
            for c in after[b] & inside:
                new |= reach[c]
            changed |= new != reach[b]
            reach[b] = new
    loops = {}  # blocks that reach the same blocks, and with them each other
    for b in blocks:
        loops.setdefault(reach[b], []).append(b)
    ordered = []
    for _, loop in sorted(loops.items(), key=lambda item: (-item[0].bit_count(), item[1])):
        if len(loop) > 1:
            from_outside = set().union(*(after[c] for c in inside - set(loop)))
            first = next((b for b in loop if b in from_outside), loop[0])
            rest = [b for b in loop if b != first]
            ordered += [first, *_arrange(rest, after)]
        else:
            ordered += loop
    return ordered
