# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown] nbgrader={"grade_id": "intro", "locked": true}
# # Homework 5: kernels
#
# A model in 4 bits is only as fast as the program that turns its codes back into numbers. On a GPU that program is a
# *kernel*, written in CUDA C and run by thousands of threads at once. You write six of them: what QLoRA's forward pass
# needs.
#
# No GPU is needed. NVIDIA's compiler NVRTC makes machine instructions of your kernel, and a simulated GPU runs them.
# It is slower than a real one, and stricter: an access outside an array, a read of what was never written, and two
# threads that get in each other's way are errors, each with its line. Lesson 12 shows how it works. Beside NumPy this
# homework needs `pip install 'minilora[simt]'`.
#
# An answer is a function that returns a kernel's *body* as a string; the head is given with each problem. Each problem
# ends in a cell that checks your answer by laws that it must obey; run it as often as you like. Where a law fails it
# shows a small case. Grading runs the same laws on other cases. Change the seed to see other cases yourself.
#
# | problem | points | about |
# |---|---|---|
# | dequantize_int8 | 4 | 20 min |
# | unpack | 3 | 15 min |
# | dequantize_4bit | 4 | 25 min |
# | block_absmax | 6 | 40 min |
# | count_codes | 4 | 20 min |
# | gemv_4bit | 6 | 45 min |

# %% nbgrader={"grade_id": "setup", "locked": true}
import numpy as np

from minilora import simt
from minilora.course.checks import hw5_kernels as checks

seed = 0
print("NVRTC", simt.nvrtc.version().split(".")[0])  # an error here says what to install

# %% [markdown] nbgrader={"grade_id": "example-text", "locked": true}
# ## A kernel, and how it is run
#
# All threads run the same program. What differs is their number: `threadIdx.x` within a CUDA block of `blockDim.x`
# threads, and `blockIdx.x`, the number of that block among `gridDim.x`. Here two blocks of four threads each write
# where they are. One of the eight has nothing to do.

# %% nbgrader={"grade_id": "example", "locked": true}
source = """
extern "C" __global__ void where(int* block, int* thread, int n) {
  int mine = blockIdx.x * blockDim.x + threadIdx.x;
  if (mine < n) {
    block[mine] = blockIdx.x;
    thread[mine] = threadIdx.x;
  }
}
"""
block, thread = np.zeros(7, np.int32), np.zeros(7, np.int32)
program = simt.load(simt.compile_cuda(source))
simt.launch(program, "where", grid=(2,), block=(4,), args=(simt.Buffer(block), simt.Buffer(thread), np.int32(7)))
print("block ", block)
print("thread", thread)

# %% [markdown] nbgrader={"grade_id": "int8-text", "locked": true}
# ## Eight bits
#
#     extern "C" __global__ void dequantize_int8(const signed char* codes, const float* absmax, float* out,
#                                                int n, int blocksize)
#
# There are n codes from -127 to 127. Each `blocksize` of them, one after the other, share a scale: `absmax[0]`, then
# `absmax[1]`, and so on. Write out[i] = code · scale / 127 for each i below n. There are at least n threads, and
# perhaps more. (Blocks of entries are one thing, CUDA's blocks of threads another.)

# %% nbgrader={"grade_id": "int8", "solution": true}
def dequantize_int8():
    ### BEGIN SOLUTION
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) out[i] = codes[i] * absmax[i / blocksize] / 127;
    """
    ### END SOLUTION


# %% nbgrader={"grade_id": "int8-check", "grade": true, "points": 4}
checks.dequantize_int8.score(dequantize_int8, seed)

# %% [markdown] nbgrader={"grade_id": "unpack-text", "locked": true}
# ## Two codes in a byte
#
#     extern "C" __global__ void unpack(const unsigned char* packed, unsigned char* codes, int n)
#
# Codes of 4 bits lie two in a byte, the first in its high half. Write the n codes to `codes`, a byte each. If n is odd,
# the low half of the last byte is no code. There are at least n threads; whether one thread does one code or both of
# a byte is up to you.

# %% nbgrader={"grade_id": "unpack", "solution": true}
def unpack():
    ### BEGIN SOLUTION
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) codes[i] = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
    """
    ### END SOLUTION


# %% nbgrader={"grade_id": "unpack-check", "grade": true, "points": 3}
checks.unpack.score(unpack, seed)

# %% [markdown] nbgrader={"grade_id": "dequantize-text", "locked": true}
# ## Four bits
#
#     extern "C" __global__ void dequantize_4bit(const unsigned char* packed, const float* absmax, const float* levels,
#                                                float* out, int n, int blocksize)
#
# Entry i is the level of its code times the scale of its block: `levels` has 16 numbers (NF4's), `absmax` one for each
# `blocksize` entries. Now there may be *fewer* threads than entries: a thread goes on until all is done, so that each
# entry is written once.

# %% nbgrader={"grade_id": "dequantize", "solution": true}
def dequantize_4bit():
    ### BEGIN SOLUTION
    return """
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
          int code = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
          out[i] = levels[code] * absmax[i / blocksize];
        }
    """
    ### END SOLUTION


# %% nbgrader={"grade_id": "dequantize-check", "grade": true, "points": 4}
checks.dequantize_4bit.score(dequantize_4bit, seed)

# %% [markdown] nbgrader={"grade_id": "absmax-text", "locked": true}
# ## Many threads, one number
#
#     extern "C" __global__ void block_absmax(const float* x, float* absmax, int n, int blocksize)
#
# The scale of a block of entries is the largest |x| in it. Each CUDA block of 64 threads finds one of them: number b
# looks at the entries from b · blocksize on, `blocksize` of them or as many as there are before n, and writes
# `absmax[b]`.
#
# The threads have to share the work, and then to bring together what each of them found. That takes memory that the
# 64 have in common, such as `__shared__ float found[64];`, and an order: what one thread wrote, another may read only
# after both came to a `__syncthreads()`. All threads of the block must come to the same one.

# %% nbgrader={"grade_id": "absmax", "solution": true}
def block_absmax():
    ### BEGIN SOLUTION
    return """
        __shared__ float part[64];
        int t = threadIdx.x, first = blockIdx.x * blocksize;
        float largest = 0;
        for (int k = t; k < blocksize && first + k < n; k += 64) largest = fmaxf(largest, fabsf(x[first + k]));
        part[t] = largest;
        __syncthreads();
        for (int half = 32; half > 0; half /= 2) {
          if (t < half) part[t] = fmaxf(part[t], part[t + half]);
          __syncthreads();
        }
        if (t == 0) absmax[blockIdx.x] = part[0];
    """
    ### END SOLUTION


# %% nbgrader={"grade_id": "absmax-check", "grade": true, "points": 6}
checks.block_absmax.score(block_absmax, seed)

# %% [markdown] nbgrader={"grade_id": "count-text", "locked": true}
# ## Many threads, few places
#
#     extern "C" __global__ void count_codes(const unsigned char* packed, int* counts, int n)
#
# How often does each code occur among the n that are packed? (For NF4 and normal weights the answer is: by no means
# equally often.) `counts` has 16 numbers, all zero at first. There are at least n threads, and many of them want to
# change the same number at the same time.

# %% nbgrader={"grade_id": "count", "solution": true}
def count_codes():
    ### BEGIN SOLUTION
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) atomicAdd(&counts[i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4], 1);
    """
    ### END SOLUTION


# %% nbgrader={"grade_id": "count-check", "grade": true, "points": 4}
checks.count_codes.score(count_codes, seed)

# %% [markdown] nbgrader={"grade_id": "gemv-text", "locked": true}
# ## A product with a weight that is never unpacked
#
#     extern "C" __global__ void gemv_4bit(const unsigned char* packed, const float* absmax, const float* levels,
#                                          const float* x, float* y, int cols, int blocksize)
#
# When a model writes a text, each new token needs y = W x for each of its matrices. Nearly all of the time goes into
# fetching W, so it pays to fetch 4 bits a weight and to dequantize in registers: W is never written anywhere.
#
# The rows of W, of `cols` entries each, lie packed one after the other. As everywhere, entry number i of all has its
# code in byte i / 2 and its scale at i / blocksize: a row may begin in the middle of a byte and of a block. There is
# one CUDA block of 32 threads for each row; block r writes `y[r]`. Let the threads share the columns.
#
# To bring the sums together, shared memory will do. Or let the 32 threads, which are one warp, read each other's
# registers: `__shfl_down_sync(0xffffffff, v, d)` is the v of the thread d places further on.

# %% nbgrader={"grade_id": "gemv", "solution": true}
def gemv_4bit():
    ### BEGIN SOLUTION
    return """
        float sum = 0;
        for (int k = threadIdx.x; k < cols; k += 32) {
          int i = blockIdx.x * cols + k;
          int code = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
          sum += levels[code] * absmax[i / blocksize] * x[k];
        }
        for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(0xffffffff, sum, d);
        if (threadIdx.x == 0) y[blockIdx.x] = sum;
    """
    ### END SOLUTION


# %% nbgrader={"grade_id": "gemv-check", "grade": true, "points": 6}
checks.gemv_4bit.score(gemv_4bit, seed)
