// Moments of windows and the losses made of them, on one box of pixels; compiled once per instruction set.
//
// A sweep marches along the outermost axis. Each incoming row is filtered along x, each plane along y, and the last
// `2 r + 1` planes, kept in a ring, along z: the moments of a centre. A gradient goes the same way back, z, y, x.
//
// Memory:   a box reads its pixels and those within the radius (twice the radius for a gradient); nothing but results
//           leaves the ring, which is sized to stay in the second-level cache.
// Numerics: along each axis a window is combined relative to its centre. The windows of an axis have means m_k and
//           variances v_k; then by the law of total variance, with weights w that add up to 1 and d_k = m_k - m_0,
//             m = m_0 + sum w d,    v = sum w v + sum w d^2 - (sum w d)^2,
//           and alike for the covariance. So a flat window has exactly variance 0, and nothing cancels.
// Order:    taps in index order; what a box adds up does not depend on the threads.
// Source:   law of total variance; the separable form of the windows of Wang et al. 2004 (doi:10.1109/TIP.2003.819861).
#include "rows.h"

namespace segfuse {
namespace SEGFUSE_ISA {
namespace {

// Rows of a record. Pixels: the two images. Moments: of every centre. Adjoint: what goes back.
enum : int { A, B, PIXEL_ROWS };
enum : int { MEAN_A, VAR_A, MEAN_B, VAR_B, COV, MOMENT_ROWS };
enum : int { G_MEAN, G_VAR, AT_A, G_COV, AT_B, DIRECT, ENTROPY, ADJOINT_ROWS };  // G_VAR: twice the derivative

// ---------------------------------------------------------------------------------------------------- one axis

// Adds K taps of the windows of a row to `out`; the first call starts, the last one finishes. A tap is a record whose
// rows lie `width` apart.
template <int K, bool FIRST, bool LAST, bool RAW, int IMAGES, bool WITH_COV, typename T>
void gather(const T* const* taps, const T* weights, const T* centre, T* out, int64_t width, int64_t length) {
  constexpr int b = RAW ? int(B) : int(MEAN_B);
  const T* tap[K];
  T w[K];
  for (int k = 0; k < K; ++k) tap[k] = taps[k], w[k] = weights[k];
  SIMD for (int64_t x = 0; x < length; ++x) {
    T sa = FIRST ? T(0) : out[MEAN_A * width + x], qa = FIRST ? T(0) : out[VAR_A * width + x];
    T sb = 0, qb = 0, ab = 0;
    if (!FIRST && IMAGES == 2) sb = out[MEAN_B * width + x], qb = out[VAR_B * width + x];
    if (!FIRST && WITH_COV) ab = out[COV * width + x];
    const T ca = centre[x], cb = IMAGES == 2 ? centre[b * width + x] : T(0);
    for (int k = 0; k < K; ++k) {
      const T da = tap[k][x] - ca, wa = w[k] * da;
      sa += wa;
      qa += wa * da;
      if (!RAW) qa += w[k] * tap[k][VAR_A * width + x];
      if (IMAGES == 2) {
        const T db = tap[k][b * width + x] - cb, wb = w[k] * db;
        sb += wb;
        qb += wb * db;
        if (!RAW) qb += w[k] * tap[k][VAR_B * width + x];
        if (WITH_COV) ab += wa * db;
        if (WITH_COV && !RAW) ab += w[k] * tap[k][COV * width + x];
      }
    }
    if (LAST) {
      const T va = qa - sa * sa, vb = qb - sb * sb;
      qa = va < T(0) ? T(0) : va;
      qb = vb < T(0) ? T(0) : vb;
      ab -= sa * sb;
      sa += ca;
      sb += cb;
    }
    out[MEAN_A * width + x] = sa;
    out[VAR_A * width + x] = qa;
    if (IMAGES == 2) out[MEAN_B * width + x] = sb, out[VAR_B * width + x] = qb;
    if (WITH_COV) out[COV * width + x] = ab;
  }
}

// The transpose: what the windows of the taps send back to this row. a, b: the row's own values.
//   mean' = sum w (g_mean + g_var (a - mean_a) + g_cov (b - mean_b)),  var' = sum w g_var,  cov' = sum w g_cov
template <int K, bool FIRST, bool LAST, bool WITH_COV, typename T>
void scatter(const T* const* taps, const T* weights, const T* a, const T* b, T* out, int64_t width, int64_t length) {
  const T* tap[K];
  T w[K];
  for (int k = 0; k < K; ++k) tap[k] = taps[k], w[k] = weights[k];
  SIMD for (int64_t x = 0; x < length; ++x) {
    T mean = FIRST ? T(0) : out[G_MEAN * width + x], var = FIRST ? T(0) : out[G_VAR * width + x];
    T cov = FIRST || !WITH_COV ? T(0) : out[G_COV * width + x];
    const T at_a = a[x], at_b = WITH_COV ? b[x] : T(0);
    for (int k = 0; k < K; ++k) {
      const T gv = tap[k][G_VAR * width + x];
      T g = tap[k][G_MEAN * width + x] + gv * (at_a - tap[k][AT_A * width + x]);
      var += w[k] * gv;
      if (WITH_COV) {
        const T gc = tap[k][G_COV * width + x];
        g += gc * (at_b - tap[k][AT_B * width + x]);
        cov += w[k] * gc;
      }
      mean += w[k] * g;
    }
    out[G_MEAN * width + x] = mean;
    out[G_VAR * width + x] = var;
    if (LAST) out[AT_A * width + x] = at_a;
    if (WITH_COV) out[G_COV * width + x] = cov;
    if (WITH_COV && LAST) out[AT_B * width + x] = at_b;
  }
}

// Calls step(pieces of 4, 3 or 1 taps): f.template run<K, FIRST, LAST>(first tap).
template <typename F>
inline void in_pieces(int taps, F f) {
  if (taps == 1) return f.template run<1, true, true>(0);
  if (taps == 3) return f.template run<3, true, true>(0);
  f.template run<4, true, false>(0);
  int k = 4;
  for (; k + 4 < taps; k += 4) f.template run<4, false, false>(k);
  taps - k == 3 ? f.template run<3, false, true>(k) : f.template run<1, false, true>(k);
}

template <bool RAW, int IMAGES, bool WITH_COV, typename T>
struct Gather {
  const T* const* taps;
  const T* weights;
  const T* centre;
  T* out;
  int64_t width, length;
  template <int K, bool FIRST, bool LAST>
  void run(int k) const {
    gather<K, FIRST, LAST, RAW, IMAGES, WITH_COV>(taps + k, weights + k, centre, out, width, length);
  }
};

template <bool WITH_COV, typename T>
struct Scatter {
  const T* const* taps;
  const T* weights;
  const T *a, *b;
  T* out;
  int64_t width, length;
  template <int K, bool FIRST, bool LAST>
  void run(int k) const {
    scatter<K, FIRST, LAST, WITH_COV>(taps + k, weights + k, a, b, out, width, length);
  }
};

// ---------------------------------------------------------------------------------------------------- the sweep

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

constexpr int POLICY_ROWS = 9;  // that a policy may use

// Where the rows of a sweep lie in the scratch of one thread.
struct Rows {
  int64_t width, ring, plane, filtered;  // floats in a row, planes in the ring, rows in a plane of it, rows before y
  Rows(const Windows& w, const int64_t tile[3])
      : width(round_up(tile[2] + 4 * w.radius[2], 16)),
        ring(2 * w.radius[0] + 1),
        plane(tile[1] + 2 * w.radius[1]),
        filtered(w.radius[1] == 0 ? 0 : tile[1] + 4 * w.radius[1]) {}
  int64_t floats() const {
    const int64_t kept = ring * plane * (MOMENT_ROWS + ADJOINT_ROWS) + filtered * MOMENT_ROWS + plane * ADJOINT_ROWS;
    return width * (kept + PIXEL_ROWS + 3 * ADJOINT_ROWS + MOMENT_ROWS + POLICY_ROWS);
  }
};

// A policy says what the images are, what becomes of the moments of a centre, and what of a gradient:
//   using T; IMAGES, WITH_COV: which moments; BACK_COV: whether the covariance has a gradient
//   T* rows                                                    POLICY_ROWS rows of its own
//   void load(z, y, x, length, T* record, width)               the images, 0 outside the axis x
//   void centre(z, y, x, length, const T* moments, T* adjoint, width, counts)
//       centres [x, x + length); with `adjoint` their gradients; counts: [first, last) of them belong to the box
//   void pixel(z, y, x, length, const T* gradient, const T* adjoint, width)
//       gradient of a; adjoint: the record that `centre` made of these pixels, or nullptr where there was no window
template <typename Policy>
struct Sweep {
  using T = typename Policy::T;
  Policy& policy;
  const Windows& w;
  const Box& box;
  const bool backward;
  const Rows rows;
  T weight[3][2 * MAX_RADIUS + 1];
  int64_t low[3], high[3];   // centres with a window
  int64_t begin[3], end[3];  // centres that are worked on; along x all that the box can see
  T *moments_ring, *adjoint_ring, *filtered, *plane, *pixels, *zero, *record, *sent, *moments;

  Sweep(Policy& p, const Windows& windows, const Box& b, const int64_t tile[3], bool back, void* scratch)
      : policy(p), w(windows), box(b), backward(back), rows(windows, tile) {
    for (int d = 0; d < 3; ++d) {
      const int64_t r = w.radius[d], reach = backward ? r : 0;
      for (int k = 0; k <= 2 * r; ++k) weight[d][k] = static_cast<T>(w.weight[d][k]);
      low[d] = w.valid ? r : 0;
      high[d] = w.shape[d] - low[d];
      begin[d] = d == 2 ? box.begin[d] - reach : max_(box.begin[d] - reach, low[d]);
      end[d] = d == 2 ? box.end[d] + reach : min_(box.end[d] + reach, high[d]);
    }
    T* next = static_cast<T*>(scratch);
    auto take = [&](int64_t count) {
      T* at = next;
      next += count * rows.width;
      return at;
    };
    moments_ring = take(rows.ring * rows.plane * MOMENT_ROWS);
    adjoint_ring = take(rows.ring * rows.plane * ADJOINT_ROWS);
    filtered = take(rows.filtered * MOMENT_ROWS);
    plane = take(rows.plane * ADJOINT_ROWS);
    pixels = take(PIXEL_ROWS);
    zero = take(ADJOINT_ROWS);
    record = take(ADJOINT_ROWS);
    sent = take(ADJOINT_ROWS);
    moments = take(MOMENT_ROWS);
    policy.rows = take(POLICY_ROWS);
    for (int64_t i = 0; i < ADJOINT_ROWS * rows.width; ++i) zero[i] = T(0);
  }

  int64_t slot(int64_t z) const { return (z + 2 * rows.ring * rows.ring) % rows.ring; }  // z >= -2 radius
  T* moments_at(int64_t z, int64_t y) const {
    return moments_ring + (slot(z) * rows.plane + (y - begin[1])) * MOMENT_ROWS * rows.width;
  }
  T* adjoint_at(int64_t z, int64_t y) const {
    return adjoint_ring + (slot(z) * rows.plane + (y - begin[1])) * ADJOINT_ROWS * rows.width;
  }
  bool any() const { return begin[0] < end[0] && begin[1] < end[1]; }  // windows
  bool centred(int d, int64_t at) const { return at >= begin[d] && at < end[d]; }
  bool inside(int d, int64_t at) const { return at >= 0 && at < w.shape[d]; }

  template <bool RAW, bool COVARIANCE>
  void gather_row(int d, const T* const* taps, const T* centre, T* out, int64_t length) const {
    in_pieces(2 * w.radius[d] + 1,
              Gather<RAW, Policy::IMAGES, COVARIANCE, T>{taps, weight[d], centre, out, rows.width, length});
  }
  void scatter_row(int d, const T* const* taps, const T* a, const T* b, T* out, int64_t length) const {
    in_pieces(2 * w.radius[d] + 1, Scatter<Policy::BACK_COV, T>{taps, weight[d], a, b, out, rows.width, length});
  }

  int64_t length() const { return end[2] - begin[2]; }

  // Loads a row and combines it along x: the moments of [begin, end).
  template <bool COVARIANCE>
  void along_x(int64_t z, int64_t y, T* out) const {
    const int r = w.radius[2];
    policy.load(z, y, begin[2] - r, length() + 2 * r, pixels, rows.width);
    const T* taps[2 * MAX_RADIUS + 1];
    for (int k = 0; k <= 2 * r; ++k) taps[k] = pixels + k;
    gather_row<true, COVARIANCE>(2, taps, pixels + r, out, length());
  }

  // One incoming plane, combined along x and y.
  void plane_in(int64_t z) const {
    const int r = w.radius[1];
    if (r == 0) {
      for (int64_t y = begin[1]; y < end[1]; ++y) along_x<Policy::WITH_COV>(z, y, moments_at(z, y));
      return;
    }
    const int64_t stride = MOMENT_ROWS * rows.width, from = begin[1] - r;
    for (int64_t y = max_(from, int64_t(0)); y < min_(end[1] + r, w.shape[1]); ++y)
      along_x<Policy::WITH_COV>(z, y, filtered + (y - from) * stride);
    const T* taps[2 * MAX_RADIUS + 1];
    for (int64_t y = begin[1]; y < end[1]; ++y) {
      for (int k = 0; k <= 2 * r; ++k) taps[k] = inside(1, y - r + k) ? filtered + (y - r + k - from) * stride : zero;
      gather_row<false, Policy::WITH_COV>(1, taps, taps[r], moments_at(z, y), length());
    }
  }

  // The moments of the centres of a plane, and what the policy makes of them.
  void centres(int64_t z) const {
    const int r = w.radius[0];
    const int64_t first = max_(begin[2], low[2]), last = min_(end[2], high[2]);
    const T* taps[2 * MAX_RADIUS + 1];
    for (int64_t y = begin[1]; y < end[1]; ++y) {
      T* adjoint = backward ? adjoint_at(z, y) : nullptr;
      for (int row = 0; backward && row < ADJOINT_ROWS; ++row) {
        T* to = adjoint + row * rows.width;
        for (int64_t x = begin[2]; x < first && x < end[2]; ++x) to[x - begin[2]] = T(0);
        for (int64_t x = max_(last, begin[2]); x < end[2]; ++x) to[x - begin[2]] = T(0);
      }
      if (first >= last) continue;
      for (int k = 0; k <= 2 * r; ++k) taps[k] = inside(0, z - r + k) ? moments_at(z - r + k, y) : zero;
      gather_row<false, Policy::WITH_COV>(0, taps, taps[r], moments, length());
      const bool own = z >= box.begin[0] && z < box.end[0] && y >= box.begin[1] && y < box.end[1];
      const int64_t from = own ? max_(box.begin[2], first) : first, to = own ? min_(box.end[2], last) : first;
      const int64_t at = first - begin[2];
      policy.centre(z, y, first, last - first, moments + at, adjoint == nullptr ? nullptr : adjoint + at, rows.width,
                    from - first, to - first);
    }
  }

  // The gradient of the pixels of a plane.
  void plane_out(int64_t z) const {
    const int rz = w.radius[0], ry = w.radius[1], rx = w.radius[2];
    const T* taps[2 * MAX_RADIUS + 1];
    auto along_z = [&](int64_t y, T* out) {
      for (int k = 0; k <= 2 * rz; ++k) taps[k] = centred(0, z - rz + k) ? adjoint_at(z - rz + k, y) : zero;
      const T* own = any() ? moments_at(z, y) : zero;
      scatter_row(0, taps, own + MEAN_A * rows.width, own + MEAN_B * rows.width, out, length());
    };
    const int64_t stride = ADJOINT_ROWS * rows.width;
    for (int64_t y = begin[1]; ry > 0 && y < end[1]; ++y) along_z(y, plane + (y - begin[1]) * stride);
    for (int64_t y = box.begin[1]; y < box.end[1]; ++y) {
      if (ry == 0) {
        policy.load(z, y, begin[2] - rx, length() + 2 * rx, pixels, rows.width);
        along_z(y, record);
      } else {
        along_x<false>(z, y, moments);
        for (int k = 0; k <= 2 * ry; ++k)
          taps[k] = centred(1, y - ry + k) ? plane + (y - ry + k - begin[1]) * stride : zero;
        scatter_row(1, taps, moments + MEAN_A * rows.width, moments + MEAN_B * rows.width, record, length());
      }
      for (int k = 0; k <= 2 * rx; ++k) taps[k] = record + k;
      const T* own = pixels + 2 * rx;
      const int64_t count = box.end[2] - box.begin[2];
      scatter_row(2, taps, own + A * rows.width, own + B * rows.width, sent, count);
      const T* adjoint = centred(0, z) && centred(1, y) ? adjoint_at(z, y) + rx : nullptr;
      policy.pixel(z, y, box.begin[2], count, sent + G_MEAN * rows.width, adjoint, rows.width);
    }
  }

  void run() const {
    const int64_t r = w.radius[0], reach = backward ? r : 0;
    for (int64_t z = box.begin[0] - reach - r; z < box.end[0] + reach + r; ++z) {
      if (any() && inside(0, z) && z >= begin[0] - r && z < end[0] + r) plane_in(z);
      if (any() && centred(0, z - r)) centres(z - r);
      const int64_t out = z - 2 * r;
      if (backward && out >= box.begin[0] && out < box.end[0]) plane_out(out);
    }
  }
};

// ---------------------------------------------------------------------------------------------------- rows of tensors

inline int64_t offset_of(const View& v, int64_t n, int64_t c, int64_t z, int64_t y, int64_t x) {
  return n * v.batch + c * v.channel + z * v.spatial[0] + y * v.spatial[1] + x * v.spatial[2];
}

// Pixels [x, x + length) of a row as T.
template <typename T>
void read_row(const View& v, int64_t n, int64_t c, int64_t z, int64_t y, int64_t x, int64_t length, T* out) {
  const int64_t offset = offset_of(v, n, c, z, y, x);
  as_stored(v, [=, &v](const auto* data) { read(data + offset, v.spatial[2], length, out); });
}

template <typename T>
void write_row(const View& v, int64_t n, int64_t c, int64_t z, int64_t y, int64_t x, int64_t length, const T* in) {
  const int64_t offset = offset_of(v, n, c, z, y, x);
  as_results(v, T(), [=, &v](auto* data) { write(in, v.spatial[2], length, data + offset); });
}

template <typename T>
inline void clear(T* row, int64_t length) {
  for (int64_t i = 0; i < length; ++i) row[i] = T(0);
}

// ---------------------------------------------------------------------------------------------------- local_moments

template <typename Float, int Images>
struct MomentsPolicy {
  using T = Float;
  static constexpr int IMAGES = Images;
  static constexpr bool WITH_COV = Images == 2, BACK_COV = Images == 2;
  const LocalMoments& op;
  const Box& box;
  T* rows = nullptr;

  void load(int64_t z, int64_t y, int64_t x, int64_t length, T* record, int64_t width) const {
    const int64_t skip = max_(-x, int64_t(0)), count = min_(x + length, op.windows.shape[2]) - (x + skip);
    for (int image = 0; image < IMAGES; ++image) {
      T* row = record + image * width;
      clear(row, skip);
      read_row(image == A ? op.a : op.b, box.n, box.c, z, y, x + skip, count, row + skip);
      clear(row + skip + count, length - skip - count);
    }
  }

  int64_t result(int64_t z, int64_t y, int64_t x) const {  // offset of a centre in the results
    const Windows& w = op.windows;
    int64_t low[3], shape[3];
    for (int d = 0; d < 3; ++d) low[d] = w.valid ? w.radius[d] : 0, shape[d] = w.shape[d] - 2 * low[d];
    return (((box.n * w.C + box.c) * shape[0] + z - low[0]) * shape[1] + y - low[1]) * shape[2] + x - low[2];
  }

  void centre(int64_t z, int64_t y, int64_t x, int64_t length, const T* moments, T* adjoint, int64_t width,
              int64_t first, int64_t last) const {
    const int64_t at = result(z, y, x);
    if (adjoint == nullptr) {
      for (int row = 0; row < (IMAGES == 2 ? 5 : 2); ++row) {
        T* to = static_cast<T*>(op.row[row]) + at;
        SIMD for (int64_t i = first; i < last; ++i) to[i] = moments[row * width + i];
      }
      return;
    }
    auto gradient = [&](int row, int to, T factor) {
      const T* from = static_cast<const T*>(op.row[row]);
      if (from == nullptr) return clear(adjoint + to * width, length);
      from += at;
      SIMD for (int64_t i = 0; i < length; ++i) adjoint[to * width + i] = factor * from[i];
    };
    auto keep = [&](int row, int to) {
      SIMD for (int64_t i = 0; i < length; ++i) adjoint[to * width + i] = moments[row * width + i];
    };
    gradient(MEAN_A, G_MEAN, T(1));
    gradient(VAR_A, G_VAR, T(2));
    keep(MEAN_A, AT_A);
    if (IMAGES == 2) gradient(COV, G_COV, T(1)), keep(MEAN_B, AT_B);
  }

  void pixel(int64_t z, int64_t y, int64_t x, int64_t length, const T* gradient, const T*, int64_t) const {
    write_row(op.output, box.n, box.c, z, y, x, length, gradient);
  }
};

// ---------------------------------------------------------------------------------------------------- pixels of a loss

// One row of one class; an ignored pixel and one outside the image have p = y = m = 0.
template <typename T>
struct Pixels {
  T *p, *y;
  T* m = nullptr;  // the rest only where it is asked for. m: valid
  T* u = nullptr;  // m times the weight
  T* q = nullptr;  // 1 - p without cancellation
  T* l = nullptr;  // cross-entropy: of the target class where classes exclude each other, else of the element
};

template <typename T>
inline T* plane_row(void* plane, const Windows& w, int64_t number, int64_t z, int64_t y, int64_t x) {
  return static_cast<T*>(plane) + ((number * w.shape[0] + z) * w.shape[1] + y) * w.shape[2] + x;
}

// Labels become y, valid pixels m. `buffer`: a row. Returns the number of targets out of range.
template <typename T>
int64_t read_target(const WindowLoss& op, int64_t n, int64_t c, int64_t z, int64_t y, int64_t x, int64_t count,
                    T* label, T* m, T* buffer) {
  read_row(op.target, n, op.index_target ? 0 : c, z, y, x, count, label);
  const bool whole = op.index_target, fraction = whole && op.target.dtype < BOOL;
  const T top = whole ? static_cast<T>(op.windows.C - 1) : T(1), ignore = static_cast<T>(op.ignore_index);
  int odd = 0;  // targets that need a second look
  if (fraction) {
    SIMD_REDUCE(+ : odd) for (int64_t i = 0; i < count; ++i) {
      const bool in = (label[i] >= T(0)) & (label[i] <= top);
      const T t = in ? label[i] : T(0);
      odd += (!in) | (t != static_cast<T>(static_cast<int32_t>(t)));
    }
  } else {
    SIMD_REDUCE(+ : odd) for (int64_t i = 0; i < count; ++i) odd += !((label[i] >= T(0)) & (label[i] <= top));
  }
  const bool ignorable = op.ignore_index >= 0 && double(op.ignore_index) <= double(top);
  if (odd == 0 && !ignorable && op.mask.data == nullptr) {
    SIMD for (int64_t i = 0; i < count; ++i) m[i] = T(1);
    return 0;
  }
  if (op.mask.data != nullptr) {
    read_row(op.mask, n, op.mask.channel == 0 ? 0 : c, z, y, x, count, buffer);
  } else {
    SIMD for (int64_t i = 0; i < count; ++i) buffer[i] = T(1);
  }
  int invalid = 0;
  SIMD_REDUCE(+ : invalid) for (int64_t i = 0; i < count; ++i) {
    const bool in = (label[i] >= T(0)) & (label[i] <= top);
    const T t = in ? label[i] : T(0);
    const bool fits = in & ((!fraction) | (t == static_cast<T>(static_cast<int32_t>(t))));
    const bool kept = (label[i] != ignore) & (buffer[i] != T(0));
    invalid += kept & !fits;
    m[i] = (kept & fits) ? T(1) : T(0);
    label[i] = (kept & fits) ? t : T(0);
  }
  return invalid;
}

template <typename T>
int64_t load_pixels(const WindowLoss& op, int64_t n, int64_t c, int64_t z, int64_t y, int64_t x, int64_t length,
                    const Pixels<T>& out, T* valid, T* buffer) {
  const int64_t skip = max_(-x, int64_t(0)), count = min_(x + length, op.windows.shape[2]) - (x + skip);
  const int64_t rest = length - skip - count;
  T* const given[] = {out.p, out.y, out.m, out.u, out.q, out.l};
  for (T* row : given)
    if (row != nullptr) clear(row, skip), clear(row + skip + count, rest);
  x += skip;
  T *p = out.p + skip, *t = out.y + skip, *m = (out.m == nullptr ? valid : out.m) + skip;
  T* q = out.q == nullptr ? nullptr : out.q + skip;
  T* l = out.l == nullptr ? nullptr : out.l + skip;
  int64_t invalid = read_target(op, n, c, z, y, x, count, t, m, buffer);
  if (op.index_target) {
    const T number = static_cast<T>(c);
    SIMD for (int64_t i = 0; i < count; ++i) t[i] = ((t[i] == number) & (m[i] > T(0))) ? T(1) : T(0);
  }
  if (out.u != nullptr) {
    T* u = out.u + skip;
    if (op.weight.data != nullptr) {
      read_row(op.weight, n, op.weight.channel == 0 ? 0 : c, z, y, x, count, buffer);
      SIMD_REDUCE(+ : invalid) for (int64_t i = 0; i < count; ++i) {
        invalid += buffer[i] < T(0);
        u[i] = m[i] > T(0) ? buffer[i] : T(0);
      }
    } else {
      SIMD for (int64_t i = 0; i < count; ++i) u[i] = m[i];
    }
  }
  if (op.activation == SOFTMAX) {
    const T* from = plane_row<T>(op.probability, op.windows, n * op.windows.C + c, z, y, x);
    SIMD for (int64_t i = 0; i < count; ++i) p[i] = m[i] > T(0) ? from[i] : T(0);
    if (l != nullptr) {
      const T* entropy = plane_row<T>(op.entropy, op.windows, n, z, y, x);
      SIMD for (int64_t i = 0; i < count; ++i) l[i] = t[i] > T(0) ? entropy[i] : T(0);
    }
    return invalid;
  }
  T* logit = buffer;
  read_row(op.input, n, c, z, y, x, count, logit);
  if (op.activation == SIGMOID) {
    if (q == nullptr && l == nullptr) {
      SIMD for (int64_t i = 0; i < count; ++i) {
        const T v = logit[i], e = exp_negative(v > T(0) ? -v : v), r = T(1) / (T(1) + e);
        p[i] = m[i] > T(0) ? (v >= T(0) ? r : e * r) : T(0);
      }
      return invalid;
    }
    SIMD for (int64_t i = 0; i < count; ++i) {
      const T v = m[i] > T(0) ? logit[i] : T(0), e = exp_negative(v > T(0) ? -v : v), r = T(1) / (T(1) + e);
      p[i] = m[i] > T(0) ? (v >= T(0) ? r : e * r) : T(0);
      if (q != nullptr) q[i] = v >= T(0) ? e * r : r;
    }
    if (l != nullptr) {
      SIMD for (int64_t i = 0; i < count; ++i) {
        const T v = m[i] > T(0) ? logit[i] : T(0), e = exp_negative(v > T(0) ? -v : v);
        const T share = v >= T(0) ? T(1) - t[i] : t[i];  // of the side that the logit argues against
        l[i] = m[i] > T(0) ? log1p_unit(e) + (share == T(0) && v == v ? T(0) : share * (v >= T(0) ? v : -v)) : T(0);
      }
    }
    return invalid;
  }
  SIMD for (int64_t i = 0; i < count; ++i) p[i] = m[i] > T(0) ? logit[i] : T(0);
  if (q != nullptr) {
    SIMD for (int64_t i = 0; i < count; ++i) q[i] = T(1) - p[i];
  }
  if (l != nullptr) {
    const T least = CLAMP<T>, other = op.exclusive ? T(0) : T(1);
    SIMD for (int64_t i = 0; i < count; ++i) {
      const T yes = p[i] < least ? least : p[i], no = T(1) - p[i] < least ? least : T(1) - p[i];
      l[i] = m[i] > T(0) ? -(t[i] * log_(yes) + other * (T(1) - t[i]) * log_(no)) : T(0);
    }
  }
  return invalid;
}

// What the two losses share: the images are p and y.
template <typename Float>
struct LossPolicy {
  using T = Float;
  static constexpr int IMAGES = 2;
  const WindowLoss& op;
  const Box& box;
  T* rows = nullptr;
  mutable int64_t invalid = 0;

  LossPolicy(const WindowLoss& loss, const Box& b) : op(loss), box(b) {}
  T* own(int row, int64_t width) const { return rows + row * width; }
  void load(int64_t z, int64_t y, int64_t x, int64_t length, T* record, int64_t width) const {
    invalid += load_pixels<T>(op, box.n, box.c, z, y, x, length, {record + A * width, record + B * width},
                              own(0, width), own(1, width));
  }
  int64_t group() const { return box.n * op.windows.C + box.c; }

  // From d loss / dp to the gradient of the logits; `direct`: what the cross-entropy adds, as a factor of it.
  void finish(int64_t z, int64_t y, int64_t x, int64_t length, const T* gradient, const T* direct,
              int64_t width) const {
    if (op.activation == SOFTMAX) {  // the classes of a pixel meet in softmax_backward
      T* to = plane_row<T>(op.grad_probability, op.windows, group(), z, y, x);
      SIMD for (int64_t i = 0; i < length; ++i) to[i] = gradient[i];
      if (direct != nullptr) {
        const Pixels<T> s{own(2, width), own(3, width), own(4, width)};
        load_pixels<T>(op, box.n, box.c, z, y, x, length, s, own(0, width), own(1, width));
        T* entropy = plane_row<T>(op.grad_entropy, op.windows, box.n, z, y, x);
        for (int64_t i = 0; i < length; ++i)
          if (s.y[i] > T(0)) entropy[i] = direct[i];
      }
      return;
    }
    const Pixels<T> s{own(2, width), own(3, width), own(4, width), nullptr, own(5, width)};
    load_pixels<T>(op, box.n, box.c, z, y, x, length, s, own(0, width), own(1, width));
    T *out = own(6, width), *none = own(8, width);
    if (direct == nullptr) direct = none, clear(none, length);
    if (op.activation == SIGMOID) {
      SIMD for (int64_t i = 0; i < length; ++i) {
        const T by_entropy = (T(1) - s.y[i]) * s.p[i] - s.y[i] * s.q[i];
        const T g = s.p[i] * s.q[i] * gradient[i] + direct[i] * by_entropy;
        out[i] = s.m[i] > T(0) ? g : T(0);
      }
    } else {
      const T least = CLAMP<T>, other = op.exclusive ? T(0) : T(1);
      SIMD for (int64_t i = 0; i < length; ++i) {
        const T yes = s.p[i] < least ? T(0) : s.y[i] / s.p[i];
        const T no = s.q[i] < least ? T(0) : other * (T(1) - s.y[i]) / s.q[i];
        out[i] = s.m[i] > T(0) ? gradient[i] + direct[i] * (no - yes) : T(0);
      }
    }
    write_row(op.output, box.n, box.c, z, y, x, length, out);
  }
};

// ---------------------------------------------------------------------------------------------------- SSIM

// SSIM = L S with L = (2 mp my + c1) / (mp^2 + my^2 + c1) and S = (2 cov + c2) / (vp + vy + c2).
template <typename Float>
struct SsimPolicy : LossPolicy<Float> {
  using T = Float;
  using LossPolicy<T>::own;
  static constexpr bool WITH_COV = true, BACK_COV = true;
  const Ssim& ssim;
  mutable double sum = 0, count = 0;
  T factor;

  SsimPolicy(const Ssim& op, const Box& b) : LossPolicy<T>(op.loss, b), ssim(op) {
    factor = op.loss.coefficient == nullptr ? T(1) : static_cast<T>(op.loss.coefficient[this->group()]);
  }

  void centre(int64_t z, int64_t y, int64_t x, int64_t length, const T* s, T* adjoint, int64_t width, int64_t first,
              int64_t last) const {
    const T *mp = s + MEAN_A * width, *vp = s + VAR_A * width, *my = s + MEAN_B * width, *vy = s + VAR_B * width;
    const T *cov = s + COV * width, c1 = static_cast<T>(ssim.c1), c2 = static_cast<T>(ssim.c2);
    const T shade = ssim.contrast ? T(0) : T(1);  // whether the luminance counts
    T* u = own(2, width);
    this->invalid += weights(z, y, x, length, u, width);
    T total = 0, seen = 0;
    SIMD_REDUCE(+ : total, seen) for (int64_t i = first; i < last; ++i) {
      const T similar = (T(2) * cov[i] + c2) / (vp[i] + vy[i] + c2);
      const T light = (T(2) * mp[i] * my[i] + c1) / (mp[i] * mp[i] + my[i] * my[i] + c1);
      const T value = u[i] * similar * (shade * light + (T(1) - shade));
      total += u[i] == T(0) ? T(0) : value;
      seen += u[i];
    }
    sum += total;
    count += seen;
    if (adjoint == nullptr) return;
    const T k = factor;
    T *by_mean = adjoint + G_MEAN * width, *by_var = adjoint + G_VAR * width, *by_cov = adjoint + G_COV * width;
    T *at_a = adjoint + AT_A * width, *at_b = adjoint + AT_B * width;
    SIMD for (int64_t i = 0; i < length; ++i) {
      const T spread = T(1) / (vp[i] + vy[i] + c2), bright = T(1) / (mp[i] * mp[i] + my[i] * my[i] + c1);
      const T similar = (T(2) * cov[i] + c2) * spread, light = (T(2) * mp[i] * my[i] + c1) * bright;
      const T g = k * u[i], slope = T(2) * g * (shade * light + (T(1) - shade)) * spread;
      const T mean = shade * g * similar * T(2) * (my[i] - mp[i] * light) * bright, var = -slope * similar;
      by_mean[i] = u[i] == T(0) ? T(0) : mean;
      by_var[i] = u[i] == T(0) ? T(0) : var;
      by_cov[i] = u[i] == T(0) ? T(0) : slope;
      at_a[i] = mp[i];
      at_b[i] = my[i];
    }
  }

  int64_t weights(int64_t z, int64_t y, int64_t x, int64_t length, T* u, int64_t width) const {
    const WindowLoss& op = this->op;
    const Box& box = this->box;
    read_target(op, box.n, box.c, z, y, x, length, own(0, width), u, own(1, width));
    int64_t negative = 0;
    if (op.weight.data != nullptr) {
      T* w = own(0, width);
      read_row(op.weight, box.n, op.weight.channel == 0 ? 0 : box.c, z, y, x, length, w);
      SIMD_REDUCE(+ : negative) for (int64_t i = 0; i < length; ++i) {
        negative += w[i] < T(0);
        u[i] = u[i] > T(0) ? w[i] : T(0);
      }
    }
    return negative;
  }

  void pixel(int64_t z, int64_t y, int64_t x, int64_t length, const T* gradient, const T*, int64_t width) const {
    this->finish(z, y, x, length, gradient, nullptr, width);
  }
};

// ---------------------------------------------------------------------------------------------------- CMSSL

inline float sqrt_(float x) { return __builtin_sqrtf(x); }
inline double sqrt_(double x) { return __builtin_sqrt(x); }

// r(a) = (a - mean + c4) / (std + c4);  e = |r(y) - r(p)|
template <typename T>
inline T relative(T a, T mean, T var, T eps, T c4) {
  return (a - mean + c4) / (sqrt_(var + eps) + c4);
}

template <typename Float>
struct ErrorPolicy : LossPolicy<Float> {
  using T = Float;
  using LossPolicy<T>::own;
  static constexpr bool WITH_COV = false, BACK_COV = false;
  const Cmssl& cmssl;
  mutable T largest = 0;

  ErrorPolicy(const Cmssl& op, const Box& b) : LossPolicy<T>(op.loss, b), cmssl(op) {}

  void centre(int64_t z, int64_t y, int64_t x, int64_t length, const T* s, T*, int64_t width, int64_t first,
              int64_t last) const {
    const T *mp = s + MEAN_A * width, *vp = s + VAR_A * width, *my = s + MEAN_B * width, *vy = s + VAR_B * width;
    const Pixels<T> at{own(2, width), own(3, width), own(4, width)};
    load_pixels<T>(this->op, this->box.n, this->box.c, z, y, x, length, at, own(0, width), own(1, width));
    T* e = plane_row<T>(cmssl.error, this->op.windows, this->group(), z, y, x);
    const T c4 = static_cast<T>(cmssl.c4), eps = static_cast<T>(cmssl.variance_eps);
    SIMD for (int64_t i = first; i < last; ++i) {
      const T d = relative(at.p[i], mp[i], vp[i], eps, c4) - relative(at.y[i], my[i], vy[i], eps, c4);
      e[i] = at.m[i] > T(0) ? (d < T(0) ? -d : d) : T(0);
    }
    T top = largest;
    SIMD_REDUCE(max : top) for (int64_t i = first; i < last; ++i) top = e[i] > top ? e[i] : top;
    int nan = 0;
    SIMD_REDUCE(| : nan) for (int64_t i = first; i < last; ++i) nan |= e[i] != e[i];
    largest = nan != 0 || largest != largest ? static_cast<T>(__builtin_nan("")) : top;
  }
  void pixel(int64_t, int64_t, int64_t, int64_t, const T*, const T*, int64_t) const {}
};

template <typename Float>
struct CmsslPolicy : LossPolicy<Float> {
  using T = Float;
  using LossPolicy<T>::own;
  static constexpr bool WITH_COV = false, BACK_COV = false;
  const Cmssl& cmssl;
  T factor, threshold;

  CmsslPolicy(const Cmssl& op, const Box& b) : LossPolicy<T>(op.loss, b), cmssl(op) {
    factor = static_cast<T>(op.loss.coefficient[this->group()]);
    threshold = static_cast<T>(op.threshold[this->group()]);
  }

  void centre(int64_t z, int64_t y, int64_t x, int64_t length, const T* s, T* adjoint, int64_t width, int64_t,
              int64_t) const {
    const T *mp = s + MEAN_A * width, *vp = s + VAR_A * width, *my = s + MEAN_B * width, *vy = s + VAR_B * width;
    const Pixels<T> at{own(2, width), own(3, width), own(4, width), own(5, width), nullptr, own(6, width)};
    load_pixels<T>(this->op, this->box.n, this->box.c, z, y, x, length, at, own(0, width), own(1, width));
    const T c4 = static_cast<T>(cmssl.c4), eps = static_cast<T>(cmssl.variance_eps), cut = threshold, k = factor;
    SIMD for (int64_t i = 0; i < length; ++i) {
      const T rp = relative(at.p[i], mp[i], vp[i], eps, c4);
      const T d = rp - relative(at.y[i], my[i], vy[i], eps, c4), e = d < T(0) ? -d : d;
      const T std = sqrt_(vp[i] + eps);
      const bool selected = (at.m[i] > T(0)) & !(e <= cut);
      const T sign = d > T(0) ? T(1) : (d < T(0) ? T(-1) : d);
      const T weight = selected ? k * at.u[i] : T(0);
      const T finite = at.l[i] > T(3e38) ? T(0) : at.l[i];  // an infinite loss says nothing about e
      const T a = selected ? weight * finite * sign / (std + c4) : T(0);
      adjoint[G_MEAN * width + i] = -a;
      adjoint[G_VAR * width + i] = selected ? -a * rp / std : T(0);
      adjoint[AT_A * width + i] = mp[i];
      adjoint[DIRECT * width + i] = a;
      adjoint[ENTROPY * width + i] = selected ? weight * e : T(0);
    }
  }

  void pixel(int64_t z, int64_t y, int64_t x, int64_t length, const T* gradient, const T* adjoint,
             int64_t width) const {
    T *total = own(7, width), *none = own(8, width);
    const bool detach = cmssl.detach;
    if (adjoint == nullptr) clear(none, length);
    const T* a = adjoint == nullptr ? none : adjoint + DIRECT * width;
    SIMD for (int64_t i = 0; i < length; ++i) total[i] = detach ? T(0) : gradient[i] + a[i];
    this->finish(z, y, x, length, total, adjoint == nullptr ? none : adjoint + ENTROPY * width, width);
  }
};

// ---------------------------------------------------------------------------------------------------- whole rows

constexpr int64_t SEGMENT = 512;  // pixels of a row worked on at a time, without windows

// Calls f(z, y, x, count) for the segments of rows [begin, end).
template <typename F>
inline void segments(const Windows& w, int64_t begin, int64_t end, F f) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t x = 0; x < w.shape[2]; x += SEGMENT)
      f(row / w.shape[1], row % w.shape[1], x, min_(SEGMENT, w.shape[2] - x));
}

template <typename T>
int64_t cmssl_sums_rows(const Cmssl& op, int64_t n, int64_t c, int64_t begin, int64_t end, double* sums, T* scratch) {
  int64_t invalid = 0;
  const int64_t group = n * op.loss.windows.C + c;
  const T cut = static_cast<T>(op.threshold[group]);
  auto row = [scratch](int i) { return scratch + i * SEGMENT; };
  segments(op.loss.windows, begin, end, [&](int64_t z, int64_t y, int64_t x, int64_t count) {
    const Pixels<T> s{row(2), row(3), row(4), row(5), nullptr, row(6)};
    invalid += load_pixels<T>(op.loss, n, c, z, y, x, count, s, row(0), row(1));
    const T* e = plane_row<T>(op.error, op.loss.windows, group, z, y, x);
    T total = 0, selected = 0;
    SIMD_REDUCE(+ : total, selected) for (int64_t i = 0; i < count; ++i) {
      const bool f = (s.m[i] > T(0)) & !(e[i] <= cut);
      total += (f & (s.u[i] != T(0))) ? s.u[i] * e[i] * s.l[i] : T(0);
      selected += f ? T(1) : T(0);
    }
    sums[0] += total;
    sums[1] += selected;
  });
  return invalid;
}

template <typename T>
int64_t softmax_rows(const WindowLoss& op, int64_t n, int64_t begin, int64_t end, T* scratch) {
  const int64_t C = op.windows.C;
  T *top = scratch, *sum = top + SEGMENT, *label = sum + SEGMENT, *m = label + SEGMENT, *rest = m + SEGMENT;
  T *at = rest + SEGMENT, *buffer = at + SEGMENT;
  int64_t invalid = 0;
  segments(op.windows, begin, end, [&](int64_t z, int64_t y, int64_t x, int64_t count) {
    auto plane = [&](int64_t c) { return plane_row<T>(op.probability, op.windows, n * C + c, z, y, x); };
    invalid += read_target(op, n, 0, z, y, x, count, label, m, buffer);
    for (int64_t c = 0; c < C; ++c) {
      T* p = plane(c);
      read_row(op.input, n, c, z, y, x, count, p);
      if (c == 0) {
        SIMD for (int64_t i = 0; i < count; ++i) top[i] = p[i];
      } else {
        SIMD for (int64_t i = 0; i < count; ++i) top[i] = p[i] > top[i] ? p[i] : top[i];
      }
    }
    clear(sum, count), clear(rest, count), clear(at, count);
    for (int64_t c = 0; c < C; ++c) {
      T* p = plane(c);
      const T number = static_cast<T>(c);
      SIMD for (int64_t i = 0; i < count; ++i) {
        const T below = top[i] - p[i], e = exp_negative(-below);
        const bool own = label[i] == number;
        p[i] = e;
        sum[i] += e;
        rest[i] += own ? T(0) : e;  // without the target class, which would swallow the small ones
        at[i] = own ? below : at[i];
      }
    }
    SIMD for (int64_t i = 0; i < count; ++i) sum[i] = T(1) / sum[i];
    for (int64_t c = 0; c < C; ++c) {
      T* p = plane(c);
      SIMD for (int64_t i = 0; i < count; ++i) p[i] *= sum[i];
    }
    if (op.entropy == nullptr) return;
    T* l = plane_row<T>(op.entropy, op.windows, n, z, y, x);
    SIMD for (int64_t i = 0; i < count; ++i) {
      const T high = log1p_(rest[i]), low = at[i] - log_(sum[i]);
      const T value = at[i] == T(0) ? high : low;
      l[i] = m[i] > T(0) ? value : T(0);
    }
  });
  return invalid;
}

// dz_k = p_k (g_k - sum_c g_c p_c) + h (p_k - [k = t]), h the factor of the cross-entropy of the target class t
template <typename T>
void softmax_backward_rows(const WindowLoss& op, int64_t n, int64_t begin, int64_t end, T* scratch) {
  const int64_t C = op.windows.C;
  T *dot = scratch, *h = dot + SEGMENT, *label = h + SEGMENT, *m = label + SEGMENT, *others = m + SEGMENT;
  T *out = others + SEGMENT, *buffer = out + SEGMENT;
  segments(op.windows, begin, end, [&](int64_t z, int64_t y, int64_t x, int64_t count) {
    read_target(op, n, 0, z, y, x, count, label, m, buffer);
    clear(dot, count), clear(others, count), clear(h, count);
    if (op.grad_entropy != nullptr) {
      const T *from = plane_row<T>(op.grad_entropy, op.windows, n, z, y, x), first = static_cast<T>(op.first_class);
      SIMD for (int64_t i = 0; i < count; ++i) h[i] = ((m[i] > T(0)) & (label[i] >= first)) ? from[i] : T(0);
    }
    for (int64_t c = 0; c < C; ++c) {
      const T* p = plane_row<T>(op.probability, op.windows, n * C + c, z, y, x);
      const T* g = plane_row<T>(op.grad_probability, op.windows, n * C + c, z, y, x);
      const T number = static_cast<T>(c);
      const bool used = c >= op.first_class;
      SIMD for (int64_t i = 0; i < count; ++i) {
        dot[i] += used ? g[used ? i : 0] * p[i] : T(0);
        others[i] += label[i] == number ? T(0) : p[i];
      }
    }
    for (int64_t c = 0; c < C; ++c) {
      const T* p = plane_row<T>(op.probability, op.windows, n * C + c, z, y, x);
      const T* g = plane_row<T>(op.grad_probability, op.windows, n * C + c, z, y, x);
      const T number = static_cast<T>(c);
      const bool used = c >= op.first_class;
      SIMD for (int64_t i = 0; i < count; ++i) {
        const T own = used ? g[used ? i : 0] : T(0);
        const T dz = p[i] * (own - dot[i]) + h[i] * (label[i] == number ? -others[i] : p[i]);
        out[i] = m[i] > T(0) ? dz : T(0);
      }
      write_row(op.output, n, c, z, y, x, count, out);
    }
  });
}

// ---------------------------------------------------------------------------------------------------- the table

size_t scratch_bytes(const Windows& w, const int64_t tile[3], bool wide) {
  const int64_t floats = max_(Rows(w, tile).floats(), 8 * SEGMENT);
  return static_cast<size_t>(floats) * (wide ? 8 : 4);
}

template <typename Policy>
void sweep(Policy& policy, const Windows& w, const Box& box, bool backward, void* scratch) {
  const int64_t tile[3] = {box.end[0] - box.begin[0], box.end[1] - box.begin[1], box.end[2] - box.begin[2]};
  Sweep<Policy>(policy, w, box, tile, backward, scratch).run();
}

template <typename T, int IMAGES>
void moments_of(const LocalMoments& op, const Box& box, bool backward, void* scratch) {
  MomentsPolicy<T, IMAGES> policy{op, box};
  sweep(policy, op.windows, box, backward, scratch);
}

void moments(const LocalMoments& op, const Box& box, bool backward, void* scratch) {
  const bool pair = op.b.data != nullptr;
  if (op.a.dtype == F64)
    return pair ? moments_of<double, 2>(op, box, backward, scratch) : moments_of<double, 1>(op, box, backward, scratch);
  pair ? moments_of<float, 2>(op, box, backward, scratch) : moments_of<float, 1>(op, box, backward, scratch);
}

template <typename T>
int64_t ssim_of(const Ssim& op, const Box& box, double* sums, void* scratch) {
  SsimPolicy<T> policy(op, box);
  sweep(policy, op.loss.windows, box, op.loss.output.data != nullptr || op.loss.grad_probability != nullptr, scratch);
  sums[0] = policy.sum;
  sums[1] = policy.count;
  return policy.invalid;
}
int64_t ssim(const Ssim& op, const Box& box, double sums[2], void* scratch) {
  return op.loss.input.dtype == F64 ? ssim_of<double>(op, box, sums, scratch) : ssim_of<float>(op, box, sums, scratch);
}

template <typename T>
int64_t error_of(const Cmssl& op, const Box& box, double* largest, void* scratch) {
  ErrorPolicy<T> policy(op, box);
  sweep(policy, op.loss.windows, box, false, scratch);
  *largest = policy.largest;
  return policy.invalid;
}
int64_t cmssl_error(const Cmssl& op, const Box& box, double* largest, void* scratch) {
  return op.loss.input.dtype == F64 ? error_of<double>(op, box, largest, scratch)
                                    : error_of<float>(op, box, largest, scratch);
}

int64_t cmssl_sums(const Cmssl& op, int64_t n, int64_t c, int64_t begin, int64_t end, double sums[2], void* scratch) {
  return op.loss.input.dtype == F64 ? cmssl_sums_rows(op, n, c, begin, end, sums, static_cast<double*>(scratch))
                                    : cmssl_sums_rows(op, n, c, begin, end, sums, static_cast<float*>(scratch));
}

template <typename T>
void cmssl_backward_of(const Cmssl& op, const Box& box, void* scratch) {
  CmsslPolicy<T> policy(op, box);
  sweep(policy, op.loss.windows, box, true, scratch);
}
void cmssl_backward(const Cmssl& op, const Box& box, void* scratch) {
  op.loss.input.dtype == F64 ? cmssl_backward_of<double>(op, box, scratch) : cmssl_backward_of<float>(op, box, scratch);
}

int64_t softmax(const WindowLoss& op, int64_t n, int64_t begin, int64_t end, void* scratch) {
  return op.input.dtype == F64 ? softmax_rows(op, n, begin, end, static_cast<double*>(scratch))
                               : softmax_rows(op, n, begin, end, static_cast<float*>(scratch));
}
void softmax_backward(const WindowLoss& op, int64_t n, int64_t begin, int64_t end, void* scratch) {
  op.input.dtype == F64 ? softmax_backward_rows(op, n, begin, end, static_cast<double*>(scratch))
                        : softmax_backward_rows(op, n, begin, end, static_cast<float*>(scratch));
}

}  // namespace

extern const LocalMomentsKernels local_moments_table;
const LocalMomentsKernels local_moments_table = {scratch_bytes, moments,        ssim,    cmssl_error,
                                                 cmssl_sums,    cmssl_backward, softmax, softmax_backward};

}  // namespace SEGFUSE_ISA
}  // namespace segfuse
