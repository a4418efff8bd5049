"""Which loads take their address from data: of small kernels by reading them, of the library's by changing the data."""

import numpy as np
import pytest

from minilora import simt
from minilora.bench import kernels, ladders
from minilora.bench.lookups import lookups

pytestmark = pytest.mark.skipif(not simt.available(), reason="NVRTC is not installed: pip install 'minilora[simt]'")

SOURCE = """
#define ARGS const int* __restrict__ x, const float* __restrict__ table, float* __restrict__ y, int n
extern "C" __global__ void plain(ARGS) { int i = blockIdx.x * n + threadIdx.x; y[i] = table[i] * x[n - i]; }
extern "C" __global__ void indexed(ARGS) { int i = threadIdx.x; y[i] = table[x[i]]; }
extern "C" __global__ void by_predicate(ARGS) { int i = threadIdx.x; y[i] = table[x[i] > n ? i : 2 * i]; }
extern "C" __global__ void by_shuffle(ARGS) { y[threadIdx.x] = table[__shfl_xor_sync(~0u, x[threadIdx.x], 1)]; }
extern "C" __global__ void by_loop(ARGS) {
  int at = 0;
#pragma unroll 1
  for (int k = 0; k < n; ++k) at = 2 * at + (table[at] > y[0]);
  y[threadIdx.x] = at;
}
extern "C" __global__ void through_shared(ARGS) {
  __shared__ int tile[32];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = table[tile[31 - threadIdx.x]];
}
extern "C" __global__ void scattered(ARGS) { y[x[threadIdx.x]] = table[threadIdx.x]; }
"""


@pytest.fixture(scope="module")
def program():
    return simt.load(simt.compile_cuda(SOURCE))


@pytest.mark.parametrize("name", ["indexed", "by_predicate", "by_shuffle", "by_loop", "through_shared"])
def test_the_load_from_the_table_is_a_lookup(program, name):
    kernel = program.kernels[name]
    assert [kernel.instructions[i].opcode for i in lookups(kernel)] == ["ld.global.nc.f32"]


@pytest.mark.parametrize("name", ["plain", "scattered"])
def test_other_loads_are_not(program, name):
    assert not lookups(program.kernels[name])


class Addresses:
    """In place of counters: the addresses of each load, instruction by instruction."""

    def __init__(self, kernel):
        self.kernel, self.loads = kernel, {}

    def start(self, kernel):
        pass

    def issue(self, index, lanes, warps):
        pass

    def access(self, index, space, write, addresses, nbytes, warps, lanes):
        if not write and self.kernel.instructions[index].name != "cp":
            self.loads.setdefault(index, []).append(np.array(addresses))


@pytest.mark.parametrize(
    "ladder",
    [
        pytest.param(ladder, id=ladder.name, marks=[pytest.mark.slow] * ("gemm" in ladder.name))
        for ladder in ladders.LADDERS
    ],
)
def test_addresses_change_with_the_weights_in_lookups_and_nowhere_else(monkeypatch, ladder):
    monkeypatch.setattr(kernels, "Counters", Addresses)
    for name, size in {"N": 1 << 13, "GEMV": (16, 1024), "GEMM": (32, 64, 128), "ROWS": (4, 256)}.items():
        monkeypatch.setattr(ladders, name, size)
    for version in ladder.versions:
        found = []
        for seed in (1, 2):
            monkeypatch.setattr(ladders, "SEED", seed)
            ladders.forget()
            device = kernels.Recorder(kernels.SIMULATED, counting=True)
            ladder.call(device, version)
            found.append(device.counts)
        for first, second in zip(*found, strict=True):
            changed = {
                index for index, addresses in first.loads.items()
                if any(not np.array_equal(a, b) for a, b in zip(addresses, second.loads[index], strict=True))
            }  # fmt: skip
            assert changed == lookups(first.kernel) & first.loads.keys()
    ladders.forget()
