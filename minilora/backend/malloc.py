"""Keep freed memory in the process.

glibc hands large freed blocks back to the kernel, which then clears every page again on the next use. A training step
frees and allocates the same activations over and over, and would lose much of its time to that. mallopt(3) raises the
thresholds. Elsewhere than on Linux with glibc nothing is done.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds for this process; returns whether that was possible."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl has neither this file name nor mallopt
        return False
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 2_000_000_000), (_M_TOP_PAD, 256 << 20))
    return all([mallopt(option, value) for option, value in settings])
