# %% [markdown]
# # 12. A CUDA kernel, thread by thread
#
# A GPU runs thousands of threads at once, and all of them have the same program. **How does each know what is its
# own to do? And if two get in each other's way, how would you notice?**
#
# **Nothing in this lesson runs on a GPU, and none of minilora's kernels has run on one yet.** The compiler is
# NVIDIA's own. What it writes is executed by a simulated GPU in NumPy. That tells what a kernel computes, whether it may
# go wrong, how many instructions it takes and which bytes it moves. It does not tell how long it takes.
#
# *About 14 minutes. Before it: lesson 8 (NF4). Needs `pip install 'minilora[simt]'`; some C helps.*

# %%
import numpy as np

import minilora as ml
from minilora import simt
from minilora.viz.intervals import dots
from minilora.viz.sectors import sectors
from minilora.viz.steps import over_time, race, record, walk

rng = np.random.default_rng(0)
x = rng.standard_normal(150).astype(np.float32)
q = ml.quantize(x, "nf4", blocksize=64)  # codes, two a byte, and an absmax for each 64 weights
level = ml.quant.CODES["nf4"]

# %% [markdown]
# ## A program for one weight
#
# A *kernel* is what one thread does. This one makes one weight out of its code. Threads come in blocks, and a thread is told
# three numbers: which block it is in, which thread of the block it is, and how large blocks are. So it knows its `i`.

# %%
DEQUANTIZE = r"""extern "C" __global__ void dequantize(
    const unsigned char* packed, const float* absmax, const float* level, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int two = packed[i / 2];
  int code = i % 2 ? two & 15 : two >> 4;
  out[i] = level[code] * absmax[i / 64];
}"""

# %% [markdown]
# There is no loop over the weights: the loop is the threads. The host starts enough blocks for all n weights.
#
# **Before you run the next cell:** there are 150 weights, and blocks of 64 threads. How many threads start, and how many
# of them return at once?

# %%
my_guess = None

blocks, threads = -(-150 // 64), 64
started = blocks * threads
print("your guess:", my_guess, "   threads:", started, "   that return at once:", started - 150)

# %% [markdown]
# ## The machine, by hand
#
# What does the hardware do with it? It takes one instruction and executes it for many threads together. So a variable
# of the kernel is an *array* with an element for each thread, and `if (i >= n) return` is a *mask*: who goes on.

# %%
def dequantize_by_hand(packed, absmax, level, n, blocks, threads):
    thread = np.arange(blocks * threads)
    block_index, thread_index = thread // threads, thread % threads
    i = block_index * threads + thread_index
    i = i[i < n]  # the others have returned
    two = packed[i // 2].astype(int)
    code = np.where(i % 2, two & 15, two >> 4)
    out = np.full(n, np.nan, np.float32)
    out[i] = level[code] * absmax[i // 64]
    return out


by_hand = dequantize_by_hand(q.packed, q.absmax, level, 150, blocks, threads)

# %% [markdown]
# minilora's simulated GPU (`minilora.simt`) is this idea carried out for all of PTX, the assembly language that NVIDIA's compiler writes.
# Compile the kernel, launch it, and compare with NumPy and with the library, bit for bit:

# %%
def launch(source, name, grid, block, *args, **options):
    """Compile CUDA C and run one kernel of it. Arrays that it writes are changed."""
    args = [simt.Buffer(a, not a.flags.writeable) if np.ndim(a) else a for a in args]
    simt.launch(simt.load(simt.compile_cuda(source)), name, grid, block, args, **options)


out = np.full(150, np.nan, np.float32)
launch(DEQUANTIZE, "dequantize", blocks, threads, q.packed, q.absmax, level, out, np.int32(150))
print("as by hand:", np.array_equal(out, by_hand), "   as the library:", np.array_equal(out, q.dequantize()))
assert np.array_equal(out, by_hand) and np.array_equal(out, q.dequantize())

# %% [markdown]
# What if the line with `return` is forgotten? On a GPU 42 threads would read and write whatever lies behind the arrays,
# mostly without any message. Here:

# %%
try:
    forgotten = DEQUANTIZE.replace("if (i >= n) return;", "")
    launch(forgotten, "dequantize", blocks, threads, q.packed, q.absmax, level, out, np.int32(150))
except ml.MiniloraError as error:
    print(error)

# %% [markdown]
# ## Thirty-two in step
#
# The hardware does not execute one thread at a time but 32, a *warp*: one instruction for 32 threads. If some have to take
# another way, the rest wait. Here is a loop whose length depends on the data: how often must a number be halved until
# it is below 1?

# %%
HALVINGS = r"""extern "C" __global__ void halvings(const float* x, int* out) {
  float v = x[threadIdx.x];
  int k = 0;
  while (v >= 1) {
    v *= 0.5f;
    k += 1;
  }
  out[threadIdx.x] = k;
}"""
numbers = np.array([0.5, 1, 2, 3, 0.1, 9, 0.7, 1, 5, 0.2, 40, 1, 0.3, 2, 1, 6], np.float32)
k = np.zeros(16, np.int32)
args = [simt.Buffer(numbers, read_only=True), simt.Buffer(k)]
program = simt.load(simt.compile_cuda(HALVINGS))
moments = record(simt.Stepper(program, "halvings", 1, 16, args, source=HALVINGS))

# %% [markdown]
# **Before you run:** 14 of the 16 threads are done after three turns. How many turns does the warp make?

# %%
print("halvings:", k)
over_time(moments, HALVINGS, "A row a step, a cell a thread")

# %% [markdown]
# As many as its slowest thread: six. The empty cells are threads that wait; their places in the hardware do nothing. So a
# kernel wants threads of a warp to go the same way. This is why minilora's quantizer finds a level by a fixed number of
# comparisons, not by a search that may stop early.
#
# ## Neighbours
#
# Memory does not move in single floats but in *sectors* of 32 bytes. What counts is in how many sectors the 32
# addresses of a warp lie. Take a matrix of 32 × 32 floats, row by row in memory, and two kernels that add up its rows or its
# columns, a thread for each sum. They differ in one index.

# %%
SUMS = r"""extern "C" __global__ void rows(const float* x, float* out) {
  float sum = 0;
  for (int j = 0; j < 32; ++j) sum += x[threadIdx.x * 32 + j];
  out[threadIdx.x] = sum;
}
extern "C" __global__ void columns(const float* x, float* out) {
  float sum = 0;
  for (int j = 0; j < 32; ++j) sum += x[j * 32 + threadIdx.x];
  out[threadIdx.x] = sum;
}"""

# %% [markdown]
# **Before you run:** both read each float once. Which one moves more memory, and how many times as much?

# %%
matrix = rng.standard_normal((32, 32)).astype(np.float32)
program = simt.load(simt.compile_cuda(SUMS))
for name in ("rows", "columns"):
    counters, out = simt.Counters(program.kernel(name)), np.zeros(32, np.float32)
    args = [simt.Buffer(matrix, read_only=True), simt.Buffer(out)]
    simt.launch(program, name, 1, 32, args, counters=counters)
    assert np.allclose(out, matrix.sum(axis=1 if name == "rows" else 0), atol=1e-4)
    print(f"{name:<8} {counters.summary().count.sectors:>5} sectors of 32 bytes")
lane = np.arange(32)
patterns = {"rows: lane t reads x[32 t]": 128 * lane, "columns: lane t reads x[t]": 4 * lane}
sectors(patterns, "The first load of a warp")

# %% [markdown]
# In `rows` each of the 32 threads is in a sector of its own, and 28 of its 32 bytes are not asked for. (They will be, at the
# next turns. A cache may still have them then, or not.) Note what is unusual: in a C program for one core, `rows`
# is the good one. There *one* thread should walk along memory; here *neighbouring threads* should stand side by side.
#
# ## Sharing
#
# To quantize a block one needs its absmax: a result of all of its weights. Threads of a CUDA block can share it
# through *shared memory*. A tree does it: half of the threads take the larger of two numbers, then a quarter, and so on. After
# each level all wait for each other at a *barrier*, `__syncthreads()`.
#
# Press *next*. Each column is a thread; "shared best" is the shared array, number by number.

# %%
ABSMAX = r"""extern "C" __global__ void absmax(const float* x, float* out) {
  __shared__ float best[N];
  int t = threadIdx.x;
  best[t] = fabsf(x[blockIdx.x * N + t]);
  __syncthreads();
  for (int half = N / 2; half > 0; half /= 2) {
    if (t < half) best[t] = fmaxf(best[t], best[t + half]);
    __syncthreads();
  }
  if (t == 0) out[blockIdx.x] = best[0];
}"""
eight, largest = ABSMAX.replace("N", "8"), np.zeros(1, np.float32)
args = [simt.Buffer(x[:8].copy(), read_only=True), simt.Buffer(largest)]
walk(record(simt.Stepper(simt.load(simt.compile_cuda(eight)), "absmax", 1, 8, args, source=eight)), eight)

# %% [markdown]
# Eight numbers need three levels, 64 need six. With blocks of 64 threads it gives the absmax that the library has
# stored (of the two full blocks):

# %%
sixty_four, largest = ABSMAX.replace("N", "64"), np.zeros(2, np.float32)
launch(sixty_four, "absmax", 2, 64, x[:128].copy(), largest)
print(largest, q.absmax[:2])
assert np.array_equal(largest, q.absmax[:2])

# %% [markdown]
# ## A race
#
# Now leave out the barrier inside the loop. First with the checks turned off, and look at the result only.
#
# **Before you run:** will the result be wrong?

# %%
no_barrier = sixty_four.replace("    __syncthreads();\n", "")
launch(no_barrier, "absmax", 2, 64, x[:128].copy(), largest, check=False)
print("result right:", np.array_equal(largest, q.absmax[:2]))

# %% [markdown]
# It is right. The simulator happened to let all threads take each line together, and then nothing goes wrong. On a GPU two
# warps run as they like: one may be a level ahead of the other and read a number that is not there yet. It may do so
# once in a thousand launches, and never while you watch. **A test of the result cannot show that a kernel is
# right.**
#
# So ask another question. Not "was the number right", but: *is there anything that puts these two accesses in an
# order?* Two accesses to the same byte, at least one of them a write, without a barrier between them are a *data race*,
# whichever came first this time. The simulator keeps for each byte who wrote and read it last, and for each thread
# after which barrier it is. One run is enough.

# %%
try:
    launch(no_barrier, "absmax", 2, 64, x[:128].copy(), largest)
except ml.MiniloraError as error:
    found = error
print(found)
race(found, no_barrier)

# %% [markdown]
# Both parties are in the same warp even. Since 2017 (Volta) NVIDIA's threads of a warp need not go in step either, so
# that a barrier is needed there too (`__syncwarp()` is the cheap one).
#
# Is more barrier always safer? No. Put it inside the `if`, and some threads come to it and some never do:

# %%
inside = sixty_four.replace("if (t < half) best[t]", "if (t < half) { best[t]").replace(
    "best[t + half]);\n    __syncthreads();", "best[t + half]); __syncthreads(); }"
)
try:
    launch(inside, "absmax", 2, 64, x[:128].copy(), largest)
except ml.MiniloraError as error:
    print(error)

# %% [markdown]
# **Exercise.** Pack codes: byte j is `codes[2 j] * 16 + codes[2 j + 1]`. For an odd n the last byte's lower half is 7, the
# code of zero. The host starts one thread a *code*, so at least n threads. Think first: which of them should write byte
# j? Two that each write "their" half of a byte would have to read it, change it and write it back.

# %%
from minilora.course.checks import lesson12 as checks


def pack():
    return r"""
extern "C" __global__ void pack(const unsigned char* codes, unsigned char* packed, int n) {
  // yours
}"""


checks.pack.check(pack)

# %% [markdown]
# **Exercise.** Count sectors yourself. `addresses` are the bytes at which the lanes of a warp start to read, each of them
# `nbytes` long; how many different sectors of 32 bytes do they touch? (NumPy only. Mind an access that begins in one
# sector and ends in the next.)

# %%
def count_sectors(addresses, nbytes):
    ...  # yours


checks.count_sectors.check(count_sectors)

# %% [markdown]
# ## A ladder
#
# minilora's own kernels are ladders of this kind: v0 is to be read, and each further step moves less or computes less.
# `dequantize_4bit.cu` has four. v0 is ours from above. v1 is a thread a byte; v2 a thread 16 bytes of output in one
# store; v3 four of these, with the scales worked out once for all. All give NumPy's numbers bit for bit; here is what a
# weight costs each of them.

# %%
from minilora.backend.cuda.quantize import dequantize_4bit
from minilora.backend.simt import SimulatedDevice

w = rng.standard_normal(1 << 14).astype(np.float32)
qw = ml.quantize(w, "nf4", blocksize=64)
instructions, moved = {}, {}
for version in range(4):
    device = SimulatedDevice(counters=simt.Counters())
    out = dequantize_4bit(
        device, qw.packed, qw.absmax, level, 64, 0, w.size, dtype=np.float16, version=version
    )
    assert np.array_equal(out, qw.dequantize().astype(np.float16))
    cost = device.counters.summary(w.size)
    instructions[f"v{version}"] = cost.instructions, np.nan  # exact: no interval
    moved[f"v{version}"] = cost.moved, np.nan
costs = {"instructions a weight": instructions, "bytes moved a weight": moved}
dots(costs, "instructions, or bytes, a weight", "Four dequantizers, one result")

# %% [markdown]
# Two bytes of output and half a byte of codes must move whatever one does: 2.56 bytes with the scales. v2 and v3 are close to
# that, and a third of v0's instructions. Whether that makes them faster, and by how much, only a GPU can tell:
# `minilora bench gpu` is ready to measure it, and has not been run on one.
#
# And the whole library on the simulated GPU:

# %%
with ml.use_backend("simt"):
    same = ml.quantize(x, "nf4", blocksize=64)
print("codes:", np.array_equal(same.packed, q.packed), "  absmax:", np.array_equal(same.absmax, q.absmax))
assert np.array_equal(same.packed, q.packed) and np.array_equal(same.absmax, q.absmax)

# %% [markdown]
# **To take along**
# - A kernel is the body of a loop; the threads are the loop. `i = blockIdx.x * blockDim.x + threadIdx.x`, then a check of
#   the bound.
# - 32 threads share an instruction. Where they part, they wait for each other.
# - Neighbouring threads should touch neighbouring bytes.
# - Shared memory needs barriers that *all* threads reach. A right result does not show that they are there; a race
#   detector does.
#
# *NVIDIA, CUDA C++ Programming Guide, "Programming Model", "SIMT Architecture", "Device Memory Accesses"; C. Flanagan, S. Freund,
# FastTrack, PLDI 2009, for races. In minilora: `minilora/simt/machine.py`, `races.py`, `counters.py`; the kernels in
# `minilora/backend/cuda/`; what is proven of them on the page "The CUDA kernels".*
