// Dequantize from 4 bits: entries start to stop of the flat array, out (stop - start,) of float32, float16 or bfloat16.
//
//     out[i - start] = level[code[i]] · absmax[i / blocksize]             in float32, then rounded to nearest even
//     absmax[b] = (level256[absmax_code[b]] · absmax2[b / 256]) · factor + offset      in dequantize_4bit_double_v*
//
// packed: two codes a byte, the first in its high half. Every product and the sum are rounded (no fused multiply-add),
// as in backend/numpy.py and quant/double.py. factor is 1, or 1/127 where the codes are int8.
//
//   v0  a thread a weight.
//   v1  a thread a byte, that is two weights, and the levels in shared memory.
//   v2  a thread 16 bytes of output, in one store: 4 weights as float32, 8 in 16 bits. They share one scale.
//   v3  four times as many, and the scales of all that a CUDA block writes are worked out once, in shared memory.
//
// v2 and v3 need start and blocksize to be multiples of that 4 or 8 (or one block in all), out aligned to 16 bytes and
// packed to 4. "Block" means a block of weights here, "CUDA block" one of threads. -DOUT: the type of out, -DHEADER:
// what declares it, -DLARGEST: its largest number, where float32 has larger ones. -DINDEX: size_t for stop above 2^30.

#ifdef HEADER
#include HEADER
#endif
#ifndef OUT
#define OUT float
#endif
#ifndef INDEX
#define INDEX unsigned
#endif
#define THREADS 256                  // of v3
#define STEPS 4                      // stores of 16 bytes a thread, in v3
#define WIDTH unsigned(16 / sizeof(OUT))  // weights in 16 bytes

typedef unsigned char byte;

// The arithmetic of NumPy. CuPy compiles with -ftz=true, and then `a * b`, __fmul_rn(a, b) and `a + b` take and give
// zero for a subnormal number (below 2^-126), such as a level times a very small absmax. Going through double does not
// help: the compiler turns (float)((double)a * b) into a multiplication that flushes too. Instructions that are
// written out keep them. The processor's own C++ has no such option.
#ifdef __CUDA_ARCH__
#define ARITHMETIC(name, symbol, ptx)                            \
  __device__ __forceinline__ float name(float a, float b) {        \
    float y;                                                       \
    asm(ptx " %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));            \
    return y;                                                      \
  }
#else
#define ARITHMETIC(name, symbol, ptx) \
  __device__ __forceinline__ float name(float a, float b) { return a symbol b; }
#endif
ARITHMETIC(multiply, *, "mul.rn.f32")
ARITHMETIC(add, +, "add.rn.f32")

// One entry, in the type of out. A rounded absmax may lie beyond the largest float16, which is then taken instead of
// infinity. (NaN compares with nothing and stays; fminf would turn it into a number.)
__device__ __forceinline__ OUT entry(float level, float scale) {
  float y = multiply(level, scale);
#ifdef LARGEST
  y = y > LARGEST ? LARGEST : y < -LARGEST ? -LARGEST : y;
#endif
  return OUT(y);
}

// Where the scale of a block comes from: from a float32 each, or from 8 bits each.
struct Plain {
  const float* absmax;

  __device__ void stage() {}
  __device__ __forceinline__ float operator()(INDEX b) const { return absmax[b]; }
};

struct Double {
  const byte* codes;
  const float *levels256, *absmax2;
  float factor, offset;

  // Use a copy of the 256 levels in shared memory. To be called by all threads.
  __device__ void stage() {
    __shared__ float copy[256];
    for (unsigned k = threadIdx.x; k < 256; k += blockDim.x) copy[k] = levels256[k];
    __syncthreads();
    levels256 = copy;
  }
  __device__ __forceinline__ float operator()(INDEX b) const {
    return add(multiply(multiply(levels256[codes[b]], absmax2[b / 256]), factor), offset);
  }
};

// Each step is written once, for both, and has a kernel for each.
#define STEP(version)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS) dequantize_4bit_v##version( \
      const byte* __restrict__ packed, const float* __restrict__ absmax, const float* __restrict__ levels,             \
      OUT* __restrict__ out, INDEX start, INDEX stop, INDEX blocksize) {                                               \
    v##version(packed, Plain{absmax}, levels, out, start, stop, blocksize);                                            \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS) dequantize_4bit_double_v##version( \
      const byte* __restrict__ packed, const byte* __restrict__ absmax_codes, const float* __restrict__ levels256,     \
      const float* __restrict__ absmax2, float factor, float offset, const float* __restrict__ levels,                 \
      OUT* __restrict__ out, INDEX start, INDEX stop, INDEX blocksize) {                                               \
    v##version(packed, Double{absmax_codes, levels256, absmax2, factor, offset}, levels, out, start, stop, blocksize); \
  }

// v0: a thread a weight. Both threads of a byte load it, and each works out the scale of its block.
template <class Scale>
__device__ __forceinline__ void v0(const byte* __restrict__ packed, Scale scale, const float* __restrict__ levels,
                                   OUT* __restrict__ out, INDEX start, INDEX stop, INDEX blocksize) {
  INDEX i = start + (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= stop) return;
  unsigned two = packed[i / 2];
  out[i - start] = entry(levels[i % 2 ? two & 15u : two >> 4], scale(i / blocksize));
}
STEP(0)

// The levels, copied to shared memory: 16 words in 16 different banks, so that lanes that look up different ones do not
// wait for each other, whatever the codes are. A table of both levels for each of the 256 bytes would halve the
// look-ups, but its 512 words share 32 banks.
__device__ __forceinline__ void copy_levels(float* level, const float* levels) {
  if (threadIdx.x < 16) level[threadIdx.x] = levels[threadIdx.x];
  __syncthreads();
}

// v1: a thread a byte. Where blocks have an odd length, its weights may lie in two of them.
template <class Scale>
__device__ __forceinline__ void v1(const byte* __restrict__ packed, Scale scale, const float* __restrict__ levels,
                                   OUT* __restrict__ out, INDEX start, INDEX stop, INDEX blocksize) {
  __shared__ float level[16];
  copy_levels(level, levels);
  INDEX j = start / 2 + (INDEX)blockIdx.x * blockDim.x + threadIdx.x, i = 2 * j;
  if (i >= stop) return;
  unsigned two = packed[j];
  INDEX b = i / blocksize;
  float s = scale(b);
  if (i >= start) out[i - start] = entry(level[two >> 4], s);
  if (i + 1 < stop) {
    if (i + 1 == (b + 1) * blocksize) s = scale(b + 1);
    out[i + 1 - start] = entry(level[two & 15u], s);
  }
}
STEP(1)

// The codes of WIDTH weights from i on, four bits each: 2 bytes for 4 of them, 4 bytes for 8.
__device__ __forceinline__ unsigned load_codes(const byte* __restrict__ packed, INDEX i) {
  const byte* at = packed + i / 2;
  return WIDTH == 4 ? *reinterpret_cast<const unsigned short*>(at) : *reinterpret_cast<const unsigned*>(at);
}

// WIDTH entries in one store. The first byte is the lowest of `codes`, and in it the first code the upper half: the
// j-th code is the (j ^ 1)-th from below.
__device__ __forceinline__ void store_entries(OUT* out, unsigned codes, const float* level, float scale) {
  __align__(16) OUT y[WIDTH];
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) y[j] = entry(level[codes >> 4 * (j ^ 1) & 15u], scale);
  *reinterpret_cast<uint4*>(out) = *reinterpret_cast<const uint4*>(y);
}

// Entries i to stop, fewer than WIDTH.
__device__ __forceinline__ void store_rest(const byte* __restrict__ packed, OUT* out, INDEX i, INDEX stop,
                                           const float* level, float scale) {
  for (; i < stop; ++i) {
    unsigned two = packed[i / 2];
    *out++ = entry(level[i % 2 ? two & 15u : two >> 4], scale);
  }
}

// v2: a thread 16 bytes of output. A warp stores 512 bytes without a gap, in one instruction, as loads it their codes.
// (Loading 16 bytes of codes a thread would set the stores of neighbouring threads 64 bytes apart, and each would fill
// half of a sector only.)
template <class Scale>
__device__ __forceinline__ void v2(const byte* __restrict__ packed, Scale scale, const float* __restrict__ levels,
                                   OUT* __restrict__ out, INDEX start, INDEX stop, INDEX blocksize) {
  __shared__ float level[16];
  copy_levels(level, levels);
  INDEX i = start + WIDTH * ((INDEX)blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= stop) return;
  float s = scale(i / blocksize);
  if (i + WIDTH <= stop) store_entries(out + (i - start), load_codes(packed, i), level, s);
  else store_rest(packed, out + (i - start), i, stop, level, s);
}
STEP(2)

// v3: a CUDA block writes THREADS · STEPS · 16 bytes without a gap, a tile, and first works out the scales of the
// blocks in it, each once. That matters where a scale costs three loads and three roundings. All loads of codes are on
// their way before the first is waited for.
template <class Scale>
__device__ __forceinline__ void v3(const byte* __restrict__ packed, Scale scale, const float* __restrict__ levels,
                                   OUT* __restrict__ out, INDEX start, INDEX stop, INDEX blocksize) {
  __shared__ float level[16], scales[THREADS * STEPS];
  INDEX tile = start + (INDEX)blockIdx.x * (THREADS * STEPS * WIDTH);
  unsigned codes[STEPS];
#pragma unroll
  for (unsigned step = 0; step < STEPS; ++step) {
    INDEX i = tile + WIDTH * (step * THREADS + threadIdx.x);
    codes[step] = i + WIDTH <= stop ? load_codes(packed, i) : 0;
  }
  scale.stage();
  INDEX end = tile + THREADS * STEPS * WIDTH;
  INDEX first = tile / blocksize, last = (min(end, stop) - 1) / blocksize;
  for (INDEX b = first + threadIdx.x; b <= last; b += THREADS) scales[b - first] = scale(b);
  copy_levels(level, levels);
#pragma unroll
  for (unsigned step = 0; step < STEPS; ++step) {
    INDEX i = tile + WIDTH * (step * THREADS + threadIdx.x);
    if (i >= stop) return;
    float s = scales[i / blocksize - first];
    if (i + WIDTH <= stop) store_entries(out + (i - start), codes[step], level, s);
    else store_rest(packed, out + (i - start), i, stop, level, s);
  }
}
STEP(3)
