// Quantize to 4 bits: x (n,) float32 -> packed (ceil(n / 2),) bytes and absmax (ceil(n / blocksize),) float32.
//
//     absmax[b] = max |x[i]| of the entries i of block b          (i / blocksize == b; the last block may be partial)
//     code[i]   = the level nearest to x[i] / absmax[i / blocksize]
//
// The format is bitsandbytes' (Linear4bit, CPU), to the last bit:
//   - two codes share a byte, the first in its high half; an odd end is filled up with the code of zero;
//   - a full block is multiplied by the rounded reciprocal of max(absmax, 1e-38); a partial one is divided by it, and
//     stores it as its absmax;
//   - the nearest level is found by counting the borders that lie below: borders[0..14], the midpoints of the sorted
//     levels, in ascending order, filled up with infinity (a tie goes to the lower level). `stored` holds in its k-th
//     four bits the code of the k-th lowest level.
//
//   v0  a thread a block.
//   v1  a CUDA block a block: neighbouring threads read neighbouring entries, and find the largest by a tree in shared
//       memory.
//   v2  a warp a block: the largest by shuffles, without shared memory and without barriers. An even blocksize.
//   v3  a thread four weights, read once, in one load of 16 bytes; binary search instead of 15 comparisons.
//       A blocksize that is a power of two, 4 to 4096, and x aligned to 16 bytes.
//
// "Block" means a block of weights here, "CUDA block" one of threads. -DINDEX: size_t for n above 2^30.

#ifndef INDEX
#define INDEX unsigned
#endif
#define ALL 0xffffffffu  // lanes of a warp
#define THREADS 128      // of v1

typedef unsigned char byte;

// The arithmetic of NumPy. CuPy compiles with -ftz=true, and then `a * b`, __fmul_rn(a, b), `a / b` and `a > b` all
// take a subnormal number (below 2^-126) for zero. They are not rare here: 1e-38 is one, so is 1 / absmax for an
// absmax above 2^126, and so are the weights of a very small block. Going through double does not help: the conversion
// flushes them too, and the compiler turns (float)((double)a * b) into a multiplication that does. Instructions that
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

// |x| as an integer. Floats from 0 up, and NaN above them, are in the order of their bits, so that max of integers
// finds the largest, subnormal or not, and keeps a NaN (fmaxf drops it).
__device__ __forceinline__ unsigned magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

#define TINY 0x006ce3eeu  // the bits of 1e-38f

// What a block does to its entries, and the absmax that it stores, given its largest magnitude.
struct Block {
  bool full;
  unsigned absmax;
  float by;

  __device__ __forceinline__ Block(unsigned largest, bool full) : full(full) {
    float divisor = __uint_as_float(max(largest, TINY));
    absmax = full ? largest : max(largest, TINY);
    by = full ? divide(1.0f, divisor) : divisor;
  }
  __device__ __forceinline__ float scaled(float x) const { return full ? multiply(x, by) : divide(x, by); }
};

// The code of a scaled entry, by comparing it with every border.
__device__ __forceinline__ unsigned code_of(float scaled, const float* borders, unsigned long long stored) {
  unsigned rank = 0;
#pragma unroll
  for (int k = 0; k < 15; ++k) rank += greater(scaled, borders[k]);
  return (unsigned)(stored >> (4 * rank)) & 15u;
}

#define PARAMETERS                                                                                                \
  const float *__restrict__ x, const float *__restrict__ borders, unsigned long long stored, \
      byte *__restrict__ packed, float *__restrict__ absmax, INDEX n, INDEX blocksize

// v0: a thread a block, entry by entry. Blocks of odd length share a byte, so that there a thread takes two of them.
// At any time the threads of a warp read entries that are `blocksize` apart: 32 sectors for 128 bytes.
extern "C" __global__ void quantize_4bit_v0(PARAMETERS) {
  INDEX blocks = (n + blocksize - 1) / blocksize, each = 1 + blocksize % 2;
  INDEX first = each * ((INDEX)blockIdx.x * blockDim.x + threadIdx.x);
  unsigned high = 0;
  for (INDEX b = first; b < first + each && b < blocks; ++b) {
    INDEX begin = b * blocksize, end = min(begin + blocksize, n);
    unsigned largest = 0;
    for (INDEX i = begin; i < end; ++i) largest = max(largest, magnitude(x[i]));
    Block block(largest, end - begin == blocksize);
    absmax[b] = __uint_as_float(block.absmax);
    for (INDEX i = begin; i < end; ++i) {
      unsigned code = code_of(block.scaled(x[i]), borders, stored);
      if (i % 2) packed[i / 2] = high << 4 | code;
      else high = code;
    }
    if (end == n && n % 2) packed[n / 2] = high << 4 | code_of(0.0f, borders, stored);
  }
}

// The largest magnitude of x[begin .. end), by a tree: each round, half of the threads that are left take the larger of
// two. To be called by all threads of the CUDA block.
__device__ unsigned largest_by_tree(const float* __restrict__ x, INDEX begin, INDEX end, unsigned* tree) {
  unsigned largest = 0;
  for (INDEX i = begin + threadIdx.x; i < end; i += THREADS) largest = max(largest, magnitude(x[i]));
  tree[threadIdx.x] = largest;
  __syncthreads();
  for (unsigned half = THREADS / 2; half; half /= 2) {
    if (threadIdx.x < half) tree[threadIdx.x] = max(tree[threadIdx.x], tree[threadIdx.x + half]);
    __syncthreads();
  }
  largest = tree[0];
  __syncthreads();  // before the tree is written again
  return largest;
}

// v1: a CUDA block a block (two of odd length). Neighbouring threads read neighbouring entries, whole sectors at a
// time; the entries come from the cache when they are read again for their codes. The borders lie in shared memory.
extern "C" __global__ void __launch_bounds__(THREADS) quantize_4bit_v1(PARAMETERS) {
  __shared__ unsigned tree[THREADS];
  __shared__ float border[16];
  if (threadIdx.x < 16) border[threadIdx.x] = borders[threadIdx.x];
  INDEX each = 1 + blocksize % 2, b = each * blockIdx.x;
  INDEX begin = b * blocksize, middle = min(begin + blocksize, n), end = min(begin + each * blocksize, n);
  Block one(largest_by_tree(x, begin, middle, tree), middle - begin == blocksize), two = one;
  if (middle < end) two = Block(largest_by_tree(x, middle, end, tree), end - middle == blocksize);
  if (threadIdx.x == 0) {
    absmax[b] = __uint_as_float(one.absmax);
    if (middle < end) absmax[b + 1] = __uint_as_float(two.absmax);
  }
  for (INDEX i = begin + 2 * threadIdx.x; i < end; i += 2 * THREADS) {
    float first = i < middle ? one.scaled(x[i]) : two.scaled(x[i]), second = 0.0f;
    if (i + 1 < end) second = i + 1 < middle ? one.scaled(x[i + 1]) : two.scaled(x[i + 1]);
    packed[i / 2] = code_of(first, border, stored) << 4 | code_of(second, border, stored);
  }
}

// v2: a warp a block. Lanes hand their largest to each other (__shfl_xor_sync: lane l gets that of lane l ^ offset),
// after five rounds all 32 have the largest of all. No barrier: a warp never waits for another.
extern "C" __global__ void quantize_4bit_v2(PARAMETERS) {
  __shared__ float border[16];
  if (threadIdx.x < 16) border[threadIdx.x] = borders[threadIdx.x];
  __syncthreads();
  INDEX b = (INDEX)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  unsigned lane = threadIdx.x % 32;
  if (b >= (n + blocksize - 1) / blocksize) return;  // whole warps: nobody waits for them in a shuffle
  INDEX begin = b * blocksize, end = min(begin + blocksize, n);
  unsigned largest = 0;
  for (INDEX i = begin + lane; i < end; i += 32) largest = max(largest, magnitude(x[i]));
  for (unsigned offset = 16; offset; offset /= 2) largest = max(largest, __shfl_xor_sync(ALL, largest, offset));
  Block block(largest, end - begin == blocksize);
  if (lane == 0) absmax[b] = __uint_as_float(block.absmax);
  for (INDEX i = begin + 2 * lane; i < end; i += 64) {
    float first = block.scaled(x[i]), second = i + 1 < end ? block.scaled(x[i + 1]) : 0.0f;
    packed[i / 2] = code_of(first, border, stored) << 4 | code_of(second, border, stored);
  }
}

// The code of a scaled entry in four comparisons. The borders lie in 16 different banks of shared memory, so that lanes
// which look at different ones do not wait for each other.
__device__ __forceinline__ unsigned search(float scaled, const float* border, unsigned long long stored) {
  unsigned rank = 8 * greater(scaled, border[7]);
  rank += 4 * greater(scaled, border[rank + 3]);
  rank += 2 * greater(scaled, border[rank + 1]);
  rank += greater(scaled, border[rank]);
  return (unsigned)(stored >> (4 * rank)) & 15u;
}

// v3: a thread four weights, which stay in its registers, so that x is read once, in loads of 16 bytes, and two bytes
// are stored at once. (Eight weights would be two loads 32 bytes apart, each of which uses half of its sectors.)
// blocksize / 4 threads share a block: they are part of a warp and shuffle, or some warps, whose maxima meet in shared
// memory. Threads beyond the end of x hold zeros and take part.
extern "C" __global__ void __launch_bounds__(1024) quantize_4bit_v3(PARAMETERS) {
  __shared__ float border[16];
  __shared__ unsigned of_warp[32];
  if (threadIdx.x < 16) border[threadIdx.x] = borders[threadIdx.x];
  INDEX i = 4 * ((INDEX)blockIdx.x * blockDim.x + threadIdx.x);
  float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (i + 4 <= n) {
    v = *reinterpret_cast<const float4*>(x + i);
  } else {
    if (i < n) v.x = x[i];
    if (i + 1 < n) v.y = x[i + 1];
    if (i + 2 < n) v.z = x[i + 2];
  }
  unsigned largest = max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w)));
  unsigned threads = blocksize / 4, lanes = min(threads, 32u);
  for (unsigned offset = 1; offset < lanes; offset *= 2) largest = max(largest, __shfl_xor_sync(ALL, largest, offset));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threads > 32) {
    unsigned warp = threadIdx.x / threads * (threads / 32);  // the first one of this block
#pragma unroll 1
    for (unsigned w = warp; w < warp + threads / 32; ++w) largest = max(largest, of_warp[w]);
  }
  if (i >= n) return;
  INDEX b = i / blocksize;
  Block block(largest, (b + 1) * blocksize <= n);
  if (i == b * blocksize) absmax[b] = __uint_as_float(block.absmax);
  unsigned first = search(block.scaled(v.x), border, stored) << 4 | search(block.scaled(v.y), border, stored);
  unsigned second = search(block.scaled(v.z), border, stored) << 4 | search(block.scaled(v.w), border, stored);
  if (i + 2 < n) *reinterpret_cast<unsigned short*>(packed + i / 2) = second << 8 | first;
  else packed[i / 2] = first;
}
