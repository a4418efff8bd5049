import functools

import pytest

from minilora import simt


@functools.cache
def _program(source, arch, options):
    return simt.load(simt.compile_cuda(source, arch, options))


@pytest.fixture(scope="session")
def cuda():
    """cuda(source, arch=80, *options) -> Program, compiled once. Skips where NVRTC is not installed."""
    if not simt.available():
        pytest.skip("NVRTC is not installed: pip install 'minilora[simt]'")
    return lambda source, arch=80, *options: _program(source, arch, options)
