"""The machine: every thread runs, branches part and meet again, barriers wait, waves follow; what is wrong is said."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import simt
from minilora.errors import LaunchError, MiniloraError, SimulationError

SOURCE = r"""
#include <cuda_fp16.h>
typedef unsigned u32;
extern "C" {
__global__ void number(u32* out) {                 // who am I
  u32 threads = blockDim.x * blockDim.y * blockDim.z;
  u32 block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  u32 i = block * threads + threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[i] += i * 2654435761u;
}
__global__ void collatz(const u32* start, u32* steps, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  u32 count = 0;
  for (u32 x = start[i]; x != 1; ++count) {
    if (x % 2) x = 3 * x + 1;
    else x = x / 2;
  }
  steps[i] = count;
}
__global__ void nested(const int* x, int* out) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, y = 0, v = x[i];
  for (int a = 0; a < v % 5; ++a) {
    if (v & 8) { for (int b = 0; b < a; ++b) { if ((b ^ v) & 1) continue; if (b > 2) break; y += b * v; } }
    else if (v & 16) y -= a;
    else { if (a == 3) { out[i] = -1; return; } y ^= a << 4; }
  }
  out[i] = y;
}
__global__ void parting(const int* x, int* out) {   // no loop
  int v = x[threadIdx.x];
  if (v & 1) { if (v & 2) atomicAdd(out, v); else atomicAdd(out + 1, v); atomicAdd(out + 2, 1); }
  else if (v & 4) { atomicSub(out + 3, v); if (v & 2) { atomicAdd(out + 4, v); return; } }
  atomicAdd(out + 5, v);
}
__global__ void reverse(const float* x, float* out) {   // within a block, through shared memory
  extern __shared__ float tile[];
  int first = blockIdx.x * blockDim.x;
  tile[threadIdx.x] = x[first + threadIdx.x];
  __syncthreads();
  out[first + threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
__global__ void count(const int* x, int* out) {
  int v = x[blockIdx.x * blockDim.x + threadIdx.x];
  int a = __syncthreads_count(v > 0), b = __syncthreads_or(v > 7), c = __syncthreads_and(v > -7);
  if (threadIdx.x == 0) { out[3 * blockIdx.x] = a; out[3 * blockIdx.x + 1] = b != 0; out[3 * blockIdx.x + 2] = c != 0; }
}
__global__ void barrier_after_exit(int* out, int n) {
  if (threadIdx.x >= n) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void barrier_in_branch(int* out, int n) {
  if (threadIdx.x < n) { out[threadIdx.x] = 1; __syncthreads(); }
  else { out[threadIdx.x] = 2; __syncthreads(); }
}
__global__ void endless(int* out, int n) { while (n) atomicAdd(out, 1); }
struct Pair { short a; double b; };
__global__ void structure(double* out, struct Pair p, bool flag, __half h) { *out = p.a * p.b + flag + (float)h; }
__device__ int launches = 10;
__constant__ int primes[4] = {2, 3, 5, 7};
__global__ void variables(int* out) {
  int stack[6];
  for (int i = 0; i < 6; ++i) stack[(i * primes[threadIdx.x % 4]) % 6] = i;
  out[threadIdx.x] = stack[threadIdx.x % 6] + launches;
  if (threadIdx.x == 0) atomicAdd(&launches, 1);
}
__global__ void stops(int n) { if (n == 1) __trap(); }
}
"""
PRINTS = 'extern "C" __global__ void prints(int n) { printf("%d", n); }'
CLOCK = 'extern "C" __global__ void ticks(long long* t) { *t = clock64(); }'
CALLS = """
__device__ __noinline__ int f(int n) { return n < 2 ? 1 : n * f(n - 1); }
extern "C" __global__ void calls(int* t) { *t = f(*t); }
"""

sizes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))


@given(sizes, sizes, st.sampled_from([1, 64, 512, 8192]))
def test_every_thread_runs_once(cuda, grid, block, max_lanes):
    out = np.zeros(math.prod(grid) * math.prod(block), np.uint32)
    simt.launch(cuda(SOURCE), "number", grid, block, [simt.Buffer(out)], max_lanes=max_lanes)
    assert np.array_equal(out, np.arange(out.size, dtype=np.uint32) * np.uint32(2654435761))


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=150), st.sampled_from([1, 7, 32, 100]))
def test_loops(cuda, start, block):
    def steps(x):
        return 0 if x == 1 else 1 + steps(3 * x + 1 if x % 2 else x // 2)

    start, out = np.array(start, np.uint32), np.zeros(len(start), np.uint32)
    args = [simt.Buffer(start, read_only=True), simt.Buffer(out), np.int32(len(start))]
    simt.launch(cuda(SOURCE), "collatz", -(-len(start) // block), block, args)
    assert out.tolist() == [steps(int(x)) for x in start]


def nested(v: int) -> int:
    y = 0
    for a in range(v % 5):
        if v & 8:
            for b in range(a):
                if (b ^ v) & 1:
                    continue
                if b > 2:
                    break
                y += b * v
        elif v & 16:
            y -= a
        elif a == 3:
            return -1
        else:
            y ^= a << 4
    return y


@pytest.mark.parametrize("arch", [75, 80, 90, 120])
def test_branches_in_branches(cuda, arch, rng):
    x = rng.integers(0, 64, 192).astype(np.int32)
    out = np.zeros_like(x)
    simt.launch(cuda(SOURCE, arch), "nested", 3, 64, [simt.Buffer(x), simt.Buffer(out)])
    assert out.tolist() == [nested(int(v)) for v in x]


@pytest.mark.parametrize("arch", [75, 80, 90, 120])
@given(st.lists(st.integers(0, 7), min_size=48, max_size=48))
def test_lanes_go_on_together_where_branches_meet(cuda, arch, values):
    """Without a loop no instruction is executed twice: those ahead have waited for those behind."""
    x, out, counters = np.array(values, np.int32), np.zeros(6, np.int32), Recorder()
    args = [simt.Buffer(x), simt.Buffer(out)]
    simt.launch(cuda(SOURCE, arch), "parting", 1, 48, args, counters=counters)
    indices = [index for index, lanes, _ in counters.issued]
    assert len(indices) == len(set(indices))
    odd, four = (x & 1) > 0, ((x & 1) == 0) & ((x & 4) > 0)
    sums = [x[odd & (x & 2 > 0)].sum(), x[odd & (x & 2 == 0)].sum(), odd.sum(), -x[four].sum()]
    assert out.tolist() == [*sums, x[four & (x & 2 > 0)].sum(), x[~(four & (x & 2 > 0))].sum()]


@given(st.integers(1, 200), st.integers(1, 6), st.sampled_from([1, 256, 8192]))
def test_barrier_and_dynamic_shared_memory(cuda, block, grid, max_lanes):
    x = np.arange(block * grid, dtype=np.float32)
    out = np.full_like(x, np.nan)
    args = [simt.Buffer(x), simt.Buffer(out)]
    simt.launch(cuda(SOURCE), "reverse", grid, block, args, shared=4 * block, max_lanes=max_lanes)
    assert np.array_equal(out.reshape(grid, block), x.reshape(grid, block)[:, ::-1])


def test_too_little_shared_memory(cuda):
    x = np.zeros(64, np.float32)
    with pytest.raises(SimulationError, match=r"out of bounds.*byte 252 of tile \(252 bytes\)"):
        simt.launch(cuda(SOURCE), "reverse", 1, 64, [simt.Buffer(x), simt.Buffer(x.copy())], shared=4 * 63)


@given(st.lists(st.integers(-9, 9), min_size=80, max_size=80))
def test_barriers_that_count(cuda, values):
    x, out = np.array(values, np.int32), np.zeros(6, np.int32)
    simt.launch(cuda(SOURCE), "count", 2, 40, [simt.Buffer(x), simt.Buffer(out)])
    expected = [[(part > 0).sum(), (part > 7).any(), (part > -7).all()] for part in x.reshape(2, 40)]
    assert np.array_equal(out.reshape(2, 3), expected)


@pytest.mark.parametrize("n", [100, 64, 33, 32, 5])
def test_barrier_that_some_threads_do_not_reach(cuda, n):
    for name, what in (("barrier_after_exit", "left the kernel"), ("barrier_in_branch", "waits at another one")):
        out = np.zeros(100, np.int32)
        if n == 100:
            simt.launch(cuda(SOURCE), name, 1, 100, [simt.Buffer(out), np.int32(n)])
            assert (out == 1).all()
        else:
            with pytest.raises(SimulationError) as error:
                simt.launch(cuda(SOURCE), name, 1, 100, [simt.Buffer(out), np.int32(n)])
            assert f"barrier divergence: {n} of the block's 100 threads" in str(error.value)
            assert f"thread ({n}, 0, 0) of block (0, 0, 0) {what}" in str(error.value)


def test_endless_loop_is_stopped(cuda):
    args = [simt.Buffer(np.zeros(1, np.int32)), np.int32(1)]
    with pytest.raises(SimulationError, match="after 1000 steps"):
        simt.launch(cuda(SOURCE), "endless", 1, 1, args, max_steps=1000)
    simt.launch(cuda(SOURCE), "endless", 1, 1, [args[0], np.int32(0)], max_steps=1000)


@pytest.mark.parametrize("arch", [75, 120])
def test_arguments_by_value(cuda, arch):
    out = np.zeros(1)
    pair = np.zeros(1, np.dtype([("a", np.int16), ("b", np.float64)], align=True))
    pair["a"], pair["b"] = -3, 0.5
    args = [simt.Buffer(out), pair[0], np.bool_(True), np.float16(0.25)]
    simt.launch(cuda(SOURCE, arch), "structure", 1, 1, args)
    assert out[0] == -1.5 + 1 + 0.25


def test_variables_of_the_program(cuda):
    """Constants, an array of each thread's own, and a __device__ variable, which lasts from launch to launch."""
    program = simt.load(simt.compile_cuda(SOURCE)) if simt.available() else cuda(SOURCE)
    expected = []
    for t in range(40):
        stack = [None] * 6
        for i in range(6):
            stack[i * [2, 3, 5, 7][t % 4] % 6] = i
        expected.append(stack[t % 6])
    known = [i for i, v in enumerate(expected) if v is not None]
    out = np.zeros(40, np.int32)
    simt.launch(program, "variables", 1, 40, [simt.Buffer(out)], check=False)
    assert all(out[i] == expected[i] + 10 for i in known)
    simt.launch(program, "variables", 1, 40, [simt.Buffer(out)], check=False)
    assert all(out[i] == expected[i] + 11 for i in known)
    with pytest.raises(SimulationError, match=r"local read .* not written before"):
        simt.launch(program, "variables", 1, 40, [simt.Buffer(out)])


@pytest.mark.parametrize(
    "args, what",
    [
        ([], "takes 2 arguments, 0 were given"),
        ([np.int32(1), np.int32(1)], "argument 0 is int32, the parameter is .u64"),
        ([simt.Buffer(np.zeros(1)), 1], "argument 1 is a int, the parameter is .u32"),
        ([simt.Buffer(np.zeros(1)), np.int64(1)], "argument 1 is int64"),
        ([simt.Buffer(np.zeros(1)), np.float32(1)], "argument 1 is float32"),
        ([simt.Buffer(np.zeros(1)), simt.Buffer(np.zeros(1))], "argument 1 is a Buffer"),
    ],
)
def test_arguments_that_do_not_fit(cuda, args, what):
    with pytest.raises(LaunchError) as error:
        simt.launch(cuda(SOURCE), "endless", 1, 1, args)
    assert what in str(error.value)


@pytest.mark.parametrize("grid, block", [(0, 1), (1, 0), (1, 1025), ((1, 0), 32), (1, (32, 32, 2))])
def test_sizes_that_do_not_fit(cuda, grid, block):
    with pytest.raises(LaunchError, match=r"grid .* block"):
        simt.launch(cuda(SOURCE), "number", grid, block, [simt.Buffer(np.zeros(1, np.uint32))])


def test_unknown_kernel(cuda):
    with pytest.raises(MiniloraError, match=r"'numbers'.*number"):
        simt.launch(cuda(SOURCE), "numbers", 1, 1, [])


@pytest.mark.parametrize(
    "source, name, what", [(PRINTS, "prints", "call"), (CLOCK, "ticks", "clock64"), (CALLS, "calls", "forceinline")]
)
def test_what_is_not_supported_is_named(cuda, source, name, what):
    program = cuda(source)
    type = program.kernels[name].parameters[0][1]
    arg = np.int32(1) if type == "u32" else simt.Buffer(np.zeros(1, np.int64))
    with pytest.raises(SimulationError, match=f"{name}, line .*{what}"):
        simt.launch(program, name, 1, 1, [arg])


def test_trap(cuda):
    simt.launch(cuda(SOURCE), "stops", 1, 32, [np.int32(0)])
    with pytest.raises(SimulationError, match="called trap"):
        simt.launch(cuda(SOURCE), "stops", 1, 32, [np.int32(1)])


class Recorder:
    def __init__(self):
        self.issued, self.accessed = [], []

    def issue(self, index, lanes, warps):
        self.issued.append((index, lanes, warps))

    def access(self, index, space, write, addresses, nbytes, warps, lanes):
        assert len(addresses) == len(warps) == len(lanes)
        self.accessed.append((index, space, write, addresses.copy(), nbytes, warps.copy(), lanes.copy()))


def test_steps_and_counters(cuda):
    x = np.arange(96, dtype=np.float32)
    counters = Recorder()
    out = np.zeros_like(x)
    args = [simt.Buffer(x), simt.Buffer(out)]
    machine = simt.Machine(cuda(SOURCE), "reverse", 2, 48, args, shared=192, counters=counters)
    steps = 0
    while machine.step():
        steps += 1
    assert steps == machine.steps == len(counters.issued)
    code = machine.kernel.instructions
    assert [index for index, _, _ in counters.issued] == list(range(len(code)))  # no branch is taken
    assert {(lanes, warps) for _, lanes, warps in counters.issued} == {(96, 4)}
    assert [(code[i].opcode.split(".")[1], write) for i, _, write, *_ in counters.accessed] == [
        ("global", False),
        ("shared", True),
        ("shared", False),
        ("global", True),
    ]
    _, _, _, addresses, nbytes, warps, lanes = counters.accessed[-1]
    assert nbytes == 4 and np.array_equal(np.diff(addresses), np.full(95, 4))
    assert warps.tolist() == [0] * 32 + [1] * 16 + [2] * 32 + [3] * 16
    assert np.array_equal(lanes, np.r_[0:32, 0:16, 0:32, 0:16])
    assert machine.step() is False
    assert np.array_equal(out.reshape(2, 48), x.reshape(2, 48)[:, ::-1])


def test_check_off_keeps_bounds_and_barriers(cuda):
    x = np.zeros(63, np.float32)
    with pytest.raises(SimulationError, match="out of bounds"):
        simt.launch(cuda(SOURCE), "reverse", 1, 64, [simt.Buffer(x), simt.Buffer(x.copy())], shared=256, check=False)
    with pytest.raises(SimulationError, match="barrier divergence"):
        args = [simt.Buffer(np.zeros(64, np.int32)), np.int32(5)]
        simt.launch(cuda(SOURCE), "barrier_after_exit", 1, 64, args, check=False)
