"""Where a run writes: its folder, proven usable before time is spent, and saves that Ctrl-C does not cut in two."""

import signal
import threading
from contextlib import contextmanager
from pathlib import Path

from minilora.errors import MiniloraError, TrainingError


@contextmanager
def hold_interrupts():
    """Within it Ctrl-C waits until the end. Does nothing outside the main thread, where Ctrl-C never arrives."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    pressed = []
    signal.signal(signal.SIGINT, lambda *call: pressed.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if pressed:
        handler(*pressed[0])


def prepare_output_dir(path, overwrite: bool = False) -> Path:
    """The folder, made if need be and proven writable. Raises TrainingError if it holds files or cannot be written."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not overwrite and any(folder.iterdir()):
            raise TrainingError(
                f"output folder {folder} is not empty; name another, or pass overwrite_output_dir (--overwrite)"
            )
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise TrainingError(f"output folder {folder} cannot be written: {error.strerror}") from error
    except MiniloraError:
        raise
    return folder
