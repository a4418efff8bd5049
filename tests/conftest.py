import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# The quick suite draws the same examples each time; the long campaign explores: HYPOTHESIS_PROFILE=long pytest
settings.register_profile(
    "quick", max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.register_profile("long", max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# A shell starts a job in the background with Ctrl-C ignored, which the tests that press it would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def golden():
    """golden(name) -> the arrays of tests/golden/<name>.npz."""
    return lambda name: dict(np.load(GOLDEN / f"{name}.npz"))


@pytest.fixture
def tiny_llama():
    return GOLDEN / "tiny_llama"


@pytest.fixture
def rng():
    return np.random.default_rng(0)
