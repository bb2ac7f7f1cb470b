// Exact squared Euclidean distances on a GPU, one axis after the other.
//
//   rows     a warp per row and class finds the ends of every run of equal pixels by ballots: distances in steps
//   columns  out(y) = min over j of (unit (y - j))^2 + in(j), LANES neighbouring columns per block, along y and then z
//
// Memory:   floor 2 + 2 + 4 bytes a pixel in 2-D, 2 + 2 + 2 + 2 + 4 in 3-D, and the input. Rows write 16 bits, columns
//           that are not the last ones too where squares fit, in place; else they use the output. Lanes go along x, so
//           nothing is transposed.
// Columns:  minimisers do not decrease from row to row. Rows are taken in halving steps; each looks outwards from
// itself
//           between the minimisers of its neighbours, and stops where the step alone is no better than what it has. All
//           warps of the block are busy, no column costs more than n log2(n), and most pixels look at a few rows.
// Sides:    INSIDE knows one kind of site, worth 0. Otherwise a pixel's sites are those of another kind: the sign bit
//           holds the kind, and a value of another kind counts 0. A minimiser may be the first pixel beyond the run: it
//           does not decrease by more than 1. LABELS take the parity of label changes along the line as the kind.
// Numerics: without spacing, squares are integers below 2^30, else double; with spacing float, or double for a double
//           output. An absent distance stays NONE until the last pass writes 0, so nobody counts empty masks.
// Two:      NEAREST_TWO keeps the two nearest instances of every pixel and looks outwards along every axis, a thread
// per
//           pixel, until the second cannot get nearer.
// Order:    every output is written by one thread, whose work follows from the input alone.
// Source:   separable passes: Felzenszwalb and Huttenlocher 2012, doi:10.4086/toc.2012.v008a019. Monotone minimisers:
//           Aggarwal et al. 1987, doi:10.1007/BF01840359.
#include "../segfuse_cuda.h"
#include "launch.cuh"

namespace segfuse {
namespace {

constexpr int ROW_THREADS = 256, PIXEL_THREADS = 256, MOST_THREADS = 512;
constexpr int64_t MOST_WORDS = 128;                             // of a row that shared memory holds, 32 pixels each
constexpr int MAX_LEADING = 64;                                 // axes that a tensor can have
constexpr int MAX_CLASSES = 128;                                // of one launch
constexpr int64_t SHARED = 100 << 10, MOST_SHARED = 200 << 10;  // bytes of two blocks per multiprocessor, and of one
constexpr uint32_t NONE16 = 0x7fff, NONE32 = 0x7fffffff;        // steps or squares that are absent; the top bit is free
constexpr double FARTHEST_INT = (1 << 30) - 1;
constexpr double EXACT_FLOAT = 1 << 24;
constexpr double FLOAT_RATIO = 1e9;  // between spacings whose squares are far from the smallest float

enum Arithmetic { INT32, FLOAT32, FLOAT64 };
enum Format { STEPS16, STEPS32, SQUARES16, SQUARES };

// Everything about a call.
struct Distances {
  const char* input;
  DType dtype;
  int bytes;  // of an input element
  int leading;
  int64_t leading_shape[MAX_LEADING], leading_strides[MAX_LEADING];
  int64_t shape[3], strides[3];
  DistanceMode mode;
  int64_t classes;
  double threshold;
  double scale, unit[3];  // unit: spacing / scale
  bool squared, output_double;
  void* output;
  void* second;
  int32_t* index[3];  // or nullptr
  int last;           // axis of the last pass
};

struct ClassNumbers {
  int64_t first;
  int count;
  bool given;  // otherwise every pixel that is not 0 is foreground
  uint64_t bits[MAX_CLASSES];
  bool fits[MAX_CLASSES];  // the type of the input holds such a number
};

// Offset of a sample in the input.
__device__ __forceinline__ int64_t sample_offset(const Distances& op, int64_t sample) {
  int64_t offset = 0;
  for (int d = op.leading - 1; d > 0; --d) {
    const int64_t rest = sample / op.leading_shape[d];
    offset += (sample - rest * op.leading_shape[d]) * op.leading_strides[d];
    sample = rest;
  }
  return op.leading > 0 ? offset + sample * op.leading_strides[0] : 0;
}

__device__ __forceinline__ float root(float x) { return __fsqrt_rn(x); }
__device__ __forceinline__ double root(double x) { return __dsqrt_rn(x); }

// ------------------------------------------------------------------------------------------- squares and signs

template <typename T>
struct Square {
  static __host__ __device__ T none() { return static_cast<T>(HUGE_VAL); }
  static __device__ T of(T k, T unit_square) { return k * k * unit_square; }
  static __device__ bool negative(T a) { return a < T(0); }
  static __device__ T signed_by(T a, bool negative) { return negative ? -a : a; }
  static __device__ T magnitude(T a) { return a < T(0) ? -a : a; }
  // `a` seen from a pixel whose own value has this sign: 0 for another kind
  static __device__ T seen(T a, bool negative) { return max_(negative ? -a : a, T(0)); }
};
template <>
struct Square<int32_t> {
  static constexpr int32_t SIGN = INT32_MIN;
  static __host__ __device__ int32_t none() { return (1 << 30) - 1; }  // plus a square it is still no negative number
  static __device__ int32_t of(int32_t k, int32_t) { return k * k; }
  static __device__ bool negative(int32_t a) { return a < 0; }
  static __device__ int32_t signed_by(int32_t a, bool negative) { return negative ? a | SIGN : a; }
  static __device__ int32_t magnitude(int32_t a) { return a & ~SIGN; }
  static __device__ int32_t seen(int32_t a, bool negative) { return max_(negative ? a ^ SIGN : a, 0); }
};

// A squared distance as the caller wants it; `absent` where there is none.
template <typename T>
__device__ __forceinline__ void finish(const Distances& op, T square, double absent, bool minus, int64_t at,
                                       void* output) {
  const double scale = op.squared ? op.scale * op.scale : op.scale;
  double found = absent;
  if (square < Square<T>::none()) {
    if (sizeof(T) == 4 && !op.output_double && static_cast<float>(square) < static_cast<float>(EXACT_FLOAT)) {
      const float d = static_cast<float>(square), length = (op.squared ? d : root(d)) * static_cast<float>(scale);
      static_cast<float*>(output)[at] = minus ? -length : length;
      return;
    }
    const double d = static_cast<double>(square);
    found = (op.squared ? d : root(d)) * scale;
  }
  if (minus) found = -found;
  if (op.output_double) {
    static_cast<double*>(output)[at] = found;
  } else {
    static_cast<float*>(output)[at] = static_cast<float>(found);
  }
}

// ------------------------------------------------------------------------------------------- rows

template <typename Source>
struct Foreground {  // of integers: bits alone
  Source number;
  bool fits, given;
  __device__ Foreground(const Distances&, const ClassNumbers& classes, int c)
      : number(static_cast<Source>(classes.bits[c])), fits(classes.fits[c]), given(classes.given) {}
  __device__ bool operator()(Source v) const { return given ? fits && v == number : v != 0; }
};
template <typename Storage>
struct Above {
  typename Compute<Storage>::Type threshold;
  __device__ Above(const Distances& op, const ClassNumbers&, int)
      : threshold(static_cast<typename Compute<Storage>::Type>(op.threshold)) {}
  __device__ bool operator()(Storage v) const { return widen(v) > threshold; }
};

__device__ __forceinline__ bool differ(float, float) { return false; }  // labels are integers
__device__ __forceinline__ bool differ(double, double) { return false; }
__device__ __forceinline__ bool differ(half, half) { return false; }
__device__ __forceinline__ bool differ(bfloat16, bfloat16) { return false; }
template <typename Source>
__device__ __forceinline__ bool differ(Source a, Source b) {
  return a != b;
}

// One warp per (row, class). For every 32 pixels it notes where runs begin (`begins`), which pixels are foreground
// (`kinds`) and where the run that reaches in from the left began (`from`); then it goes back from the last pixels to
// the first. `memory`: those notes, where shared memory does not hold them.
template <typename Source, typename Test>
__global__ void __launch_bounds__(ROW_THREADS)
    rows(const __grid_constant__ Distances op, const __grid_constant__ ClassNumbers classes, int64_t tasks, void* steps,
         bool wide, uint32_t* memory) {
  const int64_t task = blockIdx.x * static_cast<int64_t>(ROW_THREADS / WARP) + threadIdx.x / WARP;
  if (task >= tasks) return;
  const int lane = threadIdx.x % WARP, c = static_cast<int>(task % classes.count);
  const int64_t D = op.shape[0], H = op.shape[1], W = op.shape[2], words = (W + WARP - 1) / WARP;
  const int64_t row = task / classes.count, sample = row / (D * H), z = row / H % D, y = row % H;
  const int64_t out = ((sample * op.classes + classes.first + c) * D + z) * H + y;
  const Source* in =
      reinterpret_cast<const Source*>(op.input) + sample_offset(op, sample) + z * op.strides[0] + y * op.strides[1];
  const Test test(op, classes, c);
  const bool labels = op.mode == LABELS, inside = op.mode == INSIDE;
  uint32_t* begins = memory != nullptr ? memory + out * 3 * words
                                       : reinterpret_cast<uint32_t*>(shared_memory()) + threadIdx.x / WARP * 3 * words;
  uint32_t *kinds = begins + words, *from = kinds + words;

  uint32_t before = 0, start = 0;  // kind of the pixel before; where its run began
#pragma unroll 4
  for (int64_t w = 0; w < words; ++w) {
    const int64_t x = w * WARP + lane;
    bool kind = false, changes = false;
    if (x < W) {
      const Source v = in[x * op.strides[2]];
      if (labels) {
        changes = x > 0 && differ(v, in[(x - 1) * op.strides[2]]);
      } else {
        kind = test(v);
      }
    }
    const uint32_t k = __ballot_sync(ALL_LANES, kind);
    uint32_t b = __ballot_sync(ALL_LANES, changes);
    if (!labels) {
      b = k ^ (k << 1 | (w == 0 ? k & 1 : before));
      if (W - w * WARP < WARP) b &= (1u << (W - w * WARP)) - 1;
    }
    if (lane == 0) begins[w] = b, kinds[w] = k, from[w] = start;
    before = k >> 31;
    if (b != 0) start = static_cast<uint32_t>(w * WARP + 31 - __clz(static_cast<int>(b)));
  }
  __syncwarp();

  int64_t next = W;  // the first pixel after these 32 where a run begins
  for (int64_t w = words - 1; w >= 0; --w) {
    const int64_t x = w * WARP + lane, at = out * W + x;
    const uint32_t b = begins[w], k = kinds[w];
    const uint32_t here = b & (0xffffffffu >> (31 - lane)), after = b & (0xfffffffeu << lane);
    const int64_t begin = here != 0 ? w * WARP + 31 - __clz(static_cast<int>(here)) : static_cast<int64_t>(from[w]);
    const int64_t end = after != 0 ? w * WARP + __ffs(static_cast<int>(after)) - 1 : next;
    if (b != 0) next = w * WARP + __ffs(static_cast<int>(b)) - 1;
    if (x >= W) continue;
    const bool foreground = k >> lane & 1, site = inside && !foreground;
    const int64_t left = begin > 0 ? x - begin + 1 : NONE32, right = end < W ? end - x : NONE32;
    const int64_t distance = site ? 0 : min_(left, right);
    const bool none = distance == NONE32, background = !labels && !inside && !foreground;
    if (op.index[2] != nullptr) {
      op.index[2][at] = static_cast<int32_t>(none || site ? x : left <= right ? begin - 1 : end);
      for (int d = 0; d < 2; ++d)  // an axis without a pass
        if (op.index[d] != nullptr && op.shape[d] == 1) op.index[d][at] = 0;
    }
    if (op.last == 2) {
      const double d = static_cast<double>(distance) * op.unit[2];
      finish(op, none ? Square<double>::none() : d * d, 0.0, op.mode == SIGNED && foreground, at, op.output);
    } else if (wide) {
      static_cast<uint32_t*>(steps)[at] = static_cast<uint32_t>(distance) | (background ? 0x80000000u : 0u);
    } else {
      static_cast<uint16_t*>(steps)[at] =
          static_cast<uint16_t>((none ? NONE16 : static_cast<uint32_t>(distance)) | (background ? 0x8000u : 0u));
    }
  }
}

// ------------------------------------------------------------------------------------------- columns

// The columns of one axis. A column number g stands for the pixels g / inner * outer + g % inner + y * step.
struct Columns {
  int axis;
  int64_t n, step, inner, outer, total;
  int lanes;       // columns of a block
  const void* in;  // may be `out`
  void* out;       // unless this is the last pass
  Format in_format, out_format;
  char* memory;        // tiles of all blocks, where shared memory does not hold one
  int64_t tile_bytes;  // of a block: values, staged indices, minimisers
  bool every_row;      // has its minimiser noted; otherwise every second one
};

__host__ __device__ constexpr int64_t padded(int64_t bytes) { return (bytes + 15) / 16 * 16; }

template <typename T>
__device__ __forceinline__ T decode(const Columns& line, int64_t at, T unit_square) {
  switch (line.in_format) {
    case STEPS16: {
      const uint32_t s = static_cast<const uint16_t*>(line.in)[at], k = s & NONE16;
      const T square = k == NONE16 ? Square<T>::none() : Square<T>::of(static_cast<T>(k), unit_square);
      return Square<T>::signed_by(square, s >> 15);
    }
    case STEPS32: {
      const uint32_t s = static_cast<const uint32_t*>(line.in)[at], k = s & NONE32;
      const T square = k == NONE32 ? Square<T>::none() : Square<T>::of(static_cast<T>(k), unit_square);
      return Square<T>::signed_by(square, s >> 31);
    }
    case SQUARES16: {
      const uint32_t s = static_cast<const uint16_t*>(line.in)[at], k = s & NONE16;
      return Square<T>::signed_by(k == NONE16 ? Square<T>::none() : static_cast<T>(k), s >> 15);
    }
    default:
      return static_cast<const T*>(line.in)[at];
  }
}

// The bits of a label.
__device__ __forceinline__ uint64_t label_at(const Distances& op, int64_t at) {
  switch (op.bytes) {
    case 1:
      return reinterpret_cast<const uint8_t*>(op.input)[at];
    case 2:
      return reinterpret_cast<const uint16_t*>(op.input)[at];
    case 4:
      return reinterpret_cast<const uint32_t*>(op.input)[at];
    default:
      return reinterpret_cast<const uint64_t*>(op.input)[at];
  }
}

template <typename T, bool SIDES, bool LONG>
__global__ void __launch_bounds__(MOST_THREADS, 2)
    columns(const __grid_constant__ Distances op, const __grid_constant__ Columns line) {
  using At = std::conditional_t<LONG, int32_t, uint16_t>;
  const int64_t n = line.n, lanes = line.lanes, lane = threadIdx.x % lanes, size = n * lanes;
  const int64_t group = threadIdx.x / lanes, groups = blockDim.x / lanes;
  char* shared = shared_memory();
  char* memory = LONG ? line.memory + blockIdx.x * line.tile_bytes : shared;
  T* tile = reinterpret_cast<T*>(memory);
  int32_t* staged = reinterpret_cast<int32_t*>(memory + padded(size * sizeof(T)));
  At* minimiser =
      reinterpret_cast<At*>(reinterpret_cast<char*>(staged) + (line.every_row ? padded(size * sizeof(int32_t)) : 0));
  uint8_t* parity = reinterpret_cast<uint8_t*>(shared + (LONG ? 0 : line.tile_bytes));  // [groups, lanes]
  const int shift = line.every_row ? 0 : 1;
  const int64_t column = blockIdx.x * lanes + lane;
  const bool real = column < line.total;
  const int64_t base = real ? column / line.inner * line.outer + column % line.inner : 0;
  const T unit_square = static_cast<T>(op.unit[line.axis] * op.unit[line.axis]);
  const T before = static_cast<T>(op.unit[2] * op.unit[2]);  // of the rows, which count steps
  T* mine = tile + lane;

  if (op.mode != LABELS) {
#pragma unroll 4
    for (int64_t y = group; y < n; y += groups)
      mine[y * lanes] = real ? decode<T>(line, base + y * line.step, before) : Square<T>::none();
    __syncthreads();
  } else {  // each group takes neighbouring rows, so that it sees the label change
    const int64_t W = op.shape[2], H = op.shape[1], D = op.shape[0], row = base / W;
    const int64_t stride = op.strides[line.axis], rows = (n + groups - 1) / groups;
    const int64_t begin = min_(group * rows, n), end = min_(begin + rows, n);
    const int64_t label = sample_offset(op, row / H / D) + row / H % D * op.strides[0] + row % H * op.strides[1] +
                          base % W * op.strides[2];
    bool odd = false;
    uint64_t last = real && begin > 0 && begin < end ? label_at(op, label + (begin - 1) * stride) : 0;
    for (int64_t y = begin; y < end; ++y) {
      const uint64_t own = real ? label_at(op, label + y * stride) : 0;
      odd ^= y > 0 && own != last;
      last = own;
      const T square = real ? decode<T>(line, base + y * line.step, before) : Square<T>::none();
      mine[y * lanes] = Square<T>::signed_by(square, odd);
    }
    parity[threadIdx.x] = odd;
    __syncthreads();
    odd = false;
    for (int64_t g = 0; g < group; ++g) odd ^= parity[g * lanes + lane] != 0;
    for (int64_t y = begin; odd && y < end; ++y)
      mine[y * lanes] =
          Square<T>::signed_by(Square<T>::magnitude(mine[y * lanes]), !Square<T>::negative(mine[y * lanes]));
    __syncthreads();
  }

  // y + 1 is an odd multiple of h
  const int rows = static_cast<int>(n), first_row = static_cast<int>(group), all_groups = static_cast<int>(groups);
  int h = 1;
  while (h <= rows / 2) h *= 2;
  for (; h >= 1; h /= 2) {
    for (int64_t next = h - 1 + 2 * static_cast<int64_t>(h) * first_row; next < n;
         next += 2 * static_cast<int64_t>(h) * all_groups) {
      const int y = static_cast<int>(next);
      int low = 0, high = rows - 1;
      if (y >= h) low = max_(static_cast<int>(minimiser[((y - h) >> shift) * lanes + lane]) - SIDES, low);
      if (h < rows - y) high = min_(static_cast<int>(minimiser[((y + h) >> shift) * lanes + lane]) + SIDES, high);
      const T own = mine[y * lanes];
      const bool negative = SIDES && Square<T>::negative(own);
      T best = SIDES ? Square<T>::magnitude(own) : own;
      int where = y;
      const int first = max_(max_(low - y, y - high), 1), farthest = max_(y - low, high - y);
      T k = static_cast<T>(first);
      const T *up = mine + (y - first) * lanes, *down = mine + (y + first) * lanes;
      for (int step = first; step <= farthest; ++step, k += T(1), up -= lanes, down += lanes) {
        const T square = Square<T>::of(k, unit_square);
        if (square >= best) break;
        if (y - step >= low) {
          const T v = (SIDES ? Square<T>::seen(*up, negative) : *up) + square;
          if (v < best) best = v, where = y - step;
        }
        if (y + step <= high) {
          const T v = (SIDES ? Square<T>::seen(*down, negative) : *down) + square;
          if (v < best) best = v, where = y + step;
        }
      }
      if (h > 1 || line.every_row) minimiser[(y >> shift) * lanes + lane] = static_cast<At>(where);
      if (!real) continue;
      const int64_t at = base + y * line.step;
      if (op.last == line.axis) {
        finish(op, best, 0.0, op.mode == SIGNED && !negative, at, op.output);
        continue;
      }
      const bool keep = negative && op.mode != LABELS;
      if (line.out_format == SQUARES16) {
        const uint32_t bits = best >= Square<T>::none() ? NONE16 : static_cast<uint32_t>(best);
        static_cast<uint16_t*>(line.out)[at] = static_cast<uint16_t>(bits | (keep ? 0x8000u : 0u));
      } else {
        static_cast<T*>(line.out)[at] = Square<T>::signed_by(best, keep);
      }
    }
    __syncthreads();
  }
  if (op.index[line.axis] == nullptr) return;

  // The nearest pixel of the line leads to the nearest pixel of all, unless it is of another kind itself.
  for (int d = line.axis + 1; d < 3; ++d) {
    if (op.index[d] == nullptr) continue;
    const int64_t self = d == 2 ? base % op.shape[2] : base / op.shape[2] % op.shape[1];
    for (int64_t y = group; real && y < n; y += groups) {
      const int64_t from = minimiser[y * lanes + lane];
      const bool site = SIDES && Square<T>::negative(mine[from * lanes]) != Square<T>::negative(mine[y * lanes]);
      staged[y * lanes + lane] = site ? static_cast<int32_t>(self) : op.index[d][base + from * line.step];
    }
    __syncthreads();
    for (int64_t y = group; real && y < n; y += groups) op.index[d][base + y * line.step] = staged[y * lanes + lane];
  }
  for (int64_t y = group; real && y < n; y += groups)
    op.index[line.axis][base + y * line.step] = static_cast<int32_t>(minimiser[y * lanes + lane]);
}

// ------------------------------------------------------------------------------------------- two instances

// The nearest and second nearest of what was seen so far, of different instances; instance 0 is none.
template <typename T, typename Label>
struct Two {
  T first, second;
  Label instance, other;

  __device__ void see(T d, Label label) {
    if (label == instance) {
      first = min_(d, first);
    } else if (d < first) {
      second = first, other = instance;
      first = d, instance = label;
    } else if (d < second) {
      second = d, other = label;
    }
  }
};

template <typename T, typename Label>
struct TwoFields {
  T *first, *second;
  Label *instance, *other;

  __device__ Two<T, Label> at(int64_t i) const { return {first[i], second[i], instance[i], other[i]}; }
  __device__ void set(int64_t i, const Two<T, Label>& two) const {
    first[i] = two.first, second[i] = two.second, instance[i] = two.instance, other[i] = two.other;
  }
};

// A number of an instance; 0 is none. A uint64 above 2^63 becomes a negative number of its own.
__device__ __forceinline__ int64_t instance_at(const Distances& op, int64_t at) {
  const int64_t v = read<int64_t>(op.input, op.dtype, at);
  return v > 0 || op.dtype == U64 ? v : 0;
}

// in: what the pass before left; the first pass, along x, reads the instances.
template <typename T, typename Label>
__global__ void __launch_bounds__(PIXEL_THREADS)
    nearest_two(const __grid_constant__ Distances op, int axis, int64_t pixels, TwoFields<T, Label> in,
                TwoFields<T, Label> out) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(PIXEL_THREADS) + threadIdx.x;
  if (i >= pixels) return;
  const int64_t D = op.shape[0], H = op.shape[1], W = op.shape[2], n = op.shape[axis];
  const int64_t step = axis == 2 ? 1 : axis == 1 ? W : H * W, at = i / step % n;
  const T unit_square = static_cast<T>(op.unit[axis] * op.unit[axis]);
  const int64_t row = i / W,
                start = sample_offset(op, row / H / D) + row / H % D * op.strides[0] + row % H * op.strides[1];
  Two<T, Label> two{Square<T>::none(), Square<T>::none(), 0, 0};
  auto look = [&](int64_t offset, T square) {
    if (axis == 2) {
      const Label label = static_cast<Label>(instance_at(op, start + (at + offset) * op.strides[2]));
      if (label != 0) two.see(square, label);
      return;
    }
    const Two<T, Label> there = in.at(i + offset * step);
    if (there.instance != 0) two.see(there.first + square, there.instance);
    if (there.other != 0) two.see(there.second + square, there.other);
  };
  look(0, T(0));
  for (int64_t k = 1; k <= at || k < n - at; ++k) {
    const T square = Square<T>::of(static_cast<T>(k), unit_square);
    if (square >= two.second) break;
    if (k <= at) look(-k, square);
    if (k < n - at) look(k, square);
  }
  if (axis != op.last) {
    out.set(i, two);
    return;
  }
  finish(op, two.first, HUGE_VAL, false, i, op.output);
  finish(op, two.second, HUGE_VAL, false, i, op.second);
}

// ------------------------------------------------------------------------------------------- the host

int bytes_of(DType dtype) {
  switch (dtype) {
    case F64:
    case I64:
    case U64:
      return 8;
    case F32:
    case I32:
    case U32:
      return 4;
    case F16:
    case BF16:
    case I16:
    case U16:
      return 2;
    default:
      return 1;
  }
}

bool is_signed(DType dtype) { return dtype == I8 || dtype == I16 || dtype == I32 || dtype == I64; }

// Whether an integer type holds the number.
bool holds(DType dtype, int64_t number) {
  const int bits = 8 * bytes_of(dtype);
  if (is_signed(dtype))
    return bits == 64 || (number >= -(int64_t(1) << (bits - 1)) && number < int64_t(1) << (bits - 1));
  return number >= 0 && (bits == 64 || number < int64_t(1) << bits);
}

int64_t take(int64_t& total, int64_t bytes) {
  const int64_t at = total;
  total += (bytes + 255) / 256 * 256;
  return at;
}

// A call, its arithmetic, and where in the workspace everything lies.
struct Plan {
  Distances op{};
  Arithmetic arithmetic;
  int64_t pixels, rows;  // rows: without classes
  bool wide_steps, short_squares;
  int64_t total = 0;                                         // bytes of workspace
  int64_t steps = -1, squares = -1, words = -1, tiles = -1;  // offsets; -1: not there
  int64_t fields[2] = {-1, -1};
  bool wide_labels = false;

  explicit Plan(const DistanceTransform& from) {
    op.input = from.input;
    op.dtype = from.dtype;
    op.bytes = bytes_of(from.dtype);
    op.mode = from.mode;
    op.classes = from.classes;
    op.threshold = from.threshold;
    op.squared = from.squared;
    op.output_double = from.output_double;
    op.output = from.output;
    op.second = from.second;
    int64_t samples = 1;
    for (int d = 0; d < from.leading; ++d) {  // neighbours that the input walks as one are one axis
      const int64_t side = from.leading_shape[d], stride = from.leading_strides[d];
      samples *= side;
      if (side == 1) continue;
      const int top = op.leading - 1;
      if (top >= 0 && op.leading_strides[top] == stride * side) {
        op.leading_shape[top] *= side;
        op.leading_strides[top] = stride;
      } else {
        op.leading_shape[op.leading] = side;
        op.leading_strides[op.leading++] = stride;
      }
    }
    double farthest = 0, smallest = 0;
    for (int d = 0; d < 3; ++d) {
      const int64_t side = op.shape[d] = from.shape[d];
      op.strides[d] = from.strides[d];
      farthest += static_cast<double>(side - 1) * static_cast<double>(side - 1);
      if (side == 1) continue;
      op.scale = max_(op.scale, from.spacing[d]);
      smallest = smallest == 0 ? from.spacing[d] : min_(smallest, from.spacing[d]);
    }
    if (op.scale == 0) op.scale = smallest = 1;
    for (int d = 0; d < 3; ++d) op.unit[d] = from.spacing[d] / op.scale;
    const int64_t D = op.shape[0], H = op.shape[1], W = op.shape[2];
    rows = samples * D * H;
    pixels = rows * op.classes * W;
    for (int d = 0; d < 3; ++d) {
      const int axis = d - (3 - from.axes);
      op.index[d] = from.indices != nullptr && axis >= 0 ? from.indices + axis * pixels : nullptr;
    }
    op.last = D > 1 ? 0 : H > 1 ? 1 : 2;
    const bool isotropic = op.scale == smallest, narrow = !op.output_double && op.scale <= smallest * FLOAT_RATIO;
    arithmetic = isotropic ? (farthest < FARTHEST_INT ? INT32 : FLOAT64) : narrow ? FLOAT32 : FLOAT64;
    if (op.mode == NEAREST_TWO) {
      arithmetic = op.output_double || (isotropic ? farthest >= EXACT_FLOAT : !narrow) ? FLOAT64 : FLOAT32;
      wide_labels = op.dtype == U32 || op.bytes == 8;
      const int64_t bytes = 2 * pixels * (value_bytes() + (wide_labels ? 8 : 4));
      if (H > 1 || D > 1) fields[0] = take(total, bytes);
      if (H > 1 && D > 1) fields[1] = take(total, bytes);
      return;
    }
    const int64_t count = (W + WARP - 1) / WARP;
    if (count > MOST_WORDS) words = take(total, rows * op.classes * 3 * count * 4);
    wide_steps = W > NONE16;
    short_squares = arithmetic == INT32 && !wide_steps && (H - 1) * (H - 1) + (W - 1) * (W - 1) < NONE16;
    if (op.last < 2) steps = take(total, pixels * (wide_steps ? 4 : 2));
    if (D > 1 && H > 1 && !short_squares && value_bytes() != (op.output_double ? 8 : 4))
      squares = take(total, pixels * value_bytes());
    int64_t most = 0;
    for (int axis = 1; axis >= 0; --axis) {
      const Columns line = columns_of(axis);
      if (op.shape[axis] > 1 && line.lanes == 0) most = max_(most, tile_bytes(axis, WARP, 4) * blocks(line, WARP));
    }
    if (most > 0) tiles = take(total, most);
  }

  int64_t value_bytes() const { return arithmetic == FLOAT64 ? 8 : 4; }

  int64_t tile_bytes(int axis, int64_t lanes, int64_t minimiser) const {
    const int64_t n = op.shape[axis], all = n * lanes;
    const bool every_row = op.index[axis] != nullptr;
    return padded(all * value_bytes()) + (every_row ? padded(all * 4) : 0) +
           padded((every_row ? n : (n + 1) / 2) * lanes * minimiser);
  }
  static int64_t blocks(const Columns& line, int64_t lanes) { return (line.total + lanes - 1) / lanes; }

  int threads(int axis) const { return op.shape[axis] >= 256 ? 512 : op.shape[axis] >= 64 ? 256 : 128; }

  // `lanes` is 0 where no tile fits shared memory.
  Columns columns_of(int axis) const {
    const int64_t plane = op.shape[1] * op.shape[2];
    Columns line{};
    line.axis = axis;
    line.n = op.shape[axis];
    line.step = line.inner = axis == 1 ? op.shape[2] : plane;
    line.outer = line.n * line.step;
    line.total = line.n == 0 ? 0 : pixels / line.n;
    line.every_row = op.index[axis] != nullptr;
    for (int lanes : {32, 16, 8})
      if (line.lanes == 0 && tile_bytes(axis, lanes, 2) <= (lanes == 8 ? MOST_SHARED : SHARED)) line.lanes = lanes;
    return line;
  }
};

template <typename T>
cudaError_t run_columns(const Plan& plan, Columns line, char* workspace, cudaStream_t stream) {
  const bool sides = plan.op.mode != INSIDE, longer = line.lanes == 0;
  if (longer) line.lanes = WARP;
  line.tile_bytes = plan.tile_bytes(line.axis, line.lanes, longer ? 4 : 2);
  line.memory = longer ? workspace + plan.tiles : nullptr;
  const int threads = plan.threads(line.axis);
  const size_t shared = (longer ? 0 : line.tile_bytes) + (plan.op.mode == LABELS ? threads : 0);
  const auto kernel = longer  ? (sides ? columns<T, true, true> : columns<T, false, true>)
                      : sides ? columns<T, true, false>
                              : columns<T, false, false>;
  return launch(kernel, static_cast<unsigned>(Plan::blocks(line, line.lanes)), threads, shared, stream, plan.op, line);
}

template <typename Source, typename Test>
cudaError_t run_rows(const Plan& plan, const int64_t* numbers, char* workspace, cudaStream_t stream) {
  const int64_t words = (plan.op.shape[2] + WARP - 1) / WARP, warps = ROW_THREADS / WARP;
  uint32_t* memory = plan.words < 0 ? nullptr : reinterpret_cast<uint32_t*>(workspace + plan.words);
  const size_t shared = memory != nullptr ? 0 : warps * 3 * words * sizeof(uint32_t);
  for (int64_t first = 0; first < plan.op.classes; first += MAX_CLASSES) {
    ClassNumbers classes{};
    classes.first = first;
    classes.count = static_cast<int>(min_(plan.op.classes - first, int64_t(MAX_CLASSES)));
    classes.given = numbers != nullptr;
    for (int c = 0; numbers != nullptr && c < classes.count; ++c) {
      classes.bits[c] = static_cast<uint64_t>(numbers[first + c]);
      classes.fits[c] = holds(plan.op.dtype, numbers[first + c]);
    }
    const int64_t tasks = plan.rows * classes.count;
    SEGFUSE_TRY(launch(rows<Source, Test>, static_cast<unsigned>((tasks + warps - 1) / warps), ROW_THREADS, shared,
                       stream, plan.op, classes, tasks, static_cast<void*>(workspace + max_(plan.steps, int64_t(0))),
                       plan.wide_steps, memory));
  }
  return cudaSuccess;
}

cudaError_t run_any_rows(const Plan& plan, const int64_t* numbers, char* workspace, cudaStream_t stream) {
  switch (plan.op.dtype) {
    case F32:
      return run_rows<float, Above<float>>(plan, numbers, workspace, stream);
    case F64:
      return run_rows<double, Above<double>>(plan, numbers, workspace, stream);
    case F16:
      return run_rows<half, Above<half>>(plan, numbers, workspace, stream);
    case BF16:
      return run_rows<bfloat16, Above<bfloat16>>(plan, numbers, workspace, stream);
    default:
      break;
  }
  switch (plan.op.bytes) {
    case 1:
      return run_rows<uint8_t, Foreground<uint8_t>>(plan, numbers, workspace, stream);
    case 2:
      return run_rows<uint16_t, Foreground<uint16_t>>(plan, numbers, workspace, stream);
    case 4:
      return run_rows<uint32_t, Foreground<uint32_t>>(plan, numbers, workspace, stream);
    default:
      return run_rows<uint64_t, Foreground<uint64_t>>(plan, numbers, workspace, stream);
  }
}

template <typename T, typename Label>
cudaError_t run_nearest_two(const Plan& plan, char* workspace, cudaStream_t stream) {
  TwoFields<T, Label> fields[2] = {};
  for (int k = 0; k < 2; ++k) {
    if (plan.fields[k] < 0) continue;
    T* at = reinterpret_cast<T*>(workspace + plan.fields[k]);
    Label* labels = reinterpret_cast<Label*>(at + 2 * plan.pixels);
    fields[k] = {at, at + plan.pixels, labels, labels + plan.pixels};
  }
  const unsigned blocks = static_cast<unsigned>((plan.pixels + PIXEL_THREADS - 1) / PIXEL_THREADS);
  int filled = 1;
  for (int axis = 2; axis >= 0; --axis) {
    if (axis < 2 && plan.op.shape[axis] == 1) continue;
    SEGFUSE_TRY(launch(nearest_two<T, Label>, blocks, PIXEL_THREADS, 0, stream, plan.op, axis, plan.pixels,
                       fields[filled], fields[1 - filled]));
    filled = 1 - filled;
  }
  return cudaSuccess;
}

}  // namespace

namespace cuda {

int64_t distance_transform_edt_workspace(const DistanceTransform& op) { return Plan(op).total; }

cudaError_t distance_transform_edt(const DistanceTransform& call, void* workspace, cudaStream_t stream) {
  const Plan plan(call);
  const Distances& op = plan.op;
  char* room = static_cast<char*>(workspace);
  if (plan.pixels == 0) return cudaSuccess;
  if (op.mode == NEAREST_TWO) {
    if (plan.arithmetic == FLOAT64)
      return plan.wide_labels ? run_nearest_two<double, int64_t>(plan, room, stream)
                              : run_nearest_two<double, int32_t>(plan, room, stream);
    return plan.wide_labels ? run_nearest_two<float, int64_t>(plan, room, stream)
                            : run_nearest_two<float, int32_t>(plan, room, stream);
  }
  SEGFUSE_TRY(run_any_rows(plan, call.class_number, room, stream));
  const void* in = room + plan.steps;
  Format format = plan.wide_steps ? STEPS32 : STEPS16;
  for (int axis = 1; axis >= 0; --axis) {
    if (op.shape[axis] == 1) continue;
    Columns line = plan.columns_of(axis);
    line.in = in;
    line.in_format = format;
    line.out = plan.short_squares  ? room + plan.steps
               : plan.squares >= 0 ? room + plan.squares
                                   : static_cast<char*>(op.output);
    line.out_format = plan.short_squares ? SQUARES16 : SQUARES;
    SEGFUSE_TRY(plan.arithmetic == INT32     ? run_columns<int32_t>(plan, line, room, stream)
                : plan.arithmetic == FLOAT32 ? run_columns<float>(plan, line, room, stream)
                                             : run_columns<double>(plan, line, room, stream));
    in = line.out;
    format = line.out_format;
  }
  return cudaSuccess;
}

}  // namespace cuda
}  // namespace segfuse
