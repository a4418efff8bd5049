// The product of gemm_4bit.cu on the tensor cores, for float16 and bfloat16 x: from compute capability 8.0 on.
//
// mma.sync.m16n8k16 multiplies a 16 x 16 matrix by a 16 x 8 one and adds to 16 x 8 float32 sums, of which each lane
// of a warp has four; which entries a lane has is in the PTX ISA, "Matrix Fragments for mma.m16n8k16". ldmatrix fetches
// matrices of 8 x 8 from shared memory in that arrangement: lanes 8 j to 8 j + 7 name the rows of the j-th.
//
//   v3  tiles in shared memory: x as it is, W as x's type. Four warps share a tile of ROWS x 64 outputs.
//   v4  the next tiles of x and of W's bytes are on their way (cp.async) while these are multiplied. Needs -DALIGNED=1.
//
// -DX, -DHEADER: __half or __nv_bfloat16, what declares it; -DTYPE: PTX's word for it. -DY, -DTRANSPOSE, -DALIGNED,
// -DLORA and the parameters: as in gemm_4bit.cu. -DROWS: 32, 64 or 128. -DDOWN=1: absmax is (K / blocksize, N), the
// scales of one column of blocks side by side: those that a tile needs lie together, and not a row of W apart.

#ifndef HEADER
#define HEADER <cuda_fp16.h>
#define X __half
#define Y __half
#define TYPE f16
#endif
#include HEADER
#ifndef TRANSPOSE
#define TRANSPOSE 0
#endif
#ifndef ALIGNED
#define ALIGNED 1
#endif
#ifndef ROWS
#define ROWS 128
#endif
#ifndef DOWN
#define DOWN 0
#endif

#ifdef LORA
#define ADAPTER , const float *__restrict__ B, const float *__restrict__ u, int rank, float scaling
#define ADAPTER_ARGUMENTS , B, u, rank, scaling
#else
#define ADAPTER
#define ADAPTER_ARGUMENTS
#endif
#define PARAMETERS \
  const unsigned char *__restrict__ packed, const float *__restrict__ absmax, const float *__restrict__ levels, \
      const X *__restrict__ x, Y *__restrict__ y, int M, int N, int K, int blocksize, int depth ADAPTER
#define SIZES \
  const int R = TRANSPOSE ? N : K, C = TRANSPOSE ? K : N; \
  const int begin = blockIdx.z * depth, end = min(R, begin + depth), c0 = blockIdx.x * 64, m0 = blockIdx.y * ROWS; \
  y += (size_t)blockIdx.z * M * C;

#define THREADS 128
#define ALL 0xffffffffu
#define BLOCKS 3           // resident at a time: leaves a thread 168 registers, which suffice
#define TILES (ROWS / 32)  // of 16 rows, a warp: the four warps are two by two
#define STRING(word) #word
#define MMA(type) "mma.sync.aligned.m16n8k16.row.col.f32." STRING(type) "." STRING(type) ".f32 "

#if __CUDA_ARCH__ >= 800
union Chunk {  // 16 bytes
  uint4 all;
  unsigned words[4];
  X at[8];
};
struct __align__(4 * sizeof(Y)) Y4 {
  Y at[4];
};

// Rows of both tiles are 64 entries: 8 chunks, which are all banks once. Chunk j of row i lies at j ^ i % 8, so that
// the same chunk of eight rows, which ldmatrix reads, is in all banks as well.
__device__ int place(int row, int chunk) { return row * 8 + (chunk ^ row % 8); }

// The scale of W's 32 weights at (n, k), of which `i` 32s come before.
__device__ float scale_at(const float* absmax, int n, int k, unsigned i, int N, int blocksize) {
  return DOWN ? absmax[(unsigned)(k >> (31 - __clz(blocksize))) * N + n] : absmax[i >> (26 - __clz(blocksize))];
}

// Chunk of x at (m, r); zeros outside.
__device__ uint4 chunk_of_x(const X* x, int m, int r, int M, int R) {
  Chunk v = {};
#if ALIGNED
  if (m < M && r < R) v.all = *reinterpret_cast<const uint4*>(x + (size_t)m * R + r);
#else
  for (int j = 0; j < 8; ++j)
    if (m < M && r + j < R) v.at[j] = x[(size_t)m * R + r + j];
#endif
  return v.all;
}

// A thread's part of a tile of W: 32 weights of one row, 16 bytes, from column `half` · 32 of the tile on. The 16
// levels are in 16 banks: whichever codes the lanes look up, none waits for another.
__device__ void dequantize(uint4* ws, int row, int half, const Chunk& codes, float scale, const float* level) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    Chunk w;
#pragma unroll
    for (int j = 0; j < 8; ++j)
      w.at[j] = (X)(level[codes.words[i] >> (j / 2 * 8 + 4 - j % 2 * 4) & 15] * scale);
    ws[place(row, 4 * half + i)] = w.all;
  }
}

// Four matrices of 8 x 8, of which this lane names one row.
template <bool TRANSPOSED>
__device__ void load_matrices(unsigned* v, const uint4* row) {
  const unsigned at = __cvta_generic_to_shared(row);
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(at) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(at) : "memory");
}

__device__ void multiply(float (*sums)[4][4], const uint4* xs, const uint4* ws) {
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 64 * (ROWS / 2), warp_column = threadIdx.x / 32 % 2 * 32;
#pragma unroll
  for (int k = 0; k < 64; k += 16) {
    unsigned b[2][4];  // [pair of 8 columns][its k 0-7, its k 8-15, the other's k 0-7, the other's k 8-15]
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int c = warp_column + 16 * j;
      if (TRANSPOSE)  // the tile has r down, c across: not as the fragments want it
        load_matrices<true>(b[j], ws + place(k + lane % 16, c / 8 + lane / 16));
      else
        load_matrices<false>(b[j], ws + place(c + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
    }
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      unsigned a[4];
      load_matrices<false>(a, xs + place(warp_row + 16 * i + lane % 16, k / 8 + lane / 16));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float* d = sums[i][j];
        asm(MMA(TYPE) "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[j / 2][j % 2 * 2]), "r"(b[j / 2][j % 2 * 2 + 1]));
      }
    }
  }
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

// Adds the adapter's part to a lane's sums, and writes them. sums[i][j][2 h + e] is row 16 i + 8 h + lane / 4, column
// 8 j + 2 (lane % 4) + e of the warp's.
__device__ void finish(float (*sums)[4][4], uint4* xs, uint4* ws, Y* y, int M, int C, int m0, int c0 ADAPTER) {
  const int lane = threadIdx.x % 32, quad = lane % 4;
  const int row0 = threadIdx.x / 64 * (ROWS / 2) + lane / 4, column0 = threadIdx.x / 32 % 2 * 32;
#ifdef LORA
  float *us = reinterpret_cast<float*>(xs), *bs = reinterpret_cast<float*>(ws);
#pragma unroll 1
  for (int first = 0; first < rank; first += RANKS) {
    stage_adapter(us, bs, first, m0, c0, M, C ADAPTER_ARGUMENTS);
#pragma unroll 1
    for (int q = 0; q < RANKS; ++q) {
      float b[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) b[j] = bs[slot(column0 + j / 2 * 8 + 2 * quad + j % 2, q)];
#pragma unroll
      for (int i = 0; i < 2 * TILES; ++i) {
        const float a = us[slot(row0 + 8 * i, q)];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          float& sum = sums[i / 2][j / 2][i % 2 * 2 + j % 2];
          sum = fmaf(a, b[j], sum);
        }
      }
    }
  }
#endif
  // Of two neighbouring matrices, an even lane takes from its neighbour what it has of the first and gives what it has
  // of the second: now each has four columns in a row, and 16 columns of float16 make a whole sector of 32 bytes.
#pragma unroll
  for (int i = 0; i < 2 * TILES; ++i)
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      const float *first = sums[i / 2][j] + i % 2 * 2, *second = sums[i / 2][j + 1] + i % 2 * 2;
      const bool odd = lane % 2;
      float v[4];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float other = __shfl_xor_sync(ALL, odd ? first[e] : second[e], 1);
        v[e] = odd ? other : first[e];
        v[2 + e] = odd ? second[e] : other;
      }
      const int row = m0 + row0 + 8 * i, column = c0 + column0 + 8 * (j + odd) + quad / 2 * 4;
      if (row >= M || column >= C) continue;
      Y* to = y + (size_t)row * C + column;
      if (C % 4 == 0)
        *reinterpret_cast<Y4*>(to) = {(Y)v[0], (Y)v[1], (Y)v[2], (Y)v[3]};
      else
        for (int e = 0; e < 4 && column + e < C; ++e) to[e] = (Y)v[e];
    }
}

// v3: a warp multiplies ROWS / 2 x 32 outputs, 16 x 8 x 16 products an instruction. A thread fetches and dequantizes
// half a row of W's tile.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) gemm_4bit_tensor_v3(PARAMETERS) {
  __shared__ uint4 xs[ROWS * 8], ws[64 * 8];
  __shared__ float level[16];
  SIZES
  if (threadIdx.x < 16) level[threadIdx.x] = levels[threadIdx.x];
  const int t = threadIdx.x, row = t / 2, half = t % 2;
  float sums[TILES][4][4] = {};
#pragma unroll 1
  for (int r0 = begin; r0 < end; r0 += 64) {
    __syncthreads();  // the tiles before have been multiplied, and the levels are there
#pragma unroll
    for (int i = 0; i < ROWS; i += THREADS / 8)
      xs[place(i + t / 8, t % 8)] = chunk_of_x(x, m0 + i + t / 8, r0 + t % 8 * 8, M, R);
    const int n = (TRANSPOSE ? r0 : c0) + row, k = (TRANSPOSE ? c0 : r0) + 32 * half;
#if ALIGNED
    Chunk codes = {};
    float scale = 0;
    if (n < N && k < K) {
      const unsigned i = (unsigned)n * (K / 32) + k / 32;
      codes.all = reinterpret_cast<const uint4*>(packed)[i];
      scale = scale_at(absmax, n, k, i, N, blocksize);
    }
    dequantize(ws, row, half, codes, scale, level);
#else
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
      Chunk w = {};
      for (int j = 0; j < 8; ++j) {
        const int column = k + 8 * i + j;
        if (n >= N || column >= K) continue;
        const unsigned at = (unsigned)n * K + column, byte = packed[at / 2], code = at % 2 ? byte & 15 : byte >> 4;
        w.at[j] = (X)(level[code] * absmax[at / blocksize]);
      }
      ws[place(row, 4 * half + i)] = w.all;
    }
#endif
    __syncthreads();
    multiply(sums, xs, ws);
  }
  finish(sums, xs, ws, y, M, C, m0, c0 ADAPTER_ARGUMENTS);
}

#if ALIGNED
// 16 bytes from global to shared memory, without waiting for them; zeros where not `inside`.
__device__ void copy(uint4* to, const void* from, bool inside) {
  const unsigned at = __cvta_generic_to_shared(to), bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(at), "l"(__cvta_generic_to_global(from)), "r"(bytes) : "memory");
}

// v4: two tiles of x and of W's bytes. While one pair is dequantized and multiplied, the other arrives. Only the
// weights that are multiplied now are in shared memory as x's type.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) gemm_4bit_tensor_v4(PARAMETERS) {
  __shared__ uint4 xs[2][ROWS * 8], codes[2][THREADS], ws[64 * 8];
  __shared__ float level[16];
  SIZES
  if (threadIdx.x < 16) level[threadIdx.x] = levels[threadIdx.x];
  const int t = threadIdx.x, row = t / 2, half = t % 2;
  float scale = 0, next = 0;  // of this thread's 32 weights, a register ahead too
  float sums[TILES][4][4] = {};
  const auto fetch = [&](int r0, int stage) {
#pragma unroll
    for (int i = 0; i < ROWS; i += THREADS / 8) {
      const int m = m0 + i + t / 8, r = r0 + t % 8 * 8;
      const bool inside = m < M && r < R;
      copy(&xs[stage][place(i + t / 8, t % 8)], inside ? x + (size_t)m * R + r : x, inside);
    }
    const int n = (TRANSPOSE ? r0 : c0) + row, k = (TRANSPOSE ? c0 : r0) + 32 * half;
    const bool inside = n < N && k < K;
    const unsigned i = inside ? (unsigned)n * (K / 32) + k / 32 : 0;
    copy(&codes[stage][t], reinterpret_cast<const uint4*>(packed) + i, inside);
    next = inside ? scale_at(absmax, n, k, i, N, blocksize) : 0;
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  fetch(begin, 0);
#pragma unroll 1
  for (int r0 = begin, stage = 0; r0 < end; r0 += 64, stage ^= 1) {
    scale = next;
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    __syncthreads();  // all threads' copies are there, and the tiles before have been multiplied
    if (r0 + 64 < end) fetch(r0 + 64, stage ^ 1);
    Chunk chunk;
    chunk.all = codes[stage][t];
    dequantize(ws, row, half, chunk, scale, level);
    __syncthreads();
    multiply(sums, xs[stage], ws);
  }
  finish(sums, xs[0], ws, y, M, C, m0, c0 ADAPTER_ARGUMENTS);
}
#endif
#endif
