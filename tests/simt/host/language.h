// CUDA C's own words for g++: what a .cu file uses beside C++. Included before it; kernels.h after it.
//
// -DFLUSH=1: float32 arithmetic flushes subnormal numbers, as with -ftz=true. The processor does so in + - * / and in
// comparisons (machine.h); functions that would not are here. Nothing is contracted to a fused multiply-add: NVRTC does
// that of itself, so that a kernel which differs here has a product and a sum that it did not write as fmaf.

#pragma once
#include <math.h>
#include <stddef.h>
#include "floats.h"
#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n)  // an unaligned access is for the simulated GPU to find; here it works

// Vectors

#define HOST_VECTORS(type, name)                                                     \
  struct name##2 { type x, y; };                                                     \
  struct name##3 { type x, y, z; };                                                  \
  struct name##4 { type x, y, z, w; };                                               \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                   \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }        \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
HOST_VECTORS(float, float)
HOST_VECTORS(int, int)
HOST_VECTORS(unsigned, uint)
HOST_VECTORS(short, short)
HOST_VECTORS(unsigned short, ushort)
HOST_VECTORS(signed char, char)
HOST_VECTORS(unsigned char, uchar)

// Numbers

inline unsigned __float_as_uint(float x) { return host::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return host::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return host::bits_as<float>(x); }
inline float __int_as_float(int x) { return host::bits_as<float>(x); }

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1 / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float rsqrtf(float a) { return 1 / sqrtf(a); }
inline float __expf(float a) { return expf(a); }

// To the nearest int, a tie to the even one; NaN gives 0, what is too large the largest.
inline int __float2int_rn(float x) { return x != x ? 0 : x >= 0x1p31f ? 0x7fffffff : x < -0x1p31f ? -0x7fffffff - 1 : (int)rintf(x); }

// Of a number and NaN the number; -0 is less than 0.
inline float host_extreme(float a, float b, bool largest) {
  a = FLUSH && fabsf(a) < 0x1p-126f ? copysignf(0, a) : a;
  b = FLUSH && fabsf(b) < 0x1p-126f ? copysignf(0, b) : b;
  if (a != a || b != b) return a == a ? a : b == b ? b : __uint_as_float(0x7fffffff);
  return (a < b || (a == b && signbit(a))) == largest ? b : a;
}
#define fmaxf(a, b) host_extreme(a, b, true)
#define fminf(a, b) host_extreme(a, b, false)

template <class A, class B>
inline auto min(A a, B b) -> decltype(a + b) { return a < b ? a : b; }
template <class A, class B>
inline auto max(A a, B b) -> decltype(a + b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
  return y;
}
// Four bytes of the eight in (a, b), a the lower: each the one that three bits of `which` name, every fourth is unused.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned which) {
  const unsigned long long both = (unsigned long long)b << 32 | a;
  unsigned y = 0;
  for (int i = 0; i < 4; ++i) y |= (both >> 8 * (which >> 4 * i & 7) & 255) << 8 * i;
  return y;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return ((unsigned long long)high << 32 | low) << (by & 31) >> 32;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return ((unsigned long long)high << 32 | low) >> (by & 31);
}
inline int __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += (a >> 8 * i & 255) * (b >> 8 * i & 255);
  return c;
}
template <class T>
inline T __ldg(const T* from) { return *from; }

// Waiting for other threads. `line` is that of the call.

#define HOST_LINE int line = __builtin_LINE()

inline void __syncthreads(HOST_LINE) { host::barrier("__syncthreads", line); }
inline void __syncwarp(unsigned mask = 0xffffffff, HOST_LINE) { host::gather(mask, 0, "__syncwarp", line); }
inline unsigned __ballot_sync(unsigned mask, int vote, HOST_LINE) {
  const host::Gathered& votes = host::gather(mask, vote != 0, "__ballot_sync", line);
  unsigned y = 0;
  for (unsigned l = 0; l < 32; ++l) y |= (votes.lanes >> l & 1) && votes.values[l] ? 1u << l : 0;
  return y;
}
inline int __any_sync(unsigned mask, int vote, HOST_LINE) { return __ballot_sync(mask, vote, line) != 0; }
inline int __all_sync(unsigned mask, int vote, HOST_LINE) { return __ballot_sync(mask, !vote, line) == 0; }

// What lane `from` has, where that is in `segment`, and else what this one has (CUDA C++ Programming Guide, "Warp Shuffle
// Functions"): the lanes of a warp are cut into segments of `width`.
template <class T>
inline T host_shuffle(unsigned mask, T value, int from, int first, int end, const char* what, int line) {
  host::Word word = 0;
  memcpy(&word, &value, sizeof value);
  const host::Gathered& all = host::gather(mask, word, what, line);
  const unsigned l = from >= first && from < end ? from : host::lane();
  if (!(all.lanes >> l & 1)) host::fail("line %d: %s from lane %u, which does not take part", line, what, l);
  memcpy(&value, all.values + l, sizeof value);
  return value;
}
#define HOST_SHUFFLE(name, from, first, end)                                           \
  template <class T>                                                                   \
  inline T name(unsigned mask, T value, int by, int width = 32, HOST_LINE) {           \
    const int lane = host::lane(), begin = lane / width * width;                       \
    return host_shuffle(mask, value, from, first, end, #name, line);                   \
  }
HOST_SHUFFLE(__shfl_sync, begin + (by & (width - 1)), begin, begin + width)
HOST_SHUFFLE(__shfl_up_sync, lane - by, begin, begin + width)
HOST_SHUFFLE(__shfl_down_sync, lane + by, begin, begin + width)
HOST_SHUFFLE(__shfl_xor_sync, lane ^ by, 0, begin + width)

// Atomics: nothing comes between, as a thread only stops where it waits.

#define HOST_ATOMIC(name, result)    \
  template <class T>                 \
  inline T name(T* at, T value) {    \
    const T old = *at;               \
    *at = result;                    \
    return old;                      \
  }
HOST_ATOMIC(atomicAdd, old + value)
HOST_ATOMIC(atomicSub, old - value)
HOST_ATOMIC(atomicMax, max(old, value))
HOST_ATOMIC(atomicMin, min(old, value))
HOST_ATOMIC(atomicExch, value)
HOST_ATOMIC(atomicOr, old | value)
HOST_ATOMIC(atomicAnd, old & value)
template <class T>
inline T atomicCAS(T* at, T compare, T value) {
  const T old = *at;
  if (old == compare) *at = value;
  return old;
}
