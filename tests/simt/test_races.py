"""The race detector against an oracle: happens-before as sets of accesses, in plain Python, for random programs.

A program is a list of steps. In some, a few threads load, store or do an atomic at given bytes; others are a barrier,
or warp barriers with random masks, which order what is before and after. The oracle knows of each thread all accesses
that happen before its next one; the detector keeps a few numbers a byte. They must agree on whether there is a race and
in which step it shows first.
"""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import simt
from minilora.errors import SimulationError

THREADS, BLOCKS, BYTES = 72, 3, 16  # of a block: two warps and a quarter
POOL = [0, 1, 2, 5, 31, 32, 33, 40, 63, 64, 71]  # threads that do something, so that they meet
NOTHING = 0xFFFF

accesses = st.tuples(
    st.sampled_from(["read", "read", "write", "atomic"]),
    st.sampled_from(["shared", "shared", "global"]),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.dictionaries(
        st.tuples(st.integers(0, BLOCKS - 1), st.sampled_from(POOL)), st.integers(0, BYTES - 1), min_size=1, max_size=6
    ),
)
MASKS = [0xFFFFFFFF, 0xFFFF, 0xFFFF0000, 0x3, 0x5, 0x6, 0x7, 0x21, 0x24, 0x27, 0x80000001]
masks = st.lists(st.sampled_from(MASKS), min_size=9, max_size=9)
steps = st.one_of(
    accesses, accesses, st.just(("barrier",)), st.just(("warps",)), st.tuples(st.just("masks"), masks)
)  # fmt: skip


def width(kind: str, nbytes: int) -> int:
    return 4 if kind == "atomic" else nbytes


def access_text(i: int, kind: str, space: str, nbytes: int) -> str:
    base = {"shared": "%sh", "global": "%gl"}[space]
    where = f"add.s64 %at, {base}, %off;\n"
    if kind == "atomic":
        return where + f"@%p red.{space}.add.u32 [%at], 1;"
    vector, type, registers = {
        1: ("", "u8", "%s"),
        2: ("", "u16", "%s"),
        4: ("", "u32", "%v0"),
        8: (".v2", "u32", "{%v0, %v1}"),
        16: (".v4", "u32", "{%v0, %v1, %v2, %v3}"),
    }[nbytes]
    if kind == "read":
        return where + f"@%p ld.{space}{vector}.{type} {registers}, [%at];"
    return where + f"@%p st.{space}{vector}.{type} [%at], {registers};"


def ptx(program) -> str:
    """Step i reads from table[i][thread] what its thread does: an offset, a mask, or nothing. Its line is 100 + i."""
    body = []
    for i, step in enumerate(program):
        body += [f".loc 1 {100 + i} 1", f"ld.global.u16 %s, [%row+{2 * i * THREADS * BLOCKS}];"]
        body += [f"setp.ne.u16 %p, %s, {NOTHING};", "cvt.u64.u16 %off, %s;"]
        if step[0] == "barrier":
            body.append("bar.sync 0;")
        elif step[0] == "warps":
            body.append("bar.warp.sync -1;")
        elif step[0] == "masks":
            body.append(f"ld.global.u32 %m, [%mrow+{4 * i * THREADS * BLOCKS}];")
            body += ["setp.ne.u32 %p, %m, 0;", "@%p bar.warp.sync %m;"]
        else:
            body.append(access_text(i, *step[:3]))
    return f"""
.version 8.8
.target sm_80
.address_size 64
.visible .entry k(.param .u64 memory, .param .u64 table, .param .u64 masks)
{{
.reg .pred %p; .reg .b16 %s; .reg .b32 %m, %t, %b, %n, %i, %v<4>; .reg .b64 %gl, %sh, %at, %off, %row, %mrow, %i64;
.shared .align 16 .b8 cells[{BYTES}];
ld.param.u64 %gl, [memory];
ld.param.u64 %row, [table];
ld.param.u64 %mrow, [masks];
mov.u64 %sh, cells;
mov.u32 %t, %tid.x;
mov.u32 %b, %ctaid.x;
mad.lo.s32 %i, %b, {THREADS}, %t;
mul.wide.s32 %i64, %i, 2;
add.s64 %row, %row, %i64;
mul.wide.s32 %i64, %i, 4;
add.s64 %mrow, %mrow, %i64;
setp.eq.u32 %p, %t, 0;
@%p st.shared.v4.u32 [%sh], {{%v0, %v1, %v2, %v3}};
bar.sync 0;
.loc 1 100 1
{chr(10).join(body)}
ret;
}}
"""


def tables(program):
    """(steps, BLOCKS * THREADS): offsets for each access; masks that the lanes of a warp agree on."""
    offsets = np.full((len(program) + 1, BLOCKS * THREADS), NOTHING, np.uint16)
    masks = np.zeros((len(program) + 1, BLOCKS * THREADS), np.uint32)
    for i, step in enumerate(program):
        if step[0] == "masks":
            for block in range(BLOCKS):
                for thread in range(THREADS):
                    mask = step[1][block * 3 + thread // 32]
                    named = mask >> thread % 32 & 1
                    masks[i, block * THREADS + thread] = mask if named else 0
        elif len(step) > 1:
            kind, _, nbytes, where = step
            for (block, thread), byte in where.items():
                offsets[i, block * THREADS + thread] = byte - byte % width(kind, nbytes)
    return offsets, masks


def first_race(program, wave: int) -> int | None:
    """The step in which a race shows first, if `wave` blocks run side by side. Threads are (block, number)."""
    offsets, masks = tables(program)
    done = {}  # byte -> [(access number, thread, kind)]
    number = 0
    for first in range(0, BLOCKS, wave):
        threads = [(b, t) for b in range(first, min(first + wave, BLOCKS)) for t in range(THREADS)]
        known = {thread: set() for thread in threads}  # accesses that happen before its next one
        for i, step in enumerate(program):
            if step[0] in ("barrier", "warps", "masks"):
                groups = {}
                for b, t in threads:
                    key = {"barrier": (b,), "warps": (b, t // 32), "masks": (b, t // 32)}[step[0]]
                    if step[0] != "masks" or masks[i, b * THREADS + t]:
                        groups.setdefault(key, []).append((b, t))
                for group in groups.values():
                    together = set().union(*(known[thread] for thread in group))
                    for thread in group:
                        known[thread] = set(together)
                continue
            kind, space, nbytes, _ = step
            for b, t in threads:
                offset = int(offsets[i, b * THREADS + t])
                if offset == NOTHING:
                    continue
                number += 1
                for byte in range(offset, offset + width(kind, nbytes)):
                    past = done.setdefault((space, byte) if space == "global" else (space, b, byte), [])
                    for other, thread, its in past:
                        harmless = its == kind == "read" or its == kind == "atomic"
                        if thread != (b, t) and not harmless and other not in known[b, t]:
                            return i
                    past.append((number, (b, t), kind))
                known[b, t].add(number)
    return None


def run(program, wave: int):
    offsets, masks = tables(program)
    memory = np.zeros(BYTES, np.uint8)
    args = [simt.Buffer(memory), simt.Buffer(offsets, read_only=True), simt.Buffer(masks, read_only=True)]
    simt.launch(simt.load(ptx(program)), "k", BLOCKS, THREADS, args, max_lanes=96 * wave)


def first_found(program, wave: int) -> int | None:
    try:
        run(program, wave)
    except SimulationError as error:
        assert "race:" in str(error), error
        return int(re.search(r"k, line (\d+)", str(error))[1]) - 100
    return None


@given(st.lists(steps, min_size=2, max_size=10), st.integers(1, 3))
def test_detector_agrees_with_happens_before(program, wave):
    assert first_found(program, wave) == first_race(program, wave)


def dense_program(rng) -> list:
    """Few threads, few bytes, many readers, masks that overlap: what the detector forgets would matter here."""
    threads = rng.choice(POOL, rng.integers(2, 7), replace=False)
    blocks, nbytes, chance = rng.integers(1, 4), rng.integers(1, 9), rng.choice([0.2, 0.5])
    writes, atomics, partial = rng.choice([0.02, 0.1, 0.3]), rng.choice([0, 0.1, 0.3]), rng.choice([0, 0.7])
    program = []
    for _ in range(rng.integers(3, 16)):
        if rng.random() < chance and rng.random() < partial:
            program.append(("masks", [int(m) for m in rng.choice(MASKS, 9)]))
        elif rng.random() < chance:
            program.append((rng.choice(["barrier", "warps", "warps"]),))
        else:
            kind = rng.choice(["write", "atomic", "read"], p=[writes, atomics, 1 - writes - atomics])
            space = rng.choice(["shared", "global"], p=[0.85, 0.15])
            who = [(int(rng.integers(blocks)), int(rng.choice(threads))) for _ in range(rng.integers(1, 6))]
            program.append(
                (kind, space, int(rng.choice([1, 2, 4, 8, 16])), {w: int(rng.integers(nbytes)) for w in who})
            )
    return program


@pytest.mark.parametrize("seed", range(6))
def test_detector_agrees_with_happens_before_on_dense_programs(seed):
    found = []
    for i in range(60):
        rng = np.random.default_rng([seed, i])
        program, wave = dense_program(rng), int(rng.integers(1, 4))
        found.append(first_race(program, wave))
        assert first_found(program, wave) == found[-1], (program, wave)
    assert 15 < sum(race is not None for race in found) < 45  # both happen often


READ, WRITE = ({(0, 1): 0}, {(0, 2): 0})


@pytest.mark.parametrize(
    "between, race",
    [
        ([], True),
        ([("barrier",)], False),
        ([("warps",)], False),
        ([("masks", [0x7] * 9)], False),
        ([("masks", [0x3] * 9)], True),  # thread 2 is not in it
    ],
)
@pytest.mark.parametrize(
    "first, second", [("read", "write"), ("write", "read"), ("write", "write"), ("read", "atomic")]
)
def test_what_orders_two_threads_of_a_warp(first, second, between, race):
    program = [(first, "shared", 4, READ), *between, (second, "shared", 4, WRITE)]
    assert (first_found(program, 3) is not None) == race


def test_a_warp_barrier_does_not_order_two_warps():
    program = [("write", "shared", 4, {(0, 1): 0}), ("warps",), ("read", "shared", 4, {(0, 40): 0})]
    assert first_found(program, 3) == 2
    assert first_found([*program[:1], ("barrier",), *program[2:]], 3) is None


@pytest.mark.parametrize("wave", [1, 2, 3])
def test_nothing_orders_two_blocks(wave):
    program = [("write", "global", 4, {(0, 0): 0}), ("barrier",), ("read", "global", 4, {(2, 0): 0})]
    assert first_found(program, wave) is not None
    atomics = [("atomic", "global", 4, {(0, 0): 0}), ("atomic", "global", 4, {(2, 0): 0})]
    assert first_found(atomics, wave) is None


def test_any_of_several_readers_is_remembered():
    """A write may race with a read that is neither the first nor the last."""
    readers = [("read", "shared", 4, {(0, t): 0}) for t in (5, 0, 1, 2)]
    synced = ("masks", [0x27] * 9)  # lanes 0, 1, 2 and 5
    assert first_found([*readers, ("write", "shared", 4, {(0, 5): 0})], 1) == 4
    assert first_found([*readers, synced, ("write", "shared", 4, {(0, 5): 0})], 1) is None
    for lane in (0, 1, 2):
        missed = ("masks", [0x27 - (1 << lane)] * 9)
        assert first_found([*readers, missed, ("write", "shared", 4, {(0, 5): 0})], 1) == 5


def test_order_is_handed_on():
    """Lanes 0 and 1 meet, then 1 and 2: what 0 did before is before what 2 does after; not so the other way round."""
    first, second = ("masks", [0x3] * 9), ("masks", [0x6] * 9)
    write, read = ("write", "shared", 4, {(0, 0): 0}), ("read", "shared", 4, {(0, 2): 0})
    assert first_found([write, first, second, read], 1) is None
    assert first_found([write, second, first, read], 1) == 3


def test_report_names_both_parties():
    program = [("write", "shared", 4, {(1, 40): 4}), ("read", "shared", 2, {(1, 0): 6})]
    with pytest.raises(SimulationError) as error:
        run(program, 3)
    message = str(error.value)
    assert "k, line 101, thread (0, 0, 0) of block (1, 0, 0)" in message
    assert "shared read of byte 6 of cells (16 bytes)" in message and "ld.shared.u16" in message
    assert "write by thread (40, 0, 0) of block (1, 0, 0)" in message
    assert "st.shared.u32" in message and "(line 100)" in message
