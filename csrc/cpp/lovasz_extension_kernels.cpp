// lovasz_extension on runs of pixels and on cells of sorted ones, compiled once per instruction set.
//
// Numerics: float (double for double logits) for the errors; their weights follow from whole counts by a closed form,
//           never from differences of J, which float cannot hold. Sums over pixels are double.
// Order:    by descending error, equal errors by ascending index: a partition into cells, then digit by digit.
// Ignored:  a pixel with m = 0 gets a key that says so, and never enters the sort. Nor does a hinge error <= 0.
// Source:   Berman et al. 2018 (arXiv 1705.08790), algorithm 1.
#include "../lovasz.h"
#include "tiles.h"

namespace segfuse {
namespace SEGFUSE_ISA {
namespace {

constexpr int64_t TILE = 512;
constexpr int CELL_BITS = 13;

// ---------------------------------------------------------------------------------------------------- keys

template <typename T>
constexpr int CELL_SHIFT = 8 * sizeof(T) - CELL_BITS;

inline int64_t offset_of(const LovaszExtension& op, int64_t n, int64_t c, int64_t begin) {
  return (n * op.classes + c - op.first) * op.pass.S + begin;
}
template <typename T>
Key<T>* keys_at(const LovaszExtension& op, int64_t n, int64_t c, int64_t begin) {
  return static_cast<Key<T>*>(op.slope) + offset_of(op, n, c, begin);
}
template <typename T>
const T* slope_at(const LovaszExtension& op, int64_t n, int64_t c, int64_t begin) {
  return static_cast<const T*>(op.slope) + offset_of(op, n, c, begin);
}

template <typename T>
inline void zero(T* out, int64_t length) {
  SIMD for (int64_t i = 0; i < length; ++i) out[i] = T(0);
}

template <typename T>
int64_t hinge_keys(const LovaszExtension& problem, int64_t n, int64_t c, int64_t begin, int64_t end, T* buffer) {
  const PixelStats& op = problem.pass;
  Target<T> t;
  t.y = buffer + TILE;
  t.u = buffer + 2 * TILE;
  int64_t invalid = 0;
  for (int64_t at = begin; at < end; at += TILE) {
    const int64_t length = min_(TILE, end - at);
    load(op, op.target, n, c, at, length, t.y);
    classify(op, n, c, at, length, T(1), true, buffer, t);
    invalid += t.invalid;
    Key<T>* keys = keys_at<T>(problem, n, c, at);
    if (!problem.wanted[c]) {
      SIMD for (int64_t i = 0; i < length; ++i) keys[i] = NO_ERROR<T>;
      continue;
    }
    const T *x = row(op, op.input, n, c, at, length, buffer), *y = t.y, *u = t.u;
    if (op.activation == IDENTITY) {  // back to the score: log p - log(1 - p)
      SIMD for (int64_t i = 0; i < length; ++i) {
        const T z = log_(max_(CLAMP<T>, x[i])) - log_(max_(CLAMP<T>, T(1) - x[i]));
        keys[i] = hinge_key(T(1) - z * (T(2) * y[i] - T(1)), y[i]);
      }
    } else {
      SIMD for (int64_t i = 0; i < length; ++i) keys[i] = hinge_key(T(1) - x[i] * (T(2) * y[i] - T(1)), y[i]);
    }
    if (t.plain) continue;
    SIMD for (int64_t i = 0; i < length; ++i) keys[i] = u[i] > T(0) ? keys[i] : NO_ERROR<T>;
  }
  return invalid;
}

// ------------------------------------------------------------------------------------------- exclusive classes

template <typename T>
struct PixelTile {
  int64_t C, tile;
  const T** x;                                // [C] rows of the input
  T *copy, *p, *y;                            // [C, tile]; y: of a target shaped like the logits
  T *top, *sum, *label, *u, *every, *buffer;  // [tile]; u: m of the pixel
  bool plain;                                 // every pixel is valid

  static size_t bytes(int64_t C) { return (3 * C + 6) * softmax_tile(C) * sizeof(T) + C * sizeof(T*); }
  PixelTile(int64_t C, void* scratch) : C(C), tile(softmax_tile(C)) {
    copy = static_cast<T*>(scratch);
    p = copy + C * tile;
    y = p + C * tile;
    top = y + C * tile;
    sum = top + tile;
    label = sum + tile;
    u = label + tile;
    every = u + tile;
    buffer = every + tile;
    x = reinterpret_cast<const T**>(buffer + tile);
  }
};

template <typename T>
int64_t pixel_target(const PixelStats& op, int64_t n, int64_t begin, int64_t length, PixelTile<T>& s) {
  Target<T> t;
  t.u = s.u;
  if (op.index_target) {
    t.y = s.label;
    load(op, op.target, n, 0, begin, length, t.y);
    classify(op, n, 0, begin, length, T(op.C - 1), true, s.buffer, t);
    s.plain = t.plain;
    return t.invalid;
  }
  int64_t invalid = 0;
  s.plain = true;
  T *u = s.u, *every = s.every;
  SIMD for (int64_t i = 0; i < length; ++i) every[i] = T(1);
  for (int64_t c = 0; c < s.C; ++c) {  // one ignored class drops the pixel
    t.y = s.y + c * s.tile;
    load(op, op.target, n, c, begin, length, t.y);
    classify(op, n, c, begin, length, T(1), true, s.buffer, t);
    invalid += t.invalid;
    if (t.plain) continue;
    s.plain = false;
    SIMD for (int64_t i = 0; i < length; ++i) every[i] *= u[i];
  }
  SIMD for (int64_t i = 0; i < length; ++i) u[i] = every[i];
  return invalid;
}

// Probabilities of the classes of `problem` in s.p. NaN and +inf make all of a pixel's NaN.
template <typename T>
void probabilities(const LovaszExtension& problem, int64_t n, int64_t begin, int64_t length, PixelTile<T>& s) {
  const PixelStats& op = problem.pass;
  const int64_t first = problem.first, last = first + problem.classes;
  if (op.activation == IDENTITY) {
    for (int64_t c = first; c < last; ++c) load(op, op.input, n, c, begin, length, s.p + c * s.tile);
    return;
  }
  T *top = s.top, *sum = s.sum;
  for (int64_t c = 0; c < s.C; ++c) {
    const T* x = s.x[c] = row(op, op.input, n, c, begin, length, s.copy + c * s.tile);
    if (c == 0) {
      SIMD for (int64_t i = 0; i < length; ++i) top[i] = x[i];
    } else {
      SIMD for (int64_t i = 0; i < length; ++i) top[i] = x[i] > top[i] ? x[i] : top[i];
    }
  }
  zero(sum, length);
  for (int64_t c = 0; c < s.C; ++c) {
    const T* x = s.x[c];
    T* p = s.p + c * s.tile;
    SIMD for (int64_t i = 0; i < length; ++i) {
      const T v = exp_negative(x[i] - top[i]);
      p[i] = v;
      sum[i] += v;
    }
  }
  SIMD for (int64_t i = 0; i < length; ++i) sum[i] = T(1) / sum[i];
  for (int64_t c = first; c < last; ++c) {
    T* p = s.p + c * s.tile;
    SIMD for (int64_t i = 0; i < length; ++i) p[i] *= sum[i];
  }
}

template <typename T>
int64_t pixel_keys(const LovaszExtension& problem, int64_t n, int64_t begin, int64_t end, void* scratch) {
  const PixelStats& op = problem.pass;
  PixelTile<T> s(op.C, scratch);
  int64_t invalid = 0;
  for (int64_t at = begin; at < end; at += s.tile) {
    const int64_t length = min_(s.tile, end - at);
    invalid += pixel_target(op, n, at, length, s);
    probabilities(problem, n, at, length, s);
    const T* u = s.u;
    for (int64_t c = problem.first; c < problem.first + problem.classes; ++c) {
      Key<T>* keys = keys_at<T>(problem, n, c, at);
      const T *p = s.p + c * s.tile, *y = s.y + c * s.tile, *label = s.label;
      const T own = static_cast<T>(c);
      if (!problem.wanted[c]) {
        SIMD for (int64_t i = 0; i < length; ++i) keys[i] = NO_ERROR<T>;
        continue;
      }
      if (op.index_target) {
        SIMD for (int64_t i = 0; i < length; ++i) {
          const T hit = label[i] == own ? T(1) : T(0);
          keys[i] = key_of(hit - p[i], hit);
        }
      } else {
        SIMD for (int64_t i = 0; i < length; ++i) keys[i] = key_of(y[i] - p[i], y[i]);
      }
      if (s.plain) continue;
      SIMD for (int64_t i = 0; i < length; ++i) keys[i] = u[i] > T(0) ? keys[i] : NO_ERROR<T>;
    }
  }
  return invalid;
}

template <typename T>
int64_t keys(const LovaszExtension& op, int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch) {
  if (!op.hinge) return pixel_keys<T>(op, n, begin, end, scratch);
  return hinge_keys<T>(op, n, c, begin, end, static_cast<T*>(scratch));
}

// ---------------------------------------------------------------------------------------------------- sorting

// Calls f(keys, count) for the pixels [begin, end) of a problem, sample by sample.
template <typename T, typename F>
inline void pieces(const LovaszExtension& op, int64_t problem, int64_t begin, int64_t end, F f) {
  const int64_t S = op.pass.S, stride = op.per_image ? 0 : op.classes * S;
  while (begin < end) {
    const int64_t n = begin / S, i = begin % S, count = min_(S - i, end - begin);
    f(static_cast<Key<T>*>(op.slope) + problem * S + n * stride + i, count);
    begin += count;
  }
}

template <typename T>
void count(const LovaszExtension& op, int64_t problem, int64_t begin, int64_t end, uint32_t* counts) {
  pieces<T>(op, problem, begin, end, [=](const Key<T>* keys, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
      ++counts[static_cast<size_t>(keys[i] >> CELL_SHIFT<T>) * 2 + static_cast<size_t>(keys[i] & 1)];
  });
}

template <typename T>
void partition(const LovaszExtension& op, int64_t problem, int64_t begin, int64_t end, int64_t lowest,
               uint32_t* cursors, void* sorted) {
  Key<T>* out = static_cast<Key<T>*>(sorted);
  const Key<T> least = static_cast<Key<T>>(lowest) << CELL_SHIFT<T>;
  pieces<T>(op, problem, begin, end, [=](const Key<T>* keys, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      uint32_t& cursor = cursors[2 * static_cast<size_t>(keys[i] >> CELL_SHIFT<T>)];
      out[cursor] = keys[i];
      cursor += (keys[i] >= least) & (keys[i] < NO_ERROR<T>);
    }
  });
}

template <typename T>
void collect(const LovaszExtension& op, int64_t problem, int64_t begin, int64_t end, int64_t lowest, uint32_t* cursors,
             const void* sorted) {
  const Key<T>* in = static_cast<const Key<T>*>(sorted);
  const Key<T> least = static_cast<Key<T>>(lowest) << CELL_SHIFT<T>;
  pieces<T>(op, problem, begin, end, [=](Key<T>* keys, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      uint32_t& cursor = cursors[2 * static_cast<size_t>(keys[i] >> CELL_SHIFT<T>)];
      const Key<T> slope = in[cursor];
      cursor += (keys[i] >= least) & (keys[i] < NO_ERROR<T>);
      keys[i] = slope;
    }
  });
}

template <typename T>
struct alignas(2 * sizeof(T)) Element {
  Key<T> key;
  uint32_t at;  // place in the cell before it was sorted
};

// Turns counts into the first place of every digit, the largest first.
inline void places(uint32_t* counts, int64_t digits) {
  uint32_t at = 0;
  for (int64_t d = digits - 1; d >= 0; --d) {
    const uint32_t own = counts[d];
    counts[d] = at;
    at += own;
  }
}

// Two counts in one word: positives low, negatives high
constexpr int HIGH = 32;
inline uint64_t one_of(bool positive) { return positive ? 1 : uint64_t(1) << HIGH; }

template <typename T>
struct Weigher {
  Key<T>* slopes;
  double G;
  double sum = 0;

  // The pixel comes after as many positives and negatives as `before` says.
  inline void operator()(Key<T> key, uint32_t at, uint64_t& before) {
    const bool positive = key & 1;
    const double weight =
        jaccard_step(positive, G, static_cast<uint32_t>(before), static_cast<uint32_t>(before >> HIGH));
    const T error = error_of(key);
    sum += weight > 0 ? double(error) * weight : 0;
    const T slope = static_cast<T>(positive ? -weight : weight);
    slopes[at] = bits_of(error == error ? slope : error);
    before += one_of(positive);
  }
};

template <typename T>
double weigh(void* cell, int64_t n, int64_t G, int64_t F, int64_t B, bool unequal, void* buffer) {
  constexpr int64_t MOST_DIGITS = 512;
  Key<T>* keys = static_cast<Key<T>*>(cell);
  Weigher<T> weigher{keys, static_cast<double>(G)};
  uint64_t before = static_cast<uint64_t>(F) | static_cast<uint64_t>(B) << HIGH;
  if (!unequal) {
    for (int64_t i = 0; i < n; ++i) weigher(keys[i], static_cast<uint32_t>(i), before);
    return weigher.sum;
  }
  Element<T>*a = static_cast<Element<T>*>(buffer), *b = a + n;
  if (n <= 32) {
    for (int64_t i = 0; i < n; ++i) {
      const Element<T> x{keys[i], static_cast<uint32_t>(i)};
      int64_t j = i;
      for (; j > 0 && (a[j - 1].key | 1) < (x.key | 1); --j) a[j] = a[j - 1];
      a[j] = x;
    }
    for (int64_t i = 0; i < n; ++i) weigher(a[i].key, a[i].at, before);
    return weigher.sum;
  }
  for (int64_t i = 0; i < n; ++i) a[i] = {keys[i], static_cast<uint32_t>(i)};
  // Least significant digit first. The highest is not moved: its counts say how many pixels come before each.
  const int width = n < 1024 ? 6 : 9, bits = CELL_SHIFT<T> - 1;
  const int64_t digits = int64_t(1) << width;
  const Key<T> mask = static_cast<Key<T>>(digits - 1);
  int shift = 1;
  for (; shift + width <= bits; shift += width) {
    uint32_t counts[MOST_DIGITS];
    zero(counts, digits);
    for (int64_t i = 0; i < n; ++i) ++counts[(a[i].key >> shift) & mask];
    if (counts[(a[0].key >> shift) & mask] == n) continue;
    places(counts, digits);
    for (int64_t i = 0; i < n; ++i) b[counts[(a[i].key >> shift) & mask]++] = a[i];
    Element<T>* swap = a;
    a = b;
    b = swap;
  }
  uint64_t counts[MOST_DIGITS];
  const Key<T> highest = (Key<T>(1) << (bits + 1 - shift)) - 1;
  zero(counts, digits);
  for (int64_t i = 0; i < n; ++i) counts[(a[i].key >> shift) & highest] += one_of(a[i].key & 1);
  for (int64_t d = digits - 1; d >= 0; --d) {
    const uint64_t own = counts[d];
    counts[d] = before;
    before += own;
  }
  for (int64_t i = 0; i < n; ++i) weigher(a[i].key, a[i].at, counts[(a[i].key >> shift) & highest]);
  return weigher.sum;
}

// ---------------------------------------------------------------------------------------------------- gradient

template <typename T>
void class_gradient(const LovaszExtension& problem, int64_t n, int64_t c, int64_t begin, int64_t end, T k, T* buffer) {
  const PixelStats& op = problem.pass;
  for (int64_t at = begin; at < end; at += TILE) {
    const int64_t length = min_(TILE, end - at);
    const T* slope = slope_at<T>(problem, n, c, at);
    T* out = row_out(op, n, c, at, buffer);
    if (problem.hinge && op.activation == IDENTITY) {
      const T* p = row(op, op.input, n, c, at, length, buffer + TILE);
      SIMD for (int64_t i = 0; i < length; ++i) {
        const T q = T(1) - p[i];
        const T dz = (p[i] < CLAMP<T> ? T(0) : T(1) / p[i]) + (q < CLAMP<T> ? T(0) : T(1) / q);
        out[i] = slope[i] == T(0) ? T(0) : k * slope[i] * dz;
      }
    } else {
      SIMD for (int64_t i = 0; i < length; ++i) out[i] = slope[i] == T(0) ? T(0) : k * slope[i];
    }
    if (out == buffer) store(op, op.output, n, c, at, length, out);
  }
}

// dL/dz_k = p_k (g_k - sum_c g_c p_c) with g = dL/dp, which is 0 for every class of an ignored pixel.
template <typename T>
void softmax_gradient(const LovaszExtension& problem, int64_t n, int64_t begin, int64_t end, const double* coefficient,
                      void* scratch) {
  const PixelStats& op = problem.pass;
  PixelTile<T> s(op.C, scratch);
  for (int64_t at = begin; at < end; at += s.tile) {
    const int64_t length = min_(s.tile, end - at);
    probabilities(problem, n, at, length, s);
    T *dot = s.top, *any = s.sum;
    zero(dot, length);
    zero(any, length);
    for (int64_t c = 0; c < op.C; ++c) {
      const T *slope = slope_at<T>(problem, n, c, at), *p = s.p + c * s.tile;
      const T k = static_cast<T>(coefficient[c]);
      SIMD for (int64_t i = 0; i < length; ++i) {
        dot[i] += k * slope[i] * p[i];
        any[i] = slope[i] == T(0) ? any[i] : T(1);
      }
    }
    for (int64_t c = 0; c < op.C; ++c) {
      const T *slope = slope_at<T>(problem, n, c, at), *p = s.p + c * s.tile;
      const T k = static_cast<T>(coefficient[c]);
      T* out = row_out(op, n, c, at, s.buffer);
      SIMD for (int64_t i = 0; i < length; ++i) out[i] = any[i] > T(0) ? p[i] * (k * slope[i] - dot[i]) : T(0);
      if (out == s.buffer) store(op, op.output, n, c, at, length, out);
    }
  }
}

template <typename T>
void gradient(const LovaszExtension& op, int64_t n, int64_t c, int64_t begin, int64_t end, const double* coefficient,
              void* scratch) {
  const double* own = coefficient + (op.per_image ? n * op.pass.C : 0);
  if (op.pass.activation == SOFTMAX) return softmax_gradient<T>(op, n, begin, end, own, scratch);
  const int64_t last = op.hinge ? c + 1 : op.pass.C;
  for (c = op.hinge ? c : 0; c < last; ++c)
    class_gradient<T>(op, n, c, begin, end, static_cast<T>(own[c]), static_cast<T*>(scratch));
}

template <typename T>
size_t scratch(const LovaszExtension& op) {
  const size_t of_class = 3 * TILE * sizeof(T), of_pixels = PixelTile<T>::bytes(op.pass.C);
  return op.hinge ? of_class : max_(of_class, of_pixels);
}

}  // namespace

#define SEGFUSE_LOVASZ(T) \
  {sizeof(T), 2 * sizeof(Element<T>), scratch<T>, keys<T>, count<T>, partition<T>, weigh<T>, collect<T>, gradient<T>}
const LovaszExtensionKernels lovasz_extension_table = {SEGFUSE_LOVASZ(float), SEGFUSE_LOVASZ(double)};

}  // namespace SEGFUSE_ISA
}  // namespace segfuse
