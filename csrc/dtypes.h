// Storage types: half and bfloat16 are read and written as bits, arithmetic is float.
#pragma once
#include "pixel.h"

namespace segfuse {
namespace {

struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

SEGFUSE_INLINE float widen(half h) {
#ifdef __CUDA_ARCH__
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h.bits));
  return x;
#else
  const uint32_t magnitude = static_cast<uint32_t>(h.bits & 0x7fffu);
  const float scaled = as_float(magnitude << 13) * as_float(0x77800000u);  // 2^112 repairs the exponent bias
  const uint32_t bits = magnitude >= 0x7c00u ? (magnitude << 13) | 0x7f800000u : as_bits(scaled);
  return as_float(bits | (static_cast<uint32_t>(h.bits & 0x8000u) << 16));
#endif
}
SEGFUSE_INLINE float widen(bfloat16 b) { return as_float(static_cast<uint32_t>(b.bits) << 16); }
template <typename T>
SEGFUSE_INLINE T widen(T x) {
  return x;
}

// Round to nearest even.
SEGFUSE_INLINE void narrow(float x, half& out) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
  const uint32_t bits = as_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;  // adding 0.5 aligns the last bit
  const uint32_t normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t h = magnitude < 0x38800000u ? subnormal : normal;
  h = magnitude >= 0x477ff000u ? (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u) : h;
  out.bits = static_cast<uint16_t>(sign | h);
#endif
}
SEGFUSE_INLINE void narrow(float x, bfloat16& out) {
  const uint32_t bits = as_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}
SEGFUSE_INLINE void narrow(float x, float& out) { out = x; }
SEGFUSE_INLINE void narrow(double x, double& out) { out = x; }
SEGFUSE_INLINE void narrow(double x, float& out) { out = static_cast<float>(x); }

}  // namespace
}  // namespace segfuse
