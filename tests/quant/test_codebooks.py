"""The codes equal the published ones bit for bit (tests/golden/tables.npz, made by bitsandbytes 0.50.2)."""

from pathlib import Path

import numpy as np

from minilora.quant import CODES
from minilora.quant.codebooks import dynamic_map

TABLES = np.load(Path(__file__).parents[1] / "golden" / "tables.npz")


def test_nf4_is_bit_for_bit_the_published_code():
    assert CODES["nf4"].dtype == np.float32
    assert CODES["nf4"].tobytes() == TABLES["nf4"].tobytes()


def test_dynamic_map_is_bit_for_bit_the_published_one():
    assert dynamic_map().tobytes() == TABLES["dynamic8"].tobytes()
