// The terms that pixels are summed up by, and their slopes, for host and device. p is the probability of the side that
// the target is on, q = 1 - p, l = -log p, lq = -log q.
#pragma once
#include "pixel.h"
#include "segfuse.h"

namespace segfuse {
namespace {

template <typename T>
constexpr T CLAMP = T(1e-7);  // probabilities enter a logarithm no smaller than this

template <typename T>
constexpr T BIG = T(1e30);  // stands in for an infinite loss where it meets a factor 0

// x^a for x >= 0, with the exponents of the defaults exact and cheap
template <typename T>
SEGFUSE_INLINE T power(T x, T a) {
  return a == T(0) ? T(1) : (a == T(1) ? x : pow_(x, a));
}

SEGFUSE_INLINE bool logarithmic(int kind) { return kind == FOCAL || kind == FOCAL_ALL || kind == POWER; }

// q^a, cheap for the exponents people use; minus_log_q >= 0
enum Exponent { ZERO, ONE, TWO, GENERAL };
SEGFUSE_INLINE Exponent exponent_of(double a) { return a == 0 ? ZERO : a == 1 ? ONE : a == 2 ? TWO : GENERAL; }

template <Exponent E, typename T>
SEGFUSE_INLINE T modulate(T q, T minus_log_q, T a) {
  return E == ZERO ? T(1) : E == ONE ? q : E == TWO ? q * q : exp_(-a * minus_log_q);
}

// Runs the statements with the compile-time constant E that stands for the exponent.
#define SEGFUSE_WITH_EXPONENT(exponent, ...) \
  switch (exponent_of(exponent)) {           \
    case ZERO: {                             \
      constexpr Exponent E = ZERO;           \
      __VA_ARGS__                            \
    } break;                                 \
    case ONE: {                              \
      constexpr Exponent E = ONE;            \
      __VA_ARGS__                            \
    } break;                                 \
    case TWO: {                              \
      constexpr Exponent E = TWO;            \
      __VA_ARGS__                            \
    } break;                                 \
    case GENERAL: {                          \
      constexpr Exponent E = GENERAL;        \
      __VA_ARGS__                            \
    } break;                                 \
  }

// f = (1-p)^a l, and df/dz for the sigmoid, where l = -log p, q = 1 - p, lq = -log q:  -(q^a)(q + a p l).
template <Exponent E, typename T>
SEGFUSE_INLINE T focal(T q, T l, T lq, T a) {
  return E == ZERO ? l : modulate<E>(q, lq, a) * l;
}
template <Exponent E, typename T>
SEGFUSE_INLINE T focal_slope(T p, T q, T l, T lq, T a) {
  return E == ZERO ? -q : -modulate<E>(q, lq, a) * (q + a * (p * min_(l, BIG<T>)));
}
// df/dp for probabilities: -(q^a)/p - a q^(a-1) l, zero where the logarithm is clamped or q = 0
template <Exponent E, typename T>
SEGFUSE_INLINE T focal_slope_p(T p, T q, T l, T lq, T a) {
  const T first = p >= CLAMP<T> ? -modulate<E>(q, lq, a) / p : T(0) * p;
  return E == ZERO ? first : first - (q > T(0) ? a * exp_(-(a - T(1)) * lq) * l : T(0));
}

// d l / d(-log p) of (1-p)^a (-log p) under softmax: q^a (1 + a p l / q), l / q -> 1 as q -> 0
template <Exponent E, typename T>
SEGFUSE_INLINE T softmax_slope(T p, T q, T l, T lq, T a) {
  if (E == ZERO) return T(1);
  const T ratio = q > T(0) ? min_(l, BIG<T>) / q : T(1);
  return modulate<E>(q, lq, a) * (T(1) + a * p * ratio);
}

}  // namespace
}  // namespace segfuse
