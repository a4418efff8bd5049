"""One way to compare two functions on a noisy machine: alternate them, take the median of the ratios."""

import statistics
import time


def compare(ours, theirs, rounds: int = 7) -> float:
    """Median ratio of CPU times, the two alternated, after one call of each."""
    ours()
    theirs()
    ratios = []
    for _ in range(rounds):
        a = time.process_time()
        ours()
        b = time.process_time()
        theirs()
        ratios.append((b - a) / (time.process_time() - b))
    return statistics.median(ratios)
