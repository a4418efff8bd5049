"""Reading PTX: what NVRTC writes, for each architecture; small texts by hand for each form; nonsense is refused."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import MiniloraError, SimulationError
from minilora.simt import Instruction, load
from minilora.simt.memory import readable

SOURCE = r"""
struct Pair { float a; double b; };
__constant__ short table[5] = {1, -2, 3, -4, 32767};
__device__ double total = 0.5;

__device__ __forceinline__ float twice(float v) {
  return v + v;                                       // line 7
}

extern "C" __global__ void first(const float* __restrict__ x, float* y, struct Pair p, bool flag, int n) {
  __shared__ double tile[10];
  __shared__ char byte;
  extern __shared__ float dynamic[];
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n && flag) {
    tile[threadIdx.x % 10] = twice(x[i]) * p.b + total;   // line 16
    byte = n;
    dynamic[threadIdx.x] = p.a + table[i % 5];
    __syncthreads();
    y[i] = tile[0] + byte + dynamic[0];
  }
}
extern "C" __global__ void __launch_bounds__(64, 2) second(int* a, int n) {
  int stack[8];
  for (int i = 0; i < n; ++i) stack[a[i] & 7] = i;
  a[threadIdx.x] = stack[threadIdx.x & 7];
  asm volatile("{ .reg .pred p; setp.eq.s32 p, %0, 3; @p bra done; add.s32 %0, %0, 1; done: }" : "+r"(a[1]));
  asm volatile("{ .reg .pred p; setp.eq.s32 p, %0, 5; @!p bra done; add.s32 %0, %0, 2; done: }" : "+r"(a[2]));
}
"""


@pytest.fixture(scope="module", params=[75, 80, 90, 120])
def program(request, cuda):
    return cuda(SOURCE, request.param)


def test_parameters(program):
    assert list(program.kernels) == ["first", "second"]
    assert [type for _, type in program.kernels["first"].parameters] == ["u64", "u64", "b8[16]", "u8", "u32"]
    assert [type for _, type in program.kernels["second"].parameters] == ["u64", "u32"]


def test_variables(program):
    variables = {v.name: v for v in program.variables}
    assert np.array_equal(variables["table"].data.view(np.int16), np.array([1, -2, 3, -4, 32767]))
    assert variables["total"].data.view(np.float64)[0] == 0.5
    assert (variables["table"].space, variables["total"].space) == ("const", "global")
    assert (variables["dynamic"].space, variables["dynamic"].size) == ("shared", None)
    sizes = {readable(v.name): v.size for v in program.kernels["first"].variables}
    assert sizes == {"tile": 80, "byte": 1}
    assert program.kernels["first"].shared == 81
    assert [v.space for v in program.kernels["second"].variables] == ["local"]


def test_every_operand_is_declared(program):
    for kernel in program.kernels.values():
        for instruction in kernel.instructions:
            names = [p.strip("!{} ") for o in instruction.operands for part in o.split(",") for p in part.split("|")]
            for name in names:
                if name.startswith("%") and not name.startswith(("%tid", "%ctaid", "%ntid")):
                    assert name in kernel.registers, instruction
        for instruction in kernel.instructions:
            if instruction.name == "bra":
                assert 0 <= kernel.labels[instruction.operands[0]] <= len(kernel.instructions)


def test_lines_are_those_of_the_source(program):
    lines = {i.line for i in program.kernels["first"].instructions}
    assert {7, 16, 18, 19, 20} <= lines <= set(range(1, 23))
    stores = [i.line for i in program.kernels["first"].instructions if i.opcode == "st.global.f32"]
    assert stores == [20]


def test_names_in_inner_braces_are_their_own(program):
    """Both inline blocks declare p and done; neither is the other's."""
    kernel = program.kernels["second"]
    inner = [i for i in kernel.instructions if i.predicate and i.predicate[1].startswith("p.")]
    assert len({i.predicate[1] for i in inner}) == 2
    assert len({kernel.labels[i.operands[0]] for i in inner}) == 2
    assert [i.predicate[0] for i in inner] == [False, True]


def test_printed_instructions_read_the_same(program):
    for kernel in program.kernels.values():
        text = "\n".join(f"{i};" for i in kernel.instructions)
        again = load(f".visible .entry k()\n{{\n{text}\n}}").kernels["k"].instructions
        strip = [(i.opcode, i.operands, i.predicate) for i in kernel.instructions]
        assert [(i.opcode, i.operands, i.predicate) for i in again] == strip


def one(text: str) -> Instruction:
    return load(f".entry k() {{ {text} }}").kernels["k"].instructions[0]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("ret;", Instruction("ret", ())),
        ("@%p1 bra $L1;", Instruction("bra", ("$L1",), (False, "%p1"))),
        ("@!%p1 bra.uni $L1;", Instruction("bra.uni", ("$L1",), (True, "%p1"))),
        ("ld.global.v2.u32 {%r1, %r2}, [%rd1+8];", Instruction("ld.global.v2.u32", ("{%r1, %r2}", "[%rd1+8]"))),
        ("shfl.sync.up.b32 %r1|%p1, %r2, 1, 0, 7;", Instruction("shfl.sync.up.b32", ("%r1|%p1", "%r2", "1", "0", "7"))),
        ("mov.b32 %r1, {%rs1,\n\t%rs2};", Instruction("mov.b32", ("%r1", "{%rs1, %rs2}"))),
        ("st.local.u32 [%rd1+-4], %r2;", Instruction("st.local.u32", ("[%rd1+-4]", "%r2"))),
        ("cp.async.cg.shared.global.L2::128B [%r1], [%rd1], 16;",
         Instruction("cp.async.cg.shared.global.L2::128B", ("[%r1]", "[%rd1]", "16"))),
    ],
)  # fmt: skip
def test_forms(text, expected):
    assert one(text) == expected


def test_parts_of_an_instruction():
    instruction = one("@!%p1 ld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}, [%rd4+16];")
    assert instruction.name == "ld"
    assert instruction.modifiers == ("global", "nc", "v4", "u32")
    assert str(instruction) == "@!%p1 ld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}, [%rd4+16]"


@given(st.lists(st.integers(-(2**31), 2**32 - 1), max_size=8), st.integers(0, 4))
def test_initial_values(values, more):
    """The rest of an array is zeros (PTX ISA, section 5.4.4)."""
    program = load(f".const .align 8 .b32 t[{len(values) + more}] = {{{', '.join(map(str, values))}}};")
    expected = np.array([v % 2**32 for v in values] + [0] * more, np.uint32)
    assert np.array_equal(program.variables[0].data.view(np.uint32), expected)


@given(st.floats(width=32), st.floats())
def test_initial_floats(a, b):
    a32, b64 = np.float32(a), np.float64(b)
    text = f".global .f32 a = 0f{a32.view(np.uint32):08X};\n.global .f64 b[1] = {{0d{b64.view(np.uint64):016x}}};"
    x, y = load(text).variables
    assert x.data.tobytes() == a32.tobytes() and y.data.tobytes() == b64.tobytes()


@pytest.mark.parametrize(
    "text, named",
    [
        (".global .texref t;", ".texref"),
        (".global .u64 p[1] = {generic(t)};", "generic(t)"),
        (".extern .global .align 4 .b8 far[];", "far"),
        (".entry k() { .branchtargets a, b; }", ".branchtargets"),
        (".const .f128 x;", "f128"),
        ("nonsense", "nonsense"),
        (".entry k() { ret", "ret"),
    ],
)
def test_what_is_not_known_is_named(text, named):
    with pytest.raises(SimulationError) as error:
        load(text)
    assert named in str(error.value)


def test_an_unknown_kernel_lists_those_there_are():
    with pytest.raises(MiniloraError, match="There are: scale"):
        load(".entry scale() { ret; }").kernel("scales")


@given(st.data())
def test_damaged_text_is_refused_or_read(data):
    text = DAMAGED
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(start + 40, len(text))))
    with contextlib.suppress(SimulationError):
        load(text[:start] + data.draw(st.sampled_from(["", ";", "{", "}", "@", ".", "[", '"'])) + text[stop:])


DAMAGED = """
.version 8.8
.target sm_80
.address_size 64
.const .align 4 .b8 levels[8] = {0, 0, 128, 191, 177, 57, 50, 191};
.extern .shared .align 16 .b8 dynamic[];
.visible .entry scale(
	.param .u64 .ptr .align 1 scale_param_0,
	.param .align 8 .b8 scale_param_1[16]
)
.maxntid 128, 1, 1
{
	.reg .pred 	%p<5>;
	.reg .b32 	%r<9>;
	.loc	1 22 3, function_name $L__info_string0, inlined_at 1 53 7
	.shared .align 4 .b8 tile[128];
	ld.param.u64 	%rd1, [scale_param_0];
	@%p1 bra 	$L__BB0_2;
	{ .reg .pred p; setp.eq.s32 p, %r1, 3; @p bra $L__BB0_2; }
$L__BB0_2:
	ret;
}
	.file	1 "kernel.cu"
	.section	.debug_str
	{
$L__info_string0:
.b8 95,90,0
	}
"""
