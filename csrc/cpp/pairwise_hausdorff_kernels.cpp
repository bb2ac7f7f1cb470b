// All pairs of pixels x and points t of one plane, streamed, compiled once per instruction set.
//
//   g_xt = p_x d(x, t) + (1 - p_x) d_max + eps        M_t = (sum_x u_x g_xt^a / sum u)^(1/a), a < 0
//
// Memory:   no pair is stored. Going over the points, a row of p stays in cache for a block of them; going over the
//           pixels, a row's sums stay in cache for all points.
// Numerics: powers of g relative to the least one, so that none overflows; rows (and blocks of points) are added in
//           float32, their sums in float64.
// Cost:     one square root per pair and pass; one division, or a logarithm and an exponential, on top.
// Source:   Ribera et al. 2019 (arXiv 1806.07564).
#include "../pixel.h"
#include "kernels.h"

#define SIMD _Pragma("omp simd")
#define SIMD_REDUCE(...) _Pragma(SIMD_STRING(omp simd __VA_ARGS__))
#define SIMD_STRING(x) #x

namespace segfuse {
namespace SEGFUSE_ISA {
namespace {

constexpr int64_t BLOCK = 64;  // points whose contributions are added in float32

inline float root(float x) { return sqrtf(x); }
inline double root(double x) { return sqrt(x); }

// One row of the plane: probabilities, weights, column numbers; all else is scratch.
template <typename T>
struct Row {
  const T* p;
  T *u, *column, *nearest, *part;
  double* total;
  T* grad;
  int64_t X;

  Row(const HardPair& pair, void* scratch) : X(pair.shape[2]) {
    total = static_cast<double*>(scratch);
    u = reinterpret_cast<T*>(total + X);
    column = u + X;
    nearest = column + X;
    part = nearest + X;
    for (int64_t x = 0; x < X; ++x) column[x] = static_cast<T>(x);
  }

  void go(const HardPair& pair, int64_t n, int64_t c, int64_t r) {
    const int64_t S = pair.shape[0] * pair.shape[1] * X, at = r * X, here = (n * pair.C + c) * S + at;
    p = static_cast<const T*>(pair.p) + here;
    grad = pair.grad == nullptr ? nullptr : static_cast<T*>(pair.grad) + here;
    const int16_t* code = pair.code + (pair.index ? n * S + at : here);
    if (pair.weight != nullptr) {
      const T* w = static_cast<const T*>(pair.weight) + (pair.weight_per_class ? here : n * S + at);
      SIMD for (int64_t x = 0; x < X; ++x) u[x] = code[x] < 0 ? T(0) : w[x];
    } else {
      SIMD for (int64_t x = 0; x < X; ++x) u[x] = code[x] < 0 ? T(0) : T(1);
    }
  }
};

int64_t scratch_bytes(const PairwiseHausdorff& op) { return op.pair.shape[2] * (8 + 4 * 8); }

// Squared distance from a point to row r along the axes before the last.
inline double beside(const HardPair& pair, const PairwisePoint& t, int64_t r) {
  const double dz = static_cast<double>(r / pair.shape[1]) - t.at[0];
  const double dy = static_cast<double>(r % pair.shape[1]) - t.at[1];
  return dz * dz + dy * dy;
}

template <typename T>
struct Value {  // g, or for POWER_MIN (d + eps) / (p^4 + eps / d_max)
  T d_max, eps, floor;
  bool power_min;

  Value(const PairwiseHausdorff& op, const PairwiseGroup& group)
      : d_max(static_cast<T>(group.d_max)),
        eps(static_cast<T>(group.eps)),
        floor(static_cast<T>(group.eps / group.d_max)),
        power_min(op.mean == POWER_MIN) {}
  T mean(T p, T d) const { return p * d + ((T(1) - p) * d_max + eps); }  // 1 - p is exact near 1
  T ratio(T p, T d) const { return (d + eps) / ((p * p) * (p * p) + floor); }
};

template <typename T>
void mass(const PairwiseHausdorff& op, int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch, double* u_sum,
          double* up_sum) {
  Row<T> row(op.pair, scratch);
  for (int64_t r = begin; r < end; ++r) {
    row.go(op.pair, n, c, r);
    const T *u = row.u, *p = row.p;
    T sum_u = 0, sum_up = 0;
    SIMD_REDUCE(reduction(+ : sum_u, sum_up)) for (int64_t x = 0; x < row.X; ++x) {
      sum_u += u[x];
      sum_up += u[x] > T(0) ? u[x] * p[x] : T(0);
    }
    *u_sum += sum_u;
    *up_sum += sum_up;
  }
}

template <typename T>
void least(const PairwiseHausdorff& op, const PairwiseGroup& group, int64_t begin, int64_t end, void* scratch) {
  const HardPair& pair = op.pair;
  const Value<T> value(op, group);
  const int64_t rows = pair.shape[0] * pair.shape[1];
  const T infinity = static_cast<T>(HUGE_VAL);
  Row<T> row(pair, scratch);
  for (int64_t i = begin; i < end; ++i) group.points[i].least = HUGE_VAL, group.points[i].row = -1;
  for (int64_t r = 0; r < rows; ++r) {
    row.go(pair, group.n, group.c, r);
    const T *u = row.u, *p = row.p, *column = row.column;
    for (int64_t i = begin; i < end; ++i) {
      PairwisePoint& t = group.points[i];
      const T square = static_cast<T>(beside(pair, t, r)), at = static_cast<T>(t.at[2]);
      T low = infinity;
      if (value.power_min) {
        SIMD_REDUCE(reduction(min : low)) for (int64_t x = 0; x < row.X; ++x) {
          const T dx = column[x] - at, v = value.ratio(p[x], root(square + dx * dx));
          row.part[x] = u[x] > T(0) ? v : infinity;
          low = row.part[x] < low ? row.part[x] : low;
        }
      } else {
        SIMD_REDUCE(reduction(min : low)) for (int64_t x = 0; x < row.X; ++x) {
          const T dx = column[x] - at, v = value.mean(p[x], root(square + dx * dx));
          row.part[x] = u[x] > T(0) ? v : infinity;
          low = row.part[x] < low ? row.part[x] : low;
        }
      }
      if (!(static_cast<double>(low) < t.least)) continue;
      int64_t x = 0;
      while (x < row.X && row.part[x] != low) ++x;
      if (x == row.X) continue;  // clang begins with the largest finite number, which stays where all are infinite
      t.least = low;
      t.row = r;
      t.column = x;
    }
  }
}

template <typename T>
void sum(const PairwiseHausdorff& op, const PairwiseGroup& group, int64_t begin, int64_t end, void* scratch) {
  const HardPair& pair = op.pair;
  const Value<T> value(op, group);
  const int64_t rows = pair.shape[0] * pair.shape[1];
  const T exponent = static_cast<T>(-group.exponent);
  Row<T> row(pair, scratch);
  for (int64_t i = begin; i < end; ++i) group.points[i].sum = 0;
  for (int64_t r = 0; r < rows; ++r) {
    row.go(pair, group.n, group.c, r);
    const T *u = row.u, *p = row.p, *column = row.column;
    for (int64_t i = begin; i < end; ++i) {
      PairwisePoint& t = group.points[i];
      const T square = static_cast<T>(beside(pair, t, r)), at = static_cast<T>(t.at[2]), low = static_cast<T>(t.least);
      T part = 0;
      if (op.mean == HARMONIC) {
        SIMD_REDUCE(reduction(+ : part)) for (int64_t x = 0; x < row.X; ++x) {
          const T dx = column[x] - at, g = value.mean(p[x], root(square + dx * dx));
          part += u[x] > T(0) ? u[x] * (low / g) : T(0);
        }
      } else {
        SIMD_REDUCE(reduction(+ : part)) for (int64_t x = 0; x < row.X; ++x) {
          const T dx = column[x] - at, g = value.mean(p[x], root(square + dx * dx));
          const T power = exp_(exponent * log_(low / g));
          part += u[x] > T(0) ? u[x] * power : T(0);
        }
      }
      t.sum += part;
    }
  }
}

template <typename T>
double pixels(const PairwiseHausdorff& op, const PairwiseGroup& group, int64_t begin, int64_t end, double nearest,
              void* scratch) {
  const HardPair& pair = op.pair;
  const Value<T> value(op, group);
  const T exponent = static_cast<T>(1 - group.exponent), d_max = value.d_max;
  const bool through_all = pair.grad != nullptr && (op.mean == HARMONIC || op.mean == POWER_MEAN);
  Row<T> row(pair, scratch);
  double total = 0;
  for (int64_t r = begin; r < end; ++r) {
    row.go(pair, group.n, group.c, r);
    const T *u = row.u, *p = row.p, *column = row.column;
    T *low = row.nearest, *part = row.part;
    double* slope = row.total;
    SIMD for (int64_t x = 0; x < row.X; ++x) low[x] = static_cast<T>(HUGE_VAL);
    for (int64_t x = 0; x < row.X; ++x) slope[x] = 0;
    for (int64_t block = 0; block < group.count; block += BLOCK) {
      const int64_t stop = min_(block + BLOCK, group.count);
      SIMD for (int64_t x = 0; x < row.X; ++x) part[x] = T(0);
      for (int64_t i = block; i < stop; ++i) {
        const PairwisePoint& t = group.points[i];
        const T square = static_cast<T>(beside(pair, t, r)), at = static_cast<T>(t.at[2]);
        const T unit = static_cast<T>(t.least), factor = static_cast<T>(t.factor);
        if (!through_all) {
          SIMD for (int64_t x = 0; x < row.X; ++x) {
            const T dx = column[x] - at, d2 = square + dx * dx;
            low[x] = d2 < low[x] ? d2 : low[x];
          }
        } else if (op.mean == HARMONIC) {
          SIMD for (int64_t x = 0; x < row.X; ++x) {
            const T dx = column[x] - at, d2 = square + dx * dx, d = root(d2), q = unit / value.mean(p[x], d);
            low[x] = d2 < low[x] ? d2 : low[x];
            part[x] += factor * (q * q) * (d - d_max);
          }
        } else {
          SIMD for (int64_t x = 0; x < row.X; ++x) {
            const T dx = column[x] - at, d2 = square + dx * dx, d = root(d2), q = unit / value.mean(p[x], d);
            low[x] = d2 < low[x] ? d2 : low[x];
            part[x] += factor * exp_(exponent * log_(q)) * (d - d_max);
          }
        }
      }
      if (through_all) {
        SIMD for (int64_t x = 0; x < row.X; ++x) slope[x] += part[x];
      }
    }
    T sum = 0;
    SIMD_REDUCE(reduction(+ : sum)) for (int64_t x = 0; x < row.X; ++x) {
      low[x] = root(low[x]);
      sum += u[x] > T(0) ? u[x] * p[x] * low[x] : T(0);
    }
    total += sum;
    if (row.grad == nullptr) continue;
    const T own = static_cast<T>(nearest);
    SIMD for (int64_t x = 0; x < row.X; ++x) {
      const T g = u[x] * (low[x] * own + static_cast<T>(slope[x]));
      row.grad[x] = u[x] > T(0) ? g : T(0);
    }
  }
  return total;
}

template <typename T>
void shift(const PairwiseHausdorff& op, int64_t n, int64_t c, int64_t begin, int64_t end, double by, void* scratch) {
  Row<T> row(op.pair, scratch);
  const T step = static_cast<T>(by);
  for (int64_t r = begin; r < end; ++r) {
    row.go(op.pair, n, c, r);
    const T* u = row.u;
    T* g = row.grad;
    SIMD for (int64_t x = 0; x < row.X; ++x) g[x] += u[x] > T(0) ? u[x] * step : T(0);
  }
}

template <typename T>
void scatter(const PairwiseHausdorff& op, const PairwiseGroup& group) {
  const HardPair& pair = op.pair;
  const Value<T> value(op, group);
  const int64_t X = pair.shape[2], plane = (group.n * pair.C + group.c) * pair.shape[0] * pair.shape[1] * X;
  for (int64_t i = 0; i < group.count; ++i) {
    const PairwisePoint& t = group.points[i];
    if (t.row < 0) continue;  // nothing but NaN
    const int64_t x = plane + t.row * X + t.column;
    const double p = static_cast<const T*>(pair.p)[x], dx = static_cast<double>(t.column) - t.at[2];
    const double d = sqrt(beside(pair, t, t.row) + dx * dx), power = p * p * p;
    const double q = p * power + group.eps / group.d_max;
    const double slope = op.mean == LEAST         ? d - group.d_max
                         : t.least <= group.d_max ? -(d + group.eps) * 4 * power / (q * q)
                                                  : 0.0;
    static_cast<T*>(pair.grad)[x] += static_cast<T>(t.factor * slope);
  }
}

#define BY_DTYPE(name, ...) (op.pair.dtype == F64 ? name<double>(__VA_ARGS__) : name<float>(__VA_ARGS__))

// Each by the dtype of the pair. Functions, not lambdas: those would be weak symbols.
void any_mass(const PairwiseHausdorff& op, int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch, double* u,
              double* up) {
  BY_DTYPE(mass, op, n, c, begin, end, scratch, u, up);
}

void any_least(const PairwiseHausdorff& op, const PairwiseGroup& group, int64_t begin, int64_t end, void* scratch) {
  BY_DTYPE(least, op, group, begin, end, scratch);
}

void any_sum(const PairwiseHausdorff& op, const PairwiseGroup& group, int64_t begin, int64_t end, void* scratch) {
  BY_DTYPE(sum, op, group, begin, end, scratch);
}

double any_pixels(const PairwiseHausdorff& op, const PairwiseGroup& group, int64_t begin, int64_t end, double nearest,
                  void* scratch) {
  return BY_DTYPE(pixels, op, group, begin, end, nearest, scratch);
}

void any_shift(const PairwiseHausdorff& op, int64_t n, int64_t c, int64_t begin, int64_t end, double by,
               void* scratch) {
  BY_DTYPE(shift, op, n, c, begin, end, by, scratch);
}

void any_scatter(const PairwiseHausdorff& op, const PairwiseGroup& group) { BY_DTYPE(scatter, op, group); }

}  // namespace

const PairwiseHausdorffKernels pairwise_hausdorff_table = {scratch_bytes, any_mass,  any_least,  any_sum,
                                                           any_pixels,    any_shift, any_scatter};

}  // namespace SEGFUSE_ISA
}  // namespace segfuse
