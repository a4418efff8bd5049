import ctypes
import sys

import pytest

from minilora.backend.malloc import keep_freed_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux with glibc")
def test_linux_with_glibc_takes_the_settings():
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("needs glibc; this is another C library")
    assert keep_freed_memory() is True


@pytest.mark.parametrize("platform", ["darwin", "win32", "emscripten"])
def test_elsewhere_nothing_is_loaded(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail(f"{name} was loaded"))
    assert keep_freed_memory() is False


@pytest.mark.parametrize("error", [OSError("no libc.so.6"), AttributeError("mallopt")])
def test_another_c_library_is_left_alone(monkeypatch, error):
    class Library:
        def __init__(self, name):
            if isinstance(error, OSError):
                raise error

        def __getattr__(self, name):
            raise error

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert keep_freed_memory() is False


def test_a_refused_setting_is_reported(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: type("Library", (), {"mallopt": staticmethod(lambda *a: 0)}))
    assert keep_freed_memory() is False
