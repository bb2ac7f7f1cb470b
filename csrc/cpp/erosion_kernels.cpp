// Soft erosions of one plane, a run of rows at a time, compiled once per instruction set (SEGFUSE_ISA names it).
//
//   b_0 = m (p - y)^2;   e_k = relu(B * b_{k-1} - 1/2);   b_k = (e_k - low) scale
//
// B averages a pixel and its face neighbours; outside the image b is 0. Only e_k is stored: b_k is formed when it is
// read. An output row depends on three rows (five in a volume), and where all of them are 0 it is not even written.
// Order: a row's sum is float32 (float64 for float64), rows are added in float64 in index order.
// Source: Karimi and Salcudean 2019 (arXiv 1904.10030).
#include "../pixel.h"
#include "kernels.h"

#define SIMD _Pragma("omp simd")
#define SIMD_REDUCE(...) _Pragma(SIMD_STRING(omp simd __VA_ARGS__))
#define SIMD_STRING(x) #x

namespace segfuse {
namespace SEGFUSE_ISA {
namespace {

constexpr int64_t MARGIN = 16;  // values, one of which is read

int64_t pitch(int64_t columns) { return MARGIN + (columns + MARGIN - 1) / MARGIN * MARGIN; }

template <typename T>
T* row(void* field, int64_t r, int64_t columns) {
  return static_cast<T*>(field) + r * pitch(columns) + MARGIN;
}
template <typename T>
const T* row(const void* field, int64_t r, int64_t columns) {
  return static_cast<const T*>(field) + r * pitch(columns) + MARGIN;
}

// The row and its neighbours; `edge` stands for those outside the image and those that are 0 throughout.
template <typename T>
struct Cross {
  const T *here, *up, *down, *front, *back;
  bool live;

  Cross(const Erosion& op, const ErosionField& in, const void* edge_row, int64_t r) : live(false) {
    const int64_t Y = op.pair.shape[1], rows = Y * op.pair.shape[0], y = r % Y;
    const T* edge = static_cast<const T*>(edge_row) + MARGIN;
    auto at = [&](int64_t other, bool inside) {
      const bool there = inside && in.live[other];
      live |= there;
      return there ? row<T>(in.values, other, op.pair.shape[2]) : edge;
    };
    here = at(r, true);
    up = at(r - 1, y > 0);
    down = at(r + 1, y < Y - 1);
    front = at(r - Y, r >= Y);
    back = at(r + Y, r + Y < rows);
  }

  // Added so that mirrored and transposed planes give the same bits.
  T sum2(int64_t x) const { return here[x] + ((here[x - 1] + here[x + 1]) + (up[x] + down[x])); }
  T sum3(int64_t x) const { return sum2(x) + (front[x] + back[x]); }
};

template <typename T>
struct Pixels {  // one row of the pair
  const T *p, *weight;
  const int16_t* code;
  int16_t one;
  T* grad;

  Pixels(const HardPair& pair, int64_t n, int64_t c, int64_t r) {
    const int64_t X = pair.shape[2], S = pair.shape[0] * pair.shape[1] * X, at = r * X,
                  here = (n * pair.C + c) * S + at;
    p = static_cast<const T*>(pair.p) + here;
    code = pair.code + (pair.index ? n * S + at : here);
    one = static_cast<int16_t>(pair.index ? c : 1);
    weight = pair.weight == nullptr ? nullptr
                                    : static_cast<const T*>(pair.weight) + (pair.weight_per_class ? here : n * S + at);
    grad = pair.grad == nullptr ? nullptr : static_cast<T*>(pair.grad) + here;
  }
};

template <typename T>
void start(const Erosion& op, int64_t n, int64_t c, int64_t begin, int64_t end, const ErosionField& out, void* u_field,
           ErosionPartial& partial) {
  const int64_t X = op.pair.shape[2];
  for (int64_t r = begin; r < end; ++r) {
    const Pixels<T> in(op.pair, n, c, r);
    const T* p = in.p;
    const int16_t *code = in.code, one = in.one;
    T* b = row<T>(out.values, r, X);
    int live = 0;
    SIMD_REDUCE(reduction(+ : live)) for (int64_t x = 0; x < X; ++x) {
      const T d = p[x] - (code[x] == one ? T(1) : T(0));
      b[x] = code[x] < 0 ? T(0) : d * d;
      live += b[x] != T(0);
    }
    b[-1] = b[X] = T(0);
    out.live[r] = live != 0;
    T sum = static_cast<T>(X);
    if (u_field != nullptr) {
      T* u = row<T>(u_field, r, X);
      if (in.weight != nullptr) {
        SIMD for (int64_t x = 0; x < X; ++x) u[x] = code[x] < 0 ? T(0) : in.weight[x];
      } else {
        SIMD for (int64_t x = 0; x < X; ++x) u[x] = code[x] < 0 ? T(0) : T(1);
      }
      sum = 0;
      SIMD_REDUCE(reduction(+ : sum)) for (int64_t x = 0; x < X; ++x) sum += u[x];
    }
    partial.sum += sum;
  }
}

template <typename T>
void erode(const Erosion& op, int64_t begin, int64_t end, const ErosionField& in, const void* edge, const void* u_field,
           const ErosionField& out, ErosionPartial& partial) {
  const int64_t X = op.pair.shape[2];
  const bool volume = op.pair.dims == 3;
  const int added = volume ? 7 : 5, points = 2 * op.pair.dims + 1;  // the rows beside a line add edges
  const T shift = static_cast<T>(added * in.low), scale = static_cast<T>(in.scale / points);
  for (int64_t r = begin; r < end; ++r) {
    const Cross<T> cross(op, in, edge, r);
    out.live[r] = 0;
    if (!cross.live) {
      partial.low = min_(partial.low, 0.0);
      continue;
    }
    T* e = row<T>(out.values, r, X);
    e[-1] = e[X] = T(0);
    T low = static_cast<T>(HUGE_VAL), high = -low, sum = 0;
    // v < 0, not v > 0: NaN stays.
    if (volume) {
      SIMD_REDUCE(reduction(min : low) reduction(max : high) reduction(+ : sum)) for (int64_t x = 0; x < X; ++x) {
        const T v = (cross.sum3(x) - shift) * scale - T(0.5);
        e[x] = v < T(0) ? T(0) : v;
        low = e[x] < low ? e[x] : low;
        high = e[x] > high ? e[x] : high;
        sum += e[x];
      }
    } else {
      SIMD_REDUCE(reduction(min : low) reduction(max : high) reduction(+ : sum)) for (int64_t x = 0; x < X; ++x) {
        const T v = (cross.sum2(x) - shift) * scale - T(0.5);
        e[x] = v < T(0) ? T(0) : v;
        low = e[x] < low ? e[x] : low;
        high = e[x] > high ? e[x] : high;
        sum += e[x];
      }
    }
    out.live[r] = !(sum == T(0));
    if (u_field != nullptr && out.live[r]) {
      const T* u = row<T>(u_field, r, X);
      sum = 0;
      SIMD_REDUCE(reduction(+ : sum)) for (int64_t x = 0; x < X; ++x) sum += u[x] * e[x];
    }
    partial.low = min_(partial.low, static_cast<double>(low));
    partial.high = max_(partial.high, static_cast<double>(high));
    partial.sum += sum;
  }
}

template <typename T>
void back(const Erosion& op, int64_t begin, int64_t end, const ErosionField* grad, const void* edge,
          const void* u_field, double power, const ErosionField& e_field, const ErosionField& out,
          ErosionPartial& partial) {
  const int64_t X = op.pair.shape[2];
  const bool volume = op.pair.dims == 3;
  const T scale = grad == nullptr ? T(0) : static_cast<T>(grad->scale / (2 * op.pair.dims + 1));
  const T low = static_cast<T>(e_field.low), high = static_cast<T>(e_field.high), unit = static_cast<T>(e_field.scale);
  const T own = static_cast<T>(power);
  for (int64_t r = begin; r < end; ++r) {
    out.live[r] = e_field.live[r];
    if (!e_field.live[r]) continue;
    const T* e = row<T>(e_field.values, r, X);
    T* h = row<T>(out.values, r, X);
    h[-1] = h[X] = T(0);
    if (u_field != nullptr) {
      const T* u = row<T>(u_field, r, X);
      SIMD for (int64_t x = 0; x < X; ++x) h[x] = own * u[x];
    } else {
      SIMD for (int64_t x = 0; x < X; ++x) h[x] = own;
    }
    if (grad != nullptr) {
      const Cross<T> cross(op, *grad, edge, r);
      if (cross.live && volume) {
        SIMD for (int64_t x = 0; x < X; ++x) h[x] += cross.sum3(x) * scale;
      } else if (cross.live) {
        SIMD for (int64_t x = 0; x < X; ++x) h[x] += cross.sum2(x) * scale;
      }
    }
    T sum = 0, dot = 0;
    int at_high = 0, at_low = 0;
    SIMD_REDUCE(reduction(+ : sum, dot, at_high, at_low)) for (int64_t x = 0; x < X; ++x) {
      h[x] = e[x] > T(0) ? h[x] : T(0);
      sum += h[x];
      dot += h[x] * ((e[x] - low) * unit);
      at_high += e[x] == high;
      at_low += e[x] == low;
    }
    partial.sum += dot;
    partial.other += sum;
    partial.at_high += at_high;
    partial.at_low += at_low;
  }
}

template <typename T>
void bounds(const Erosion& op, int64_t begin, int64_t end, const ErosionField& e_field, double to_high, double to_low,
            const ErosionField& grad) {
  const int64_t X = op.pair.shape[2];
  const T low = static_cast<T>(e_field.low), high = static_cast<T>(e_field.high);
  const T up = static_cast<T>(to_high), down = static_cast<T>(to_low);
  for (int64_t r = begin; r < end; ++r) {
    if (!e_field.live[r]) continue;
    const T* e = row<T>(e_field.values, r, X);
    T* h = row<T>(grad.values, r, X);
    SIMD for (int64_t x = 0; x < X; ++x) {
      const T share = e[x] == high ? up : e[x] == low ? down : T(0);
      h[x] += e[x] > T(0) ? share : T(0);
    }
  }
}

template <typename T>
void finish(const Erosion& op, int64_t n, int64_t c, int64_t begin, int64_t end, const ErosionField& grad,
            const void* edge) {
  const int64_t X = op.pair.shape[2];
  const T scale = static_cast<T>(2 * grad.scale / (2 * op.pair.dims + 1));
  const bool volume = op.pair.dims == 3;
  for (int64_t r = begin; r < end; ++r) {
    const Pixels<T> in(op.pair, n, c, r);
    const Cross<T> cross(op, grad, edge, r);
    const T* p = in.p;
    const int16_t *code = in.code, one = in.one;
    T* g = in.grad;
    if (volume) {
      SIMD for (int64_t x = 0; x < X; ++x) g[x] = cross.sum3(x) * scale;
    } else {
      SIMD for (int64_t x = 0; x < X; ++x) g[x] = cross.sum2(x) * scale;
    }
    SIMD for (int64_t x = 0; x < X; ++x) {
      const T d = p[x] - (code[x] == one ? T(1) : T(0));
      g[x] = code[x] < 0 ? T(0) : d * g[x];
    }
  }
}

// The columns beside the image, and the row that stands for rows outside it: where b is 0, e is `low`.
template <typename T>
void surround(const Erosion& op, const ErosionField& e, void* edge) {
  const int64_t X = op.pair.shape[2], rows = op.pair.shape[0] * op.pair.shape[1];
  const T low = static_cast<T>(e.low);
  for (int64_t r = 0; r < rows; ++r) {
    T* values = row<T>(e.values, r, X);
    values[-1] = values[X] = low;
  }
  for (int64_t x = 0; x < pitch(X) + 1; ++x) static_cast<T*>(edge)[x] = low;
}

// Each by the dtype of the pair. Functions, not lambdas: those would be weak symbols.
void any_start(const Erosion& op, int64_t n, int64_t c, int64_t begin, int64_t end, const ErosionField& out, void* u,
               ErosionPartial& partial) {
  (op.pair.dtype == F64 ? start<double> : start<float>)(op, n, c, begin, end, out, u, partial);
}

void any_erode(const Erosion& op, int64_t begin, int64_t end, const ErosionField& in, const void* edge, const void* u,
               const ErosionField& out, ErosionPartial& partial) {
  (op.pair.dtype == F64 ? erode<double> : erode<float>)(op, begin, end, in, edge, u, out, partial);
}

void any_back(const Erosion& op, int64_t begin, int64_t end, const ErosionField* grad, const void* edge, const void* u,
              double power, const ErosionField& e, const ErosionField& out, ErosionPartial& partial) {
  (op.pair.dtype == F64 ? back<double> : back<float>)(op, begin, end, grad, edge, u, power, e, out, partial);
}

void any_bounds(const Erosion& op, int64_t begin, int64_t end, const ErosionField& e, double to_high, double to_low,
                const ErosionField& grad) {
  (op.pair.dtype == F64 ? bounds<double> : bounds<float>)(op, begin, end, e, to_high, to_low, grad);
}

void any_surround(const Erosion& op, const ErosionField& e, void* edge) {
  (op.pair.dtype == F64 ? surround<double> : surround<float>)(op, e, edge);
}

void any_finish(const Erosion& op, int64_t n, int64_t c, int64_t begin, int64_t end, const ErosionField& grad,
                const void* edge) {
  (op.pair.dtype == F64 ? finish<double> : finish<float>)(op, n, c, begin, end, grad, edge);
}

}  // namespace

const ErosionKernels erosion_table = {pitch, any_start, any_erode, any_back, any_bounds, any_surround, any_finish};

}  // namespace SEGFUSE_ISA
}  // namespace segfuse
