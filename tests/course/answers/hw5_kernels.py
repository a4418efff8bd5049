# ruff: noqa: F811  (each answer has the name that the notebook calls)
from course.answers import collections

WRONG, RIGHT, wrong, right = collections()
USED_BY = {}  # checks of other answers that fail with it


@wrong("int8", "off by one: i <= n")
def dequantize_int8():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i <= n) out[i] = codes[i] * absmax[i / blocksize] / 127;
    """


@wrong("int8", "no look at n")
def dequantize_int8():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        out[i] = codes[i] * absmax[i / blocksize] / 127;
    """


@wrong("int8", "integers divided")
def dequantize_int8():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) out[i] = codes[i] / 127 * absmax[i / blocksize];
    """


@wrong("int8", "CUDA's block taken for a block of entries")
def dequantize_int8():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) out[i] = codes[i] * absmax[blockIdx.x] / 127;
    """


@wrong("int8", "the thread's number within its block")
def dequantize_int8():
    return """
        int i = threadIdx.x;
        if (i < n) out[i] = codes[i] * absmax[i / blocksize] / 127;
    """


@wrong("int8", "does not compile")
def dequantize_int8():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x
        if (i < n) out[i] = codes[i] * absmax[i / blocksize] / 127;
    """


@wrong("unpack", "nibbles swapped")
def unpack():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) codes[i] = i % 2 ? packed[i / 2] >> 4 : packed[i / 2] & 15;
    """


@wrong("unpack", "the high half where it is")
def unpack():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) codes[i] = i % 2 ? packed[i / 2] & 15 : packed[i / 2] & 0xF0;
    """


@wrong("unpack", "always two of a byte")
def unpack():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (2 * i < n) {
          codes[2 * i] = packed[i] >> 4;
          codes[2 * i + 1] = packed[i] & 15;
        }
    """


@wrong("unpack", "high halves first, then all low ones")
def unpack():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (2 * i < n) codes[i] = packed[i] >> 4;
        if (2 * i + 1 < n) codes[(n + 1) / 2 + i] = packed[i] & 15;
    """


@wrong("unpack", "n bytes")
def unpack():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) {
          codes[2 * i] = packed[i] >> 4;
          if (2 * i + 1 < n) codes[2 * i + 1] = packed[i] & 15;
        }
    """


@wrong("dequantize", "nibbles swapped")
def dequantize_4bit():
    return """
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
          int code = i % 2 ? packed[i / 2] >> 4 : packed[i / 2] & 15;
          out[i] = levels[code] * absmax[i / blocksize];
        }
    """


@wrong("dequantize", "blocks of bytes")
def dequantize_4bit():
    return """
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
          int code = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
          out[i] = levels[code] * absmax[i / 2 / blocksize];
        }
    """


@wrong("dequantize", "one entry a thread")
def dequantize_4bit():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) {
          int code = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
          out[i] = levels[code] * absmax[i / blocksize];
        }
    """


@wrong("dequantize", "threads do each other's work")
def dequantize_4bit():
    return """
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x) {
          int code = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
          out[i] = levels[code] * absmax[i / blocksize];
        }
    """


@wrong("dequantize", "codes as if they were levels of int4")
def dequantize_4bit():
    return """
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
          int code = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
          out[i] = (code - 7) / 7.0f * absmax[i / blocksize];
        }
    """


@wrong("absmax", "no barrier in the rounds")
def block_absmax():
    return """
        __shared__ float part[64];
        int t = threadIdx.x, first = blockIdx.x * blocksize;
        float largest = 0;
        for (int k = t; k < blocksize && first + k < n; k += 64) largest = fmaxf(largest, fabsf(x[first + k]));
        part[t] = largest;
        __syncthreads();
        for (int half = 32; half > 0; half /= 2)
          if (t < half) part[t] = fmaxf(part[t], part[t + half]);
        if (t == 0) absmax[blockIdx.x] = part[0];
    """


@wrong("absmax", "no barrier before the rounds")
def block_absmax():
    return """
        __shared__ float part[64];
        int t = threadIdx.x, first = blockIdx.x * blocksize;
        float largest = 0;
        for (int k = t; k < blocksize && first + k < n; k += 64) largest = fmaxf(largest, fabsf(x[first + k]));
        part[t] = largest;
        for (int half = 32; half > 0; half /= 2) {
          if (t < half) part[t] = fmaxf(part[t], part[t + half]);
          __syncthreads();
        }
        if (t == 0) absmax[blockIdx.x] = part[0];
    """


@wrong("absmax", "a barrier that some threads do not come to")
def block_absmax():
    return """
        __shared__ float part[64];
        int t = threadIdx.x, first = blockIdx.x * blocksize;
        float largest = 0;
        for (int k = t; k < blocksize && first + k < n; k += 64) largest = fmaxf(largest, fabsf(x[first + k]));
        part[t] = largest;
        for (int half = 32; half > 0; half /= 2)
          if (t < half) {
            __syncthreads();
            part[t] = fmaxf(part[t], part[t + half]);
          }
        if (t == 0) absmax[blockIdx.x] = part[0];
    """


@wrong("absmax", "the largest x, not |x|")
def block_absmax():
    return """
        __shared__ float part[64];
        int t = threadIdx.x, first = blockIdx.x * blocksize;
        float largest = 0;
        for (int k = t; k < blocksize && first + k < n; k += 64) largest = fmaxf(largest, x[first + k]);
        part[t] = largest;
        __syncthreads();
        for (int half = 32; half > 0; half /= 2) {
          if (t < half) part[t] = fmaxf(part[t], part[t + half]);
          __syncthreads();
        }
        if (t == 0) absmax[blockIdx.x] = part[0];
    """


@wrong("absmax", "off by one: the last round is missing")
def block_absmax():
    return """
        __shared__ float part[64];
        int t = threadIdx.x, first = blockIdx.x * blocksize;
        float largest = 0;
        for (int k = t; k < blocksize && first + k < n; k += 64) largest = fmaxf(largest, fabsf(x[first + k]));
        part[t] = largest;
        __syncthreads();
        for (int half = 32; half > 1; half /= 2) {
          if (t < half) part[t] = fmaxf(part[t], part[t + half]);
          __syncthreads();
        }
        if (t == 0) absmax[blockIdx.x] = part[0];
    """


@wrong("absmax", "into the next block")
def block_absmax():
    return """
        __shared__ float part[64];
        int t = threadIdx.x, first = blockIdx.x * blocksize;
        float largest = 0;
        for (int k = t; first + k < n; k += 64) largest = fmaxf(largest, fabsf(x[first + k]));
        part[t] = largest;
        __syncthreads();
        for (int half = 32; half > 0; half /= 2) {
          if (t < half) part[t] = fmaxf(part[t], part[t + half]);
          __syncthreads();
        }
        if (t == 0) absmax[blockIdx.x] = part[0];
    """


@wrong("absmax", "beyond n")
def block_absmax():
    return """
        __shared__ float part[64];
        int t = threadIdx.x, first = blockIdx.x * blocksize;
        float largest = 0;
        for (int k = t; k < blocksize; k += 64) largest = fmaxf(largest, fabsf(x[first + k]));
        part[t] = largest;
        __syncthreads();
        for (int half = 32; half > 0; half /= 2) {
          if (t < half) part[t] = fmaxf(part[t], part[t + half]);
          __syncthreads();
        }
        if (t == 0) absmax[blockIdx.x] = part[0];
    """


@wrong("absmax", "one thread does it all")
def block_absmax():
    return """
        int first = blockIdx.x * blocksize;
        float largest = 0;
        for (int k = 0; k < blocksize && first + k < n; k++) largest = fmaxf(largest, fabsf(x[first + k]));
        if (threadIdx.x == 0) absmax[blockIdx.x] = largest;
    """


@wrong("absmax", "a race for one place")
def block_absmax():
    return """
        __shared__ float largest;
        int first = blockIdx.x * blocksize;
        largest = 0;
        __syncthreads();
        for (int k = threadIdx.x; k < blocksize && first + k < n; k += 64)
          if (fabsf(x[first + k]) > largest) largest = fabsf(x[first + k]);
        __syncthreads();
        absmax[blockIdx.x] = largest;
    """


@wrong("count", "counts changed without order")
def count_codes():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) counts[i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4] += 1;
    """


@wrong("count", "what fills the last byte is counted")
def count_codes():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < (n + 1) / 2) {
          atomicAdd(&counts[packed[i] >> 4], 1);
          atomicAdd(&counts[packed[i] & 15], 1);
        }
    """


@wrong("count", "high halves alone")
def count_codes():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) atomicAdd(&counts[packed[i / 2] >> 4], 1);
    """


@wrong("count", "bytes as codes")
def count_codes():
    return """
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) atomicAdd(&counts[packed[i]], 1);
    """


@wrong("gemv", "each thread's own part")
def gemv_4bit():
    return """
        float sum = 0;
        for (int k = threadIdx.x; k < cols; k += 32) {
          int i = blockIdx.x * cols + k;
          int code = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
          sum += levels[code] * absmax[i / blocksize] * x[k];
        }
        y[blockIdx.x] = sum;
    """


@wrong("gemv", "no barrier between writing and reading")
def gemv_4bit():
    return """
        __shared__ float part[32];
        float sum = 0;
        for (int k = threadIdx.x; k < cols; k += 32) {
          int i = blockIdx.x * cols + k;
          int code = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
          sum += levels[code] * absmax[i / blocksize] * x[k];
        }
        part[threadIdx.x] = sum;
        if (threadIdx.x == 0) {
          for (int t = 1; t < 32; t++) sum += part[t];
          y[blockIdx.x] = sum;
        }
    """


@wrong("gemv", "halves by the column")
def gemv_4bit():
    return """
        float sum = 0;
        for (int k = threadIdx.x; k < cols; k += 32) {
          int i = blockIdx.x * cols + k;
          int code = k % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
          sum += levels[code] * absmax[i / blocksize] * x[k];
        }
        for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(0xffffffff, sum, d);
        if (threadIdx.x == 0) y[blockIdx.x] = sum;
    """


@wrong("gemv", "scales begin anew in each row")
def gemv_4bit():
    return """
        float sum = 0;
        int blocks = (cols + blocksize - 1) / blocksize;
        for (int k = threadIdx.x; k < cols; k += 32) {
          int i = blockIdx.x * cols + k;
          int code = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
          int b = blockIdx.x * blocks + k / blocksize;
          sum += levels[code] * absmax[min(b, (int)(gridDim.x * cols - 1) / blocksize)] * x[k];
        }
        for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(0xffffffff, sum, d);
        if (threadIdx.x == 0) y[blockIdx.x] = sum;
    """


@wrong("gemv", "one thread does it all")
def gemv_4bit():
    return """
        if (threadIdx.x) return;
        float sum = 0;
        for (int k = 0; k < cols; k++) {
          int i = blockIdx.x * cols + k;
          int code = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
          sum += levels[code] * absmax[i / blocksize] * x[k];
        }
        y[blockIdx.x] = sum;
    """


@wrong("gemv", "rows of whole bytes")
def gemv_4bit():
    return """
        float sum = 0;
        for (int k = threadIdx.x; k < cols; k += 32) {
          int i = blockIdx.x * cols + k, byte = packed[blockIdx.x * (cols / 2) + k / 2];
          int code = k % 2 ? byte & 15 : byte >> 4;
          sum += levels[code] * absmax[i / blocksize] * x[k];
        }
        for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(0xffffffff, sum, d);
        if (threadIdx.x == 0) y[blockIdx.x] = sum;
    """


@right("int8", "times 1 / 127, from the last thread on")
def dequantize_int8():
    return """
        int threads = gridDim.x * blockDim.x, i = threads - 1 - (blockIdx.x * blockDim.x + threadIdx.x);
        if (i >= n) return;
        const float scale = absmax[i / blocksize];
        out[i] = (float)codes[i] * scale * (1.0f / 127.0f);
    """


@right("unpack", "a byte a thread")
def unpack():
    return """
        int b = blockIdx.x * blockDim.x + threadIdx.x;
        if (2 * b < n) codes[2 * b] = packed[b] / 16;
        if (2 * b + 1 < n) codes[2 * b + 1] = packed[b] % 16;
    """


@right("unpack", "by shifting")
def unpack():
    return """
        for (unsigned i = threadIdx.x + blockIdx.x * blockDim.x; i < n; i += blockDim.x * gridDim.x)
          codes[i] = (packed[i >> 1] >> (4 - 4 * (i & 1))) & 0x0f;
    """


@right("dequantize", "a byte at a time")
def dequantize_4bit():
    return """
        int stride = blockDim.x * gridDim.x;
        int b = blockIdx.x * blockDim.x + threadIdx.x;
        while (2 * b < n) {
          int two = packed[b];
          out[2 * b] = absmax[2 * b / blocksize] * levels[two >> 4];
          if (2 * b + 1 < n) out[2 * b + 1] = absmax[(2 * b + 1) / blocksize] * levels[two & 15];
          b += stride;
        }
    """


@right("dequantize", "levels in shared memory")
def dequantize_4bit():
    return """
        __shared__ float level[16];
        if (threadIdx.x < 16) level[threadIdx.x] = levels[threadIdx.x];
        __syncthreads();
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
          unsigned char c = packed[i / 2];
          out[i] = level[i & 1 ? c & 15 : c >> 4] * absmax[i / blocksize];
        }
    """


@right("absmax", "two warps that shuffle")
def block_absmax():
    return """
        __shared__ float of_warp[2];
        const float* mine = x + blockIdx.x * blocksize;
        int count = min(blocksize, n - (int)blockIdx.x * blocksize);
        float m = 0;
        for (int k = threadIdx.x; k < count; k += blockDim.x) m = max(m, abs(mine[k]));
        for (int d = 16; d; d >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, d));
        if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = m;
        __syncthreads();
        if (threadIdx.x == 0) absmax[blockIdx.x] = fmaxf(of_warp[0], of_warp[1]);
    """


@right("absmax", "an atomic maximum of bits, which are ordered as positive floats are")
def block_absmax():
    return """
        __shared__ int largest;
        if (threadIdx.x == 0) largest = 0;
        __syncthreads();
        int stop = min((int)(blockIdx.x + 1) * blocksize, n);
        for (int i = blockIdx.x * blocksize + threadIdx.x; i < stop; i += 64)
          atomicMax(&largest, __float_as_int(fabsf(x[i])));
        __syncthreads();
        if (threadIdx.x == 63) absmax[blockIdx.x] = __int_as_float(largest);
    """


@right("absmax", "neighbours first")
def block_absmax():
    return """
        __shared__ float part[64];
        int t = threadIdx.x;
        part[t] = 0;
        for (int k = t; k < blocksize; k += 64) {
          int i = blockIdx.x * blocksize + k;
          if (i < n && fabsf(x[i]) > part[t]) part[t] = fabsf(x[i]);
        }
        for (int d = 1; d < 64; d *= 2) {
          __syncthreads();
          if (t % (2 * d) == 0) part[t] = fmaxf(part[t], part[t + d]);
        }
        if (t == 0) absmax[blockIdx.x] = part[0];
    """


@right("count", "first in shared memory")
def count_codes():
    return """
        __shared__ int mine[16];
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (threadIdx.x < 16) mine[threadIdx.x] = 0;
        __syncthreads();
        if (2 * i < n) atomicAdd(&mine[packed[i] >> 4], 1);
        if (2 * i + 1 < n) atomicAdd(&mine[packed[i] & 15], 1);
        __syncthreads();
        if (threadIdx.x < 16) atomicAdd(&counts[threadIdx.x], mine[threadIdx.x]);
    """


@right("count", "a thread a code, which looks at all")
def count_codes():
    return """
        int c = blockIdx.x * blockDim.x + threadIdx.x, found = 0;
        if (c >= 16) return;
        for (int i = 0; i < n; i++) found += (i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4) == c;
        counts[c] = found;
    """


@right("gemv", "sums in shared memory")
def gemv_4bit():
    return """
        __shared__ float part[32];
        int t = threadIdx.x, row = blockIdx.x * cols;
        part[t] = 0;
        for (int k = t; k < cols; k += blockDim.x) {
          int i = row + k;
          part[t] += x[k] * absmax[i / blocksize] * levels[packed[i / 2] >> (i % 2 ? 0 : 4) & 15];
        }
        __syncthreads();
        for (int half = 16; half; half /= 2) {
          if (t < half) part[t] += part[t + half];
          __syncthreads();
        }
        if (!t) y[blockIdx.x] = part[0];
    """


@right("gemv", "an atomic sum, and bytes shared out")
def gemv_4bit():
    return """
        __shared__ float total;
        if (threadIdx.x == 0) total = 0;
        __syncthreads();
        int start = blockIdx.x * cols, stop = start + cols;
        float sum = 0;
        for (int b = start / 2 + threadIdx.x; 2 * b < stop; b += 32)
          for (int h = 0; h < 2; h++) {
            int i = 2 * b + h;
            if (i >= start && i < stop)
              sum += levels[h ? packed[b] & 15 : packed[b] >> 4] * absmax[i / blocksize] * x[i - start];
          }
        atomicAdd(&total, sum);
        __syncthreads();
        if (threadIdx.x == 0) y[blockIdx.x] = total;
    """
