// Eight bits an entry: int8 for weights, and codes of a table of 256 levels for the constants of double quantization.
//
//     absmax[b] = max |x[i]| of the entries i of block b          (i / blocksize == b; the last block may be partial)
//     int8:   code[i] = round(x[i] · (127 / absmax)), half to even       x[i] ≈ (code[i] · absmax) · (1/127)
//     table:  code[i] = the level nearest to x[i] / absmax               x[i] ≈ level[code[i]] · absmax
//
// A block is anything from a few entries to a row or the whole array. Bit for bit what backend/numpy.py computes.
//
//   quantize_int8    v0  a thread a block.
//                    v1  a warp a block, as for rows.
//                    v2  many CUDA blocks a block, as for a whole array: slice_absmax finds the largest of each slice,
//                        then, launched once more, of those; and a thread takes four entries.
//   dequantize_int8  v0  a thread an entry.      v1  a thread 16 bytes of output.
//   quantize_8bit    v0  a thread a block.       v1  a CUDA block a block; binary search.
//   dequantize_8bit  v0  a thread an entry.
//
// v2 of quantize_int8 needs a blocksize that is a multiple of 4 (or one block in all) and x aligned to 16 bytes; v1 of
// dequantize_int8 start and blocksize to be multiples of the entries in 16 bytes, out aligned to 16 and codes to 8.
// "Block" means a block of entries here, "CUDA block" one of threads. -DOUT: the type of out, -DHEADER: what declares
// it, -DLARGEST: its largest number, where float32 has larger ones. -DINDEX: size_t for arrays of more than 2^30.

#ifdef HEADER
#include HEADER
#endif
#ifndef OUT
#define OUT float
#endif
#ifndef INDEX
#define INDEX unsigned
#endif
#define ALL 0xffffffffu                    // lanes of a warp
#define WIDTH unsigned(16 / sizeof(OUT))  // entries in 16 bytes

typedef unsigned char byte;

// The arithmetic of NumPy. CuPy compiles with -ftz=true, and then `a * b`, __fmul_rn(a, b), `a / b` and `a > b` all
// take a subnormal number (below 2^-126) for zero; double is no way round it (see quantize_4bit.cu). Instructions that
// are written out keep them. The processor's own C++ has no such option.
#ifdef __CUDA_ARCH__
#define ARITHMETIC(name, symbol, ptx)                            \
  __device__ __forceinline__ float name(float a, float b) {        \
    float y;                                                       \
    asm(ptx " %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));            \
    return y;                                                      \
  }
__device__ __forceinline__ unsigned greater(float a, float b) {  // 1 or 0
  unsigned y;
  asm("{ .reg .pred p; setp.gt.f32 p, %1, %2; selp.u32 %0, 1, 0, p; }" : "=r"(y) : "f"(a), "f"(b));
  return y;
}
#else
#define ARITHMETIC(name, symbol, ptx) \
  __device__ __forceinline__ float name(float a, float b) { return a symbol b; }
__device__ __forceinline__ unsigned greater(float a, float b) { return a > b; }
#endif
ARITHMETIC(multiply, *, "mul.rn.f32")
ARITHMETIC(divide, /, "div.rn.f32")

// |x| as an integer: floats from 0 up, and NaN above them, are in the order of their bits.
__device__ __forceinline__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

#define TINY 0x006ce3eeu   // the bits of 1e-38f
#define SMALL 0x03aa2425u  // the bits of 1e-36f: 127 / absmax is still a float32

// What the entries of an int8 block are multiplied by, given the bits of its absmax.
__device__ __forceinline__ float int8_factor(unsigned largest) {
  return divide(127.0f, __uint_as_float(max(largest, SMALL)));
}

// The int8 code of an entry; 0 for NaN, as the conversion gives.
__device__ __forceinline__ int int8_code(float x, float factor) { return __float2int_rn(multiply(x, factor)); }

// The larger of all lanes' values, in every lane.
__device__ __forceinline__ unsigned largest_of_warp(unsigned largest) {
  for (unsigned offset = 16; offset; offset /= 2) largest = max(largest, __shfl_xor_sync(ALL, largest, offset));
  return largest;
}

#define INT8_PARAMETERS \
  const float *__restrict__ x, signed char *__restrict__ codes, float *__restrict__ absmax, INDEX n, INDEX blocksize

// v0: a thread a block. With the whole array as one block, one thread does all.
extern "C" __global__ void quantize_int8_v0(INT8_PARAMETERS) {
  INDEX b = (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
  if (b >= (n + blocksize - 1) / blocksize) return;
  INDEX begin = b * blocksize, end = min(begin + blocksize, n);
  unsigned largest = 0;
  for (INDEX i = begin; i < end; ++i) largest = max(largest, magnitude(x[i]));
  absmax[b] = __uint_as_float(largest);
  float factor = int8_factor(largest);
  for (INDEX i = begin; i < end; ++i) codes[i] = int8_code(x[i], factor);
}

// v1: a warp a block. Neighbouring lanes read neighbouring entries, and find the largest by shuffles.
extern "C" __global__ void quantize_int8_v1(INT8_PARAMETERS) {
  INDEX b = (INDEX)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  unsigned lane = threadIdx.x % 32;
  if (b >= (n + blocksize - 1) / blocksize) return;  // whole warps: nobody waits for them in a shuffle
  INDEX begin = b * blocksize, end = min(begin + blocksize, n);
  unsigned largest = 0;
  for (INDEX i = begin + lane; i < end; i += 32) largest = max(largest, magnitude(x[i]));
  largest = largest_of_warp(largest);
  if (lane == 0) absmax[b] = __uint_as_float(largest);
  float factor = int8_factor(largest);
  for (INDEX i = begin + lane; i < end; i += 32) codes[i] = int8_code(x[i], factor);
}

// v2, first part: the largest |x| of each slice, `slice` entries of a block, gridDim.y slices to a block; largest
// (blocks, slices). A CUDA block a slice: of each warp by shuffles, of its warps in shared memory. CUDA blocks cannot
// wait for each other within a launch, so that the maxima of the slices are left to a second one, whose blocks are
// this one's slices. (An atomicMax on the bits would do it in one, on memory that another kernel has set to zero.)
extern "C" __global__ void slice_absmax(const float* __restrict__ x, float* __restrict__ largest, INDEX n,
                                        INDEX blocksize, INDEX slice) {
  __shared__ unsigned of_warp[32];
  INDEX begin = blockIdx.x * blocksize, end = min(begin + blocksize, n);
  begin += blockIdx.y * slice;
  end = min(begin + slice, end);
  unsigned most = 0;
  for (INDEX i = begin + threadIdx.x; i < end; i += blockDim.x) most = max(most, magnitude(x[i]));
  most = largest_of_warp(most);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = most;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned w = 1; w < blockDim.x / 32; ++w) most = max(most, of_warp[w]);
    largest[(INDEX)blockIdx.x * gridDim.y + blockIdx.y] = __uint_as_float(most);
  }
}

// v2, second part: a thread four entries of one block, in one load of 16 bytes and one store of four codes.
extern "C" __global__ void quantize_int8_v2(const float* __restrict__ x, signed char* __restrict__ codes,
                                            const float* __restrict__ absmax, INDEX n, INDEX blocksize) {
  INDEX i = 4 * ((INDEX)blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  float factor = int8_factor(__float_as_uint(absmax[i / blocksize]));
  if (i + 4 <= n) {
    float4 v = *reinterpret_cast<const float4*>(x + i);
    *reinterpret_cast<char4*>(codes + i) =
        make_char4(int8_code(v.x, factor), int8_code(v.y, factor), int8_code(v.z, factor), int8_code(v.w, factor));
  } else {
    for (; i < n; ++i) codes[i] = int8_code(x[i], factor);
  }
}

// One entry from its int8 code. A rounded absmax may lie beyond the largest float16, which is then taken instead of
// infinity. (NaN compares with nothing and stays; fminf would turn it into a number.)
__device__ __forceinline__ OUT int8_entry(signed char code, float absmax) {
  float y = multiply(multiply(code, absmax), 1.0f / 127.0f);
#ifdef LARGEST
  y = y > LARGEST ? LARGEST : y < -LARGEST ? -LARGEST : y;
#endif
  return OUT(y);
}

#define ENTRIES_PARAMETERS                                                                                      \
  const signed char *__restrict__ codes, const float *__restrict__ absmax, OUT *__restrict__ out, INDEX start, \
      INDEX stop, INDEX blocksize

// v0: a thread an entry.
extern "C" __global__ void dequantize_int8_v0(ENTRIES_PARAMETERS) {
  INDEX i = start + (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < stop) out[i - start] = int8_entry(codes[i], absmax[i / blocksize]);
}

// v1: a thread 16 bytes of output, in one store: 4 entries as float32, 8 in 16 bits. They share one absmax, and their
// codes are one load.
extern "C" __global__ void dequantize_int8_v1(ENTRIES_PARAMETERS) {
  INDEX i = start + WIDTH * ((INDEX)blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= stop) return;
  float scale = absmax[i / blocksize];
  if (i + WIDTH > stop) {
    for (; i < stop; ++i) out[i - start] = int8_entry(codes[i], scale);
    return;
  }
  unsigned long long several = WIDTH == 4 ? *reinterpret_cast<const unsigned*>(codes + i)
                                          : *reinterpret_cast<const unsigned long long*>(codes + i);
  __align__(16) OUT y[WIDTH];
#pragma unroll
  for (unsigned j = 0; j < WIDTH; ++j) y[j] = int8_entry((signed char)(several >> 8 * j), scale);
  *reinterpret_cast<uint4*>(out + (i - start)) = *reinterpret_cast<const uint4*>(y);
}

// borders: the 255 midpoints of the sorted levels, in ascending order, the last of 256 and any that lack infinity;
// order: the code of the k-th lowest level.
#define TABLE_PARAMETERS                                                                                       \
  const float *__restrict__ x, const float *__restrict__ borders, const byte *__restrict__ order,             \
      byte *__restrict__ codes, float *__restrict__ absmax, INDEX n, INDEX blocksize

// v0: a thread a block; each entry is compared with every border.
extern "C" __global__ void quantize_8bit_v0(TABLE_PARAMETERS) {
  INDEX b = (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
  if (b >= (n + blocksize - 1) / blocksize) return;
  INDEX begin = b * blocksize, end = min(begin + blocksize, n);
  unsigned largest = 0;
  for (INDEX i = begin; i < end; ++i) largest = max(largest, magnitude(x[i]));
  absmax[b] = __uint_as_float(largest);
  float divisor = __uint_as_float(max(largest, TINY));
  for (INDEX i = begin; i < end; ++i) {
    float scaled = divide(x[i], divisor);
    unsigned rank = 0;
    for (unsigned k = 0; k < 255; ++k) rank += greater(scaled, borders[k]);
    codes[i] = order[rank];
  }
}

// v1: a CUDA block a block. A binary search in shared memory finds the rank in eight comparisons instead of 255.
extern "C" __global__ void quantize_8bit_v1(TABLE_PARAMETERS) {
  __shared__ float border[256];
  __shared__ unsigned of_warp[32];
  for (unsigned k = threadIdx.x; k < 256; k += blockDim.x) border[k] = borders[k];
  INDEX begin = blockIdx.x * blocksize, end = min(begin + blocksize, n);
  unsigned largest = 0;
  for (INDEX i = begin + threadIdx.x; i < end; i += blockDim.x) largest = max(largest, magnitude(x[i]));
  largest = largest_of_warp(largest);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
  __syncthreads();
  for (unsigned w = 0; w < blockDim.x / 32; ++w) largest = max(largest, of_warp[w]);
  if (threadIdx.x == 0) absmax[blockIdx.x] = __uint_as_float(largest);
  float divisor = __uint_as_float(max(largest, TINY));
  for (INDEX i = begin + threadIdx.x; i < end; i += blockDim.x) {
    float scaled = divide(x[i], divisor);
    unsigned rank = 0;
#pragma unroll
    for (unsigned step = 128; step; step /= 2) rank += step * greater(scaled, border[rank + step - 1]);
    codes[i] = order[rank];
  }
}

// a thread an entry.
extern "C" __global__ void dequantize_8bit_v0(const byte* __restrict__ codes, const float* __restrict__ absmax,
                                              const float* __restrict__ levels, float* __restrict__ out, INDEX n,
                                              INDEX blocksize) {
  INDEX i = (INDEX)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = multiply(levels[codes[i]], absmax[i / blocksize]);
}
