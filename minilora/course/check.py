"""Checks of a student's function: laws that it must obey, tried on cases from small to large.

    sums = Problem("unbroadcast", points=3)

    @sums.law("a copied number's gradient is the sum over its copies", draw=broadcast_case, means="...")
    def _(unbroadcast, g, shape):
        equal(unbroadcast(g, shape), g.sum(...))

    sums.score(unbroadcast, seed=0)                  # says what holds and what does not, and returns the points

The first case that fails is a small one, since small ones come first (as in SmallCheck: C. Runciman, M. Naylor,
F. Lindblad, 2008); its numbers are then made simpler for as long as it fails. Every law has an equal share of the
points. A score is a Python float, and nothing is written to stderr: nbgrader gives full marks for a result that it
cannot read as a number (a np.float64's), and none where there is anything on stderr.
"""

import contextlib
import copy
import io
import signal
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

SIZES, DRAWS, SECONDS = range(1, 9), 6, 10  # sizes of cases, cases of each, and the time that a law may take


class Wrong(Exception):
    """The law does not hold: why, in words."""


class TooLong(Exception):
    """The answer took more than SECONDS."""


@dataclass(frozen=True)
class Law:
    """says: what must hold. draw(rng, size) -> the arguments of a case. holds(answer, **case) raises Wrong. means: what
    is usually the matter where it does not."""

    says: str
    draw: Callable[[np.random.Generator, int], dict]
    holds: Callable
    means: str


@dataclass
class Problem:
    name: str
    points: float
    laws: list[Law] = field(default_factory=list)

    def law(self, says: str, draw: Callable, means: str):
        """A decorator: the function below it checks this law."""
        return lambda holds: self.laws.append(Law(says, draw, holds, means)) or holds

    def score(self, answer: Callable, seed: int = 0) -> float:
        """Print what holds and what does not; the points. seed: of the cases."""
        if _unwritten(answer):
            print(f"{self.name}: 0 of {self.points:g} points\n  nothing is written here yet")
            return 0.0
        complaints = [_complaint(law, answer, np.random.default_rng([seed, i])) for i, law in enumerate(self.laws)]
        points = self.points * sum(c is None for c in complaints) / len(self.laws)
        print(f"{self.name}: {round(points, 2):g} of {self.points:g} points")
        for law, complaint in zip(self.laws, complaints, strict=True):
            print(f"  {'yes' if complaint is None else 'no '}  {law.says}")
            if complaint is not None:
                print("".join(f"       {line}\n" for line in [*complaint, f"Often this means: {law.means}"]), end="")
        return float(points)

    def check(self, answer: Callable, seed: int = 0):
        """Only print, as in a lesson."""
        self.score(answer, seed)


def equal(got, expected, tolerance: float = 1e-9):
    """Raise Wrong unless `got` is an array of expected's shape whose numbers differ by at most `tolerance`, relative to
    the largest of them (0: not at all). Only methods of arrays are used: a student may have replaced np.allclose."""
    expected = np.asarray(expected)
    try:
        found = np.asarray(got)
    except ValueError as error:
        raise Wrong(f"expected an array of shape {expected.shape}, got something uneven: {error}") from None
    if found.dtype.kind not in "biufc":
        raise Wrong(f"expected {show(expected)}\ngot      {type(got).__name__}: {got!r:.80}")
    if found.shape != expected.shape:
        raise Wrong(f"expected shape {expected.shape}, got {found.shape}")
    size = abs(expected).max(initial=1.0, where=abs(expected) < np.inf) if expected.dtype.kind in "fc" else 1.0
    with np.errstate(invalid="ignore"):
        close = (found == expected) | (abs(found - expected) <= tolerance * size)
    if not close.all():
        raise Wrong(f"expected {show(expected)}\ngot      {show(found)}")


def pulled_back(f, g: np.ndarray, *inputs: np.ndarray, i: int) -> np.ndarray:
    """Sum over f's outputs of g times their derivative by each number of inputs[i]: what a vjp must return.

    By complex steps: the derivative of an analytic f along e is Im f(x + i h e) / h, exact to rounding for a tiny h
    (W. Squire, G. Trapp, SIAM Review 40, 1998).
    """
    out, h = np.empty(inputs[i].shape), 1e-30
    for at in np.ndindex(out.shape):
        moved = [x.astype(complex) for x in inputs]
        moved[i][at] += 1j * h
        out[at] = np.sum(g * np.imag(f(*moved)) / h)
    return out


def show(value) -> str:
    """A value in a message: arrays short, on one line."""
    if isinstance(value, np.ndarray):
        text = " ".join(np.array2string(value, precision=4, threshold=12, edgeitems=3).split())
        return text.replace("[ ", "[") if value.size else f"an empty array of shape {value.shape}"
    return repr(value)


def _unwritten(answer: Callable) -> bool:
    """Whether it is a function without a statement, as lessons leave it: its body is ... or pass, or a docstring."""

    def empty():
        pass

    def documented():
        """As a function that is only described."""

    code = getattr(answer, "__code__", None)
    return (
        code is not None
        and code.co_code in (empty.__code__.co_code, documented.__code__.co_code)
        and not any(const is not None and const != answer.__doc__ for const in code.co_consts)
    )


def _complaint(law: Law, answer: Callable, rng: np.random.Generator) -> list[str] | None:
    """None where the law holds in all cases; else the smallest case found, and what is wrong."""
    try:
        with _time_limit():
            for size in SIZES:
                for _ in range(DRAWS):
                    case = law.draw(rng, size)
                    if why := _fails(law, answer, case):
                        case, why = _simpler(law, answer, case, why)
                        return [*(f"{name} = {show(value)}" for name, value in case.items()), *why.split("\n")]
    except TooLong:
        return [f"stopped after {SECONDS} s: is there a loop that does not end?"]
    return None


def _fails(law: Law, answer: Callable, case: dict) -> str | None:
    """Why the law does not hold in this case; None if it does. What the answer prints is dropped, warnings too."""
    with (
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            law.holds(answer, **copy.deepcopy(case))
        except Wrong as wrong:
            return str(wrong)
        except NotImplementedError:
            return "nothing is written here yet"
        except SystemExit:
            return "the answer ends the program: exit() has no place in it"
        except TooLong:
            raise
        except RecursionError:
            return "RecursionError: the answer calls itself too deeply"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return None


def _simpler(law: Law, answer: Callable, case: dict, why: str) -> tuple[dict, str]:
    """The case with its real numbers rounded, and then one by one 0 or 1, wherever the law still fails so."""
    for name, value in case.items():
        if not (isinstance(value, np.ndarray) and value.dtype.kind == "f" and 0 < value.size <= 24):
            continue
        tries = [lambda a: np.round(a), *(_put(i, n) for i in range(value.size) for n in (0, 1))]
        for change in tries:
            smaller = {**case, name: change(case[name])}
            if not np.array_equal(smaller[name], case[name]) and (now := _fails(law, answer, smaller)):
                case, why = smaller, now
    return case, why


def _put(i: int, number: float) -> Callable:
    def change(array):
        changed = array.copy()
        if changed.flat[i] not in (0, 1):
            changed.flat[i] = number
        return changed

    return change


@contextlib.contextmanager
def _time_limit():
    """TooLong after SECONDS, where the system can do so: in the main thread, and not on Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
