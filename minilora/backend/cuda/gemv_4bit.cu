// y = x Wᵀ for one or a few rows of x, as in decoding: W (N, K) in 4 bits, x (M, K), y (M, N), sums in float32.
//
//     y[m, n] = Σ_k level[code[n, k]] · absmax[(n K + k) / blocksize] · x[m, k]
//
// Every weight is used once, so that what counts is how few bytes and instructions one costs: half a byte, and the GPU
// must not spend more instructions on it than it can issue while the next half byte arrives.
//
//   v0  a thread a row of W.
//   v1  a warp a row: neighbouring lanes read neighbouring weights, and add their sums by shuffles.
//   v2  a lane loads 16 bytes (32 weights) at once, which share one scale.
//   v3  one look-up for both weights of a byte, and x from shared memory.
//   v4  the table once for each lane of half a warp, so that no lane waits for another's bank; a warp takes several
//       rows of W and of x at a time, so that x and W are read less often.
//
// v0 and v1 take any K and blocksize; v2 to v4 need multiples of 32, a blocksize that is a power of two, and packed and
// x aligned to 16 bytes. Weights (v0, v1) and chunks of 32 of them (v2 to v4) are counted in 32 bits.
// -DX, -DY: the types of x and y; -DHEADER: what declares them. The sums of every version are in one fixed order.

#ifdef HEADER
#include HEADER
#endif
#ifndef X
#define X float
#define Y float
#endif

// -DNESTED: absmax is itself in 8 bits: (level · absmax2) · factor + offset, all three rounded, absmax2 shared by 256
// codes (quant/double.py); factor is 1, or 1/127 for int8 codes. `table`: levels256, or its copy in shared memory.
#ifdef NESTED
#define SCALES \
  const unsigned char *__restrict__ absmax_codes, const float *__restrict__ levels256, \
      const float *__restrict__ absmax2, float factor, float offset
#define SCALE(block, table) \
  __fadd_rn(__fmul_rn(__fmul_rn(table[absmax_codes[block]], absmax2[(block) >> 8]), factor), offset)
#else
#define SCALES const float* __restrict__ absmax
#define SCALE(block, table) absmax[block]
#endif

// -DLORA: + scaling · B u, where u = A x (M, rank) and B (N, rank). Each lane of a warp adds its share of the rank
// products to its sum, before the sums of the lanes are added.
#ifdef LORA
#define ADAPTER , const float *__restrict__ B, const float *__restrict__ u, int rank, float scaling
#define ADD_ADAPTER(sum, m, n, first, step) \
  sum = fmaf(scaling, adapter(B + (size_t)(n) * rank, u + (size_t)(m) * rank, rank, first, step), sum)
__device__ float adapter(const float* b, const float* u, int rank, int first, int step) {
  float sum = 0;
#pragma unroll 1
  for (int r = first; r < rank; r += step) sum = fmaf(b[r], u[r], sum);
  return sum;
}
#else
#define ADAPTER
#define ADD_ADAPTER(sum, m, n, first, step)
#endif

#define PARAMETERS \
  const unsigned char *__restrict__ packed, SCALES, const float *__restrict__ levels, const X *__restrict__ x, \
      Y *__restrict__ y, int M, int N, int K, int blocksize ADAPTER

#define ALL 0xffffffffu

// v0: a thread a row of W. Neighbouring threads read bytes that lie K / 2 apart: each load of a warp touches 32 sectors
// of 32 bytes for 32 bytes in all.
extern "C" __global__ void gemv_4bit_v0(PARAMETERS) {
  const int n = blockIdx.x * blockDim.x + threadIdx.x, m = blockIdx.y;
  if (n >= N) return;
  float sum = 0;
  for (int k = 0; k < K; ++k) {
    const unsigned i = (unsigned)n * K + k;  // in the flattened W: a row of odd length begins within a byte
    const unsigned byte = packed[i / 2], code = i % 2 ? byte & 15 : byte >> 4;
    sum = fmaf(levels[code] * SCALE(i / blocksize, levels256), (float)x[(size_t)m * K + k], sum);
  }
  ADD_ADAPTER(sum, m, n, 0, 1);
  y[(size_t)m * N + n] = (Y)sum;
}

__device__ float warp_sum(float value) {
  for (int step = 16; step; step /= 2) value += __shfl_xor_sync(ALL, value, step);
  return value;
}

// v1: a warp a row. Lane k takes weights k, k + 32, ...: a load of the warp touches one sector.
extern "C" __global__ void gemv_4bit_v1(PARAMETERS) {
  const int lane = threadIdx.x % 32, n = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, m = blockIdx.y;
  if (n >= N) return;  // the same for all lanes of a warp: the shuffles miss none
  float sum = 0;
  for (int k = lane; k < K; k += 32) {
    const unsigned i = (unsigned)n * K + k;
    const unsigned byte = packed[i / 2], code = i % 2 ? byte & 15 : byte >> 4;
    sum = fmaf(levels[code] * SCALE(i / blocksize, levels256), (float)x[(size_t)m * K + k], sum);
  }
  ADD_ADAPTER(sum, m, n, lane, 32);
  sum = warp_sum(sum);
  if (lane == 0) y[(size_t)m * N + n] = (Y)sum;
}

// Four entries of x, loaded at once.
struct __align__(4 * sizeof(X)) X4 {
  X at[4];
};
__device__ float4 four(const X* x) {
  const X4 v = *reinterpret_cast<const X4*>(x);
  return make_float4(v.at[0], v.at[1], v.at[2], v.at[3]);
}

// v2: a lane loads 16 bytes at once: 32 weights, a "chunk", with one scale, which the sum of its products is multiplied
// by. The 16 levels in shared memory lie in 16 banks, and lanes that ask for the same level get it together.
extern "C" __global__ void gemv_4bit_v2(PARAMETERS) {
  __shared__ float level[16];
  if (threadIdx.x < 16) level[threadIdx.x] = levels[threadIdx.x];
  __syncthreads();
  const int lane = threadIdx.x % 32, n = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, m = blockIdx.y;
  if (n >= N) return;
  const int shift = 26 - __clz(blocksize);  // a block is 2^shift chunks
  float sum = 0;
  for (int c = lane; c < K / 32; c += 32) {
    const unsigned chunk = (unsigned)n * (K / 32) + c;
    const uint4 v = reinterpret_cast<const uint4*>(packed)[chunk];
    const unsigned words[4] = {v.x, v.y, v.z, v.w};
    float products = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float4 a = four(x + (size_t)m * K + 32 * c + 4 * i);
      const unsigned bytes = words[i / 2] >> 16 * (i % 2);  // the lowest byte is the first in memory
      products = fmaf(level[bytes >> 4 & 15], a.x, products);
      products = fmaf(level[bytes & 15], a.y, products);
      products = fmaf(level[bytes >> 12 & 15], a.z, products);
      products = fmaf(level[bytes >> 8 & 15], a.w, products);
    }
    sum = fmaf(products, SCALE(chunk >> shift, levels256), sum);
  }
  ADD_ADAPTER(sum, m, n, lane, 32);
  sum = warp_sum(sum);
  if (lane == 0) y[(size_t)m * N + n] = (Y)sum;
}

#define THREADS 256
#define TILE 1024  // entries of x in shared memory at a time: a chunk for each lane
#define PITCH 9    // float4s from one lane's 32 entries to the next's: 8 would put those of all lanes in the same banks

// Four entries of a tile of x a thread; zeros beyond the end of x.
__device__ void stage(float4* tile, const X* x, int entries) {
  const unsigned i = threadIdx.x;
  tile[i / 8 * PITCH + i % 8] = 4 * i < entries ? four(x + 4 * i) : make_float4(0, 0, 0, 0);
}

// The two levels of byte i of a word, from a table with `stride` bytes from one entry to the next. A dot product of
// bytes takes the byte out, multiplies it and adds the table's address: two instructions with the look-up, as addresses
// in shared memory have 32 bits. C++ would spend two more on a pointer of 64.
#ifdef __CUDA_ARCH__
typedef unsigned Table;
__device__ Table table(const float2* entries) { return __cvta_generic_to_shared(entries); }
__device__ float2 pair(Table table, unsigned word, int i, unsigned stride) {
  float2 levels;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(levels.x), "=f"(levels.y) : "r"(__dp4a(word, stride << 8 * i, table)) : "memory");
  return levels;
}
#else  // compiled as C++ for a processor
typedef const char* Table;
Table table(const float2* entries) { return reinterpret_cast<Table>(entries); }
float2 pair(Table table, unsigned word, int i, unsigned stride) {
  return *reinterpret_cast<const float2*>(table + (word >> 8 * i & 255) * stride);
}
#endif

// v3: 256 pairs of levels, so that one look-up serves both weights of a byte; and x by way of shared memory, where the
// warps of a block share it, and whence a lane loads four entries at once without two lanes meeting in a bank.
extern "C" __global__ void __launch_bounds__(THREADS, 2) gemv_4bit_v3(PARAMETERS) {
  __shared__ float2 pairs[256];
  __shared__ float4 tile[32 * PITCH];
  pairs[threadIdx.x] = make_float2(levels[threadIdx.x / 16], levels[threadIdx.x % 16]);
  const Table level = table(pairs);
  const int lane = threadIdx.x % 32, n = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, m = blockIdx.y;
  const int shift = 26 - __clz(blocksize);
  float sum = 0;
  for (int start = 0; start < K; start += TILE) {
    __syncthreads();  // the tile before has been read, and the pairs are written
    stage(tile, x + (size_t)m * K + start, K - start);
    __syncthreads();
    if (n < N && start + 32 * lane < K) {
      const unsigned chunk = (unsigned)n * (K / 32) + start / 32 + lane;
      const uint4 v = reinterpret_cast<const uint4*>(packed)[chunk];
      const unsigned words[4] = {v.x, v.y, v.z, v.w};
      float products = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float4 a = tile[lane * PITCH + i];
        const float2 w = pair(level, words[i / 2], i % 2 * 2, 8), z = pair(level, words[i / 2], i % 2 * 2 + 1, 8);
        products = fmaf(z.y, a.w, fmaf(z.x, a.z, fmaf(w.y, a.y, fmaf(w.x, a.x, products))));
      }
      sum = fmaf(products, SCALE(chunk >> shift, levels256), sum);
    }
  }
  if (n >= N) return;
  ADD_ADAPTER(sum, m, n, lane, 32);
  sum = warp_sum(sum);
  if (lane == 0) y[(size_t)m * N + n] = (Y)sum;
}

#ifndef ROWS
#define ROWS 4   // of W a warp, a power of two
#define XROWS 1  // of x, at most 3: shared memory has no room for more
#endif
#define COPIES 16
#define BLOCKS (5 - XROWS)  // resident at a time: leaves a thread 64, 80 or 128 registers, which suffice

// The sum over the lanes of each of ROWS values; lane l gets that of value l / (32 / ROWS). In the first steps a lane
// gives half of its values to its partner and gets the partner's part of the other half: 6 shuffles for four sums
// instead of 20.
__device__ float warp_sums(float* values, unsigned lane) {
  int step = 16;
#pragma unroll
  for (int half = ROWS / 2; half; half /= 2, step /= 2)
    for (int i = 0; i < half; ++i) {
      const float low = values[i], high = values[i + half];
      const float other = __shfl_xor_sync(ALL, lane & step ? low : high, step);
      values[i] = (lane & step ? high : low) + other;
    }
#pragma unroll
  for (; step; step /= 2) values[0] += __shfl_xor_sync(ALL, values[0], step);
  return values[0];
}

// v4: a warp takes ROWS rows of W and XROWS of x, so that each look-up of W serves XROWS products and each load of x
// ROWS. The look-ups, at places that the weights decide, are what would meet in the same banks: 16 lanes, which load 8
// bytes each at a time, have a copy of the table each, in two banks of its own.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) gemv_4bit_v4(PARAMETERS) {
  __shared__ float4 pairs[256 * COPIES / 2];  // [byte][copy], two copies a float4
  __shared__ float4 tile[XROWS][32 * PITCH];
#ifdef NESTED
  __shared__ float second[256];
  second[threadIdx.x] = levels256[threadIdx.x];
#endif
  const unsigned lane = threadIdx.x % 32, last = N - 1;
  const unsigned first = (blockIdx.x * (THREADS / 32) + threadIdx.x / 32) * ROWS;  // row of W
  const float level = levels[lane % 16], low = __shfl_sync(ALL, level, threadIdx.x / 8 % 16);
#pragma unroll
  for (int i = 0; i < 8; ++i) {  // 8 threads write the copies of a byte
    const float high = __shfl_sync(ALL, level, 2 * i + threadIdx.x / 128);
    pairs[i * THREADS + threadIdx.x] = make_float4(high, low, high, low);
  }
  const Table mine = table(reinterpret_cast<const float2*>(pairs) + lane % COPIES);
  __syncthreads();

  const int shift = 26 - __clz(blocksize), m0 = blockIdx.y * XROWS;
  unsigned at[ROWS];  // the lane's chunk of each row; beyond the last row, of the last row again
  float sums[XROWS][ROWS] = {};
#pragma unroll
  for (int r = 0; r < ROWS; ++r) at[r] = min(first + r, last) * (K / 32) + lane;
  for (int start = 0; start < K; start += TILE) {
    const bool inside = start + 32 * lane < K;
    uint4 chunks[ROWS];
    float scales[ROWS];
    if (inside) {  // before the barriers: on its way while x is staged
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        chunks[r] = reinterpret_cast<const uint4*>(packed)[at[r]];
        scales[r] = SCALE(at[r] >> shift, second);
        at[r] += 32;
      }
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < XROWS; ++m) stage(tile[m], x + (size_t)min(m0 + m, M - 1) * K + start, K - start);
    __syncthreads();
    if (inside) {
      float products[XROWS][ROWS] = {};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float4 a[XROWS];
#pragma unroll
        for (int m = 0; m < XROWS; ++m) a[m] = tile[m][lane * PITCH + i];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          const unsigned words[4] = {chunks[r].x, chunks[r].y, chunks[r].z, chunks[r].w};
          const float2 w = pair(mine, words[i / 2], i % 2 * 2, 8 * COPIES);
          const float2 z = pair(mine, words[i / 2], i % 2 * 2 + 1, 8 * COPIES);
#pragma unroll
          for (int m = 0; m < XROWS; ++m) {
            float& p = products[m][r];
            p = fmaf(z.y, a[m].w, fmaf(z.x, a[m].z, fmaf(w.y, a[m].y, fmaf(w.x, a[m].x, p))));
          }
        }
      }
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
        for (int m = 0; m < XROWS; ++m) sums[m][r] = fmaf(products[m][r], scales[r], sums[m][r]);
    }
  }
  const unsigned n = first + lane / (32 / ROWS);
#pragma unroll
  for (int m = 0; m < XROWS; ++m) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) ADD_ADAPTER(sums[m][r], min(m0 + m, M - 1), min(first + r, last), lane, 32);
    const float sum = warp_sums(sums[m], lane);
    if (lane % (32 / ROWS) == 0 && n < N && m0 + m < M) y[(size_t)(m0 + m) * N + n] = (Y)sum;
  }
}
