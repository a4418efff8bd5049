// y = x Wᵀ, or x W with -DTRANSPOSE=1, for many rows of x (training, prefill): W (N, K) in 4 bits, sums in float32.
//
//     y[m, c] = Σ_r x[m, r] · w,   w = level[code[i]] · absmax[i / blocksize],   i = c K + r   (transposed: r K + c)
//
// The forward pass is the first product (r runs along a row of W), the gradient of x is the second (r runs down a
// column). W is flat: a row of odd length begins within a byte, and a block may begin in one row and end in the next.
// For float16 or bfloat16 x, w is rounded to that type first, in every version, as the tensor cores need it.
//
//   v0  a thread an output: each weight is dequantized anew for every row of x.
//   v1  tiles of 16 x 16 in shared memory: a weight is dequantized once for 16 rows of x, x read once for 16 columns.
//   v2  tiles of 64 or 128 x 64, of which a thread computes 4 x 8 or 8 x 8 outputs in registers.
//   v3, v4: gemm_4bit_tensor.cu
//
// -DX, -DY: the types of x and y; -DHEADER: what declares them. -DROWS: of v2's tile. -DALIGNED=1: rows of x begin at
// multiples of 16 bytes, K and blocksize are multiples of 32, and blocksize is a power of two.
// Block z takes `depth` values of r (a multiple of 64) and writes the z-th of the partial sums that gemm_4bit_add adds.

#ifdef HEADER
#include HEADER
#endif
#ifndef X
#define X float
#define Y float
#endif
#ifndef TRANSPOSE
#define TRANSPOSE 0
#endif
#ifndef ALIGNED
#define ALIGNED 0
#endif
#ifndef ROWS
#define ROWS 64
#endif

// -DLORA: + scaling · u Bᵀ, for u = x Aᵀ (M, rank) and B (columns of y, rank), both float32.
#ifdef LORA
#define ADAPTER , const float *__restrict__ B, const float *__restrict__ u, int rank, float scaling
#define WITH_ADAPTER(sum, m, c) fmaf(scaling, adapter(u + (size_t)(m) * rank, B + (size_t)(c) * rank, rank), sum)
__device__ float adapter(const float* u, const float* b, int rank) {
  float sum = 0;
  for (int i = 0; i < rank; ++i) sum = fmaf(u[i], b[i], sum);
  return sum;
}
#else
#define ADAPTER
#define WITH_ADAPTER(sum, m, c) (sum)
#endif

#define PARAMETERS \
  const unsigned char *__restrict__ packed, const float *__restrict__ absmax, const float *__restrict__ levels, \
      const X *__restrict__ x, Y *__restrict__ y, int M, int N, int K, int blocksize, int depth ADAPTER

// x is (M, R) and y (M, C); this block takes r from begin to end.
#define SIZES \
  const int R = TRANSPOSE ? N : K, C = TRANSPOSE ? K : N; \
  const int begin = blockIdx.z * depth, end = min(R, begin + depth); \
  const Weights W = {packed, absmax, N, K, blocksize}; \
  y += (size_t)blockIdx.z * M * C;

struct Weights {
  const unsigned char* packed;
  const float* absmax;
  int N, K, blocksize;

  __device__ float at(int n, int k, const float* levels) const {  // zero outside
    if (n >= N || k >= K) return 0;
    const unsigned i = (unsigned)n * K + k, byte = packed[i / 2], code = i % 2 ? byte & 15 : byte >> 4;
    return (float)(X)(levels[code] * absmax[i / blocksize]);
  }

  // Row n from k on, eight weights: 4 bytes, in one block.
  __device__ void eight(int n, int k, const float* levels, float* w) const {
#if ALIGNED
    const bool inside = n < N && k < K;
    const unsigned i = inside ? (unsigned)n * (K / 8) + k / 8 : 0;
    const unsigned word = reinterpret_cast<const unsigned*>(packed)[i];  // its lowest byte is the first in memory
    const float scale = inside ? absmax[i >> (28 - __clz(blocksize))] : 0.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) w[j] = (float)(X)(levels[word >> (j / 2 * 8 + 4 - j % 2 * 4) & 15] * scale);
#else
#pragma unroll 1
    for (int j = 0; j < 8; ++j) w[j] = at(n, k + j, levels);
#endif
  }
};

// v0: a thread an output. Neighbouring threads of the forward product read bytes of different rows of W, K / 2 apart.
extern "C" __global__ void gemm_4bit_v0(PARAMETERS) {
  SIZES
  const int c = blockIdx.x * blockDim.x + threadIdx.x, m = blockIdx.y * blockDim.y + threadIdx.y;
  if (m >= M || c >= C) return;
  float sum = 0;
  for (int r = begin; r < end; ++r) {
    const float w = TRANSPOSE ? W.at(r, c, levels) : W.at(c, r, levels);
    sum = fmaf(w, (float)x[(size_t)m * R + r], sum);
  }
  y[(size_t)m * C + c] = (Y)WITH_ADAPTER(sum, m, c);
}

// v1: a block of 16 x 16 threads takes 16 x 16 outputs. Its threads fetch a tile of x and one of W, each along the rows
// that they have in memory, wait for each other, and multiply the tiles. The 17th column of a tile is never used: it
// puts the entries of a column of 16, which the threads of a warp read at once, in different banks.
extern "C" __global__ void gemm_4bit_v1(PARAMETERS) {
  __shared__ float xs[16][17], ws[16][17];
  SIZES
  const int tx = threadIdx.x, ty = threadIdx.y, c0 = blockIdx.x * 16, m = blockIdx.y * 16 + ty;
  float sum = 0;
  for (int r = begin; r < end; r += 16) {
    xs[ty][tx] = m < M && r + tx < end ? (float)x[(size_t)m * R + r + tx] : 0.0f;
    ws[ty][tx] = TRANSPOSE ? W.at(r + ty, c0 + tx, levels) : W.at(c0 + ty, r + tx, levels);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 16; ++k) sum = fmaf(xs[ty][k], TRANSPOSE ? ws[k][tx] : ws[tx][k], sum);
    __syncthreads();  // before the tiles are overwritten
  }
  if (m < M && c0 + tx < C) y[(size_t)m * C + c0 + tx] = (Y)WITH_ADAPTER(sum, m, c0 + tx);
}

#define THREADS 128
#define DEPTH 16                // of a tile of x
#define GROUPS (ROWS / 64)      // of 4 rows that a thread has
struct __align__(4 * sizeof(X)) X4 {
  X at[4];
};
struct __align__(4 * sizeof(Y)) Y4 {
  Y at[4];
};

// Tiles are [r][m] and [r][c], so that a thread gets the four rows or columns that it needs at an r in one load of 16
// bytes. They are filled from rows along r, where neighbouring threads would store in the same bank: entry m or c of
// row r therefore lies at m ^ x_swizzle(r) or c ^ w_swizzle(r, c). Both only move whole groups of four.
__device__ int x_swizzle(int r) { return r / 4 % 4 * 8; }
__device__ int w_swizzle(int r, int c) { return (r / 8 ^ c / 32) % 8 * 4; }

__device__ void stage_x(float (*xs)[ROWS], const X* x, int m0, int r0, int M, int R) {
  const int k = threadIdx.x % 4 * 4, r = r0 + k;
#pragma unroll
  for (int i = threadIdx.x / 4; i < ROWS; i += THREADS / 4) {
    const int m = m0 + i;
    X4 v = {};
#if ALIGNED
    if (m < M && r < R) v = *reinterpret_cast<const X4*>(x + (size_t)m * R + r);
#else
    for (int j = 0; j < 4; ++j)
      if (m < M && r + j < R) v.at[j] = x[(size_t)m * R + r + j];
#endif
#pragma unroll
    for (int j = 0; j < 4; ++j) xs[k + j][i ^ x_swizzle(k)] = (float)v.at[j];
  }
}

// 64 rows by 64 columns of W, in either direction: 32 bytes of each row, which eight neighbouring threads read.
__device__ void stage_w(float (*ws)[64], const Weights& W, const float* level, int c0, int r0) {
  const int k = threadIdx.x % 8 * 8;
#pragma unroll 1
  for (int i = threadIdx.x / 8; i < 64; i += THREADS / 8) {
    float w[8];
    W.eight((TRANSPOSE ? r0 : c0) + i, (TRANSPOSE ? c0 : r0) + k, level, w);
#pragma unroll
    for (int j = 0; j < 8; j += TRANSPOSE ? 4 : 1) {
      if (TRANSPOSE)
        *reinterpret_cast<float4*>(&ws[i][(k + j) ^ w_swizzle(i, k)]) = make_float4(w[j], w[j + 1], w[j + 2], w[j + 3]);
      else
        ws[k + j][i ^ w_swizzle(k, i)] = w[j];
    }
  }
}

// Four neighbours of a row of y.
__device__ void store(Y* y, int M, int C, int m, int c, const float* v) {
  if (m >= M || c >= C) return;
  y += (size_t)m * C + c;
  if (C % 4 == 0)
    *reinterpret_cast<Y4*>(y) = {(Y)v[0], (Y)v[1], (Y)v[2], (Y)v[3]};
  else
    for (int j = 0; j < 4 && c + j < C; ++j) y[j] = (Y)v[j];
}

#ifdef LORA
#define RANKS 8  // fetched at a time: a sector of a row
__device__ int slot(int row, int q) { return row * RANKS + (q ^ row / 4 % RANKS); }  // no two read at once share a bank

// The next ranks of the adapter for the block's rows and columns, in place of the tiles; zeros outside.
__device__ void stage_adapter(float* us, float* bs, int first, int m0, int c0, int M, int C ADAPTER) {
  __syncthreads();  // the tiles, or the ranks before, have been multiplied
  const int q = threadIdx.x % RANKS, rank_q = first + q;
#pragma unroll 1
  for (int i = threadIdx.x / RANKS; i < ROWS + 64; i += THREADS / RANKS) {
    if (i < ROWS)
      us[slot(i, q)] = m0 + i < M && rank_q < rank ? u[(size_t)(m0 + i) * rank + rank_q] : 0.0f;
    else {
      const int c = c0 + i - ROWS;
      bs[slot(i - ROWS, q)] = c < C && rank_q < rank ? scaling * B[(size_t)c * rank + rank_q] : 0.0f;
    }
  }
  __syncthreads();
}
#endif

// v2: a thread computes 4 or 8 rows by 8 columns of y, so that 12 or 16 entries of the tiles, read from shared memory,
// serve 32 or 64 products. A row of W is read 64 weights at a time, a row of x 16 entries: whole sectors of 32 bytes.
// (A scale is 4 bytes of its sector; the others are those of the next tiles, or, transposed, of the next blocks.)
extern "C" __global__ void __launch_bounds__(THREADS) gemm_4bit_v2(PARAMETERS) {
  __shared__ float4 x4[DEPTH * ROWS / 4], w4[64 * 64 / 4];
  __shared__ float level[16];
  float (*xs)[ROWS] = reinterpret_cast<float (*)[ROWS]>(x4), (*ws)[64] = reinterpret_cast<float (*)[64]>(w4);
  SIZES
  if (threadIdx.x < 16) level[threadIdx.x] = levels[threadIdx.x];
  const int tx = threadIdx.x % 8 * 4, ty = threadIdx.x / 8 * 4, c0 = blockIdx.x * 64, m0 = blockIdx.y * ROWS;
  float sums[GROUPS][4][8] = {};
#pragma unroll 1
  for (int r0 = begin; r0 < end; r0 += DEPTH) {
    const int base = (r0 - begin) % 64;
    __syncthreads();  // the tiles before have been multiplied, and the levels are there
    if (base == 0) stage_w(ws, W, level, c0, r0);
    stage_x(xs, x, m0, r0, M, R);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
      float a[GROUPS][4], b[8];
#pragma unroll
      for (int g = 0; g < GROUPS; ++g)
        *reinterpret_cast<float4*>(a[g]) = *reinterpret_cast<float4*>(&xs[k][(ty + 64 * g) ^ x_swizzle(k)]);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        *reinterpret_cast<float4*>(b + 4 * h) =
            *reinterpret_cast<float4*>(&ws[base + k][(tx + 32 * h) ^ w_swizzle(base + k / 8 * 8, 32 * h)]);
#pragma unroll
      for (int g = 0; g < GROUPS; ++g)
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 8; ++j) sums[g][i][j] = fmaf(a[g][i], b[j], sums[g][i][j]);
    }
  }
#ifdef LORA
  float *us = reinterpret_cast<float*>(x4), *bs = reinterpret_cast<float*>(w4);
#pragma unroll 1
  for (int first = 0; first < rank; first += RANKS) {
    stage_adapter(us, bs, first, m0, c0, M, C, B, u, rank, scaling);
#pragma unroll 1
    for (int q = 0; q < RANKS; ++q) {
      float b[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) b[j] = bs[slot(tx + j / 4 * 32 + j % 4, q)];
#pragma unroll
      for (int g = 0; g < GROUPS; ++g)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float a = us[slot(ty + 64 * g + i, q)];
#pragma unroll
          for (int j = 0; j < 8; ++j) sums[g][i][j] = fmaf(a, b[j], sums[g][i][j]);
        }
    }
  }
#endif
#pragma unroll
  for (int g = 0; g < GROUPS; ++g)
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) store(y, M, C, m0 + ty + 64 * g + i, c0 + tx + 32 * h, sums[g][i] + 4 * h);
}

// The end of a product whose sum was split: the partial sums (splits, M, C) added in their order, so that every run
// gives the same bits, which float atomics would not.
extern "C" __global__ void gemm_4bit_add(
    const float* __restrict__ partial, Y* __restrict__ y, int M, int C, int splits ADAPTER) {
  const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x, size = (size_t)M * C;
  if (i >= size) return;
  float sum = 0;
  for (int s = 0; s < splits; ++s) sum += partial[s * size + i];
  y[i] = (Y)WITH_ADAPTER(sum, i / C, i % C);
}
