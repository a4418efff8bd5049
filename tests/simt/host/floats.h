// __half and __nv_bfloat16, as cuda_fp16.h and cuda_bf16.h name them: what a kernel stores, and computes with as float.
//
// A float becomes the nearest 16-bit number, a tie the one whose last bit is 0 (IEEE 754-2019, section 4.3.1); NaN
// becomes 0x7fff (CUDA Math API, "Half Precision Conversion and Data Movement"). All by integers, so that the rounding
// and flushing of the processor have no part in it.

#pragma once

namespace host {
template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits, another type");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// m / 2^shift, to nearest even.
inline unsigned rounded_shift(unsigned m, int shift) { return (m + ((1u << (shift - 1)) - 1) + (m >> shift & 1)) >> shift; }

inline unsigned short half_from(float x) {
  const unsigned u = bits_as<unsigned>(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
  const int exponent = a >> 23;  // x is (1 + fraction) 2^(exponent - 127)
  if (a > 0x7f800000) return 0x7fff;
  if (a >= 0x47800000) return sign | 0x7c00;                                    // 2^16 and more
  if (exponent >= 113) return sign | rounded_shift(a - (112u << 23), 13);       // normal; 65520 rounds up to infinity
  if (exponent < 102) return sign;                                              // less than half of 2^-24
  return sign | rounded_shift((a & 0x7fffff) | 0x800000, 126 - exponent);       // in units of 2^-24
}

inline float half_to(unsigned short h) {
  const unsigned sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31, fraction = h & 1023u;
  if (exponent == 31) return bits_as<float>(sign | 0x7f800000 | fraction << 13);
  if (exponent) return bits_as<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float x = (float)fraction * 0x1p-24f;  // exact
  return sign ? -x : x;
}

inline unsigned short bfloat16_from(float x) {
  const unsigned u = bits_as<unsigned>(x);
  return (u & 0x7fffffff) > 0x7f800000 ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

inline float bfloat16_to(unsigned short b) { return bits_as<float>((unsigned)b << 16); }
}  // namespace host

#define HOST_FLOAT16(type, from, to)                  \
  struct type {                                       \
    unsigned short bits;                              \
    type() = default;                                 \
    type(float x) : bits(host::from(x)) {}            \
    operator float() const { return host::to(bits); } \
  };
HOST_FLOAT16(__half, half_from, half_to)
HOST_FLOAT16(__nv_bfloat16, bfloat16_from, bfloat16_to)

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
