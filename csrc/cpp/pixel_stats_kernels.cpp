// pixel_stats on one chunk of pixels, compiled once per instruction set (SEGFUSE_ISA names it).
//
// Memory:   each logit is read once from memory; everything else happens on a tile that stays in cache.
// Numerics: float32 (float64 for float64 logits) on the tile; a tile's sums are added to float64.
// Order:    tiles in index order inside a chunk, chunks in index order in the driver.
// Ignored:  a pixel with m = 0 gets logit 0, y = 0 and u = 0 on the tile, so nothing of it reaches a sum.
#include "tiles.h"

namespace segfuse {
namespace SEGFUSE_ISA {
namespace {

// u = m * weight. Returns how many weights are negative.
template <typename T>
inline int multiply_weight(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t length, bool plain, T* u,
                           T* buffer) {
  const T* w = row(op, op.weight, n, c, begin, length, buffer);
  int negative = 0;
  SIMD_SUM(negative) for (int64_t i = 0; i < length; ++i) negative += w[i] < T(0);
  if (plain) {
    SIMD for (int64_t i = 0; i < length; ++i) u[i] = w[i];
  } else {
    SIMD for (int64_t i = 0; i < length; ++i) u[i] = u[i] > T(0) ? w[i] : T(0);
  }
  return negative;
}

// The distance map where a pixel is valid; whatever stands under an ignored one is left out.
template <typename T>
inline const T* load_distance(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t length, bool plain,
                              const T* keep, T* buffer) {
  if (op.distance.data == nullptr) return buffer;
  const T* d = row(op, op.distance, n, c, begin, length, buffer);
  if (plain) return d;
  SIMD for (int64_t i = 0; i < length; ++i) buffer[i] = keep[i] > T(0) ? d[i] : T(0);
  return buffer;
}

// ---------------------------------------------------------------------------------------------------- functions of p

// The sums of one tile of one class that are functions of (p, y); `sum` is a callable (row) -> double&.
template <bool W, typename T, typename Sum>
inline void moment_sums(const PixelStats& op, const T* p, const T* y, const T* u, const T* d, int64_t length, Sum sum) {
  auto weight = [u](int64_t i) { return W ? u[i] : T(1); };
  const int* row = op.moment;
  if (row[PRED] >= 0 || row[TP] >= 0) {
    T sp = 0, spy = 0;
    SIMD_SUM(sp, spy) for (int64_t i = 0; i < length; ++i) {
      const T up = weight(i) * p[i];
      sp += up;
      spy += up * y[i];
    }
    if (row[PRED] >= 0) sum(row[PRED]) += sp;
    if (row[TP] >= 0) sum(row[TP]) += spy;
  }
  auto total = [&](int moment, auto value) {
    if (row[moment] < 0) return;
    T s = 0;
    SIMD_SUM(s) for (int64_t i = 0; i < length; ++i) s += value(i);
    sum(row[moment]) += s;
  };
  total(PRED2, [=](int64_t i) { return weight(i) * p[i] * p[i]; });
  total(TP2, [=](int64_t i) { return weight(i) * p[i] * p[i] * y[i]; });
  total(L1, [=](int64_t i) {
    const T d = p[i] - y[i];
    return weight(i) * (d < T(0) ? -d : d);
  });
  total(SQ_TRUE, [=](int64_t i) { return weight(i) * y[i] * (p[i] - y[i]) * (p[i] - y[i]); });
  total(SQ_FALSE, [=](int64_t i) { return weight(i) * (T(1) - y[i]) * (p[i] - y[i]) * (p[i] - y[i]); });
  total(DISTANCE_PRED, [=](int64_t i) { return weight(i) * d[i] * p[i]; });
  total(DISTANCE_SQ, [=](int64_t i) { return weight(i) * d[i] * (p[i] - y[i]) * (p[i] - y[i]); });
  for (int k = 0; k < op.terms; ++k) {
    const Term& term = op.term[k];
    if (term.kind != DSC && term.kind != DSC_PIXEL) continue;
    const T a = static_cast<T>(term.a), b = static_cast<T>(term.b);
    const bool pixel = term.kind == DSC_PIXEL;
    T pos = 0, neg = 0;
    SIMD_SUM(pos, neg) for (int64_t i = 0; i < length; ++i) {
      const T q = power(T(1) - p[i], a) * p[i];
      const T f = weight(i) * (pixel ? T(1) - (T(2) * q * y[i] + b) / (q + y[i] + b) : q);
      pos += y[i] * f;
      neg += (T(1) - y[i]) * f;
    }
    sum(term.row) += pos;
    sum(term.row + 1) += neg;
  }
}

// The sums that need the target alone.
template <typename T, typename Sum>
inline void target_sums(const PixelStats& op, const Target<T>& t, bool weighted, int64_t length, Sum sum) {
  const int* row = op.moment;
  if (row[COUNT] >= 0) sum(row[COUNT]) += static_cast<double>(t.valid);
  auto total = [&](int moment, auto value) {
    if (row[moment] < 0) return;
    T s = 0;
    SIMD_SUM(s) for (int64_t i = 0; i < length; ++i) s += value(i);
    sum(row[moment]) += s;
  };
  const T *y = t.y, *u = t.u;
  total(TRUE_COUNT, [=](int64_t i) { return y[i]; });
  if (weighted) {
    total(WEIGHT, [=](int64_t i) { return u[i]; });
    total(TRUE, [=](int64_t i) { return u[i] * y[i]; });
    total(TRUE2, [=](int64_t i) { return u[i] * y[i] * y[i]; });
  } else {
    if (row[WEIGHT] >= 0) sum(row[WEIGHT]) += static_cast<double>(t.valid);
    total(TRUE, [=](int64_t i) { return y[i]; });
    total(TRUE2, [=](int64_t i) { return y[i] * y[i]; });
  }
}

template <typename T>
struct MomentGradient {
  T constant, by_y, by_p, by_py, l1, sq_false, sq_y, by_d, by_d_sq;
  bool any, dsc;
  // coefficient(row) -> double
  template <typename Coefficient>
  MomentGradient(const PixelStats& op, Coefficient coefficient) {
    auto of = [&](int moment) { return op.moment[moment] < 0 ? T(0) : static_cast<T>(coefficient(op.moment[moment])); };
    constant = of(PRED);
    by_y = of(TP);
    by_p = T(2) * of(PRED2);
    sq_false = T(2) * of(SQ_FALSE);
    sq_y = T(2) * of(SQ_TRUE) - sq_false;
    by_py = T(2) * of(TP2);
    l1 = of(L1);
    by_d = of(DISTANCE_PRED);
    by_d_sq = T(2) * of(DISTANCE_SQ);
    dsc = false;
    for (int k = 0; k < op.terms; ++k) dsc |= op.term[k].kind == DSC || op.term[k].kind == DSC_PIXEL;
    any = dsc;
    for (int m = PRED; m < MOMENTS; ++m) any |= op.moment[m] >= 0;
  }
};

// g = d(loss) / dp without the weight u
template <typename T, typename Coefficient>
inline void moment_gradient(const PixelStats& op, const MomentGradient<T>& k, const T* p, const T* y, const T* d,
                            int64_t length, Coefficient coefficient, T* g) {
  if (k.l1 == T(0)) {
    SIMD for (int64_t i = 0; i < length; ++i) g[i] = (k.constant + k.by_y * y[i]) + (k.by_p + k.by_py * y[i]) * p[i];
  } else {
    SIMD for (int64_t i = 0; i < length; ++i) {
      const T sign = p[i] > y[i] ? T(1) : (p[i] < y[i] ? T(-1) : p[i] - y[i]);
      g[i] = (k.constant + k.by_y * y[i]) + (k.by_p + k.by_py * y[i]) * p[i] + k.l1 * sign;
    }
  }
  if (k.sq_false != T(0) || k.sq_y != T(0)) {
    SIMD for (int64_t i = 0; i < length; ++i) g[i] += (p[i] - y[i]) * (k.sq_false + k.sq_y * y[i]);
  }
  if (k.by_d != T(0) || k.by_d_sq != T(0)) {
    SIMD for (int64_t i = 0; i < length; ++i) g[i] += d[i] * (k.by_d + k.by_d_sq * (p[i] - y[i]));
  }
  for (int j = 0; k.dsc && j < op.terms; ++j) {
    const Term& term = op.term[j];
    if (term.kind != DSC && term.kind != DSC_PIXEL) continue;
    const T a = static_cast<T>(term.a), b = static_cast<T>(term.b);
    const T pos = static_cast<T>(coefficient(term.row)), neg = static_cast<T>(coefficient(term.row + 1));
    const bool pixel = term.kind == DSC_PIXEL;
    SIMD for (int64_t i = 0; i < length; ++i) {
      const T r = T(1) - p[i];
      const T dq = a == T(0) ? T(1) : power(r, a - T(1)) * (r - a * p[i]), q = power(r, a) * p[i];
      const T by = q + y[i] + b;
      const T df = pixel ? (-T(2) * y[i] * by + (T(2) * q * y[i] + b)) / (by * by) : T(1);
      g[i] += (pos * y[i] + neg * (T(1) - y[i])) * df * dq;
    }
  }
}

// ---------------------------------------------------------------------------------------------------- functions of log
// p

inline bool wants_logarithm(const PixelStats& op) {
  for (int k = 0; k < op.terms; ++k)
    if (logarithmic(op.term[k].kind)) return true;
  return false;
}

inline bool wants_probabilities(const PixelStats& op) {
  for (int m = PRED; m < MOMENTS; ++m)
    if (op.moment[m] >= 0) return true;
  return op.terms > 0;
}

// ---------------------------------------------------------------------------------------------------- one element at a
// time

constexpr int64_t TILE = 512;

template <typename T>
struct Element {  // scratch of one thread
  T x[TILE], y[TILE], u[TILE], w[TILE], keep[TILE];
  T p[TILE], d[TILE];             // p and p (1 - p)
  T q[TILE], l[TILE], lq[TILE];   // hard y: of the side that y is on, 1 - p_t, -log p_t and -log(1 - p_t)
  T r[TILE], lp[TILE], lr[TILE];  // both sides: 1 - p, -log p, -log(1 - p)
  T f[TILE], g[TILE], h[TILE], distance[TILE];
};

template <typename T>
struct ElementTile {
  const T *p, *d;  // probability, distance
  Target<T> t;
  bool weighted;  // u matters
  bool own_side;  // q, l and lq are there; otherwise r, lp and lr
};

// Loads the target (and with it what is valid) of one tile of one class.
template <typename T>
inline Target<T> element_target(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t length,
                                Element<T>& s) {
  Target<T> t;
  t.y = s.y;
  t.u = s.u;
  if (op.index_target) {
    load(op, op.target, n, 0, begin, length, s.y);
    classify(op, n, c, begin, length, T(op.C - 1), true, s.w, t);
    const T own = static_cast<T>(c);
    if (t.plain) {
      SIMD for (int64_t i = 0; i < length; ++i) s.y[i] = s.y[i] == own ? T(1) : T(0);
    } else {
      SIMD for (int64_t i = 0; i < length; ++i) s.y[i] = s.y[i] == own && s.u[i] > T(0) ? T(1) : T(0);
    }
    t.hard = true;
    if (c > 0) t.invalid = 0;  // counted once per pixel
  } else {
    load(op, op.target, n, c, begin, length, s.y);
    classify(op, n, c, begin, length, T(1), op.target.dtype >= BOOL, s.w, t);
  }
  return t;
}

// Targets and weights of one tile.
template <typename T>
inline void element_load_target(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t length,
                                Element<T>& s, ElementTile<T>& tile) {
  tile.t = element_target(op, n, c, begin, length, s);
  tile.weighted = !tile.t.plain || op.weight.data != nullptr;
  if (!tile.t.plain) {
    SIMD for (int64_t i = 0; i < length; ++i) s.keep[i] = s.u[i];
  }
  if (op.weight.data != nullptr) tile.t.invalid += multiply_weight(op, n, c, begin, length, tile.t.plain, s.u, s.w);
  tile.d = load_distance(op, n, c, begin, length, tile.t.plain, s.keep, s.distance);
}

// What the terms of a plan ask of a tile.
struct Needs {
  bool logs = false, both_sides = false, general = false;
  Needs(const PixelStats& op) : both_sides(op.activation == IDENTITY) {
    for (int k = 0; k < op.terms; ++k) {
      logs |= logarithmic(op.term[k].kind);
      both_sides |= op.term[k].kind == FOCAL_ALL;
      general |= op.term[k].kind != POWER && exponent_of(op.term[k].a) == GENERAL;
    }
  }
};

// Probabilities and, where needed, their logarithms.
template <typename T>
inline void element_load(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t length, const Needs& needs,
                         Element<T>& s, ElementTile<T>& tile) {
  const T* x = row(op, op.input, n, c, begin, length, s.x);
  if (!tile.t.plain) {
    SIMD for (int64_t i = 0; i < length; ++i) s.x[i] = s.keep[i] > T(0) ? x[i] : T(0);
    x = s.x;
  }
  T *p = s.p, *d = s.d, *r = s.r, *lp = s.lp, *lr = s.lr, *q = s.q, *l = s.l, *lq = s.lq;
  const T* y = tile.t.y;
  tile.own_side = needs.logs && !needs.both_sides && tile.t.hard;
  tile.p = p;
  if (op.activation == IDENTITY) {
    tile.p = x;
    SIMD for (int64_t i = 0; i < length; ++i) r[i] = T(1) - x[i];
    if (needs.logs) {
      SIMD for (int64_t i = 0; i < length; ++i) {
        lp[i] = -log_(max_(CLAMP<T>, x[i]));
        lr[i] = -log_(max_(CLAMP<T>, r[i]));
      }
    }
  } else if (!needs.logs) {
    SIMD for (int64_t i = 0; i < length; ++i) {
      const T e = exp_negative(x[i] < T(0) ? x[i] : -x[i]);
      const T big = T(1) / (T(1) + e), small = e * big;
      p[i] = x[i] < T(0) ? small : big;
      d[i] = small * big;
    }
  } else if (tile.own_side) {
    SIMD for (int64_t i = 0; i < length; ++i) {
      const T z = x[i], side = z * (T(1) - T(2) * y[i]);  // > 0: on the wrong side
      const T e = exp_negative(z < T(0) ? z : -z);
      const T big = T(1) / (T(1) + e), small = e * big;
      p[i] = z < T(0) ? small : big;
      d[i] = small * big;
      q[i] = side < T(0) ? small : big;
      l[i] = (side < T(0) ? T(0) : side) + log1p_unit(e);
    }
    if (needs.general) {
      SIMD for (int64_t i = 0; i < length; ++i) lq[i] = -log_(q[i]);
    }
  } else {
    SIMD for (int64_t i = 0; i < length; ++i) {
      const T z = x[i];
      const T e = exp_negative(z < T(0) ? z : -z);
      const T big = T(1) / (T(1) + e), small = e * big, unit = log1p_unit(e);
      p[i] = z < T(0) ? small : big;
      r[i] = z < T(0) ? big : small;
      d[i] = small * big;
      lp[i] = (z < T(0) ? -z : T(0)) + unit;
      lr[i] = (z < T(0) ? T(0) : z) + unit;
    }
  }
}

// The two sums of one logarithmic term. The binary forms are linear in y; a hard y needs only its own side.
template <bool W, typename T, typename Sum>
inline void term_sums(const Term& term, const ElementTile<T>& tile, int64_t length, const Element<T>& s, Sum sum) {
  const T *p = tile.p, *r = s.r, *lp = s.lp, *lr = s.lr, *q = s.q, *l = s.l, *lq = s.lq, *y = tile.t.y, *u = tile.t.u;
  // a weight of 0 leaves out even an infinite value
  auto weigh = [u, p](int64_t i, T f) { return !W ? f : u[i] == T(0) ? T(0) * p[i] : u[i] * f; };
  const T a = static_cast<T>(term.a);
  T pos = 0, neg = 0;
  if (tile.own_side && term.kind == FOCAL) {
    SEGFUSE_WITH_EXPONENT(term.a, {
      SIMD_SUM(pos, neg) for (int64_t i = 0; i < length; ++i) {
        const T f = weigh(i, focal<E>(q[i], l[i], lq[i], a));
        pos += y[i] > T(0) ? f : T(0);
        neg += y[i] > T(0) ? T(0) : f;
      }
    })
  } else if (tile.own_side) {
    SIMD_SUM(pos, neg) for (int64_t i = 0; i < length; ++i) {
      const T f = weigh(i, pow_(l[i], a));
      pos += y[i] > T(0) ? f : T(0);
      neg += y[i] > T(0) ? T(0) : f;
    }
  } else if (term.kind == POWER) {
    SIMD_SUM(pos, neg) for (int64_t i = 0; i < length; ++i) {
      const T one = y[i] * lp[i], zero = (T(1) - y[i]) * lr[i];
      const T f = weigh(i, pow_((y[i] > T(0) ? one : T(0)) + (y[i] < T(1) ? zero : T(0)), a));
      const T f_one = y[i] * f, f_zero = (T(1) - y[i]) * f;
      pos += y[i] > T(0) ? f_one : T(0);
      neg += y[i] < T(1) ? f_zero : T(0);
    }
  } else {
    const bool all = term.kind == FOCAL_ALL;
    SEGFUSE_WITH_EXPONENT(term.a, {
      SIMD_SUM(pos, neg) for (int64_t i = 0; i < length; ++i) {
        const T one = all ? T(1) : y[i], zero = all ? T(1) : T(1) - y[i];
        const T f_one = weigh(i, one * focal<E>(r[i], lp[i], lr[i], a)),
                f_zero = weigh(i, zero * focal<E>(p[i], lr[i], lp[i], a));
        pos += one > T(0) ? f_one : T(0) * p[i];
        neg += zero > T(0) ? f_zero : T(0) * p[i];
      }
    })
  }
  sum(term.row) += pos;
  sum(term.row + 1) += neg;
}

// Adds d(coefficient . term) / dz (for probabilities: / dp) to f, without the weight.
template <typename T, typename Coefficient>
inline void term_gradient(const PixelStats& op, const Term& term, const ElementTile<T>& tile, int64_t length,
                          const Element<T>& s, Coefficient coefficient, T* f) {
  const T *p = tile.p, *r = s.r, *lp = s.lp, *lr = s.lr, *q = s.q, *l = s.l, *lq = s.lq, *y = tile.t.y;
  const T a = static_cast<T>(term.a);
  const T pos = static_cast<T>(coefficient(term.row)), neg = static_cast<T>(coefficient(term.row + 1));
  const bool raw = op.activation == IDENTITY, linear = a == T(1);
  if (tile.own_side && term.kind == FOCAL) {
    SEGFUSE_WITH_EXPONENT(term.a, {
      SIMD for (int64_t i = 0; i < length; ++i) f[i] +=
          (y[i] > T(0) ? pos : -neg) * focal_slope<E>(T(1) - q[i], q[i], l[i], lq[i], a);
    })
  } else if (tile.own_side) {
    SIMD for (int64_t i = 0; i < length; ++i) {
      const T slope = a * (linear ? T(1) : pow_(l[i], a - T(1))) * q[i];
      f[i] += (y[i] > T(0) ? -pos : neg) * (l[i] > T(0) ? slope : T(0) * l[i]);
    }
  } else if (term.kind == POWER) {
    SIMD for (int64_t i = 0; i < length; ++i) {
      const T one = y[i] * lp[i], zero = (T(1) - y[i]) * lr[i];
      const T whole = (y[i] > T(0) ? one : T(0)) + (y[i] < T(1) ? zero : T(0));
      const T by_r = (T(1) - y[i]) / r[i], by_p = y[i] / p[i];
      const T dp = (r[i] >= CLAMP<T> ? by_r : T(0)) - (p[i] >= CLAMP<T> ? by_p : T(0));
      const T slope = a * (linear ? T(1) : pow_(whole, a - T(1))) * (raw ? dp : (T(1) - y[i]) * p[i] - y[i] * r[i]);
      f[i] += (pos * y[i] + neg * (T(1) - y[i])) * (whole > T(0) ? slope : T(0) * whole);
    }
  } else {
    const bool all = term.kind == FOCAL_ALL;
    SEGFUSE_WITH_EXPONENT(term.a, {
      SIMD for (int64_t i = 0; i < length; ++i) {
        const T one = raw ? focal_slope_p<E>(p[i], r[i], lp[i], lr[i], a) : focal_slope<E>(p[i], r[i], lp[i], lr[i], a);
        const T zero =
            raw ? focal_slope_p<E>(r[i], p[i], lr[i], lp[i], a) : focal_slope<E>(r[i], p[i], lr[i], lp[i], a);
        f[i] += pos * (all ? T(1) : y[i]) * one - neg * (all ? T(1) : T(1) - y[i]) * zero;
      }
    })
  }
}

template <typename T>
inline void element_sums(const PixelStats& op, const ElementTile<T>& tile, int64_t length, Element<T>& s,
                         double* partial) {
  auto sum = [partial](int row) -> double& { return partial[row]; };
  target_sums(op, tile.t, tile.weighted, length, sum);
  if (!wants_probabilities(op)) return;
  if (tile.weighted) {
    moment_sums<true>(op, tile.p, tile.t.y, tile.t.u, tile.d, length, sum);
  } else {
    moment_sums<false>(op, tile.p, tile.t.y, tile.t.u, tile.d, length, sum);
  }
  for (int k = 0; k < op.terms; ++k) {
    if (!logarithmic(op.term[k].kind)) continue;
    if (op.term[k].mapped) {
      ElementTile<T> mapped = tile;
      mapped.t.u = s.h;
      const T *u = tile.t.u, *d = tile.d;
      SIMD for (int64_t i = 0; i < length; ++i) s.h[i] = tile.weighted ? u[i] * d[i] : d[i];
      term_sums<true>(op.term[k], mapped, length, s, sum);
    } else if (tile.weighted) {
      term_sums<true>(op.term[k], tile, length, s, sum);
    } else {
      term_sums<false>(op.term[k], tile, length, s, sum);
    }
  }
}

template <typename T, typename Coefficient>
inline void element_gradient(const PixelStats& op, int64_t n, int64_t c, int64_t begin, const ElementTile<T>& tile,
                             int64_t length, bool logs, const MomentGradient<T>& moments, Coefficient coefficient,
                             Element<T>& s) {
  T *f = s.f, *g = s.g;
  const T *p = tile.p, *d = s.d, *u = tile.t.u;
  if (logs) {
    SIMD for (int64_t i = 0; i < length; ++i) f[i] = T(0);
    for (int k = 0; k < op.terms; ++k) {
      if (!logarithmic(op.term[k].kind)) continue;
      if (!op.term[k].mapped) {
        term_gradient(op, op.term[k], tile, length, s, coefficient, f);
        continue;
      }
      T* h = s.h;
      const T* distance = tile.d;
      SIMD for (int64_t i = 0; i < length; ++i) h[i] = T(0);
      term_gradient(op, op.term[k], tile, length, s, coefficient, h);
      SIMD for (int64_t i = 0; i < length; ++i) f[i] += distance[i] * h[i];
    }
  }
  T* out = row_out(op, n, c, begin, s.x);
  if (moments.any) {
    moment_gradient(op, moments, p, tile.t.y, tile.d, length, coefficient, g);
    const bool raw = op.activation == IDENTITY;
    if (logs) {
      SIMD for (int64_t i = 0; i < length; ++i) out[i] = (raw ? g[i] : d[i] * g[i]) + f[i];
    } else {
      SIMD for (int64_t i = 0; i < length; ++i) out[i] = raw ? g[i] : d[i] * g[i];
    }
  } else {
    SIMD for (int64_t i = 0; i < length; ++i) out[i] = logs ? f[i] : T(0);
  }
  if (tile.weighted) {
    SIMD for (int64_t i = 0; i < length; ++i) out[i] *= u[i];
  }
  if (op.upstream.data != nullptr) {
    const T* up = row(op, op.upstream, n, c, begin, length, s.w);
    SIMD for (int64_t i = 0; i < length; ++i) out[i] *= up[i];
  }
  if (out == s.x) store(op, op.output, n, c, begin, length, out);
}

template <typename T>
int64_t element_pass(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t end, double* partial,
                     void* scratch) {
  Element<T>& s = *static_cast<Element<T>*>(scratch);
  auto coefficient = [&](int row) {
    return op.coefficient == nullptr ? 0.0 : op.coefficient[(row * op.groups + n) * op.C + c];
  };
  const MomentGradient<T> moments(op, coefficient);
  const Needs needs(op);
  const bool gradient = op.output.data != nullptr, probabilities = wants_probabilities(op);
  for (int k = 0; partial != nullptr && k < op.rows; ++k) partial[k] = 0;
  int64_t invalid = 0;
  for (; begin < end; begin += TILE) {
    const int64_t length = min_(TILE, end - begin);
    ElementTile<T> tile;
    element_load_target(op, n, c, begin, length, s, tile);
    invalid += tile.t.invalid;
    if (probabilities) element_load(op, n, c, begin, length, needs, s, tile);
    if (partial != nullptr) element_sums(op, tile, length, s, partial);
    if (gradient) element_gradient(op, n, c, begin, tile, length, needs.logs, moments, coefficient, s);
  }
  return invalid;
}

// The loss of every element: sum over terms of coefficient * part, times u.
template <typename T>
int64_t element_map(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch) {
  Element<T>& s = *static_cast<Element<T>*>(scratch);
  auto coefficient = [&](int row) { return static_cast<T>(op.coefficient[(row * op.groups + n) * op.C + c]); };
  Needs needs(op);
  needs.logs = needs.both_sides = true;
  int64_t invalid = 0;
  for (; begin < end; begin += TILE) {
    const int64_t length = min_(TILE, end - begin);
    ElementTile<T> tile;
    element_load_target(op, n, c, begin, length, s, tile);
    element_load(op, n, c, begin, length, needs, s, tile);
    invalid += tile.t.invalid;
    T* out = s.f;
    const T *p = tile.p, *r = s.r, *lp = s.lp, *lr = s.lr, *y = tile.t.y, *u = tile.t.u;
    SIMD for (int64_t i = 0; i < length; ++i) out[i] = T(0);
    for (int k = 0; k < op.terms; ++k) {
      const Term& term = op.term[k];
      const T a = static_cast<T>(term.a), b = static_cast<T>(term.b);
      const T pos = coefficient(term.row), neg = coefficient(term.row + 1);
      const int kind = term.kind;
      const bool all = kind == FOCAL_ALL, mapped = term.mapped;
      const T* d = tile.d;
      if (kind == FOCAL || all) {
        SEGFUSE_WITH_EXPONENT(term.a, {
          SIMD for (int64_t i = 0; i < length; ++i) {
            const T far = mapped ? d[i] : T(1);
            const T one = pos * far * (all ? T(1) : y[i]), zero = neg * far * (all ? T(1) : T(1) - y[i]);
            const T f_one = one * focal<E>(r[i], lp[i], lr[i], a), f_zero = zero * focal<E>(p[i], lr[i], lp[i], a);
            out[i] += (one != T(0) ? f_one : T(0) * p[i]) + (zero != T(0) ? f_zero : T(0) * p[i]);
          }
        })
        continue;
      }
      SIMD for (int64_t i = 0; i < length; ++i) {
        const T one = y[i] * lp[i], zero = (T(1) - y[i]) * lr[i];
        const T l = (y[i] > T(0) ? one : T(0)) + (y[i] < T(1) ? zero : T(0));
        const T q = power(T(1) - p[i], a) * p[i];
        const T f = kind == POWER ? pow_(l, a) : (kind == DSC ? q : T(1) - (T(2) * q * y[i] + b) / (q + y[i] + b));
        const T k = (pos * y[i] + neg * (T(1) - y[i])) * (mapped ? d[i] : T(1));
        out[i] += k != T(0) ? k * f : T(0) * p[i];
      }
    }
    if (tile.weighted) {  // a weight of 0 leaves out even an infinite value
      SIMD for (int64_t i = 0; i < length; ++i) out[i] = u[i] != T(0) ? out[i] * u[i] : T(0) * p[i];
    }
    store(op, op.output, n, c, begin, length, out);
  }
  return invalid;
}

// ---------------------------------------------------------------------------------------------------- softmax

template <typename T>
struct Softmax {
  int64_t C, tile;
  T *x_copy, *e, *y, *u_class, *g, *h;  // [C, tile]
  T *m, *keep, *inverse, *label, *u, *other,
      *ls;                      // [tile]; keep: valid; label: class number, for dense y the largest class
  T *p, *q, *l, *lq, *w, *dot;  // [tile]; of the class `label`
  T* distance;                  // [tile]
  T* table;                     // [K, C] coefficients
  int32_t* index;               // [tile] label as a number
  const T** x;                  // [C]
  bool weighted, class_weighted, plain, logs, dense_logs, nonlinear, probabilities;
  int64_t n, begin, valid, invalid;

  static size_t elements(const PixelStats& op) { return (6 * op.C + 14) * softmax_tile(op.C) + op.rows * op.C; }
  static size_t bytes(const PixelStats& op) {
    return elements(op) * sizeof(T) + softmax_tile(op.C) * sizeof(int32_t) + op.C * sizeof(T*) + 64;
  }
  Softmax(const PixelStats& op, void* scratch) : C(op.C), tile(softmax_tile(op.C)) {
    T* at = static_cast<T*>(scratch);
    auto take = [&at](int64_t count) {
      T* taken = at;
      at += count;
      return taken;
    };
    x_copy = take(C * tile), e = take(C * tile), y = take(C * tile), u_class = take(C * tile), g = take(C * tile);
    h = take(C * tile);
    m = take(tile), keep = take(tile), inverse = take(tile), label = take(tile), u = take(tile), other = take(tile);
    ls = take(tile), p = take(tile), q = take(tile), l = take(tile), lq = take(tile), w = take(tile), dot = take(tile);
    distance = take(tile);
    table = take(op.rows * C);
    x = reinterpret_cast<const T**>(static_cast<T*>(scratch) + (elements(op) + 1) / 2 * 2);
    index = reinterpret_cast<int32_t*>(x + C);
    class_weighted = op.weight.data != nullptr && op.weight.channel != 0;
    logs = wants_logarithm(op);
    dense_logs = logs && !op.index_target;
    nonlinear = !op.index_target;  // y of every class is needed: the sums go class by class
    for (int k = 0; k < op.terms; ++k) {
      dense_logs |= op.term[k].kind == FOCAL_ALL;
      nonlinear |= !logarithmic(op.term[k].kind);
    }
    for (int m = PRED; m < MOMENTS; ++m) nonlinear |= op.moment[m] >= 0 && m != PRED && m != TP;
    probabilities = op.terms > 0 || nonlinear || op.moment[PRED] >= 0 || op.moment[TP] >= 0;
  }
  const T* weight(int64_t c) const { return class_weighted ? u_class + c * tile : u; }
};

template <typename T>
inline void softmax_target(const PixelStats& op, int64_t n, int64_t begin, int64_t length, Softmax<T>& s) {
  Target<T> t;
  if (op.index_target) {
    t.y = s.label;
    t.u = s.u;
    load(op, op.target, n, 0, begin, length, s.label);
    classify(op, n, 0, begin, length, T(op.C - 1), true, s.other, t);
    for (int64_t i = 0; i < length; ++i) s.index[i] = static_cast<int32_t>(s.label[i]);
    s.plain = t.plain;
    s.valid = t.valid;
    s.invalid = t.invalid;
  } else {
    s.plain = true;
    s.invalid = 0;
    T* all = s.u;  // m of the pixel: every class must be valid
    SIMD for (int64_t i = 0; i < length; ++i) all[i] = T(1);
    for (int64_t c = 0; c < s.C; ++c) {
      t.y = s.y + c * s.tile;
      t.u = s.dot;
      load(op, op.target, n, c, begin, length, t.y);
      classify(op, n, c, begin, length, T(1), op.target.dtype >= BOOL, s.other, t);
      s.invalid += t.invalid;
      if (t.plain) continue;
      s.plain = false;
      SIMD for (int64_t i = 0; i < length; ++i) all[i] *= s.dot[i];
    }
    s.valid = length;
    if (!s.plain) {
      T count = 0;
      SIMD_SUM(count) for (int64_t i = 0; i < length; ++i) count += all[i];
      s.valid = static_cast<int64_t>(count);
      for (int64_t c = 0; c < s.C; ++c) {
        T* y = s.y + c * s.tile;
        SIMD for (int64_t i = 0; i < length; ++i) y[i] *= all[i];
      }
    }
  }
}

// Targets and weights of one tile.
template <typename T>
inline void softmax_load_target(const PixelStats& op, int64_t n, int64_t begin, int64_t length, Softmax<T>& s) {
  s.n = n, s.begin = begin;
  softmax_target(op, n, begin, length, s);
  T* u = s.u;
  const bool plain = s.plain;
  if (!plain) {
    SIMD for (int64_t i = 0; i < length; ++i) s.keep[i] = u[i];
  }
  s.weighted = !plain || op.weight.data != nullptr || op.upstream.data != nullptr;
  if (s.class_weighted) {
    for (int64_t c = 0; c < s.C; ++c) {
      T* own = s.u_class + c * s.tile;
      if (!plain) {
        SIMD for (int64_t i = 0; i < length; ++i) own[i] = u[i];
      }
      s.invalid += multiply_weight(op, n, c, begin, length, plain, own, s.g);
    }
  } else if (op.weight.data != nullptr) {
    s.invalid += multiply_weight(op, n, 0, begin, length, plain, u, s.g);
  } else if (plain && op.upstream.data != nullptr) {
    SIMD for (int64_t i = 0; i < length; ++i) u[i] = T(1);
  }
  if (op.upstream.data != nullptr) {
    const T* up = row(op, op.upstream, n, 0, begin, length, s.g);
    for (int64_t c = 0; c < (s.class_weighted ? s.C : 1); ++c) {
      T* own = s.class_weighted ? s.u_class + c * s.tile : u;
      SIMD for (int64_t i = 0; i < length; ++i) own[i] *= up[i];
    }
  }
}

template <typename T>
inline const T* class_distance(const PixelStats& op, const Softmax<T>& s, int64_t c, int64_t length) {
  return load_distance(op, s.n, c, s.begin, length, s.plain, s.keep, s.distance);
}

// Exponentials, their sum and the target class's probability. `slope` (for the gradient) additionally sums slope . e
// into `dot`.
template <typename T>
inline void softmax_load(const PixelStats& op, int64_t n, int64_t begin, int64_t length, Softmax<T>& s,
                         const T* slope) {
  T *m = s.m, *other = s.other, *dot = s.dot;
  for (int64_t c = 0; c < s.C; ++c) {
    T* copy = s.x_copy + c * s.tile;
    s.x[c] = row(op, op.input, n, c, begin, length, copy);
    if (s.plain) continue;
    const T* x = s.x[c];
    SIMD for (int64_t i = 0; i < length; ++i) copy[i] = s.keep[i] > T(0) ? x[i] : T(0);
    s.x[c] = copy;
  }

  // 1. largest logit; for dense targets also its class
  T* label = s.label;
  const T* x0 = s.x[0];
  SIMD for (int64_t i = 0; i < length; ++i) m[i] = x0[i];
  if (op.index_target) {
    for (int64_t c = 1; c < s.C; ++c) {
      const T* x = s.x[c];
      SIMD for (int64_t i = 0; i < length; ++i) m[i] = x[i] > m[i] ? x[i] : m[i];
    }
  } else {
    SIMD for (int64_t i = 0; i < length; ++i) label[i] = T(0);
    for (int64_t c = 1; c < s.C; ++c) {
      const T* x = s.x[c];
      const T own = static_cast<T>(c);
      SIMD for (int64_t i = 0; i < length; ++i) {
        label[i] = x[i] > m[i] ? own : label[i];
        m[i] = x[i] > m[i] ? x[i] : m[i];
      }
    }
    for (int64_t i = 0; i < length; ++i) s.index[i] = static_cast<int32_t>(label[i]);
  }
  // 2. exponentials and their sum; for logarithms without the class `label`, which would swallow the small ones
  SIMD for (int64_t i = 0; i < length; ++i) other[i] = dot[i] = T(0);
  for (int64_t c = 0; c < s.C; ++c) {
    const T* x = s.x[c];
    T* e = s.e + c * s.tile;
    const T own = static_cast<T>(c);
    if (slope != nullptr) {
      const T a = slope[c];
      if (s.logs) {
        SIMD for (int64_t i = 0; i < length; ++i) {
          const T v = exp_negative(x[i] - m[i]);
          e[i] = v;
          other[i] += label[i] == own ? T(0) : v;
          dot[i] += a * v;
        }
      } else {
        SIMD for (int64_t i = 0; i < length; ++i) {
          const T v = exp_negative(x[i] - m[i]);
          e[i] = v;
          other[i] += v;
          dot[i] += a * v;
        }
      }
    } else if (s.logs) {
      SIMD for (int64_t i = 0; i < length; ++i) {
        const T v = exp_negative(x[i] - m[i]);
        e[i] = v;
        other[i] += label[i] == own ? T(0) : v;
      }
    } else {
      SIMD for (int64_t i = 0; i < length; ++i) {
        const T v = exp_negative(x[i] - m[i]);
        e[i] = v;
        other[i] += v;
      }
    }
  }
  // 3. per pixel: 1 / sum, and p, 1 - p, -log p, -log(1 - p) of the class `label`
  T *inverse = s.inverse, *p = s.p, *q = s.q, *l = s.l, *lq = s.lq, *ls = s.ls;
  for (int64_t i = 0; i < length; ++i) p[i] = s.e[s.index[i] * s.tile + i];
  if (s.logs) {
    for (int64_t i = 0; i < length; ++i) l[i] = m[i] - s.x[s.index[i]][i];
    SIMD for (int64_t i = 0; i < length; ++i) {
      const T v = T(1) / (p[i] + other[i]);
      ls[i] = log1p_(max_(T(0), other[i] + (p[i] - T(1))));
      l[i] += ls[i];
      inverse[i] = v;
      p[i] *= v;
      q[i] = other[i] * v;
    }
    bool general = false;
    for (int k = 0; k < op.terms; ++k) general |= exponent_of(op.term[k].a) == GENERAL;
    if (general) {
      SIMD for (int64_t i = 0; i < length; ++i) lq[i] = ls[i] - log_(other[i]);
    }
  } else {
    SIMD for (int64_t i = 0; i < length; ++i) {
      inverse[i] = T(1) / other[i];
      p[i] *= inverse[i];
    }
  }
}

// p, 1 - p, -log p and -log(1 - p) of class c of pixel i
template <typename T>
struct ClassPixel {
  T p, q, l, lq;
};
template <typename T>
inline ClassPixel<T> class_pixel(const Softmax<T>& s, int64_t c, int64_t i, bool general) {
  ClassPixel<T> v;
  v.p = s.e[c * s.tile + i] * s.inverse[i];
  v.l = (s.m[i] - s.x[c][i]) + s.ls[i];
  v.q = s.label[i] == static_cast<T>(c) ? s.q[i] : T(1) - v.p;
  v.lq = general ? -log_(v.q) : T(0);
  return v;
}

// y of class c on the tile
template <typename T>
inline const T* class_target(const PixelStats& op, const Softmax<T>& s, int64_t c, int64_t length, T* buffer) {
  if (!op.index_target) return s.y + c * s.tile;
  const T own = static_cast<T>(c);
  if (s.plain) {
    SIMD for (int64_t i = 0; i < length; ++i) buffer[i] = s.label[i] == own ? T(1) : T(0);
  } else {
    SIMD for (int64_t i = 0; i < length; ++i) buffer[i] = s.label[i] == own ? s.keep[i] : T(0);
  }
  return buffer;
}

// cross-entropy of every pixel against dense targets, in `out`
template <typename T>
inline void dense_cross_entropy(const Softmax<T>& s, int64_t length, T* out) {
  SIMD for (int64_t i = 0; i < length; ++i) out[i] = T(0);
  for (int64_t c = 0; c < s.C; ++c) {
    const T *y = s.y + c * s.tile, *x = s.x[c];
    SIMD for (int64_t i = 0; i < length; ++i) out[i] +=
        y[i] > T(0) ? y[i] * ((s.m[i] - x[i]) + s.ls[i]) : T(0) * s.ls[i];
  }
}

template <typename T>
inline void softmax_sums(const PixelStats& op, int64_t length, Softmax<T>& s, double* partial) {
  const int64_t C = s.C;
  const int* row = op.moment;
  const T *inverse = s.inverse, *u = s.u;
  const int32_t* index = s.index;

  // Adds value(i) to row `k` at the class of every pixel. Few classes: one sweep each, since adding up through an index
  // waits for the previous pixel of the class.
  auto scatter = [&](int k, auto value) {
    if (k < 0) return;
    double* to = partial + k * C;
    if (C > 64) {
      for (int64_t i = 0; i < length; ++i) to[index[i]] += value(i);
      return;
    }
    const T* label = s.label;
    for (int64_t c = 0; c < C; ++c) {
      const T own = static_cast<T>(c);
      T sum = 0;
      SIMD_SUM(sum) for (int64_t i = 0; i < length; ++i) {
        const T v = value(i);
        sum += label[i] == own ? v : T(0);
      }
      to[c] += sum;
    }
  };
  auto scatter_weighted = [&](int k, const T* value) {
    if (k < 0) return;
    if (!s.weighted) return scatter(k, [=](int64_t i) { return value[i]; });
    T* product = s.g;
    // a weight of 0 leaves out even an infinite value, but not NaN
    auto weigh = [=](T w, int64_t i) { return w != T(0) ? value[i] * w : value[i] != value[i] ? value[i] : T(0); };
    if (s.class_weighted) {
      for (int64_t i = 0; i < length; ++i) product[i] = weigh(s.u_class[index[i] * s.tile + i], i);
    } else {
      SIMD for (int64_t i = 0; i < length; ++i) product[i] = weigh(u[i], i);
    }
    scatter(k, [=](int64_t i) { return product[i]; });
  };

  if (op.index_target && !s.nonlinear) {
    if (row[PRED] >= 0) {
      T* scaled = s.w;  // dot is the gradient's
      SIMD for (int64_t i = 0; i < length; ++i) scaled[i] =
          s.weighted && !s.class_weighted ? inverse[i] * u[i] : inverse[i];
      for (int64_t c = 0; c < C; ++c) {
        const T *e = s.e + c * s.tile, *own = s.u_class + c * s.tile;
        T sum = 0;
        if (s.class_weighted) {
          SIMD_SUM(sum) for (int64_t i = 0; i < length; ++i) sum += e[i] * scaled[i] * own[i];
        } else {
          SIMD_SUM(sum) for (int64_t i = 0; i < length; ++i) sum += e[i] * scaled[i];
        }
        partial[row[PRED] * C + c] += sum;
      }
    }
    scatter_weighted(row[TP], s.p);
  }
  if (s.nonlinear && s.probabilities) {
    T* p = s.h;
    for (int64_t c = 0; c < C; ++c) {
      const T* e = s.e + c * s.tile;
      SIMD for (int64_t i = 0; i < length; ++i) p[i] = e[i] * inverse[i];
      const T *y = class_target(op, s, c, length, s.dot), *d = class_distance(op, s, c, length);
      auto sum = [=](int k) -> double& { return partial[k * C + c]; };
      if (s.weighted) {
        moment_sums<true>(op, p, y, s.weight(c), d, length, sum);
      } else {
        moment_sums<false>(op, p, y, u, d, length, sum);
      }
    }
  }

  if (op.index_target) {
    T* one = s.w;
    SIMD for (int64_t i = 0; i < length; ++i) one[i] = s.plain ? T(1) : s.keep[i];
    scatter(row[TRUE_COUNT], [=](int64_t i) { return one[i]; });
    scatter_weighted(row[TRUE], one);
    scatter_weighted(row[TRUE2], one);
  } else {
    for (int64_t c = 0; c < C; ++c) {
      Target<T> t;
      t.y = s.y + c * s.tile;
      t.u = const_cast<T*>(s.weight(c));
      t.valid = 0;  // counted below
      auto sum = [=](int k) -> double& { return partial[k * C + c]; };
      target_sums(op, t, s.weighted, length, sum);
    }
  }
  for (int64_t c = 0; c < C; ++c) {
    if (row[COUNT] >= 0) partial[row[COUNT] * C + c] += static_cast<double>(s.valid);
    if (row[WEIGHT] < 0 || (!op.index_target && s.weighted)) continue;
    T sum = static_cast<T>(s.valid);
    if (s.weighted) {
      const T* own = s.weight(c);
      sum = 0;
      SIMD_SUM(sum) for (int64_t i = 0; i < length; ++i) sum += own[i];
    }
    partial[row[WEIGHT] * C + c] += sum;
  }

  for (int k = 0; s.logs && k < op.terms; ++k) {
    const Term& term = op.term[k];
    const T a = static_cast<T>(term.a);
    if (!logarithmic(term.kind)) continue;
    const bool mapped = term.mapped;
    const T* d = class_distance(op, s, 0, length);
    if (op.index_target && term.kind != FOCAL_ALL) {
      T* f = s.w;
      if (term.kind == POWER) {
        SIMD for (int64_t i = 0; i < length; ++i) f[i] = pow_(s.l[i], a);
      } else {
        SEGFUSE_WITH_EXPONENT(
            term.a, { SIMD for (int64_t i = 0; i < length; ++i) f[i] = focal<E>(s.q[i], s.l[i], s.lq[i], a); })
      }
      if (mapped) {
        SIMD for (int64_t i = 0; i < length; ++i) f[i] = d[i] == T(0) ? T(0) * s.p[i] : f[i] * d[i];
      }
      scatter_weighted(term.row, f);
      continue;
    }
    T* whole = s.w;
    if (term.kind == POWER) {
      dense_cross_entropy(s, length, whole);
      SIMD for (int64_t i = 0; i < length; ++i) whole[i] = pow_(whole[i], a);
    }
    for (int64_t c = 0; c < C; ++c) {
      const T *y = s.y + c * s.tile, *own = s.weight(c);
      const bool all = term.kind == FOCAL_ALL;
      T sum = 0;
      if (term.kind == POWER) {
        SIMD_SUM(sum) for (int64_t i = 0; i < length; ++i) {
          const T factor = (s.weighted ? own[i] : T(1)) * (mapped ? d[i] : T(1)) * y[i];
          sum += factor != T(0) ? factor * whole[i] : T(0) * s.p[i];
        }
      } else {
        SEGFUSE_WITH_EXPONENT(term.a, {
          SIMD_SUM(sum) for (int64_t i = 0; i < length; ++i) {
            const ClassPixel<T> v = class_pixel(s, c, i, E == GENERAL);
            const T factor = (s.weighted ? own[i] : T(1)) * (all ? T(1) : y[i]) * (mapped ? d[i] : T(1));
            sum += factor != T(0) ? factor * focal<E>(v.q, v.l, v.lq, a) : T(0) * v.p;
          }
        })
      }
      partial[term.row * C + c] += sum;
    }
  }
}

template <typename T>
inline void softmax_gradient(const PixelStats& op, int64_t n, int64_t begin, int64_t length, Softmax<T>& s, bool fast) {
  const int64_t C = s.C;
  const T* table = s.table;
  const bool region = op.moment[PRED] >= 0 || op.moment[TP] >= 0 || s.nonlinear;
  const T* pred = op.moment[PRED] >= 0 ? table + op.moment[PRED] * C : nullptr;
  const T* tp = op.moment[TP] >= 0 ? table + op.moment[TP] * C : nullptr;
  const T *inverse = s.inverse, *u = s.u, *p = s.p;
  const int32_t* index = s.index;
  T *w = s.w, *dot = s.dot;

  // 1. index labels: w = weight times d loss / d(-log p) of the target class
  SIMD for (int64_t i = 0; i < length; ++i) w[i] = T(0);
  for (int k = 0; s.logs && op.index_target && k < op.terms; ++k) {
    const Term& term = op.term[k];
    if (!logarithmic(term.kind) || term.kind == FOCAL_ALL) continue;
    const T a = static_cast<T>(term.a);
    const T* coefficient = table + term.row * C;
    T* own = s.g;
    for (int64_t i = 0; i < length; ++i) own[i] = coefficient[index[i]];
    if (term.mapped) {
      const T* d = class_distance(op, s, 0, length);
      SIMD for (int64_t i = 0; i < length; ++i) own[i] *= d[i];
    }
    if (term.kind == POWER) {
      const bool linear = a == T(1);
      SIMD for (int64_t i = 0; i < length; ++i) w[i] +=
          own[i] * (s.l[i] > T(0) ? a * (linear ? T(1) : pow_(s.l[i], a - T(1))) : T(0) * s.l[i]);
    } else {
      SEGFUSE_WITH_EXPONENT(term.a, {
        SIMD for (int64_t i = 0; i < length; ++i) w[i] += own[i] * softmax_slope<E>(s.p[i], s.q[i], s.l[i], s.lq[i], a);
      })
    }
  }
  if (s.class_weighted) {
    for (int64_t i = 0; i < length; ++i) w[i] *= s.u_class[index[i] * s.tile + i];
  } else if (s.weighted) {
    SIMD for (int64_t i = 0; i < length; ++i) w[i] *= u[i];
  }

  if (fast) {
    // 2a. out_k = p_k (u A_k + w - dot); the target class gets the value that does not cancel
    T *at_label = s.g, *base = s.other;
    if (tp != nullptr) {
      for (int64_t i = 0; i < length; ++i) at_label[i] = tp[index[i]];
    } else {
      SIMD for (int64_t i = 0; i < length; ++i) at_label[i] = T(0);
    }
    T* own = s.g + s.tile;
    for (int64_t i = 0; i < length; ++i) own[i] = pred == nullptr ? T(0) : pred[index[i]];
    const bool logs = s.logs, weighted = s.weighted;
    SIMD for (int64_t i = 0; i < length; ++i) {
      const T weight = weighted ? u[i] : T(1);
      const T d = weight * (dot[i] * inverse[i] + at_label[i] * p[i]);
      base[i] = (w[i] - d) * inverse[i];
      at_label[i] = p[i] * (weight * (own[i] + at_label[i]) - d) - (logs ? w[i] * s.q[i] : T(0));
      dot[i] = weight * inverse[i];
    }
    for (int64_t c = 0; c < C; ++c) {
      const T* e = s.e + c * s.tile;
      const T mine = static_cast<T>(c), a = pred == nullptr ? T(0) : pred[c];
      T* out = row_out(op, n, c, begin, s.x_copy);
      const T* label = s.label;
      SIMD for (int64_t i = 0; i < length; ++i) {
        const T other = e[i] * (dot[i] * a + base[i]);
        out[i] = label[i] == mine ? at_label[i] : other;
      }
      if (out == s.x_copy) store(op, op.output, n, c, begin, length, out);
    }
    return;
  }

  // 2b. g = u dL/dp per class and its mean under p; h = u d loss / d(-log p) per class and its sum
  SIMD for (int64_t i = 0; i < length; ++i) dot[i] = T(0);
  for (int64_t c = 0; region && c < C; ++c) {
    T *g = s.g + c * s.tile, *pc = s.h;
    const T* e = s.e + c * s.tile;
    SIMD for (int64_t i = 0; i < length; ++i) pc[i] = e[i] * inverse[i];
    auto coefficient = [=](int k) { return table[k * C + c]; };
    const MomentGradient<T> moments(op, coefficient);
    const T* y = class_target(op, s, c, length, s.other);
    moment_gradient(op, moments, pc, y, class_distance(op, s, c, length), length, coefficient, g);
    if (s.weighted) {
      const T* own = s.weight(c);
      SIMD for (int64_t i = 0; i < length; ++i) g[i] *= own[i];
    }
    SIMD for (int64_t i = 0; i < length; ++i) dot[i] -= g[i] * pc[i];
  }
  if (s.dense_logs) {
    for (int64_t c = 0; c < C; ++c) {
      T* h = s.h + c * s.tile;
      SIMD for (int64_t i = 0; i < length; ++i) h[i] = T(0);
    }
    for (int k = 0; k < op.terms; ++k) {
      const Term& term = op.term[k];
      const T a = static_cast<T>(term.a);
      if (!logarithmic(term.kind) || (op.index_target && term.kind != FOCAL_ALL)) continue;
      const T* coefficient = table + term.row * C;
      const bool mapped = term.mapped;
      const T* d = class_distance(op, s, 0, length);
      if (term.kind == POWER) {
        const bool linear = a == T(1);
        T *whole = s.other, *slope = s.p;
        dense_cross_entropy(s, length, whole);
        SIMD for (int64_t i = 0; i < length; ++i) slope[i] = T(0);
        for (int64_t c = 0; c < C; ++c) {
          const T* y = s.y + c * s.tile;
          SIMD for (int64_t i = 0; i < length; ++i) slope[i] +=
              coefficient[c] * y[i] * (s.weighted ? s.weight(c)[i] : T(1));
        }
        SIMD for (int64_t i = 0; i < length; ++i) slope[i] *=
            (whole[i] > T(0) ? a * (linear ? T(1) : pow_(whole[i], a - T(1))) : T(0) * whole[i]) *
            (mapped ? d[i] : T(1));
        for (int64_t c = 0; c < C; ++c) {
          const T* y = s.y + c * s.tile;
          T* h = s.h + c * s.tile;
          SIMD for (int64_t i = 0; i < length; ++i) h[i] += slope[i] * y[i];
        }
        continue;
      }
      const bool all = term.kind == FOCAL_ALL;
      for (int64_t c = 0; c < C; ++c) {
        const T *y = s.y + c * s.tile, *own = s.weight(c);
        T* h = s.h + c * s.tile;
        const T scale = coefficient[c];
        SEGFUSE_WITH_EXPONENT(term.a, {
          SIMD for (int64_t i = 0; i < length; ++i) {
            const ClassPixel<T> v = class_pixel(s, c, i, E == GENERAL);
            const T slope = softmax_slope<E>(v.p, v.q, v.l, v.lq, a);
            h[i] += scale * (all ? T(1) : y[i]) * slope * (s.weighted ? own[i] : T(1)) * (mapped ? d[i] : T(1));
          }
        })
      }
    }
  }
  T* total = s.other;
  SIMD for (int64_t i = 0; i < length; ++i) total[i] = T(0);
  for (int64_t c = 0; s.dense_logs && c < C; ++c) {
    const T* h = s.h + c * s.tile;
    SIMD for (int64_t i = 0; i < length; ++i) total[i] += h[i];
  }
  // 3. with q = 1 - p and w counted at the label only:
  //    out_k = p_k (g_k - sum g p) + p_k (sum h - h_k + [k != label] w) - q_k (h_k + [k = label] w).
  //    `dot` is -sum g p, `total` is sum h. The parts are kept apart: w may be so large that the others vanish in it.
  const bool index_logs = s.logs && op.index_target;
  for (int64_t c = 0; c < C; ++c) {
    const T *e = s.e + c * s.tile, *g = s.g + c * s.tile, *h = s.h + c * s.tile, *label = s.label, *q = s.q;
    const T mine = static_cast<T>(c);
    T* out = row_out(op, n, c, begin, s.x_copy);
    if (!s.logs) {
      SIMD for (int64_t i = 0; i < length; ++i) out[i] = e[i] * inverse[i] * (g[i] + dot[i]);
    } else {
      SIMD for (int64_t i = 0; i < length; ++i) {
        const bool here = label[i] == mine;
        const T pc = e[i] * inverse[i], hc = s.dense_logs ? h[i] : T(0), wi = index_logs ? w[i] : T(0);
        const T rest = (total[i] - hc) + (here ? T(0) : wi), own = hc + (here ? wi : T(0));
        out[i] = (pc * ((region ? g[i] : T(0)) + dot[i]) + pc * rest) - own * (here ? q[i] : T(1) - pc);
      }
    }
    if (out == s.x_copy) store(op, op.output, n, c, begin, length, out);
  }
}

template <typename T>
int64_t softmax_pass(const PixelStats& op, int64_t n, int64_t, int64_t begin, int64_t end, double* partial,
                     void* scratch) {
  Softmax<T> s(op, scratch);
  const int64_t C = s.C;
  const bool gradient = op.output.data != nullptr;
  for (int64_t k = 0; partial != nullptr && k < op.rows * C; ++k) partial[k] = 0;
  for (int64_t k = 0; gradient && k < op.rows; ++k)
    for (int64_t c = 0; c < C; ++c) s.table[k * C + c] = static_cast<T>(op.coefficient[(k * op.groups + n) * C + c]);
  const bool fast = !s.nonlinear && !s.class_weighted && !s.dense_logs;
  const T* slope = gradient && fast && op.moment[PRED] >= 0 ? s.table + op.moment[PRED] * C : nullptr;
  int64_t invalid = 0;
  for (; begin < end; begin += s.tile) {
    const int64_t length = min_(s.tile, end - begin);
    softmax_load_target(op, n, begin, length, s);
    invalid += s.invalid;
    if (s.probabilities) softmax_load(op, n, begin, length, s, slope);
    if (partial != nullptr) softmax_sums(op, length, s, partial);
    if (!gradient) continue;
    if (!s.probabilities) {  // counts have no gradient
      SIMD for (int64_t i = 0; i < length; ++i) s.dot[i] = T(0);
      for (int64_t c = 0; c < C; ++c) store(op, op.output, n, c, begin, length, s.dot);
      continue;
    }
    if (slope == nullptr) {
      SIMD for (int64_t i = 0; i < length; ++i) s.dot[i] = T(0);
    }
    softmax_gradient(op, n, begin, length, s, fast);
  }
  return invalid;
}

template <typename T>
int64_t softmax_map(const PixelStats& op, int64_t n, int64_t, int64_t begin, int64_t end, void* scratch) {
  Softmax<T> s(op, scratch);
  const int64_t C = s.C;
  int64_t invalid = 0;
  for (; begin < end; begin += s.tile) {
    const int64_t length = min_(s.tile, end - begin);
    softmax_load_target(op, n, begin, length, s);
    softmax_load(op, n, begin, length, s, static_cast<const T*>(nullptr));
    invalid += s.invalid;
    T *out = s.dot, *whole = s.w;
    SIMD for (int64_t i = 0; i < length; ++i) out[i] = T(0);
    for (int k = 0; k < op.terms; ++k) {
      const Term& term = op.term[k];
      const T a = static_cast<T>(term.a);
      const bool all = term.kind == FOCAL_ALL, mapped = term.mapped;
      const T* d = class_distance(op, s, 0, length);
      auto coefficient = [&](int64_t c) { return static_cast<T>(op.coefficient[(term.row * op.groups + n) * C + c]); };
      const bool own_class = op.index_target && !all;
      if (term.kind == POWER) {
        if (own_class) {
          SIMD for (int64_t i = 0; i < length; ++i) whole[i] = pow_(s.l[i], a);
        } else {
          dense_cross_entropy(s, length, whole);
          SIMD for (int64_t i = 0; i < length; ++i) whole[i] = pow_(whole[i], a);
        }
      }
      for (int64_t c = 0; c < C; ++c) {
        const T *y = s.y + c * s.tile, *own = s.weight(c);
        const T scale = coefficient(c), mine = static_cast<T>(c);
        SEGFUSE_WITH_EXPONENT(term.a, {
          SIMD for (int64_t i = 0; i < length; ++i) {
            const T factor =
                (all ? T(1) : (own_class ? (s.label[i] == mine ? T(1) : T(0)) : y[i])) * (mapped ? d[i] : T(1));
            const ClassPixel<T> v = class_pixel(s, c, i, E == GENERAL && term.kind != POWER);
            const T l = own_class ? s.l[i] : v.l;
            const T f = term.kind == POWER ? whole[i] : focal<E>(v.q, l, v.lq, a);
            const T k = (s.weighted ? own[i] : T(1)) * factor * scale;
            out[i] += k != T(0) ? k * f : T(0) * v.p;
          }
        })
      }
    }
    store(op, op.output, n, 0, begin, length, out);
  }
  return invalid;
}

// ---------------------------------------------------------------------------------------------------- the table

inline bool wide(const PixelStats& op) { return op.input.dtype == F64; }

#define SEGFUSE_PICK(name, ...)                                                                                     \
  (op.activation == SOFTMAX ? (wide(op) ? softmax_##name<double>(__VA_ARGS__) : softmax_##name<float>(__VA_ARGS__)) \
                            : (wide(op) ? element_##name<double>(__VA_ARGS__) : element_##name<float>(__VA_ARGS__)))

int64_t tile(const PixelStats& op) { return op.activation == SOFTMAX ? softmax_tile(op.C) : TILE; }

size_t scratch(const PixelStats& op) {
  if (op.activation == SOFTMAX) return wide(op) ? Softmax<double>::bytes(op) : Softmax<float>::bytes(op);
  return wide(op) ? sizeof(Element<double>) : sizeof(Element<float>);
}

int64_t pass(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t end, double* partial, void* scratch) {
  return SEGFUSE_PICK(pass, op, n, c, begin, end, partial, scratch);
}

int64_t map(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch) {
  return SEGFUSE_PICK(map, op, n, c, begin, end, scratch);
}

}  // namespace

const PixelStatsKernels pixel_stats_table = {tile, scratch, pass, map};

}  // namespace SEGFUSE_ISA
}  // namespace segfuse
