// Balls of several radii around every pixel, counted by running sums, compiled once per instruction set.
//
//   w_f = sum_r factor_r (f(B_r * (1 - y)) + f(B_r * q))     w_e = sum_r factor_r (f(B_r * y) + f(B_r * (1 - q)))
//   f(x) = max(0, x - 1/2); B_r averages the pixels within radius r, outside the image all are 0
//
// What has to be counted in a ball are the pixels of y, of q and of the image. The three counts share one integer
// (3 x 10 bits in 32, or 3 x 21 in 64) and are exact. A ball is a stack of row segments, each the difference of two
// running sums; rows at the same distance from the centre are added first, and once for all radii.
// Cost: O(r) additions per pixel in 2-D, O(r^2) in 3-D. Source: Karimi and Salcudean 2019 (arXiv 1904.10030).
#include "../pixel.h"
#include "kernels.h"

#define SIMD _Pragma("omp simd")
#define SIMD_SUM(x) _Pragma(SIMD_STRING(omp simd reduction(+ : x)))
#define SIMD_STRING(x) #x

namespace segfuse {
namespace SEGFUSE_ISA {
namespace {

// Sums wrap: only differences and sums of differences are read, and those fit.
struct Narrow {
  using Sum = uint32_t;
  static constexpr int BITS = 10;
};
struct Wide {
  using Sum = uint64_t;
  static constexpr int BITS = 21;
};

int64_t largest(const DiskSums& op) {
  int64_t r = 0;
  for (int i = 0; i < op.n_radii; ++i) r = op.radius[i] > r ? op.radius[i] : r;
  return r;
}

// Running sums of a row are continued by the largest radius on both sides.
int64_t row_length(const DiskSums& op) { return op.pair.shape[2] + 2 * largest(op) + 1; }

int64_t row_bytes(const DiskSums& op, bool wide) { return row_length(op) * (wide ? 8 : 4); }
// One sum of rows, one count per radius, and two weights.
int64_t scratch_bytes(const DiskSums& op, bool wide) {
  return row_bytes(op, wide) + op.pair.shape[2] * (op.n_radii * (wide ? 8 : 4) + 2 * 8);
}

template <typename Packed, typename T>
void run(const DiskSums& op, int64_t n, int64_t c, int64_t begin, int64_t end, void* running) {
  using Sum = typename Packed::Sum;
  const HardPair& pair = op.pair;
  const int64_t X = pair.shape[2], S = pair.shape[0] * pair.shape[1] * X, margin = largest(op), length = row_length(op);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t at = r * X, here = (n * pair.C + c) * S + at;
    const int16_t* code = pair.code + (pair.index ? n * S + at : here);
    const int16_t* hard = op.hard == nullptr ? nullptr : op.hard + n * S + at;
    const int16_t one = static_cast<int16_t>(pair.index ? c : 1);
    const T* p = static_cast<const T*>(pair.p) + here;
    Sum* out = static_cast<Sum*>(running) + r * length;
    Sum sum = 0;
    for (int64_t j = 0; j <= margin; ++j) out[j] = 0;
    out += margin + 1;
    for (int64_t x = 0; x < X; ++x) {
      const bool y = code[x] == one;
      const bool q = (code[x] >= 0) & (hard == nullptr ? p[x] > T(0.5) : hard[x] == static_cast<int16_t>(c));
      sum += Sum(1) + (Sum(y) << Packed::BITS) + (Sum(q) << (2 * Packed::BITS));
      out[x] = sum;
    }
    for (int64_t j = 0; j < margin; ++j) out[X + j] = sum;
  }
}

// Counts the balls around the pixels of row (z, y): counts [radius, X].
template <typename Packed>
void count(const DiskSums& op, int64_t z, int64_t y, const typename Packed::Sum* running, typename Packed::Sum* added,
           typename Packed::Sum* counts) {
  using Sum = typename Packed::Sum;
  const int64_t Z = op.pair.shape[0], Y = op.pair.shape[1], X = op.pair.shape[2];
  const int64_t R = largest(op), length = row_length(op);
  for (int64_t i = 0; i < op.n_radii * X; ++i) counts[i] = 0;
  const int64_t dz_end = min_(R, max_(z, Z - 1 - z)), dy_end = min_(R, max_(y, Y - 1 - y));
  for (int64_t dz = 0; dz <= dz_end; ++dz)
    for (int64_t dy = 0; dy <= dy_end && dz * dz + dy * dy <= R * R; ++dy) {
      const Sum* rows[4];
      int found = 0;
      for (int sz = 0; sz <= (dz > 0); ++sz)
        for (int sy = 0; sy <= (dy > 0); ++sy) {
          const int64_t there = sz ? z - dz : z + dz, row = sy ? y - dy : y + dy;
          if (there >= 0 && there < Z && row >= 0 && row < Y) rows[found++] = running + (there * Y + row) * length;
        }
      if (found == 0) continue;
      const Sum* t = found == 1 ? rows[0] : added;
      if (found == 2) {
        SIMD for (int64_t j = 0; j < length; ++j) added[j] = rows[0][j] + rows[1][j];
      } else if (found > 2) {  // 4: three rows of a rectangle are never inside without the fourth
        SIMD for (int64_t j = 0; j < length; ++j) added[j] = (rows[0][j] + rows[1][j]) + (rows[2][j] + rows[3][j]);
      }
      for (int i = 0; i < op.n_radii; ++i) {
        const int64_t left = int64_t(op.radius[i]) * op.radius[i] - dz * dz - dy * dy;
        if (left < 0) continue;
        const int64_t half = static_cast<int64_t>(sqrt(static_cast<double>(left)));  // exact below 2^52
        Sum* to = counts + i * X;
        const Sum *upper = t + R + half + 1, *lower = t + R - half;
        SIMD for (int64_t x = 0; x < X; ++x) to[x] += upper[x] - lower[x];
      }
    }
}

template <typename T>
inline T soft(int32_t count, T scale) {
  return max_(T(0), static_cast<T>(count) * scale - T(0.5));
}

template <typename Packed, typename T>
double weigh(const DiskSums& op, const int64_t* points, int64_t n, int64_t c, int64_t begin, int64_t end,
             const void* running, void* scratch) {
  using Sum = typename Packed::Sum;
  const HardPair& pair = op.pair;
  const int64_t Y = pair.shape[1], X = pair.shape[2], S = pair.shape[0] * Y * X;
  T *w_f = static_cast<T*>(scratch), *w_e = w_f + X;
  Sum *counts = reinterpret_cast<Sum*>(static_cast<char*>(scratch) + 16 * X), *added = counts + op.n_radii * X;
  double total = 0;
  for (int64_t r = begin; r < end; ++r) {
    count<Packed>(op, r / Y, r % Y, static_cast<const Sum*>(running), added, counts);
    SIMD for (int64_t x = 0; x < X; ++x) w_f[x] = w_e[x] = T(0);
    for (int i = 0; i < op.n_radii; ++i) {
      const Sum* packed = counts + i * X;
      const T scale = T(1) / static_cast<T>(points[i]), factor = static_cast<T>(op.factor[i]);
      constexpr Sum FIELD = (Sum(1) << Packed::BITS) - 1;
      SIMD for (int64_t x = 0; x < X; ++x) {
        const int32_t inside = static_cast<int32_t>(packed[x] & FIELD);
        const int32_t y = static_cast<int32_t>((packed[x] >> Packed::BITS) & FIELD);
        const int32_t q = static_cast<int32_t>((packed[x] >> (2 * Packed::BITS)) & FIELD);
        w_f[x] += factor * (soft(inside - y, scale) + soft(q, scale));
        w_e[x] += factor * (soft(y, scale) + soft(inside - q, scale));
      }
    }
    const int64_t at = r * X, here = (n * pair.C + c) * S + at;
    const int16_t* code = pair.code + (pair.index ? n * S + at : here);
    const int16_t one = static_cast<int16_t>(pair.index ? c : 1);
    const T* p = static_cast<const T*>(pair.p) + here;
    if (pair.weight != nullptr) {
      const T* u = static_cast<const T*>(pair.weight) + (pair.weight_per_class ? here : n * S + at);
      SIMD for (int64_t x = 0; x < X; ++x) {
        w_f[x] *= u[x];
        w_e[x] *= u[x];
      }
    }
    T sum = 0;
    SIMD_SUM(sum) for (int64_t x = 0; x < X; ++x) {
      const T y = code[x] == one ? T(1) : T(0), d = p[x] - y;
      const T term = d * d * (w_f[x] * p[x] + w_e[x] * y);
      sum += code[x] < 0 ? T(0) : term;
    }
    total += sum;
    if (pair.grad != nullptr) {
      T* g = static_cast<T*>(pair.grad) + here;
      SIMD for (int64_t x = 0; x < X; ++x) {
        const T y = code[x] == one ? T(1) : T(0), d = p[x] - y;
        const T slope = w_f[x] * (2 * d * p[x] + d * d) + w_e[x] * (2 * d * y);
        g[x] = code[x] < 0 ? T(0) : slope;
      }
    }
  }
  return total;
}

#define BY_TYPE(name, ...)                                                                          \
  (wide ? (op.pair.dtype == F64 ? name<Wide, double>(__VA_ARGS__) : name<Wide, float>(__VA_ARGS__)) \
        : (op.pair.dtype == F64 ? name<Narrow, double>(__VA_ARGS__) : name<Narrow, float>(__VA_ARGS__)))

void run_any(const DiskSums& op, bool wide, int64_t n, int64_t c, int64_t begin, int64_t end, void* running) {
  BY_TYPE(run, op, n, c, begin, end, running);
}

double weigh_any(const DiskSums& op, bool wide, const int64_t* points, int64_t n, int64_t c, int64_t begin, int64_t end,
                 const void* running, void* scratch) {
  return BY_TYPE(weigh, op, points, n, c, begin, end, running, scratch);
}

}  // namespace

const DiskSumsKernels disk_sums_table = {row_bytes, scratch_bytes, run_any, weigh_any};

}  // namespace SEGFUSE_ISA
}  // namespace segfuse
