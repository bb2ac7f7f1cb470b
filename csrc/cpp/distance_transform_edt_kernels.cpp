// Exact squared Euclidean distances, one axis after the other, compiled once per instruction set.
//
//   x   distances to the ends of each run of equal pixels, written row by row
//   y   out(y) = min over j of (unit (y - j))^2 + in(j), for each column; then the same along z
//
// Columns:  LANES neighbours are copied to a tile, one row of the tile per pixel of the column, and go through the
//           minimum together. The rows of the tile that attain it do not decrease from row to row, and distances
//           differ by no more than the rows are apart: rows are taken in halving steps (`Group`), and each looks only
//           between the minimisers of its neighbours, and only as far as a neighbour's distance allows.
// Sides:    INSIDE knows one kind of site, worth 0. Otherwise a pixel's sites are those of another kind, so each run of
//           equal pixels of a line is a problem of its own with a site worth 0 just beyond each end. `work` then holds
//           the squared distance with a sign, + for pixels of one kind and - for the other; seen from a pixel of sign
//           s, a value v counts max(s v, 0). A minimiser may be the first pixel beyond the run: it does not decrease
//           by more than 1. LABELS get their signs from the parity of label changes along the line.
// Numerics: without spacing, squared distances are integers that `float` holds exactly below 2^24; above, and for a
//           double output, everything is double. An absent distance is infinite until the last pass writes 0.
// Order:    a column does not see how columns are handed to threads.
// Source:   separable passes: Felzenszwalb and Huttenlocher 2012, doi:10.4086/toc.2012.v008a019. Monotone minimisers:
//           Aggarwal et al. 1987, doi:10.1007/BF01840359.
#include "../dtypes.h"
#include "kernels.h"

#ifdef __GNUC__
#define SEGFUSE_PREFETCH(address) __builtin_prefetch(address)
#else
#define SEGFUSE_PREFETCH(address)
#endif
#define SIMD _Pragma("omp simd")
#define SIMD_BOUNDS _Pragma("omp simd reduction(min : low) reduction(max : high, far)")
#define SIMD_FARTHEST _Pragma("omp simd reduction(max : far)")

namespace segfuse {
namespace SEGFUSE_ISA {
namespace {

constexpr int64_t LANES = 16;
constexpr int64_t GROUPS = DISTANCE_COLUMNS / LANES;
constexpr int64_t AHEAD = 8;  // rows that a strided read asks memory for in advance
constexpr int64_t STEP = 7;   // rows from one whose minimisers are known to the next; two times three lie between

template <typename T>
constexpr T NONE = T(INFINITY);
template <typename T>
inline T least(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
inline T most(T a, T b) {
  return a > b ? a : b;
}
template <typename T>
inline T magnitude(T a) {
  return a < T(0) ? -a : a;
}
inline float root(float x) { return sqrtf(x); }
inline double root(double x) { return sqrt(x); }

// Which byte of a word in memory order is the first that is not 0.
inline int64_t first_byte(uint64_t word) {
#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  return __builtin_ctzll(word) / 8;
#else
  uint8_t bytes[8];
  memcpy(bytes, &word, 8);
  int64_t i = 0;
  while (bytes[i] == 0) ++i;
  return i;
#endif
}

// Offset of a sample in the input.
int64_t sample_offset(const DistanceTransform& op, int64_t sample) {
  int64_t offset = 0;
  for (int d = op.leading - 1; d >= 0; --d) {
    offset += sample % op.leading_shape[d] * op.leading_strides[d];
    sample /= op.leading_shape[d];
  }
  return offset;
}

// ---------------------------------------------------------------------------------------------------- the input

template <typename Source, typename Test>
inline void test_row(const Source* in, int64_t stride, int64_t count, Test test, uint8_t* kind) {
  if (stride == 1) {
    SIMD for (int64_t i = 0; i < count; ++i) kind[i] = test(in[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) kind[i] = test(in[i * stride]);
  }
}

// kind[i] ^= in[i] differs from its neighbour at -back
template <typename Source>
inline void flip_row(const Source* in, int64_t stride, int64_t back, int64_t count, uint8_t* kind) {
  for (int64_t i = 0; i < count; ++i) kind[i] ^= in[i * stride] != in[i * stride - back];
}

template <typename Source>
void integer_row(const DistanceTransform& op, int64_t c, int64_t offset, uint8_t* kind) {
  const Source* in = reinterpret_cast<const Source*>(op.input) + offset;
  const int64_t stride = op.strides[2], W = op.shape[2];
  if (op.mode == LABELS) {
    kind[0] = 0;
    for (int64_t i = 1; i < W; ++i) kind[i] = kind[i - 1] ^ (in[i * stride] != in[(i - 1) * stride]);
  } else if (op.class_number == nullptr) {
    test_row(in, stride, W, [](Source v) { return v != 0; }, kind);
  } else {
    const Source number = static_cast<Source>(op.class_number[c]);
    const bool fits = static_cast<int64_t>(number) == op.class_number[c] && (number < 0) == (op.class_number[c] < 0);
    test_row(in, stride, W, [=](Source v) { return fits && v == number; }, kind);
  }
}

template <typename Source>
void float_row(const DistanceTransform& op, int64_t offset, uint8_t* kind) {
  const Source* in = reinterpret_cast<const Source*>(op.input) + offset;
  const auto t = static_cast<decltype(widen(*in))>(op.threshold);
  test_row(in, op.strides[2], op.shape[2], [=](Source v) { return widen(v) > t; }, kind);
}

// 1 for each foreground pixel of a row, 0 for background; LABELS: changes where the label does.
void kinds_of_row(const DistanceTransform& op, int64_t c, int64_t offset, uint8_t* kind) {
  switch (op.dtype) {
    case F32:
      return float_row<float>(op, offset, kind);
    case F64:
      return float_row<double>(op, offset, kind);
    case F16:
      return float_row<half>(op, offset, kind);
    case BF16:
      return float_row<bfloat16>(op, offset, kind);
    case BOOL:
    case U8:
      return integer_row<uint8_t>(op, c, offset, kind);
    case I8:
      return integer_row<int8_t>(op, c, offset, kind);
    case I16:
      return integer_row<int16_t>(op, c, offset, kind);
    case U16:
      return integer_row<uint16_t>(op, c, offset, kind);
    case I32:
      return integer_row<int32_t>(op, c, offset, kind);
    case U32:
      return integer_row<uint32_t>(op, c, offset, kind);
    case I64:
      return integer_row<int64_t>(op, c, offset, kind);
    case U64:
      return integer_row<uint64_t>(op, c, offset, kind);
  }
}

// Flips the kind of each pixel whose label is not that of its neighbour at -back.
void flip(const DistanceTransform& op, int64_t offset, int64_t back, int64_t count, uint8_t* kind) {
  const int64_t stride = op.strides[2];
  switch (op.dtype) {
    case BOOL:
    case U8:
    case I8:
      return flip_row(reinterpret_cast<const uint8_t*>(op.input) + offset, stride, back, count, kind);
    case I16:
    case U16:
      return flip_row(reinterpret_cast<const uint16_t*>(op.input) + offset, stride, back, count, kind);
    case I32:
    case U32:
      return flip_row(reinterpret_cast<const uint32_t*>(op.input) + offset, stride, back, count, kind);
    default:
      return flip_row(reinterpret_cast<const uint64_t*>(op.input) + offset, stride, back, count, kind);
  }
}

// ---------------------------------------------------------------------------------------------------- the output

// Squared distances as the caller wants them.
template <typename T, typename Output>
inline void finish(const DistancePass& pass, const T* in, int64_t count, Output* out) {
  const DistanceTransform& op = pass.op;
  const T scale = static_cast<T>(op.squared ? pass.scale * pass.scale : pass.scale);
  const bool squared = op.squared;
  const T sign = op.mode == SIGNED ? T(-1) : T(1);  // the foreground is positive in `work`
  const T absent = op.mode == NEAREST_TWO ? NONE<T> : T(0);
  SIMD for (int64_t i = 0; i < count; ++i) {
    const T v = in[i], size = magnitude(v);
    const T distance = (squared ? size : root(size)) * scale;
    const T kept = size < NONE<T> ? distance : absent;
    out[i] = static_cast<Output>(v > T(0) ? sign * kept : kept);
  }
}

template <typename T>
void write(const DistancePass& pass, const T* in, int64_t count, int64_t at, void* output) {
  if (pass.op.output_double)
    finish(pass, in, count, static_cast<double*>(output) + at);
  else
    finish(pass, in, count, static_cast<float*>(output) + at);
}

// ---------------------------------------------------------------------------------------------------- rows

// The end of the run that begins at i.
inline int64_t run_end(const uint8_t* kind, int64_t i, int64_t W) {
  const uint8_t k = kind[i];
  const uint64_t word = k ? 0x0101010101010101u : 0u;
  for (++i; i + 8 <= W; i += 8) {
    uint64_t next;
    memcpy(&next, kind + i, 8);
    if (next != word) return i + first_byte(next ^ word);
  }
  while (i < W && kind[i] == k) ++i;
  return i;
}

// `out` has room for LANES - 1 values more.
template <typename T>
void distances_along_row(const DistancePass& pass, const uint8_t* kind, T* out, int32_t* nearest) {
  const int64_t W = pass.op.shape[2];
  const bool inside = pass.op.mode == INSIDE, signs = pass.op.mode != INSIDE && pass.op.mode != LABELS;
  for (int64_t begin = 0, end; begin < W; begin = end) {
    end = run_end(kind, begin, W);
    const bool site = inside && !kind[begin];
    const T unit = site ? T(0) : static_cast<T>(pass.unit[2]), sign = signs && !kind[begin] ? T(-1) : T(1);
    const T left = begin > 0 || site ? static_cast<T>(begin - 1) : -NONE<T>;  // the nearest pixels of another kind
    const T right = end < W || site ? static_cast<T>(end) : NONE<T>;
    for (int64_t i = begin; i < end; i += LANES) {
      const T first = static_cast<T>(i);
      SIMD for (int64_t l = 0; l < LANES; ++l) {
        const T x = first + static_cast<T>(l), d = least(x - left, right - x) * unit;
        out[i + l] = sign * d * d;
      }
    }
    for (int64_t i = begin; nearest != nullptr && i < end; ++i) {
      const bool none = site || (begin == 0 && end == W), to_left = end == W || (begin > 0 && i - begin + 1 <= end - i);
      nearest[i] = static_cast<int32_t>(none ? i : to_left ? begin - 1 : end);
    }
  }
}

template <typename T>
int64_t nearest_two_along_row(const DistancePass& pass, int64_t offset, int64_t at);

template <typename T>
int64_t rows(const DistancePass& pass, int64_t plane, int64_t begin, int64_t end, void* scratch) {
  const DistanceTransform& op = pass.op;
  const int64_t D = op.shape[0], H = op.shape[1], W = op.shape[2];
  const int64_t start = sample_offset(op, plane / D / op.classes) + plane % D * op.strides[0];
  T* row = static_cast<T*>(scratch);
  uint8_t* kind = reinterpret_cast<uint8_t*>(row + W + LANES);
  int64_t invalid = 0;
  for (int64_t y = begin; y < end; ++y) {
    const int64_t offset = start + y * op.strides[1], at = (plane * H + y) * W;
    if (op.mode == NEAREST_TWO) {
      invalid += nearest_two_along_row<T>(pass, offset, at);
      continue;
    }
    kinds_of_row(op, plane / D % op.classes, offset, kind);
    distances_along_row(pass, kind, row, pass.index[2] == nullptr ? nullptr : pass.index[2] + at);
    for (int d = 0; d < 2; ++d)  // an axis without a pass
      if (pass.index[d] != nullptr && op.shape[d] == 1) memset(pass.index[d] + at, 0, W * sizeof(int32_t));
    if (pass.last == 2)
      write(pass, row, W, at, op.output);
    else
      memcpy(static_cast<T*>(pass.work) + at, row, W * sizeof(T));
  }
  return invalid;
}

// ---------------------------------------------------------------------------------------------------- columns

// What is known of a row of the tile once its minimum is: where its lanes attain it, and how far that may be.
struct Bounds {
  int64_t low, high, reach;
};

// LANES columns of length n, row by row.
template <typename T>
struct Group {
  int64_t n;
  const T *in, *squares;
  T per_row;           // rows per unit of distance, a little more than that
  T *out, *minimiser;  // minimiser: nullptr when nobody asks for indices
  Bounds* bounds;
};

// How many rows a squared distance reaches, or one more.
template <typename T>
inline int64_t reach_of(const Group<T>& g, T square) {
  const T reach = root(square) * g.per_row;
  return reach < static_cast<T>(g.n) ? static_cast<int64_t>(reach) + 1 : g.n;
}

template <bool SIDES, typename T>
inline void signs_of_row(const T* in, T* sign) {
  SIMD for (int64_t l = 0; l < LANES; ++l) sign[l] = SIDES && in[l] < T(0) ? T(-1) : T(1);
}

// out(y) and the first row in [from, to] that attains it. False if no lane has a site.
template <bool SIDES, typename T>
bool search(const Group<T>& g, int64_t y, int64_t from, int64_t to) {
  const T *in = g.in, *squares = g.squares - y;
  T sign[LANES], where[LANES];
  signs_of_row<SIDES>(in + y * LANES, sign);
  T far = T(0);
  SIMD_FARTHEST for (int64_t l = 0; l < LANES; ++l) far = most(far, magnitude(in[y * LANES + l]));
  if (far < NONE<T>) {  // the row's own values
    const int64_t reach = reach_of(g, far);
    from = most(from, y - reach);
    to = most(least(to, y + reach), from);
  }
  T* out = g.out + y * LANES;
  T* at = g.minimiser == nullptr ? where : g.minimiser + y * LANES;
  SIMD for (int64_t l = 0; l < LANES; ++l) {
    const T s = sign[l];
    T best = NONE<T>, first = T(0), row = static_cast<T>(from);
    int64_t j = from;
    do {
      T v = in[j * LANES + l];
      if (SIDES) v = most(v * s, T(0));
      v += squares[j];
      first = v < best ? row : first;
      best = least(v, best);
      row += T(1);
    } while (++j <= to);
    out[l] = best;
    at[l] = first;
  }
  T low = static_cast<T>(g.n), high = T(-1);
  far = T(0);
  SIMD_BOUNDS for (int64_t l = 0; l < LANES; ++l) {
    const bool has = out[l] < NONE<T>;
    low = least(low, has ? at[l] : low);
    high = most(high, has ? at[l] : high);
    far = most(far, has ? out[l] : far);
  }
  if (SIDES) {
    SIMD for (int64_t l = 0; l < LANES; ++l) out[l] *= sign[l];
  }
  g.bounds[y] = {static_cast<int64_t>(low), static_cast<int64_t>(high), reach_of(g, far)};
  return high >= T(0);
}

// out(y) of three rows that share the rows [from, to].
template <bool SIDES, typename T>
void search_three(const Group<T>& g, const int64_t* y, int64_t from, int64_t to) {
  const T *in = g.in, *squares1 = g.squares - y[0], *squares2 = g.squares - y[1], *squares3 = g.squares - y[2];
  T sign[3][LANES], best[3][LANES];
  for (int64_t k = 0; k < 3; ++k) signs_of_row<SIDES>(in + y[k] * LANES, sign[k]);
  SIMD for (int64_t l = 0; l < LANES; ++l) {
    const T s1 = sign[0][l], s2 = sign[1][l], s3 = sign[2][l];
    T best1 = NONE<T>, best2 = NONE<T>, best3 = NONE<T>;
    int64_t j = from;
    do {
      const T v = in[j * LANES + l];
      T v1 = v, v2 = v, v3 = v;
      if (SIDES) v1 = most(v * s1, T(0)), v2 = most(v * s2, T(0)), v3 = most(v * s3, T(0));
      best1 = least(v1 + squares1[j], best1);
      best2 = least(v2 + squares2[j], best2);
      best3 = least(v3 + squares3[j], best3);
    } while (++j <= to);
    best[0][l] = SIDES ? best1 * s1 : best1;
    best[1][l] = SIDES ? best2 * s2 : best2;
    best[2][l] = SIDES ? best3 * s3 : best3;
  }
  for (int64_t k = 0; k < 3; ++k) memcpy(g.out + y[k] * LANES, best[k], sizeof(best[k]));
}

// The minimum of every row of a group.
template <bool SIDES, typename T>
void minimise(const Group<T>& g) {
  const int64_t n = g.n, last = n - 1, step = g.minimiser == nullptr ? STEP : 1;
  if (!search<SIDES>(g, 0, 0, last)) {
    memcpy(g.out, g.in, n * LANES * sizeof(T));
    for (int64_t i = 0; g.minimiser != nullptr && i < n * LANES; ++i) g.minimiser[i] = static_cast<T>(i / LANES);
    return;
  }
  if (last > 0) search<SIDES>(g, last, most<int64_t>(g.bounds[0].low - SIDES, 0), last);
  // Minimisers of rows between `a` and `b`, whose own are known.
  const auto within = [&](int64_t a, int64_t b, int64_t first, int64_t end, int64_t reach, int64_t& from, int64_t& to) {
    from = most(most(g.bounds[a].low - SIDES, first - reach), int64_t(0));
    to = most(least(least(g.bounds[b].high + SIDES, end + reach), last), from);
  };
  int64_t h = step, from, to;
  while (h < last) h *= 2;
  for (; h >= step; h /= 2)
    for (int64_t y = h; y < last; y += 2 * h) {
      const int64_t b = least(y + h, last);
      within(y - h, b, y, y, least(g.bounds[y - h].reach + h, g.bounds[b].reach + b - y), from, to);
      search<SIDES>(g, y, from, to);
    }
  if (step == 1) return;
  for (int64_t a = 0; a + 1 < last; a += step) {
    const int64_t b = least(a + step, last);
    if (b == a + 1) continue;
    within(a, b, a + 1, b - 1, least(g.bounds[a].reach, g.bounds[b].reach) + step, from, to);
    for (int64_t y = a + 1; y < b; y += 3) {
      const int64_t three[3] = {y, least(y + 1, b - 1), least(y + 2, b - 1)};
      search_three<SIDES>(g, three, from, to);
    }
  }
}

// Where a column pass keeps its tiles. `room` may be nullptr, to count the bytes.
template <typename T>
struct Tiles {
  static constexpr int64_t CACHE = 256 << 10;  // bytes that a tile may take before it gets narrower
  int64_t width;                               // columns
  char* memory;
  int64_t bytes = 0;  // taken so far
  T *in, *out, *minimiser = nullptr;
  Bounds* bounds;
  int32_t* index = nullptr;  // LANES columns of indices, or of both instances
  uint8_t* kind;

  template <typename U>
  U* take(int64_t count) {
    U* p = memory == nullptr ? nullptr : reinterpret_cast<U*>(memory + bytes);
    bytes += (count * static_cast<int64_t>(sizeof(U)) + 63) / 64 * 64;
    return p;
  }
  Tiles(const DistancePass& pass, int64_t n, void* room) : memory(static_cast<char*>(room)) {
    const int64_t column = n * static_cast<int64_t>(sizeof(T));
    width = most<int64_t>(least(GROUPS, CACHE / (LANES * column)), 1) * LANES;
    in = take<T>(n * width);
    out = take<T>(n * width);
    bounds = take<Bounds>(n);
    kind = take<uint8_t>(width);
    if (pass.op.indices != nullptr) minimiser = take<T>(n * LANES);
    if (pass.op.indices != nullptr || pass.op.mode == NEAREST_TWO) index = take<int32_t>(2 * n * LANES);
  }
};

// Calls f(offset in the input, count, at) for the runs of columns [i, i + count) that lie in one row of pixels.
template <typename F>
inline void input_runs(const DistancePass& pass, int axis, int64_t start, int64_t i, int64_t count, F f) {
  const DistanceTransform& op = pass.op;
  const int64_t W = op.shape[2];
  for (int64_t at = 0; at < count;) {
    const int64_t y = axis == 0 ? (i + at) / W : 0, x = i + at - y * W, length = least(W - x, count - at);
    f(start + y * op.strides[1] + x * op.strides[2], length, at);
    at += length;
  }
}

// Copies columns to the tile, gives LABELS their signs and fills up the last group.
template <typename T>
void load_tile(const DistancePass& pass, int axis, int64_t start, const T* from, int64_t step, int64_t n, int64_t i,
               int64_t count, const Tiles<T>& tiles) {
  const bool labels = pass.op.mode == LABELS;
  if (labels) memset(tiles.kind, 0, tiles.width);
  for (int64_t y = 0; y < n; ++y) {
    if (labels && y > 0)
      input_runs(pass, axis, start + y * pass.op.strides[axis], i, count,
                 [&](int64_t offset, int64_t length, int64_t at) {
                   flip(pass.op, offset, pass.op.strides[axis], length, tiles.kind + at);
                 });
    for (int64_t g = 0; g < count; g += LANES) {
      const T* row = from + y * step + g;
      SEGFUSE_PREFETCH(row + AHEAD * step);
      T* to = tiles.in + g * n + y * LANES;
      if (count - g >= LANES) {
        SIMD for (int64_t l = 0; l < LANES; ++l) to[l] = row[l];
      } else {
        for (int64_t l = 0; l < LANES; ++l) to[l] = l < count - g ? row[l] : NONE<T>;
      }
      if (labels) {
        SIMD for (int64_t l = 0; l < LANES; ++l) to[l] = tiles.kind[g + l] ? -to[l] : to[l];
      }
    }
  }
}

template <typename T>
void store_tile(const DistancePass& pass, int axis, int64_t at, int64_t step, int64_t n, int64_t count,
                const Tiles<T>& tiles) {
  const bool labels = pass.op.mode == LABELS;
  for (int64_t y = 0; y < n; ++y)
    for (int64_t g = 0; g < count; g += LANES) {
      const T* row = tiles.out + g * n + y * LANES;
      const int64_t length = least(count - g, LANES), to = at + y * step + g;
      T* work = static_cast<T*>(pass.work) + to;
      if (pass.last == axis) {
        write(pass, row, length, to, pass.op.output);
      } else {
        for (int64_t l = 0; l < length; ++l) work[l] = labels ? magnitude(row[l]) : row[l];
      }
    }
}

// The nearest pixel of the line leads to the nearest pixel of all, unless it is of another kind itself.
template <typename T>
void move_indices(const DistancePass& pass, int axis, int64_t at, int64_t step, int64_t n, int64_t count, const T* in,
                  const Tiles<T>& tiles) {
  const bool sides = pass.op.mode != INSIDE;
  for (int d = axis + 1; d < 3; ++d) {
    int32_t* index = pass.index[d];
    if (index == nullptr) continue;
    for (int64_t y = 0; y < n; ++y)
      for (int64_t l = 0; l < count; ++l) tiles.index[y * LANES + l] = index[at + y * step + l];
    for (int64_t y = 0; y < n; ++y)
      for (int64_t l = 0; l < count; ++l) {
        const int64_t from = static_cast<int64_t>(tiles.minimiser[y * LANES + l]);
        const bool site = sides && (in[from * LANES + l] < T(0)) != (in[y * LANES + l] < T(0));
        const int64_t here = at + l, W = pass.op.shape[2], H = pass.op.shape[1];
        const int64_t own = d == 2 ? here % W : here / W % H;
        index[at + y * step + l] = site ? static_cast<int32_t>(own) : tiles.index[from * LANES + l];
      }
  }
  for (int64_t y = 0; y < n; ++y)
    for (int64_t l = 0; l < count; ++l)
      pass.index[axis][at + y * step + l] = static_cast<int32_t>(tiles.minimiser[y * LANES + l]);
}

template <typename T>
void nearest_two_columns(const DistancePass& pass, int axis, int64_t at, int64_t step, int64_t n, int64_t count,
                         const Tiles<T>& tiles);

template <typename T>
void columns(const DistancePass& pass, int axis, int64_t unit, int64_t begin, int64_t end, void* scratch) {
  const DistanceTransform& op = pass.op;
  const int64_t D = op.shape[0], H = op.shape[1], W = op.shape[2];
  const int64_t n = op.shape[axis], step = axis == 1 ? W : H * W;
  const int64_t plane = axis == 1 ? unit : unit * D;  // the first
  const int64_t start = sample_offset(op, plane / D / op.classes) + plane % D * op.strides[0];
  const Tiles<T> tiles(pass, n, scratch);
  for (int64_t i = begin; i < end; i += tiles.width) {
    const int64_t count = least(tiles.width, end - i), at = plane * H * W + i;
    if (op.mode == NEAREST_TWO) {
      for (int64_t g = 0; g < count; g += LANES)
        nearest_two_columns(pass, axis, at + g, step, n, least(count - g, LANES), tiles);
      continue;
    }
    load_tile(pass, axis, start, static_cast<const T*>(pass.work) + at, step, n, i, count, tiles);
    for (int64_t g = 0; g < count; g += LANES) {
      const Group<T> group = {n,
                              tiles.in + g * n,
                              static_cast<const T*>(pass.squares[axis]),
                              static_cast<T>(1.00001 / pass.unit[axis]),
                              tiles.out + g * n,
                              tiles.minimiser,
                              tiles.bounds};
      op.mode == INSIDE ? minimise<false>(group) : minimise<true>(group);
      if (op.indices != nullptr) move_indices(pass, axis, at + g, step, n, least(count - g, LANES), group.in, tiles);
    }
    store_tile(pass, axis, at, step, n, count, tiles);
  }
}

// ---------------------------------------------------------------------------------------------------- two instances

// The nearest and second nearest of what was seen so far, of different instances; instance 0 is none.
template <typename T>
struct Two {
  T first, second;
  int32_t instance, other;

  inline void see(T d, int32_t label) {
    const bool same = label == instance, nearer = d < first, between = !same && !nearer && d < second;
    const bool replaces = nearer && !same;
    other = replaces ? instance : between ? label : other;
    second = replaces ? first : between ? d : second;
    instance = replaces ? label : instance;
    first = nearer ? d : first;
  }
};

template <typename Source>
int64_t instances_of_row(const DistanceTransform& op, int64_t offset, int32_t* out) {
  const Source* in = reinterpret_cast<const Source*>(op.input) + offset;
  int64_t invalid = 0;
  for (int64_t i = 0; i < op.shape[2]; ++i) {
    const Source v = in[i * op.strides[2]];
    out[i] = v > 0 ? static_cast<int32_t>(v) : 0;
    invalid += v > 0 && static_cast<uint64_t>(v) > 0x7fffffffu;
  }
  return invalid;
}

int64_t read_instances(const DistanceTransform& op, int64_t offset, int32_t* out) {
  switch (op.dtype) {
    case I8:
      return instances_of_row<int8_t>(op, offset, out);
    case I16:
      return instances_of_row<int16_t>(op, offset, out);
    case U16:
      return instances_of_row<uint16_t>(op, offset, out);
    case I32:
      return instances_of_row<int32_t>(op, offset, out);
    case U32:
      return instances_of_row<uint32_t>(op, offset, out);
    case I64:
      return instances_of_row<int64_t>(op, offset, out);
    case U64:
      return instances_of_row<uint64_t>(op, offset, out);
    default:
      return instances_of_row<uint8_t>(op, offset, out);
  }
}

template <typename T>
int64_t nearest_two_along_row(const DistancePass& pass, int64_t offset, int64_t at) {
  const int64_t W = pass.op.shape[2];
  const T* squares = static_cast<const T*>(pass.squares[2]);
  T *first = static_cast<T*>(pass.work) + at, *second = static_cast<T*>(pass.second) + at;
  int32_t *instance = pass.instances[0] + at, *other = pass.instances[1] + at;
  const int64_t invalid = read_instances(pass.op, offset, instance);
  // The last two instances met so far, from the left and then from the right.
  int64_t last = 0, before = 0;
  int32_t label = 0, previous = 0;
  const auto meet = [&](int64_t i, int32_t found) {
    if (found != 0 && found != label) before = last, previous = label, label = found;
    if (found != 0) last = i;
  };
  for (int64_t i = 0; i < W; ++i) {
    meet(i, instance[i]);
    first[i] = label ? squares[i - last] : NONE<T>, second[i] = previous ? squares[i - before] : NONE<T>;
    instance[i] = label, other[i] = previous;
  }
  label = previous = 0;
  for (int64_t i = W - 1; i >= 0; --i) {
    meet(i, first[i] == T(0) ? instance[i] : 0);
    Two<T> two = {first[i], second[i], instance[i], other[i]};
    if (label) two.see(squares[last - i], label);
    if (previous) two.see(squares[before - i], previous);
    first[i] = two.first, second[i] = two.second, instance[i] = two.instance, other[i] = two.other;
  }
  if (pass.last == 2) write(pass, first, W, at, pass.op.output), write(pass, second, W, at, pass.op.second);
  return invalid;
}

// LANES columns, searched outwards from each row until the second distance cannot shrink any more.
template <typename T>
void nearest_two_columns(const DistancePass& pass, int axis, int64_t at, int64_t step, int64_t n, int64_t count,
                         const Tiles<T>& tiles) {
  T* work[2] = {static_cast<T*>(pass.work) + at, static_cast<T*>(pass.second) + at};
  T* in[2] = {tiles.in, tiles.out};
  int32_t* label[2] = {tiles.index, tiles.index + n * LANES};
  int64_t top = n, bottom = -1;  // rows between which an instance is known
  for (int64_t y = 0; y < n; ++y)
    for (int64_t l = 0; l < LANES; ++l) {
      const bool real = l < count;  // lanes that are not keep nobody searching
      for (int k = 0; k < 2; ++k) {
        in[k][y * LANES + l] = real ? work[k][y * step + l] : T(0);
        label[k][y * LANES + l] = real ? pass.instances[k][at + y * step + l] : 0;
      }
      if (real && label[0][y * LANES + l] != 0) top = least(top, y), bottom = y;
    }
  const T* squares = static_cast<const T*>(pass.squares[axis]);
  for (int64_t y = 0; y < n; ++y) {
    T first[LANES], second[LANES];
    int32_t instance[LANES], other[LANES];
    memcpy(first, in[0] + y * LANES, sizeof(first)), memcpy(second, in[1] + y * LANES, sizeof(second));
    memcpy(instance, label[0] + y * LANES, sizeof(instance)), memcpy(other, label[1] + y * LANES, sizeof(other));
    const auto see = [&](int64_t row, T square) {
      const T *d1 = in[0] + row * LANES, *d2 = in[1] + row * LANES;
      const int32_t *label1 = label[0] + row * LANES, *label2 = label[1] + row * LANES;
      SIMD for (int64_t l = 0; l < LANES; ++l) {
        Two<T> two = {first[l], second[l], instance[l], other[l]};
        two.see(d1[l] + square, label1[l]);
        two.see(d2[l] + square, label2[l]);
        first[l] = two.first, second[l] = two.second, instance[l] = two.instance, other[l] = two.other;
      }
    };
    for (int64_t k = 1; y - k >= top || y + k <= bottom; ++k) {
      T far = T(0);
      SIMD_FARTHEST for (int64_t l = 0; l < LANES; ++l) far = most(far, second[l]);
      if (squares[k] >= far) break;
      if (y - k >= top) see(y - k, squares[k]);
      if (y + k <= bottom) see(y + k, squares[k]);
    }
    const int64_t to = y * step;
    if (pass.last == axis) {
      write(pass, first, count, at + to, pass.op.output), write(pass, second, count, at + to, pass.op.second);
      continue;
    }
    memcpy(work[0] + to, first, count * sizeof(T)), memcpy(work[1] + to, second, count * sizeof(T));
    memcpy(pass.instances[0] + at + to, instance, count * sizeof(int32_t));
    memcpy(pass.instances[1] + at + to, other, count * sizeof(int32_t));
  }
}

// ---------------------------------------------------------------------------------------------------- the table

size_t scratch(const DistancePass& pass) {
  const int64_t W = pass.op.shape[2];
  int64_t bytes = (W + LANES) * (pass.wide ? 8 : 4) + W;  // a row and its kinds
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t n = pass.op.shape[axis];
    bytes = most(bytes, pass.wide ? Tiles<double>(pass, n, nullptr).bytes : Tiles<float>(pass, n, nullptr).bytes);
  }
  return static_cast<size_t>(bytes);
}

int64_t rows_of(const DistancePass& pass, int64_t plane, int64_t begin, int64_t end, void* scratch) {
  return (pass.wide ? rows<double> : rows<float>)(pass, plane, begin, end, scratch);
}

void columns_of(const DistancePass& pass, int axis, int64_t unit, int64_t begin, int64_t end, void* scratch) {
  (pass.wide ? columns<double> : columns<float>)(pass, axis, unit, begin, end, scratch);
}

}  // namespace

const DistanceTransformKernels distance_transform_edt_table = {scratch, rows_of, columns_of};

}  // namespace SEGFUSE_ISA
}  // namespace segfuse
