// Softmax and RMSNorm over the rows of x (R, n), float32: what reductions look like on a GPU.
//
//     softmax:   y_i = exp(x_i - m) / Σ_j exp(x_j - m),  m = max_j x_j
//     rms_norm:  y_i = w_i x_i / √(Σ_j x_j² / n + eps)                                           (arXiv:1910.07467)
//
//   v0  a thread a row: three passes over the row, each as one would write it in C.
//   v1  a block a row: each thread reduces every 256th entry, then the threads' results by a tree in shared memory.
//   v2  a warp a row: the tree is five shuffles, without shared memory or barriers; softmax takes maximum and sum in
//       one pass, correcting the sum whenever the maximum grows (arXiv:1805.02867).
//
// A maximum begins at the lowest finite number, not at -inf: x - m is then never -inf - -inf. A row of -inf only gets
// 0 / 0 = NaN, and +inf or NaN in a row make all of it NaN, as in NumPy.

#define ALL 0xffffffffu
#define LOWEST -3.402823466e38f

extern "C" __global__ void softmax_v0(const float* __restrict__ x, float* __restrict__ y, int rows, int n) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  x += (size_t)row * n;
  y += (size_t)row * n;
  float m = LOWEST, sum = 0;
  for (int i = 0; i < n; ++i) m = fmaxf(m, x[i]);
  for (int i = 0; i < n; ++i) sum += expf(x[i] - m);
  for (int i = 0; i < n; ++i) y[i] = expf(x[i] - m) / sum;
}

extern "C" __global__ void rms_norm_v0(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y,
                                       int rows, int n, float eps) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  x += (size_t)row * n;
  y += (size_t)row * n;
  float sum = 0;
  for (int i = 0; i < n; ++i) sum = fmaf(x[i], x[i], sum);
  const float r = 1 / sqrtf(sum / n + eps);
  for (int i = 0; i < n; ++i) y[i] = x[i] * r * w[i];
}

#define THREADS 256

struct Add {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// The values of all threads of a block combined, in every thread. Half of the threads take the other half's values,
// then a quarter, ...; neighbouring threads work on neighbouring words, which lie in different banks.
template <class Combine>
__device__ float block_reduce(float value, float* shared, Combine combine) {
  __syncthreads();  // the result before has been read
  shared[threadIdx.x] = value;
  for (int half = THREADS / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] = combine(shared[threadIdx.x], shared[threadIdx.x + half]);
  }
  __syncthreads();
  return shared[0];
}

extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_v1(const float* __restrict__ x, float* __restrict__ y, int rows, int n) {
  __shared__ float shared[THREADS];
  x += (size_t)blockIdx.x * n;
  y += (size_t)blockIdx.x * n;
  float m = LOWEST, sum = 0;
  for (int i = threadIdx.x; i < n; i += THREADS) m = fmaxf(m, x[i]);
  m = block_reduce(m, shared, Max());
  for (int i = threadIdx.x; i < n; i += THREADS) sum += expf(x[i] - m);
  sum = block_reduce(sum, shared, Add());
  for (int i = threadIdx.x; i < n; i += THREADS) y[i] = expf(x[i] - m) / sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_v1(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, int rows, int n,
                float eps) {
  __shared__ float shared[THREADS];
  x += (size_t)blockIdx.x * n;
  y += (size_t)blockIdx.x * n;
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += THREADS) sum = fmaf(x[i], x[i], sum);
  sum = block_reduce(sum, shared, Add());
  const float r = 1 / sqrtf(sum / n + eps);
  for (int i = threadIdx.x; i < n; i += THREADS) y[i] = x[i] * r * w[i];
}

extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_v2(const float* __restrict__ x, float* __restrict__ y, int rows, int n) {
  const int lane = threadIdx.x % 32, row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
  if (row >= rows) return;  // the same for all lanes of a warp: the shuffles miss none
  x += (size_t)row * n;
  y += (size_t)row * n;
  float m = LOWEST, sum = 0;  // of the entries so far: sum = Σ exp(x_i - m)
  for (int i = lane; i < n; i += 32) {
    const float larger = fmaxf(m, x[i]);
    sum = sum * expf(m - larger) + expf(x[i] - larger);
    m = larger;
  }
  for (int step = 16; step; step /= 2) {  // the same rule joins two lanes' entries
    const float other = __shfl_xor_sync(ALL, m, step), other_sum = __shfl_xor_sync(ALL, sum, step);
    const float larger = fmaxf(m, other);
    sum = sum * expf(m - larger) + other_sum * expf(other - larger);
    m = larger;
  }
  for (int i = lane; i < n; i += 32) y[i] = expf(x[i] - m) / sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_v2(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, int rows, int n,
                float eps) {
  const int lane = threadIdx.x % 32, row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  x += (size_t)row * n;
  y += (size_t)row * n;
  float sum = 0;
  for (int i = lane; i < n; i += 32) sum = fmaf(x[i], x[i], sum);
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
  const float r = 1 / sqrtf(sum / n + eps);
  for (int i = lane; i < n; i += 32) y[i] = x[i] * r * w[i];
}
