// Soft confusion sums, pixel terms and their gradient on a GPU; the sums are those of enum Moment and enum TermKind.
//
// Memory:    each logit is read once from memory forward; read once and written once backward. Beside that only
//            partial sums: (K + 1) doubles for each block and class.
// Numerics:  float32 (float64 for float64 logits) for each pixel, float sums of at most 256 pixels, then double.
// Order:     blocks own fixed runs of pixels and write their own partial row; a second launch adds rows by index. The
//            bits depend on the shape alone.
// Ignored:   a pixel with m = 0 gets logit 0, y = 0 and u = 0, so nothing of it reaches a sum. A target or weight out
//            of range is counted, and where there is one the sums of its sample are NaN.
// Instances: a kernel exists three times for each dtype of the logits: REGION for the overlap sums of Dice and its
//            kin, LOGS with up to two terms of log p, and ANY for everything, with strided tensors, weights and
//            masks. The first two read dense logits and class numbers (a softmax) or hard masks (a sigmoid).
#include "../segfuse_cuda.h"
#include "../terms.h"
#include "pixels.cuh"

namespace segfuse {
namespace {

enum Instance { REGION, LOGS, ANY };

constexpr int THREADS = 256, SOFTMAX_THREADS = 128;
constexpr int LEAN_TERMS = 2;
constexpr int64_t BLOCKS = 2048;                // that a forward pass is cut into where the tensor is large enough
constexpr int64_t ELEMENT_TILE = 4 * THREADS;   // pixels
constexpr int64_t LONGEST_RUN = 256 * THREADS;  // pixels of a block: bounds the float sums
constexpr int64_t ROOM = 40 << 10, MOST_ROOM = 200 << 10;  // bytes of shared memory: of a tile of logits, and in all
constexpr int SUMS = MOMENTS + 2 * MAX_TERMS;

// ------------------------------------------------------------------------------------------------ one pixel

// What a pixel brings to the sums of one class. p and r = 1 - p, lp and lr their negative logarithms.
template <typename T>
struct Pixel {
  T p, r, lp, lr;
  T y, m, u, d;  // u = m * weight; d: distance map
};

template <typename T>
__device__ __forceinline__ T weigh(T u, T f, T p) {  // a weight of 0 leaves out even an infinite value
  return u == T(0) ? T(0) * p : u * f;
}

// The two parts of a term without the weight; `exclusive`: the classes of the pixel exclude each other, and `whole` is
// its cross-entropy.
template <typename T>
__device__ __forceinline__ void term_parts(const Term& term, const Pixel<T>& x, bool exclusive, T whole, T& pos,
                                           T& neg) {
  const T a = static_cast<T>(term.a), b = static_cast<T>(term.b), none = T(0) * x.p;
  const T one = term.kind == FOCAL_ALL ? T(1) : x.y,
          zero = exclusive ? T(0) : (term.kind == FOCAL_ALL ? T(1) : T(1) - x.y);
  if (term.kind == FOCAL || term.kind == FOCAL_ALL) {
    SEGFUSE_WITH_EXPONENT(term.a, {
      pos = one > T(0) ? one * focal<E>(x.r, x.lp, E == GENERAL && exclusive ? -log_(x.r) : x.lr, a) : none;
      neg = zero > T(0) ? zero * focal<E>(x.p, x.lr, x.lp, a) : none;
    })
    return;
  }
  T f;
  if (term.kind == POWER) {
    f = pow_(whole, a);
    pos = x.y > T(0) ? x.y * f : none;
    neg = exclusive ? T(0) : (x.y < T(1) ? (T(1) - x.y) * f : none);
    return;
  }
  const T q = power(T(1) - x.p, a) * x.p;
  f = term.kind == DSC ? q : T(1) - (T(2) * q * x.y + b) / (q + x.y + b);
  pos = x.y * f;
  neg = (T(1) - x.y) * f;
}

template <typename T>
__device__ __forceinline__ T binary_entropy(const Pixel<T>& x) {
  return (x.y > T(0) ? x.y * x.lp : T(0)) + (x.y < T(1) ? (T(1) - x.y) * x.lr : T(0));
}

// Adds the pixel to sums of its class; acc(row) is where a row is added up.
template <int I, typename T, typename Acc>
__device__ __forceinline__ void add_moments(const PixelStats& op, const Pixel<T>& x, Acc acc) {
  const int* row = op.moment;
  auto add = [&](int moment, T value) {
    if (row[moment] >= 0) acc(moment) += value;
  };
  const T up = x.u * x.p, uy = x.u * x.y;
  add(COUNT, x.m);
  add(TRUE_COUNT, x.y);
  add(WEIGHT, x.u);
  add(TRUE, uy);
  add(PRED, up);
  add(TP, up * x.y);
  if (I != ANY) return;
  const T e = x.p - x.y;
  add(TRUE2, uy * x.y);
  add(PRED2, up * x.p);
  add(TP2, up * x.p * x.y);
  add(L1, x.u * (e < T(0) ? -e : e));
  add(SQ_TRUE, uy * e * e);
  add(SQ_FALSE, x.u * (T(1) - x.y) * e * e);
  add(DISTANCE_PRED, up * x.d);
  add(DISTANCE_SQ, x.u * x.d * e * e);
}

template <int I, typename T, typename Acc>
__device__ __forceinline__ void add_terms(const PixelStats& op, const Pixel<T>& x, bool exclusive, T whole, Acc acc) {
  auto add = [&](int k) {
    const Term& term = op.term[k];
    T pos, neg;
    term_parts(term, x, exclusive, whole, pos, neg);
    const T u = I == ANY && term.mapped ? x.u * x.d : x.u;
    acc(MOMENTS + 2 * k) += weigh(u, pos, x.p);
    acc(MOMENTS + 2 * k + 1) += weigh(u, neg, x.p);
  };
  if (I == LOGS) {
#pragma unroll
    for (int k = 0; k < LEAN_TERMS; ++k)
      if (k < op.terms) add(k);
  } else if (I == ANY) {
    for (int k = 0; k < op.terms; ++k) add(k);
  }
}

// The row of a sum in the results, -1 when it is not wanted.
__device__ __forceinline__ int row_of(const PixelStats& op, int sum) {
  if (sum < MOMENTS) return op.moment[sum];
  const int k = (sum - MOMENTS) / 2;
  return k < op.terms ? op.term[k].row + (sum - MOMENTS) % 2 : -1;
}

// d(loss) / dp without the weight; k(row) is the coefficient of a row
template <int I, typename T, typename Coefficient>
__device__ __forceinline__ T moment_slope(const PixelStats& op, const Pixel<T>& x, Coefficient k) {
  auto of = [&](int moment) { return op.moment[moment] < 0 ? T(0) : k(op.moment[moment]); };
  const T p = x.p, y = x.y;
  T g = of(PRED) + of(TP) * y;
  if (I != ANY) return g;
  const T e = p - y, l1 = of(L1), sq_true = of(SQ_TRUE), sq_false = of(SQ_FALSE);
  g += (T(2) * of(PRED2) + T(2) * of(TP2) * y) * p;
  if (l1 != T(0)) g += l1 * (p > y ? T(1) : (p < y ? T(-1) : e));
  g += T(2) * e * (sq_false + (sq_true - sq_false) * y);
  if (op.distance.data != nullptr) g += x.d * (of(DISTANCE_PRED) + T(2) * of(DISTANCE_SQ) * e);
  for (int j = 0; j < op.terms; ++j) {
    const Term& term = op.term[j];
    if (logarithmic(term.kind)) continue;
    const T a = static_cast<T>(term.a), b = static_cast<T>(term.b), r = T(1) - p;
    const T dq = a == T(0) ? T(1) : power(r, a - T(1)) * (r - a * p), q = power(r, a) * p, by = q + y + b;
    const T df = term.kind == DSC_PIXEL ? (-T(2) * y * by + (T(2) * q * y + b)) / (by * by) : T(1);
    g += (k(term.row) * y + k(term.row + 1) * (T(1) - y)) * df * dq;
  }
  return g;
}

// d(loss) / dz of one logarithmic term of a sigmoid, d / dp of probabilities, without the weight
template <typename T>
__device__ __forceinline__ T term_slope(const Term& term, const Pixel<T>& x, bool raw, T pos, T neg) {
  const T a = static_cast<T>(term.a);
  if (term.kind == POWER) {
    const T whole = binary_entropy(x);
    const T dp = (x.r >= CLAMP<T> ? (T(1) - x.y) / x.r : T(0)) - (x.p >= CLAMP<T> ? x.y / x.p : T(0));
    const T slope = a * (a == T(1) ? T(1) : pow_(whole, a - T(1))) * (raw ? dp : (T(1) - x.y) * x.p - x.y * x.r);
    return (pos * x.y + neg * (T(1) - x.y)) * (whole > T(0) ? slope : T(0) * whole);
  }
  const T one = term.kind == FOCAL_ALL ? T(1) : x.y, zero = term.kind == FOCAL_ALL ? T(1) : T(1) - x.y;
  T f = T(0) * x.p;
  SEGFUSE_WITH_EXPONENT(term.a, {
    if (one > T(0))
      f += pos * one * (raw ? focal_slope_p<E>(x.p, x.r, x.lp, x.lr, a) : focal_slope<E>(x.p, x.r, x.lp, x.lr, a));
    if (zero > T(0))
      f -= neg * zero * (raw ? focal_slope_p<E>(x.r, x.p, x.lr, x.lp, a) : focal_slope<E>(x.r, x.p, x.lr, x.lp, a));
  })
  return f;
}

// Weight and distance of a pixel that is valid. Returns whether the weight is negative.
template <typename T>
__device__ __forceinline__ bool weight_and_distance(const PixelStats& op, int64_t n, int64_t c, int64_t i,
                                                    Pixel<T>& x) {
  bool broken = false;
  if (op.weight.data != nullptr) {
    const T w = at<T>(op, op.weight, n, c, i);
    broken = w < T(0);
    x.u = x.m > T(0) ? w : T(0);
  }
  if (op.distance.data != nullptr) x.d = x.m > T(0) ? at<T>(op, op.distance, n, c, i) : T(0);
  return broken;
}

// ------------------------------------------------------------------------------------------------ sigmoid, or p itself

// Everything of pixel i in class c. Returns whether its target or weight is out of range.
template <int I, typename Storage, typename T>
__device__ __forceinline__ bool element(const PixelStats& op, int64_t n, int64_t c, int64_t i, bool logs, Pixel<T>& x) {
  const View& target = op.target;
  const int64_t offset = n * target.batch + (op.index_target ? 0 : c * target.channel);
  const T stored = read<T>(target.data, target.dtype, offset + (I == ANY ? pixel_offset(op, target, i) : i));
  const bool whole = op.index_target || target.dtype >= BOOL;
  const T top = op.index_target ? static_cast<T>(op.C - 1) : T(1);
  const Label<T> label = classify(op, stored, top, whole, I == ANY ? unmasked(op, n, c, i) : true);
  bool broken = label.broken;
  x.m = label.valid ? T(1) : T(0);
  x.y = op.index_target ? (label.valid && label.y == static_cast<T>(c) ? T(1) : T(0)) : label.y;
  x.u = x.m;
  x.d = T(0);
  if (I == ANY) broken |= weight_and_distance(op, n, c, i, x);
  const T given = logit<Storage>(op, n, c, i, I != ANY), z = label.valid ? given : T(0);
  if (I == ANY && op.activation == IDENTITY) {
    x.p = z;
    x.r = T(1) - z;
    if (logs) x.lp = -log_(max_(CLAMP<T>, x.p)), x.lr = -log_(max_(CLAMP<T>, x.r));
    return broken;
  }
  const T e = exp_negative(z < T(0) ? z : -z), big = T(1) / (T(1) + e), small = e * big;
  x.p = z < T(0) ? small : big;
  x.r = z < T(0) ? big : small;
  if (I != REGION && logs) {
    const T unit = log1p_unit(e);
    x.lp = (z < T(0) ? -z : T(0)) + unit;
    x.lr = (z < T(0) ? T(0) : z) + unit;
  }
  return broken;
}

__device__ __forceinline__ bool wants_logs(const PixelStats& op) {
  for (int k = 0; k < op.terms; ++k)
    if (logarithmic(op.term[k].kind)) return true;
  return false;
}

// Partial sums [planes of n, runs, K + 1, C]: the last row counts what is out of range. Grid: N * C * runs.
template <int I, typename Storage>
__global__ void __launch_bounds__(THREADS)
    element_sums(const __grid_constant__ PixelStats op, double* partial, int64_t run, int64_t runs) {
  using T = typename Compute<Storage>::Type;
  const int64_t plane = blockIdx.x / runs, c = plane % op.C, n = plane / op.C;
  const int64_t part = blockIdx.x % runs, begin = part * run, end = min_(begin + run, op.S);
  const bool logs = wants_logs(op);
  constexpr int HELD = I == REGION ? MOMENTS : I == LOGS ? MOMENTS + 2 * LEAN_TERMS : SUMS;
  T acc[HELD];
#pragma unroll
  for (int k = 0; k < HELD; ++k) acc[k] = T(0);
  int broken = 0;
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) {
    Pixel<T> x;
    broken += element<I, Storage>(op, n, c, i, logs, x);
    auto sum = [&](int k) -> T& { return acc[k]; };
    add_moments<I>(op, x, sum);
    add_terms<I>(op, x, false, I == REGION || !logs ? T(0) : binary_entropy(x), sum);
  }

  double* warps = reinterpret_cast<double*>(shared_memory());  // [THREADS / WARP, K + 1]
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, K = op.rows;
#pragma unroll
  for (int k = 0; k < HELD; ++k) {
    const int row = row_of(op, k);
    if (row < 0) continue;
    const double sum = warp_sum(static_cast<double>(acc[k]));
    if (lane == 0) warps[warp * (K + 1) + row] = sum;
  }
  const double all_broken = warp_sum(static_cast<double>(broken));
  if (lane == 0) warps[warp * (K + 1) + K] = all_broken;
  __syncthreads();
  for (int row = threadIdx.x; row <= K; row += THREADS) {
    double sum = 0;
    for (int w = 0; w < THREADS / WARP; ++w) sum += warps[w * (K + 1) + row];
    partial[((n * runs + part) * (K + 1) + row) * op.C + c] = sum;
  }
}

// Grid: N * C * tiles
template <int I, typename Storage>
__global__ void __launch_bounds__(THREADS) element_gradient(const __grid_constant__ PixelStats op, int64_t tiles) {
  using T = typename Compute<Storage>::Type;
  const int64_t plane = blockIdx.x / tiles, c = plane % op.C, n = plane / op.C;
  const int64_t begin = blockIdx.x % tiles * ELEMENT_TILE, end = min_(begin + ELEMENT_TILE, op.S);
  const bool logs = wants_logs(op), raw = op.activation == IDENTITY;
  T* table = reinterpret_cast<T*>(shared_memory());  // [K]
  for (int row = threadIdx.x; row < op.rows; row += THREADS)
    table[row] = static_cast<T>(op.coefficient[(row * op.groups + n) * op.C + c]);
  __syncthreads();
  auto k = [table](int row) { return table[row]; };
#pragma unroll
  for (int step = 0; step < ELEMENT_TILE / THREADS; ++step) {
    const int64_t i = begin + step * THREADS + threadIdx.x;
    if (i >= end) continue;
    Pixel<T> x;
    element<I, Storage>(op, n, c, i, logs, x);
    T out = moment_slope<I>(op, x, k);
    if (!raw) out *= x.p * x.r;
    for (int j = 0; I != REGION && j < op.terms; ++j) {
      const Term& term = op.term[j];
      if (!logarithmic(term.kind)) continue;
      const T slope = term_slope(term, x, raw, k(term.row), k(term.row + 1));
      out += I == ANY && term.mapped ? x.d * slope : slope;
    }
    out *= x.u;
    if (I == ANY && op.upstream.data != nullptr) out *= at<T>(op, op.upstream, n, c, i);
    store<Storage>(op, n, c, i, I != ANY, out);
  }
}

// The loss of every element: sum over terms of coefficient * part, times u. Grid: N * C * tiles
template <typename Storage>
__global__ void __launch_bounds__(THREADS) element_map(const __grid_constant__ PixelStats op, int64_t tiles) {
  using T = typename Compute<Storage>::Type;
  const int64_t plane = blockIdx.x / tiles, c = plane % op.C, n = plane / op.C;
  const int64_t begin = blockIdx.x % tiles * ELEMENT_TILE, end = min_(begin + ELEMENT_TILE, op.S);
  for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) {
    Pixel<T> x;
    const bool broken = element<ANY, Storage>(op, n, c, i, true, x);
    T out = T(0);
    for (int j = 0; j < op.terms; ++j) {
      const Term& term = op.term[j];
      T pos, neg;
      term_parts(term, x, false, binary_entropy(x), pos, neg);
      const double* k = op.coefficient + (term.row * op.groups + n) * op.C + c;
      const T one = static_cast<T>(k[0]), zero = static_cast<T>(k[op.groups * op.C]);
      out += weigh(one * (term.mapped ? x.d : T(1)), pos, x.p) + weigh(zero * (term.mapped ? x.d : T(1)), neg, x.p);
    }
    store<T>(op, n, c, i, false, broken ? static_cast<T>(NAN) : weigh(x.u, out, x.p));
  }
}

// ------------------------------------------------------------------------------------------------ softmax

// A tile holds every class of a run of pixels in shared memory, [C, tile]. First a thread for each pixel: it alone
// touches the column of its pixel. Then, for the sums, a warp for each class.
template <typename T>
struct Tile {
  int64_t C, pixels;
  T *column, *inverse, *u, *keep, *log_sum, *q, *whole, *term;  // term: [LEAN_TERMS, tile]
  int* label;  // the class of the pixel; of a target shaped like the logits the class of the largest logit

  static __host__ __device__ size_t bytes(int64_t C, int64_t pixels) {
    return (C + 6 + LEAN_TERMS) * pixels * sizeof(T) + pixels * sizeof(int);
  }
  __device__ __forceinline__ Tile(char* memory, int64_t C, int64_t pixels) : C(C), pixels(pixels) {
    column = reinterpret_cast<T*>(memory);
    inverse = column + C * pixels;
    u = inverse + pixels;
    keep = u + pixels;
    log_sum = keep + pixels;
    q = log_sum + pixels;
    whole = q + pixels;
    term = whole + pixels;
    label = reinterpret_cast<int*>(term + LEAN_TERMS * pixels);
  }
};

struct SoftmaxNeeds {
  bool logs, dense_logs;  // dense_logs: -log p of every class
  __host__ __device__ explicit SoftmaxNeeds(const PixelStats& op) : logs(false), dense_logs(false) {
    for (int k = 0; k < op.terms; ++k) {
      logs |= logarithmic(op.term[k].kind);
      dense_logs |= op.term[k].kind == FOCAL_ALL;
    }
    dense_logs |= logs && !op.index_target;
  }
};

// y of class c at a pixel that is valid, from a target shaped like the logits
template <typename T>
__device__ __forceinline__ T dense_target(const PixelStats& op, int64_t n, int64_t c, int64_t i) {
  return at<T>(op, op.target, n, c, i);
}

// The target class of a pixel.
template <typename T>
struct Own {
  int label;
  T keep, p, q, l, lq;  // q = 1 - p, l = -log p, lq = -log q
  T sum, log_sum;       // of exp(x - max) over the classes
};

// Fills the column of a pixel: with exp(x - max), or with x - max in instance ANY. Returns how many targets are out of
// range. visit(c, e): called for every class once its exponential is known, in order.
template <int I, typename Storage, typename T, typename Visit>
__device__ __forceinline__ int softmax_pixel(const PixelStats& op, int64_t n, int64_t i, bool logs, T* column,
                                             int64_t stride, Own<T>& own, Visit visit) {
  const int C = static_cast<int>(op.C);
  int broken = 0;
  bool keep = true;
  own.label = 0;
  if (I != ANY || op.index_target) {
    const View& v = op.target;
    const T stored = read<T>(v.data, v.dtype, n * v.batch + (I == ANY ? pixel_offset(op, v, i) : i));
    const Label<T> label = classify(op, stored, static_cast<T>(C - 1), true, I == ANY ? unmasked(op, n, 0, i) : true);
    broken = label.broken;
    keep = label.valid;
    own.label = static_cast<int>(label.y);
  } else {
    for (int c = 0; c < C; ++c) {
      const Label<T> label =
          classify(op, dense_target<T>(op, n, c, i), T(1), op.target.dtype >= BOOL, unmasked(op, n, c, i));
      broken += label.broken;
      keep = keep && label.valid;
    }
  }
  own.keep = keep ? T(1) : T(0);

  T top = T(0);
  int top_class = 0;
#pragma unroll 4
  for (int c = 0; c < C; ++c) {
    const T given = logit<Storage>(op, n, c, i, I != ANY), x = keep ? given : T(0);
    column[c * stride] = x;
    if (c == 0 || x > top) top = x, top_class = c;
  }
  if (I == ANY && !op.index_target) own.label = top_class;
  // For logarithms the sum leaves out the class `label`, which would swallow the small ones.
  T others = T(0), mine = T(0), mine_x = T(0);
#pragma unroll 4
  for (int c = 0; c < C; ++c) {
    const T x = column[c * stride] - top, e = exp_negative(x);
    column[c * stride] = I == ANY ? x : e;
    if (c == own.label) {
      mine = e, mine_x = x;
    } else {
      others += e;
    }
    visit(c, e);
  }
  own.sum = mine + others;
  const T inverse = T(1) / own.sum;
  own.p = mine * inverse;
  own.q = others * inverse;
  own.l = own.lq = own.log_sum = T(0);
  if (I != REGION && logs) {
    own.log_sum = log1p_(max_(T(0), others + (mine - T(1))));
    own.l = own.log_sum - mine_x;
    own.lq = own.log_sum - log_(others);
  }
  return broken;
}

// -log p of class c, from x - max
template <typename T>
__device__ __forceinline__ void class_pixel(T x, T inverse, T log_sum, bool top, T q, Pixel<T>& out) {
  out.p = exp_negative(x) * inverse;
  out.r = top ? q : T(1) - out.p;
  out.lp = log_sum - x;
  out.lr = T(0);
}

// cross-entropy of a pixel against a dense target
template <typename T>
__device__ __forceinline__ T dense_entropy(const PixelStats& op, int64_t n, int64_t i, const T* column, int64_t stride,
                                           T log_sum) {
  T whole = T(0);
  for (int64_t c = 0; c < op.C; ++c) {
    const T y = dense_target<T>(op, n, c, i);
    whole += y > T(0) ? y * (log_sum - column[c * stride]) : T(0) * log_sum;
  }
  return whole;
}

// y, weights and distance of class c at pixel i
template <int I, typename T>
__device__ __forceinline__ void class_weights(const PixelStats& op, int64_t n, int64_t c, int64_t i, int label, T keep,
                                              T u, Pixel<T>& x) {
  x.m = keep;
  x.u = u;
  x.d = T(0);
  if (I != ANY || op.index_target) {
    x.y = label == static_cast<int>(c) ? keep : T(0);
  } else {
    x.y = keep > T(0) ? dense_target<T>(op, n, c, i) : T(0);
  }
  if (I == ANY) weight_and_distance(op, n, c, i, x);
}

// Partial sums as in element_sums. Grid: N * runs. Shared: a tile, then double [K + 1, C].
template <int I, typename Storage>
__global__ void __launch_bounds__(SOFTMAX_THREADS) softmax_sums(const __grid_constant__ PixelStats op, double* partial,
                                                                int64_t run, int64_t runs, int64_t tile_pixels) {
  using T = typename Compute<Storage>::Type;
  const int64_t C = op.C, n = blockIdx.x / runs, part = blockIdx.x % runs;
  const int64_t begin = part * run, end = min_(begin + run, op.S);
  const SoftmaxNeeds needs(op);
  const int K = op.rows, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  double* total = reinterpret_cast<double*>(shared_memory());  // [K + 1, C]
  Tile<T> tile(shared_memory() + (K + 1) * C * sizeof(double), C, tile_pixels);
  for (int64_t k = threadIdx.x; k < (K + 1) * C; k += SOFTMAX_THREADS) total[k] = 0;
  int broken = 0;

  for (int64_t first = begin; first < end; first += tile_pixels) {
    const int length = static_cast<int>(min_(tile_pixels, end - first));
    __syncthreads();
    for (int j = threadIdx.x; j < length; j += SOFTMAX_THREADS) {
      const int64_t i = first + j;
      Own<T> own;
      T* column = tile.column + j;
      broken += softmax_pixel<I, Storage>(op, n, i, needs.logs, column, tile_pixels, own, [](int, T) {});
      tile.inverse[j] = T(1) / own.sum;
      tile.label[j] = own.label;
      tile.keep[j] = tile.u[j] = own.keep;
      if (I == LOGS) {  // every term has its value at the target class alone
        Pixel<T> x{own.p, own.q, own.l, T(0), T(1), T(1), T(1), T(0)};
#pragma unroll
        for (int k = 0; k < LEAN_TERMS; ++k) {
          T pos = T(0), neg;
          if (k < op.terms) term_parts(op.term[k], x, true, own.l, pos, neg);
          tile.term[k * tile_pixels + j] = own.keep > T(0) ? pos : T(0);
        }
      }
      if (I == ANY) {
        tile.q[j] = own.q;
        tile.log_sum[j] = own.log_sum;
        tile.whole[j] = !needs.logs       ? T(0)
                        : op.index_target ? own.l
                                          : dense_entropy(op, n, i, column, tile_pixels, tile.log_sum[j]);
        if (op.weight.data != nullptr)
          for (int64_t c = 0; c < (op.weight.channel == 0 ? 1 : C); ++c) broken += at<T>(op, op.weight, n, c, i) < T(0);
      }
    }
    __syncthreads();
    for (int64_t c = warp; c < C; c += SOFTMAX_THREADS / WARP) {
      constexpr int HELD = I == REGION ? MOMENTS : I == LOGS ? MOMENTS + LEAN_TERMS : SUMS;
      T acc[HELD];
#pragma unroll
      for (int k = 0; k < HELD; ++k) acc[k] = T(0);
      auto sum = [&](int k) -> T& { return acc[k]; };
#pragma unroll 2
      for (int j = lane; j < length; j += WARP) {
        Pixel<T> x;
        class_weights<I>(op, n, c, first + j, tile.label[j], tile.keep[j], tile.u[j], x);
        const T held = tile.column[c * tile_pixels + j];
        if (I == ANY) {
          class_pixel(held, tile.inverse[j], tile.log_sum[j], tile.label[j] == c, tile.q[j], x);
        } else {
          x.p = held * tile.inverse[j];
        }
        add_moments<I>(op, x, sum);
        if (I == LOGS) {
#pragma unroll
          for (int k = 0; k < LEAN_TERMS; ++k) acc[MOMENTS + k] += x.y > T(0) ? tile.term[k * tile_pixels + j] : T(0);
        } else if (I == ANY) {
          if (op.index_target && x.y > T(0)) x.lp = tile.whole[j];  // of its class, without a way through exp
          add_terms<I>(op, x, true, tile.whole[j], sum);
        }
      }
#pragma unroll
      for (int k = 0; k < HELD; ++k) {
        const int row = I == LOGS && k >= MOMENTS ? row_of(op, MOMENTS + 2 * (k - MOMENTS)) : row_of(op, k);
        if (row < 0) continue;
        const double added = warp_sum(static_cast<double>(acc[k]));
        if (lane == 0) total[row * C + c] += added;
      }
    }
  }
  const double all_broken = warp_sum(static_cast<double>(broken));
  __syncthreads();
  for (int w = 0; w < SOFTMAX_THREADS / WARP; ++w) {
    if (warp == w && lane == 0)
      for (int64_t c = 0; c < C; ++c) total[K * C + c] += all_broken;
    __syncthreads();
  }
  for (int64_t k = threadIdx.x; k < (K + 1) * C; k += SOFTMAX_THREADS)
    partial[(n * runs + part) * (K + 1) * C + k] = total[k];
}

// Weight times d(loss) / d(-log p) of the target class: what the logarithmic terms of a class number add.
template <typename T, typename Coefficient>
__device__ __forceinline__ T label_slope(const PixelStats& op, const Own<T>& own, T u, T d, Coefficient k) {
  T w = T(0);
  for (int j = 0; j < op.terms; ++j) {
    const Term& term = op.term[j];
    if (!logarithmic(term.kind) || term.kind == FOCAL_ALL) continue;
    const T a = static_cast<T>(term.a), scale = k(term.row) * (term.mapped ? d : T(1));
    if (term.kind == POWER) {
      w += scale * (own.l > T(0) ? a * (a == T(1) ? T(1) : pow_(own.l, a - T(1))) : T(0) * own.l);
    } else {
      SEGFUSE_WITH_EXPONENT(term.a, { w += scale * softmax_slope<E>(own.p, own.q, own.l, own.lq, a); })
    }
  }
  return w * u;
}

// Grid: N * tiles; a thread for each pixel. Shared: coefficients T [K, C], then columns [C, tile].
template <int I, typename Storage>
__global__ void __launch_bounds__(SOFTMAX_THREADS)
    softmax_gradient(const __grid_constant__ PixelStats op, int64_t tiles, int64_t tile_pixels) {
  using T = typename Compute<Storage>::Type;
  const int64_t n = blockIdx.x / tiles;
  const int C = static_cast<int>(op.C), K = op.rows;
  const SoftmaxNeeds needs(op);
  T* table = reinterpret_cast<T*>(shared_memory());
  for (int k = threadIdx.x; k < K * C; k += SOFTMAX_THREADS)
    table[k] = static_cast<T>(op.coefficient[(k / C * op.groups + n) * C + k % C]);
  __syncthreads();
  const int64_t stride = tile_pixels;
  T* const columns = table + K * C;
  const T* pred = op.moment[PRED] >= 0 ? table + op.moment[PRED] * C : nullptr;
  const T* tp = op.moment[TP] >= 0 ? table + op.moment[TP] * C : nullptr;
  const int64_t first = blockIdx.x % tiles * tile_pixels, end = min_(first + tile_pixels, op.S);
  for (int64_t i = first + threadIdx.x; i < end; i += SOFTMAX_THREADS) {
    T* column = columns + (i - first);
    Own<T> own;
    T dot = T(0);
    softmax_pixel<I, Storage>(op, n, i, needs.logs, column, stride, own, [&](int c, T e) {
      if (I != ANY && pred != nullptr) dot += pred[c] * e;
    });
    const T inverse = T(1) / own.sum;
    if (I != ANY) {
      // out_k = p_k (u A_k + w - dot); the target class gets the value that does not cancel
      const T u = own.keep, at_label = tp == nullptr ? T(0) : tp[own.label],
              a = pred == nullptr ? T(0) : pred[own.label];
      const T w = I == LOGS ? label_slope(op, own, u, T(0), [&](int row) { return table[row * C + own.label]; }) : T(0);
      const T d = u * (dot * inverse + at_label * own.p), base = (w - d) * inverse, scale = u * inverse;
      const T out_label = own.p * (u * (a + at_label) - d) - (I == LOGS ? w * own.q : T(0));
#pragma unroll 4
      for (int c = 0; c < C; ++c) {
        const T other = column[c * stride] * (scale * (pred == nullptr ? T(0) : pred[c]) + base);
        store<Storage>(op, n, c, i, true, c == own.label ? out_label : other);
      }
      continue;
    }
    const T log_sum = own.log_sum;
    const T up = op.upstream.data == nullptr ? T(1) : at<T>(op, op.upstream, n, 0, i);
    Pixel<T> x;
    T w = T(0);
    if (needs.logs && op.index_target) {
      class_weights<I>(op, n, own.label, i, own.label, own.keep, own.keep, x);
      w = label_slope(op, own, x.u * up, x.d, [&](int row) { return table[row * C + own.label]; });
    }
    const T whole = needs.logs && !op.index_target && own.keep > T(0) ? dense_entropy(op, n, i, column, stride, log_sum)
                                                                      : T(0) * own.p;
    // A power of the cross-entropy joins the weights of all classes.
    T joined = T(0);
    for (int j = 0; needs.logs && !op.index_target && j < op.terms; ++j) {
      const Term& term = op.term[j];
      if (term.kind != POWER) continue;
      const T a = static_cast<T>(term.a);
      T scale = T(0);
      for (int c = 0; c < C; ++c) {
        class_weights<I>(op, n, c, i, own.label, own.keep, own.keep, x);
        scale += table[term.row * C + c] * x.y * x.u * up * (term.mapped ? x.d : T(1));
      }
      joined += scale * (whole > T(0) ? a * (a == T(1) ? T(1) : pow_(whole, a - T(1))) : T(0) * whole);
    }
    // g = u dL/dp, h = u d(loss) / d(-log p) of class c
    auto slopes = [&](int c, T& g, T& h) {
      class_weights<I>(op, n, c, i, own.label, own.keep, own.keep, x);
      class_pixel(column[c * stride], inverse, log_sum, c == own.label, own.q, x);
      const T u = x.u * up;
      g = u * moment_slope<I>(op, x, [&](int row) { return table[row * C + c]; });
      h = needs.dense_logs && !op.index_target ? joined * x.y : T(0);
      if (!needs.dense_logs) return;
      for (int j = 0; j < op.terms; ++j) {
        const Term& term = op.term[j];
        if (term.kind != FOCAL_ALL && (term.kind != FOCAL || op.index_target)) continue;
        const T a = static_cast<T>(term.a), y = term.kind == FOCAL_ALL ? T(1) : x.y;
        const T scale = table[term.row * C + c] * y * u * (term.mapped ? x.d : T(1));
        SEGFUSE_WITH_EXPONENT(term.a, {
          const T lq = E == GENERAL ? -log_(x.r) : T(0);
          h += scale * softmax_slope<E>(x.p, x.r, x.lp, lq, a);
        })
      }
    };
    T total = T(0);
    for (int c = 0; c < C; ++c) {
      T g, h;
      slopes(c, g, h);
      dot -= g * x.p;
      total += h;
    }
    // With w counted at the label only:
    // out_k = p_k (g_k - sum g p) + p_k (sum h - h_k + [k != label] w) - q_k (h_k + [k = label] w).
    // The parts are kept apart: w may be so large that the others vanish in it.
    for (int c = 0; c < C; ++c) {
      T g, h;
      slopes(c, g, h);
      T out = x.p * (g + dot);
      if (needs.logs) {
        const bool here = op.index_target && c == own.label;
        out = (out + x.p * ((total - h) + (here ? T(0) : w))) - (h + (here ? w : T(0))) * x.r;
      }
      store<Storage>(op, n, c, i, false, out);
    }
  }
}

// The loss of every pixel. Grid and shared memory as for the gradient.
template <typename Storage>
__global__ void __launch_bounds__(SOFTMAX_THREADS)
    softmax_map(const __grid_constant__ PixelStats op, int64_t tiles, int64_t tile_pixels) {
  using T = typename Compute<Storage>::Type;
  const int64_t n = blockIdx.x / tiles, first = blockIdx.x % tiles * tile_pixels, end = min_(first + tile_pixels, op.S);
  const SoftmaxNeeds needs(op);
  T* const columns = reinterpret_cast<T*>(shared_memory());
  for (int64_t i = first + threadIdx.x; i < end; i += SOFTMAX_THREADS) {
    T* column = columns + (i - first);
    Own<T> own;
    int broken = softmax_pixel<ANY, Storage>(op, n, i, true, column, tile_pixels, own, [](int, T) {});
    const T log_sum = own.log_sum, inverse = T(1) / own.sum;
    const T whole = op.index_target    ? own.l
                    : own.keep == T(0) ? T(0)
                                       : dense_entropy(op, n, i, column, tile_pixels, log_sum);
    T out = T(0);
    for (int64_t c = 0; c < op.C; ++c) {
      Pixel<T> x;
      class_weights<ANY>(op, n, c, i, own.label, own.keep, own.keep, x);
      if (op.weight.data != nullptr && (c == 0 || op.weight.channel != 0))
        broken += at<T>(op, op.weight, n, c, i) < T(0);
      class_pixel(column[c * tile_pixels], inverse, log_sum, c == own.label, own.q, x);
      if (op.index_target && c == own.label) x.lp = own.l;
      for (int j = 0; j < op.terms; ++j) {
        const Term& term = op.term[j];
        T pos, neg;
        term_parts(term, x, true, whole, pos, neg);
        const T k = static_cast<T>(op.coefficient[(term.row * op.groups + n) * op.C + c]);
        out += weigh(k * x.u * (term.mapped ? x.d : T(1)), pos, x.p);
      }
    }
    store<T>(op, n, 0, i, false, broken ? static_cast<T>(NAN) : out);
  }
}

// ------------------------------------------------------------------------------------------------ sums of partial sums

// sums [K, N, C] from partial [N, runs, K + 1, C]: a warp for each. Grid: (ceil(K N C / warps)).
__global__ void __launch_bounds__(THREADS)
    add_partial(const double* partial, double* sums, int64_t K, int64_t N, int64_t C, int64_t runs) {
  const int64_t k = blockIdx.x * static_cast<int64_t>(THREADS / WARP) + threadIdx.x / WARP;
  if (k >= K * N * C) return;  // the whole warp
  const int64_t c = k % C, n = k / C % N, row = k / C / N;
  const int lane = threadIdx.x % WARP;
  double sum = 0, broken = 0;
  for (int64_t r = lane; r < runs; r += WARP) {
    const double* own = partial + (n * runs + r) * (K + 1) * C + c;
    sum += own[row * C];
    broken += own[K * C];
  }
  sum = warp_sum(sum);
  broken = warp_sum(broken);
  if (lane == 0) sums[k] = broken > 0 ? static_cast<double>(NAN) : sum;
}

// ------------------------------------------------------------------------------------------------ launches

bool softmax(const PixelStats& op) { return op.activation == SOFTMAX; }

size_t value_size(const PixelStats& op) { return op.input.dtype == F64 ? sizeof(double) : sizeof(float); }

// 0: there is no room for the classes of one pixel.
int64_t tile_pixels(const PixelStats& op) {
  const int64_t pixel =
      (op.C + 6 + LEAN_TERMS) * static_cast<int64_t>(value_size(op)) + static_cast<int64_t>(sizeof(int));
  const int64_t room = MOST_ROOM - (op.rows + 1) * op.C * static_cast<int64_t>(sizeof(double));
  int64_t tile = 4 * SOFTMAX_THREADS;
  while (tile > SOFTMAX_THREADS && tile * pixel > ROOM) tile /= 2;
  while (tile > 0 && tile * pixel > room) tile /= 2;
  return tile;
}

struct Runs {
  int64_t planes, length, number;
  explicit Runs(const PixelStats& op) {
    planes = op.N * (softmax(op) ? 1 : op.C);
    const int64_t tile = softmax(op) ? tile_pixels(op) : ELEMENT_TILE;
    const int64_t wanted = (op.S * planes + BLOCKS - 1) / BLOCKS;
    length = min_(max_((wanted + tile - 1) / tile, int64_t(1)) * tile, max_(LONGEST_RUN / tile, int64_t(1)) * tile);
    number = (op.S + length - 1) / length;
  }
};

// Dense logits and gradient, and class numbers or hard masks without weights, which the lean instances read.
bool dense(const PixelStats& op) {
  if (op.dims != 1 || op.input.spatial[0] != 1 || op.target.spatial[0] != 1) return false;
  if (op.output.data != nullptr && op.output.spatial[0] != 1) return false;
  if (op.weight.data != nullptr || op.mask.data != nullptr || op.distance.data != nullptr) return false;
  if (op.upstream.data != nullptr || op.activation == IDENTITY) return false;
  return op.index_target || (!softmax(op) && op.target.dtype >= BOOL);
}

Instance instance_of(const PixelStats& op) {
  if (!dense(op) || op.terms > LEAN_TERMS) return ANY;
  for (int m = 0; m < MOMENTS; ++m) {
    const bool lean = m == COUNT || m == TRUE_COUNT || m == WEIGHT || m == TRUE || m == PRED || m == TP;
    if (op.moment[m] >= 0 && !lean) return ANY;
  }
  for (int k = 0; k < op.terms; ++k) {
    const Term& term = op.term[k];
    if (term.mapped || !logarithmic(term.kind) || (softmax(op) && term.kind == FOCAL_ALL)) return ANY;
  }
  return op.terms > 0 ? LOGS : REGION;
}

// Calls f with the instance as a constant.
template <typename F>
cudaError_t with_instance(Instance instance, F f) {
  switch (instance) {
    case REGION:
      return f(std::integral_constant<int, REGION>());
    case LOGS:
      return f(std::integral_constant<int, LOGS>());
    default:
      return f(std::integral_constant<int, ANY>());
  }
}

}  // namespace

namespace cuda {

int64_t pixel_stats_workspace(const PixelStats& op) {
  if (softmax(op) && tile_pixels(op) == 0) return -1;
  return op.N * Runs(op).number * (op.rows + 1) * op.C * static_cast<int64_t>(sizeof(double));
}

cudaError_t pixel_stats_forward(const PixelStats& op, double* sums, void* workspace, cudaStream_t stream) {
  const Runs runs(op);
  double* partial = static_cast<double*>(workspace);
  const size_t table = (op.rows + 1) * sizeof(double);
  SEGFUSE_WITH_STORAGE(op.input.dtype, {
    SEGFUSE_TRY(with_instance(instance_of(op), [&](auto i) {
      constexpr int I = decltype(i)::value;
      const unsigned grid = static_cast<unsigned>(runs.number * runs.planes);
      if (!softmax(op))
        return launch(element_sums<I, Storage>, grid, THREADS, table * (THREADS / WARP), stream, op, partial,
                      runs.length, runs.number);
      const int64_t pixels = tile_pixels(op);
      const size_t shared = table * op.C + Tile<typename Compute<Storage>::Type>::bytes(op.C, pixels);
      return launch(softmax_sums<I, Storage>, grid, SOFTMAX_THREADS, shared, stream, op, partial, runs.length,
                    runs.number, pixels);
    }));
  })
  const int64_t outputs = op.rows * op.N * op.C, warps = THREADS / WARP;
  return launch(add_partial, static_cast<unsigned>((outputs + warps - 1) / warps), THREADS, 0, stream, partial, sums,
                op.rows, op.N, op.C, runs.number);
}

cudaError_t pixel_stats_backward(const PixelStats& op, cudaStream_t stream) {
  const int64_t pixels = softmax(op) ? tile_pixels(op) : ELEMENT_TILE, tiles = (op.S + pixels - 1) / pixels;
  const unsigned grid = static_cast<unsigned>(tiles * op.N * (softmax(op) ? 1 : op.C));
  SEGFUSE_WITH_STORAGE(op.input.dtype, {
    return with_instance(instance_of(op), [&](auto i) {
      constexpr int I = decltype(i)::value;
      const size_t table = op.rows * value_size(op);
      if (!softmax(op)) return launch(element_gradient<I, Storage>, grid, THREADS, table, stream, op, tiles);
      return launch(softmax_gradient<I, Storage>, grid, SOFTMAX_THREADS, (table + pixels * value_size(op)) * op.C,
                    stream, op, tiles, pixels);
    });
  })
  return cudaSuccess;
}

cudaError_t pixel_stats_map(const PixelStats& op, cudaStream_t stream) {
  const int64_t pixels = softmax(op) ? tile_pixels(op) : ELEMENT_TILE, tiles = (op.S + pixels - 1) / pixels;
  const unsigned grid = static_cast<unsigned>(tiles * op.N * (softmax(op) ? 1 : op.C));
  SEGFUSE_WITH_STORAGE(op.input.dtype, {
    if (!softmax(op)) return launch(element_map<Storage>, grid, THREADS, 0, stream, op, tiles);
    return launch(softmax_map<Storage>, grid, SOFTMAX_THREADS, pixels * value_size(op) * op.C, stream, op, tiles,
                  pixels);
  })
  return cudaSuccess;
}

}  // namespace cuda
}  // namespace segfuse
