// Scalar mathematics of one pixel, for host and device, branch-free so that loops over it vectorise. float: own
// polynomials, on a GPU its exponential; a few units in the last place. double: libm. NaN propagates through every
// function.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define SEGFUSE_INLINE __host__ __device__ __forceinline__
#else
#define SEGFUSE_INLINE inline
#endif

namespace segfuse {
namespace {

SEGFUSE_INLINE float as_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
SEGFUSE_INLINE uint32_t as_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

// Cephes expf for x <= 0. Below -87.3 the result is 0.
SEGFUSE_INLINE float exp_negative(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  const float c = x < -87.3f ? -87.3f : x;
  const float shifted = c * 1.44269504f + 12582912.0f;  // 1.5 * 2^23 rounds to an integer in the low bits
  const float k = shifted - 12582912.0f;
  const float r = (c - k * 0.693359375f) + k * 2.12194440e-4f;
  float poly = 1.9875691500e-4f;
  poly = poly * r + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  const float scale = as_float((as_bits(shifted) - 0x4B400000u + 127u) << 23);
  const float y = (poly * r * r + r + 1.0f) * scale;
  return x < -87.3f ? 0.0f : y;
#endif
}

// Above 88 the result is inf.
SEGFUSE_INLINE float exp_(float x) {
  const float y = exp_negative(x > 88.0f ? 88.0f : x);
  return x > 88.0f ? HUGE_VALF : y;
}

// log((1 + f) 2^k), Cephes logf polynomial, |f| < 0.42
SEGFUSE_INLINE float log_poly(float f, float k) {
  float poly = 7.0376836292e-2f;
  poly = poly * f - 1.1514610310e-1f;
  poly = poly * f + 1.1676998740e-1f;
  poly = poly * f - 1.2420140846e-1f;
  poly = poly * f + 1.4249322787e-1f;
  poly = poly * f - 1.6668057665e-1f;
  poly = poly * f + 2.0000714765e-1f;
  poly = poly * f - 2.4999993993e-1f;
  poly = poly * f + 3.3333331174e-1f;
  const float f2 = f * f;
  return k * 0.693359375f + (f - (0.5f * f2 - f2 * f * poly) - k * 2.12194440e-4f);
}

// log(x) for x >= 0; 0 and subnormal numbers give -inf
SEGFUSE_INLINE float log_(float x) {
  const uint32_t shifted = as_bits(x) - 0x3f3504f3u;
  const int32_t k = static_cast<int32_t>(shifted) >> 23;
  const float m = as_float((shifted & 0x007fffffu) + 0x3f3504f3u);
  const float y = log_poly(m - 1.0f, static_cast<float>(k));
  return x < 1.1754944e-38f ? -HUGE_VALF : (x <= 3.4028234e38f ? y : x);
}

// log(1 + t) for t >= 0, full relative accuracy
SEGFUSE_INLINE float log1p_(float t) {
  const float u = 1.0f + t;
  const uint32_t shifted = as_bits(u) - 0x3f3504f3u;
  const int32_t k = static_cast<int32_t>(shifted) >> 23;
  const float m = as_float((shifted & 0x007fffffu) + 0x3f3504f3u);
  const float inverse = as_float((127u - static_cast<uint32_t>(k)) << 23);
  const float f = k == 0 ? t : (m - 1.0f) + (t - (u - 1.0f)) * inverse;
  const float y = log_poly(f, static_cast<float>(k));
  return t > 3.4028234e38f ? t : y;
}

// the same for 0 <= t <= 1
SEGFUSE_INLINE float log1p_unit(float t) {
  const bool high = t > 0.41421356f;
  const float f = high ? 0.5f * t - 0.5f : t;  // (1 + t) / 2 - 1, exact
  return log_poly(f, high ? 1.0f : 0.0f);
}

SEGFUSE_INLINE double exp_(double x) { return ::exp(x); }
SEGFUSE_INLINE double exp_negative(double x) { return ::exp(x); }
SEGFUSE_INLINE double log1p_unit(double t) { return ::log1p(t); }
SEGFUSE_INLINE double log_(double x) { return ::log(x); }
SEGFUSE_INLINE double log1p_(double x) { return ::log1p(x); }

template <typename T>
SEGFUSE_INLINE T min_(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
SEGFUSE_INLINE T max_(T a, T b) {
  return a > b ? a : b;
}
// x^a for x >= 0: 0 at x = 0 whatever a
template <typename T>
SEGFUSE_INLINE T pow_(T x, T a) {
  return x > T(0) ? exp_(a * log_(x)) : x * T(0);
}

}  // namespace
}  // namespace segfuse
