"""What of `minilora bench gpu` needs no GPU: its cases, on the simulated one, and its arithmetic."""

from dataclasses import replace

import numpy as np
import pytest

from minilora.backend import use_backend
from minilora.bench import gpu
from minilora.cli import main
from minilora.errors import BackendError, MiniloraError

TIMES = {"ours": 3.0, "memcpy": 2.0, "cublas": 6.0, "bitsandbytes": 1.5}


@pytest.fixture(scope="module")
def cases():
    from minilora import simt
    from minilora.backend.simt import SimulatedDevice

    if not simt.available():
        pytest.skip("NVRTC is not installed: pip install 'minilora[simt]'")
    return list(gpu.cases(SimulatedDevice(arch=80, check=False), np, size=(64, 128), batches=(1, 4, 16)))


def timer(functions):
    for function in functions.values():
        function()
    return {name: TIMES[name] for name in functions}


def copied(nbytes):
    return lambda: np.zeros(nbytes, np.uint8).copy()


def test_the_cases_compute_what_they_say(cases):
    found = list(gpu.rows(cases, timer, copied, lambda operation, m: (lambda: None) if operation != "g W" else None))
    assert [row.name for row in found] == ["quantize", "dequantize", "dequantize, double"] + [
        f"{product}, {m} rows" for m in (1, 4, 16) for product in ("x Wᵀ", "g W")
    ]
    for row in found:
        assert row.memcpy == 1.5
        assert row.cublas == (0.5 if "rows" in row.name else None)
        assert row.bitsandbytes == (None if "g W" in row.name else 2.0)


def test_bytes_that_each_case_moves(cases):
    moves = {case.name: case.moves / (64 * 128) for case in cases}
    assert moves["dequantize"] == 2 + 0.5 + 4 / 64
    assert moves["dequantize, double"] == 2 + 0.5 + 1 / 64 + 4 / (64 * 128)  # 128 absmax share one absmax2
    assert moves["x Wᵀ, 1 rows"] == pytest.approx(0.5 + 1 / 64 + (4 + 2 * (64 + 128)) / (64 * 128))


@pytest.mark.parametrize("name", ["quantize", "dequantize", "x Wᵀ, 4 rows", "g W, 16 rows"])
def test_a_wrong_kernel_is_not_timed(cases, name):
    case = next(case for case in cases if case.name == name)
    right = case.ours()
    wrong = (right[0] ^ np.uint8(1), right[1]) if name == "quantize" else np.roll(right, 1)
    with pytest.raises(MiniloraError, match=name):
        list(gpu.rows([replace(case, ours=lambda: wrong)], timer, copied))


def test_without_a_gpu_one_line_says_what_is_missing(capsys):
    try:
        with use_backend("cupy"):
            pytest.skip("this machine has a GPU: minilora bench gpu would measure it")
    except BackendError as error:
        assert main(["bench", "gpu"]) == 1
        said = capsys.readouterr()
        assert said.out == "" and said.err == f"minilora bench: {error}\n"
