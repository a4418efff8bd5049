"""Lesson 2's exercises."""

import numpy as np

from minilora.course.check import Problem, Wrong, equal, show

visible = Problem("visible", 1)
next_tokens = Problem("next_tokens", 1)


def _row(rng, size):
    """A row of up to three examples; their numbers rise, and need not begin at 1."""
    lengths = rng.integers(1, size + 1, int(rng.integers(1, 4)))
    return {"segments": np.repeat(np.arange(len(lengths)) + int(rng.integers(0, 3)), lengths)}


def _packed(rng, size):
    row = _row(rng, size)
    return {"ids": rng.integers(0, 50, row["segments"].shape)} | row


def _given(value):
    if value is None:
        raise Wrong("got None: the function returns nothing")
    return value


def _booleans(answer, segments):
    mask, T = np.asarray(_given(answer(segments))), len(segments)
    if mask.shape != (T, T) or mask.dtype != bool:
        raise Wrong(f"expected booleans of shape {(T, T)}, got {mask.dtype} of shape {mask.shape}")
    return mask


def _complain(wrong, mask, words):
    if wrong.any():
        t, s = np.argwhere(wrong)[0]
        raise Wrong(f"row {t}, column {s} is {show(bool(mask[t, s]))}, but {words.format(t=t, s=s)}")


@visible.law(
    "no position sees a later one", draw=_row, means="the lower triangle, with its diagonal: np.tri(T, dtype=bool)"
)
def _(answer, segments):
    mask = _booleans(answer, segments)
    later = ~np.tri(len(segments), dtype=bool)
    _complain(mask & later, mask, "{s} comes after {t}")


@visible.law(
    "no position sees another example", draw=_row,
    means="compare each number with each, segments[:, None] == segments, and join the conditions by &",
)  # fmt: skip
def _(answer, segments):
    mask = _booleans(answer, segments)
    _complain(mask & (segments[:, None] != segments), mask, "{t} and {s} are of two examples")


@visible.law(
    "each sees itself and all that comes before it in its example", draw=_row,
    means="the diagonal belongs to it: without it an example's first position sees nothing, and its softmax is 0/0",
)  # fmt: skip
def _(answer, segments):
    mask = _booleans(answer, segments)
    wanted = np.tri(len(segments), dtype=bool) & (segments[:, None] == segments)
    _complain(wanted & ~mask, mask, "{t} may see {s}")


@next_tokens.law(
    "within an example it is the next token", draw=_packed,
    means="position t predicts ids[t + 1]: shifted by one to the left, not ids[t] or ids[t - 1]",
)  # fmt: skip
def _(answer, ids, segments):
    found, inside = _labels(answer, ids, segments)
    equal(found[inside], ids[1:][segments[1:] == segments[:-1]])


@next_tokens.law(
    "the last token of each example predicts nothing", draw=_packed,
    means="the next token is of another example, or there is none: -100. np.roll brings the first token back",
)  # fmt: skip
def _(answer, ids, segments):
    found, inside = _labels(answer, ids, segments)
    equal(found[~inside], np.full((~inside).sum(), -100))


def _labels(answer, ids, segments):
    """The answer, (T,), and where the next token is of the same example."""
    found = np.asarray(_given(answer(ids, segments)))
    if found.shape != ids.shape:
        raise Wrong(f"expected shape {ids.shape}, got {found.shape}")
    return found, np.append(segments[1:] == segments[:-1], False)
