"""Lesson 12's exercises. A kernel is compiled by NVRTC and run on the simulated GPU, which says what it does wrong."""

from functools import lru_cache

import numpy as np

from minilora.course.check import Problem, Wrong, equal

pack = Problem("pack", 2)
count_sectors = Problem("count_sectors", 1)


@lru_cache(maxsize=8)
def _program(source):
    from minilora import simt

    return simt.load(simt.compile_cuda(source))


def _packed(answer, codes):
    """What the kernel writes; one thread a code, rounded up to whole blocks of 32."""
    from minilora.simt import Buffer, launch

    source = answer()
    if not isinstance(source, str):
        raise Wrong("pack() is to return the text of a kernel")
    packed = np.full(-(-len(codes) // 2), 255, np.uint8)
    args = [Buffer(codes, read_only=True), Buffer(packed, initialized=False), np.int32(len(codes))]
    launch(_program(source), "pack", -(-len(codes) // 32), 32, args, max_steps=10_000)
    return packed


def _codes(rng, size, odd):
    return {"codes": rng.integers(0, 16, 2 * size * size - odd).astype(np.uint8)}


@pack.law(
    "byte j has code 2 j in its upper half and code 2 j + 1 in its lower", draw=lambda rng, size: _codes(rng, size, 0),
    means="thread j makes the whole byte j, from two codes; threads from ceil(n / 2) on return. Two threads that write "
    "one byte are a race, and a byte that was never written must not be read",
)  # fmt: skip
def _(answer, codes):
    equal(_packed(answer, codes), codes[0::2] * 16 + codes[1::2])


@pack.law(
    "of an odd number of codes, the last byte's lower half is 7", draw=lambda rng, size: _codes(rng, size, 1),
    means="the last thread's second code, codes[n], is beyond the array: do not read it",
)  # fmt: skip
def _(answer, codes):
    padded = np.append(codes, np.uint8(7))
    equal(_packed(answer, codes), padded[0::2] * 16 + padded[1::2])


def _addresses(rng, size):
    nbytes = int(rng.choice([1, 2, 4, 8, 16, 48]))
    step = rng.integers(1, 5 * size)
    return {"addresses": rng.integers(0, 99) + step * np.arange(rng.integers(1, 33)), "nbytes": nbytes}


@count_sectors.law(
    "each 32 bytes of which one is touched count once", draw=_addresses,
    means="every byte from address to address + nbytes - 1 is touched, and byte b is in sector b // 32",
)  # fmt: skip
def _(answer, addresses, nbytes):
    touched = {int(a + k) // 32 for a in addresses for k in range(nbytes)}
    equal(answer(addresses, nbytes), len(touched))
