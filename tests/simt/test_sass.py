"""Machine code, as NVIDIA's disassembler lists it, of kernels whose instructions are known from their source."""

from collections import Counter

import pytest

from minilora import simt
from minilora.errors import SimulationError
from minilora.simt import sass

ARCHS = (75, 80, 90, 120)
SOURCE = """
extern "C" __global__ void copy(const float4* __restrict__ x, float4* __restrict__ y) {
  y[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void turn(const float* __restrict__ x, float* __restrict__ y) {
  __shared__ float tile[256];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[255 - threadIdx.x];
}
extern "C" __global__ void nested(const float* __restrict__ x, float* __restrict__ y, int n, int m) {
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    sum *= 2;
#pragma unroll 1
    for (int j = 0; j < m; ++j) sum += x[i * m + j] * x[j * n + i];
  }
  y[threadIdx.x] = sum;
}
extern "C" __global__ void products(const float* __restrict__ x, float* __restrict__ y) {
  float v[48], sum = 0;
#pragma unroll
  for (int i = 0; i < 48; ++i) v[i] = x[i * 32 + threadIdx.x];
#pragma unroll
  for (int i = 0; i < 48; ++i)
#pragma unroll
    for (int j = 0; j < 48; ++j) sum = fmaf(v[i], v[j], sum);
  y[threadIdx.x] = sum;
}
"""


@pytest.fixture(scope="module")
def code():
    """code(arch, *options) -> the kernels of SOURCE."""
    if not (simt.available() and sass.available()):
        pytest.skip("NVRTC or nvdisasm and cuobjdump are not installed: pip install 'minilora[simt]'")
    return lambda arch, *options: sass.disassemble(simt.compile_cubin(SOURCE, arch, options))


@pytest.mark.parametrize("arch", ARCHS)
def test_what_the_source_says_is_in_the_machine_code(code, arch):
    kernels = code(arch)
    assert set(kernels) == {"copy", "turn", "nested", "products"}
    copy, turn, nested = (kernels[name] for name in ("copy", "turn", "nested"))
    assert (copy.count("LDG", "128"), copy.count("STG", "128"), copy.count("LDG")) == (1, 1, 1)
    assert (turn.count("LDG", "128"), turn.count("LDS"), turn.count("STS"), turn.count("BAR")) == (0, 1, 1, 1)
    assert copy.shared == 0 and turn.shared == 1024  # on 9.0 and above, without the system's own KiB
    assert not copy.loops
    assert len(nested.loops) == 1  # the inner one
    assert sass.count(nested.loops[0], "LDG") == 2 and sass.count(nested.loops[0], "FMUL") == 0
    assert all(kernel.spills == kernel.local == 0 for kernel in kernels.values())
    assert "NOP" not in nested.opcodes and nested.loops[0].total() < nested.opcodes.total()


@pytest.mark.parametrize("arch", [80, *(pytest.param(a, marks=pytest.mark.slow) for a in ARCHS if a != 80)])
def test_registers_that_do_not_fit_are_seen(code, arch):
    free, tight = code(arch)["products"], code(arch, "-maxrregcount=32")["products"]
    assert free.registers > 48 and free.spills == 0
    assert tight.registers <= 32 and tight.spills > 0


def test_modifiers_are_whole_words():
    opcodes = Counter({"LDG.E.128.CONSTANT": 2, "LDG.E.64": 3, "LDGSTS.E.BYPASS.128": 5, "LDG": 7})
    assert sass.count(opcodes, "LDG") == 12
    assert sass.count(opcodes, "LDG", "128") == 2
    assert sass.count(opcodes, "LDG", "12") == 0
    assert sass.count(opcodes, "LDGSTS", "128", "E") == 5


def test_what_is_no_machine_code_is_refused(code):
    with pytest.raises(SimulationError, match="cuobjdump"):
        sass.disassemble(b"not a cubin")


def test_missing_tools_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sass.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not sass.available()
    with pytest.raises(SimulationError, match="pip install"):
        sass.disassemble(b"")
