// Keys that order the pixels of a problem of lovasz_extension, and the weights that follow from their order, for host
// and device.
#pragma once
#include "pixel.h"

namespace segfuse {
namespace {

// Bits of an error >= 0, then a bit for "positive"
template <typename T>
struct Bits;
template <>
struct Bits<float> {
  using Key = uint32_t;
  static constexpr Key NOT_A_NUMBER = 0x7fc00000u << 1;
};
template <>
struct Bits<double> {
  using Key = uint64_t;
  static constexpr Key NOT_A_NUMBER = uint64_t(0x7ff8000000000000u) << 1;
};
template <typename T>
using Key = typename Bits<T>::Key;
template <typename T>
constexpr Key<T> NO_ERROR = ~Key<T>(1);  // ignored, or a hinge error <= 0; that of a positive counts as one of G

SEGFUSE_INLINE uint32_t bits_of(float x) { return as_bits(x); }
SEGFUSE_INLINE uint64_t bits_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, 8);
  return bits;
}
SEGFUSE_INLINE float error_of(uint32_t key) { return as_float(key >> 1); }
SEGFUSE_INLINE double error_of(uint64_t key) {
  double x;
  const uint64_t bits = key >> 1;
  memcpy(&x, &bits, 8);
  return x;
}

template <typename T>
SEGFUSE_INLINE Key<T> key_of(T error, T y) {
  const Key<T> bits = bits_of(error) << 1;  // without the sign
  return (error == error ? bits : Bits<T>::NOT_A_NUMBER) | static_cast<Key<T>>(y != T(0));
}
template <typename T>
SEGFUSE_INLINE Key<T> hinge_key(T error, T y) {
  return error <= T(0) ? NO_ERROR<T> | static_cast<Key<T>>(y != T(0)) : key_of(error, y);
}

// J_k - J_(k-1) in closed form, of a pixel that comes after F positives and B negatives; G positives in all.
SEGFUSE_INLINE double jaccard_step(bool positive, double G, double F, double B) {
  const double U = G + B + 1;
  const bool alone = U == 1;  // without any positive the first pixel has it all
  return ((positive | alone) ? 1 : G - F) / (positive ? G + B : alone ? 1 : U * (U - 1));
}

}  // namespace
}  // namespace segfuse
