// Windows on a GPU: the march of a block through an image, what it makes of the pixels of a window, and what the losses
// on windows have in common.
//
// A block owns a tile of columns and rows and marches along the outermost axis. Each plane of its pixels, with those
// within the radius, is combined along x and y in shared memory; the last 2 r + 1 planes are kept there, in a ring, and
// combined along z. A thread makes two rows of its column, which have all taps but two in common.
//
// Gather:   moments of every centre. Along an axis the windows of the neighbours have means m_k and variances v_k; then
//           by the law of total variance, with weights w that add up to 1 and d_k = m_k - m_0,
//             m = m_0 + sum w d,    v = sum w v + sum w d^2 - (sum w d)^2,
//           and alike for the covariance. A flat window has exactly variance 0, and nothing cancels.
// Scatter:  the gradient of pixel j, g_j = sum_i w_ij (by_mean_i + by_var_i (a_j - mean_i) + by_cov_i (b_j - mean_i)).
//           A centre brings h_i = by_mean_i + by_var_i (a_i - mean_i) + by_cov_i (b_i - mean_i), so that what is left
//           is relative to its own pixel: g_j = sum_i w_ij (h_i + by_var_i (a_j - a_i) + by_cov_i (b_j - b_i)), where
//           an axis moves the pixel that is compared from i to j. Differences in a flat window are exactly 0.
// Memory:   a march reads dense images and the tiles overlap by the radius, which is what the second-level cache is
// for.
//           So images of p and y are made first, a few groups at a time: MAP_PIXELS of all that a gradient needs fit
//           into that cache.
// Order:    taps in index order; the cut into tiles depends on the shape alone.
#pragma once
#include "../segfuse_cuda.h"
#include "../terms.h"
#include "launch.cuh"

namespace segfuse {
namespace {

constexpr int PAIR = 2;                    // rows that a thread makes at a time
constexpr int THREADS = 256;               // of a block, at most
constexpr int WEIGHTS = 66;                // room for those of an axis
constexpr int64_t MARCH_BLOCKS = 1024;     // wanted
constexpr size_t SHARED_OF_TWO = 112000;   // bytes: two blocks share a multiprocessor
constexpr size_t SHARED_MOST = 200 << 10;  // bytes of one block
#ifdef SEGFUSE_EMULATION
constexpr int64_t MAP_PIXELS = 1 << 10, MAP_VOXELS = 1 << 10;  // so that tests see several launches
#else
constexpr int64_t MAP_PIXELS = 1 << 21, MAP_VOXELS = 1 << 23;  // a march in 3-D needs more of them to fill the device
#endif

// ---------------------------------------------------------------------------------------------------- the tiles

// How an image is cut.
struct Tiles {
  int columns, rows;  // of a tile
  int staged;         // rows of pixels that shared memory holds at a time
  int64_t depth;      // planes that a block makes
  int64_t pieces[3];  // tiles along each axis
  size_t shared;      // bytes
  __host__ __device__ int64_t in_group() const { return pieces[0] * pieces[1] * pieces[2]; }
  dim3 threads() const { return dim3(columns, min_(rows / PAIR, THREADS / columns)); }
};

// `in`: values of a pixel, `out`: of a window, `value`: bytes of one; `groups` images in one launch
inline Tiles cut(const Windows& w, int in, int out, size_t value, int64_t groups) {
  constexpr int SIZES[][2] = {{128, 2}, {32, 32}, {32, 16}, {32, 8}, {32, 4}, {32, 2}, {16, 4}, {8, 8}};
  const int64_t ring = w.radius[0] > 0 ? 2 * w.radius[0] + 1 : 0;
  Tiles t{};
  auto fits = [&](int most_staged, size_t room) {
    for (const auto& size : SIZES) {
      const int columns = size[0], rows = size[1], height = rows + 2 * w.radius[1];
      if (w.shape[1] == 1 ? rows > 8 : columns == 128 || rows / 2 >= max_(w.shape[1], int64_t(2))) continue;
      const int staged = min_(height, most_staged);
      const int64_t values = 3 * WEIGHTS + static_cast<int64_t>(in) * staged * (columns + 2 * w.radius[2]) +
                             static_cast<int64_t>(out) * columns * (height + ring * rows);
      t.columns = columns, t.rows = rows, t.staged = staged, t.shared = values * value;
      if (t.shared <= room) return true;
    }
    return false;
  };
  if (!fits(1 << 20, SHARED_OF_TWO) && !fits(1 << 20, SHARED_MOST) && !fits(8, SHARED_MOST)) fits(2, SHARED_MOST);
  t.pieces[1] = (w.shape[1] + t.rows - 1) / t.rows;
  t.pieces[2] = (w.shape[2] + t.columns - 1) / t.columns;
  const int64_t blocks = max_(groups * t.pieces[1] * t.pieces[2], int64_t(1));
  const int64_t split = (MARCH_BLOCKS + blocks - 1) / blocks;
  t.depth = min_(max_((w.shape[0] + split - 1) / split, int64_t(4) * w.radius[0] + 1), int64_t(128));
  t.pieces[0] = (w.shape[0] + t.depth - 1) / t.depth;
  return t;
}

// ---------------------------------------------------------------------------------------------------- one axis

// Moments: the means of the images, then their variances, then the covariance.
template <typename Float, int Images, bool VARIANCE, bool COVARIANCE>
struct Gather {
  using T = Float;
  static constexpr int IMAGES = Images, IN = IMAGES, OUT = IMAGES * (VARIANCE ? 2 : 1) + (COVARIANCE ? 1 : 0);
  static constexpr int VAR = IMAGES, COV = 2 * IMAGES;
  T centre[IMAGES], shift[IMAGES], spread[IMAGES], both;

  __device__ __forceinline__ explicit Gather(const T* at_centre) : both(0) {
#pragma unroll
    for (int i = 0; i < IMAGES; ++i) centre[i] = at_centre[i], shift[i] = spread[i] = T(0);
  }
  // RAW: a tap is a pixel, otherwise it is a window
  template <bool RAW>
  __device__ __forceinline__ void add(T w, const T* tap) {
    T d[IMAGES], wd[IMAGES];
#pragma unroll
    for (int i = 0; i < IMAGES; ++i) {
      d[i] = tap[i] - centre[i];
      wd[i] = w * d[i];
      shift[i] += wd[i];
      if constexpr (VARIANCE) spread[i] += wd[i] * d[i];
      if constexpr (VARIANCE && !RAW) spread[i] += w * tap[VAR + i];
    }
    if constexpr (COVARIANCE) both += wd[0] * d[IMAGES - 1];
    if constexpr (COVARIANCE && !RAW) both += w * tap[COV];
  }
  __device__ __forceinline__ void result(T* out) const {
#pragma unroll
    for (int i = 0; i < IMAGES; ++i) {
      out[i] = centre[i] + shift[i];
      const T v = spread[i] - shift[i] * shift[i];
      if constexpr (VARIANCE) out[VAR + i] = v < T(0) ? T(0) : v;
    }
    if constexpr (COVARIANCE) out[COV] = both - shift[0] * shift[IMAGES - 1];
  }
};

// What windows send back to a pixel: h, by_var and, with two images, by_cov; the images of the pixel follow.
template <typename Float, int Images>
struct Scatter {
  using T = Float;
  static constexpr int IMAGES = Images, MAPS = IMAGES + 1, IN = 2 * IMAGES + 1, OUT = IN;
  T own[IMAGES], sum[MAPS];

  __device__ __forceinline__ explicit Scatter(const T* at_centre) {
#pragma unroll
    for (int i = 0; i < IMAGES; ++i) own[i] = at_centre[MAPS + i];
#pragma unroll
    for (int k = 0; k < MAPS; ++k) sum[k] = T(0);
  }
  template <bool RAW>
  __device__ __forceinline__ void add(T w, const T* tap) {
    T h = tap[0];
#pragma unroll
    for (int i = 0; i < IMAGES; ++i) {
      h += tap[1 + i] * (own[i] - tap[MAPS + i]);
      sum[1 + i] += w * tap[1 + i];
    }
    sum[0] += w * h;
  }
  __device__ __forceinline__ void result(T* out) const {
#pragma unroll
    for (int k = 0; k < MAPS; ++k) out[k] = sum[k];
#pragma unroll
    for (int i = 0; i < IMAGES; ++i) out[MAPS + i] = own[i];
  }
};

// One window of radius r; tap(k, values) reads its taps.
template <typename Filter, bool RAW, typename T, typename Tap>
__device__ __forceinline__ void combine(int r, const T* weight, Tap tap, T* out) {
  T v[RAW ? Filter::IN : Filter::OUT];
  tap(r, v);
  Filter f(v);
#pragma unroll 2
  for (int k = 0; k <= 2 * r; ++k) {
    tap(k, v);
    f.template add<RAW>(weight[k], v);
  }
  f.result(out);
}

// Two windows, the second one tap further.
template <typename Filter, typename T, typename Tap>
__device__ __forceinline__ void combine_pair(int r, const T* weight, Tap tap, T (*out)[Filter::OUT]) {
  T v[Filter::OUT];
  tap(r, v);
  Filter first(v);
  tap(r + 1, v);
  Filter second(v);
  tap(0, v);
  first.template add<false>(weight[0], v);
#pragma unroll 2
  for (int k = 1; k <= 2 * r; ++k) {
    tap(k, v);
    first.template add<false>(weight[k], v);
    second.template add<false>(weight[k - 1], v);
  }
  tap(2 * r + 1, v);
  second.template add<false>(weight[2 * r], v);
  first.result(out[0]);
  second.result(out[1]);
}

// ---------------------------------------------------------------------------------------------------- the march

struct Place {
  int64_t z, y, x;
};

// Dense images [groups of the launch, S], one for every value that a march reads of a pixel.
template <typename T, int IN>
struct Images {
  const T* image[IN];
};

// A policy says what becomes of a result:
//   Filter                                a Gather or Scatter
//   windows()
//   State state(group)                    what a thread remembers
//   void centre(state, place, const T*)   the result at a pixel inside the image
//   void finish(state, block)             every thread of the block, at the end
// Blocks are numbered from group 0 on. Grid: the groups of the launch times tiles.in_group().
template <typename Policy>
__global__ void __launch_bounds__(THREADS, 2)
    march(const __grid_constant__ Policy policy,
          const __grid_constant__ Images<typename Policy::Filter::T, Policy::Filter::IN> images,
          const __grid_constant__ Tiles tiles, int64_t first_group) {
  using Filter = typename Policy::Filter;
  using T = typename Filter::T;
  constexpr int IN = Filter::IN, OUT = Filter::OUT, AHEAD = IN > 4 ? 2 : 4;  // pixels that a thread asks for at once
  const Windows& w = policy.windows();
  const int rz = w.radius[0], ry = w.radius[1], rx = w.radius[2];
  const int columns = tiles.columns, rows = tiles.rows, width = columns + 2 * rx, height = rows + 2 * ry;
  const int threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
  const int column = threadIdx.x;

  int64_t at = blockIdx.x;
  const int64_t x0 = at % tiles.pieces[2] * columns;
  at /= tiles.pieces[2];
  const int64_t y0 = at % tiles.pieces[1] * rows;
  at /= tiles.pieces[1];
  const int64_t z0 = at % tiles.pieces[0] * tiles.depth, z1 = min_(z0 + tiles.depth, w.shape[0]);
  at /= tiles.pieces[0];
  auto state = policy.state(first_group + at);

  T* weight = reinterpret_cast<T*>(shared_memory());  // [3, WEIGHTS]
  T* staged = weight + 3 * WEIGHTS;                   // [IN, tiles.staged, width]
  T* filtered = staged + IN * tiles.staged * width;   // [OUT, height, columns]
  T* ring = filtered + OUT * height * columns;        // [2 rz + 1, OUT, rows, columns]
  const int staged_map = tiles.staged * width, filtered_map = height * columns, ring_map = rows * columns;
  for (int i = thread; i < 3 * WEIGHTS; i += threads) {
    const int d = i / WEIGHTS, k = i % WEIGHTS;
    weight[i] = k <= 2 * w.radius[d] ? static_cast<T>(w.weight[d][k]) : T(0);
  }

  const int step_rows = threads / width, step_columns = threads % width, slots = 2 * rz + 1;
  int slot = 0;  // of the plane in the ring
  for (int64_t z = z0 - rz; z < z1 + rz; ++z, slot = slot + 1 < slots ? slot + 1 : 0) {
    const bool inside = z >= 0 && z < w.shape[0];
    for (int from = 0; inside && from < height; from += tiles.staged) {
      const int count = min_(tiles.staged, height - from);
      const int64_t corner = ((at * w.shape[0] + z) * w.shape[1] + y0 - ry + from) * w.shape[2] + x0 - rx;
      // rows and columns [low, high) of the piece lie inside the image
      const int low_row = static_cast<int>(max_(ry - from - y0, int64_t(0)));
      const int high_row = static_cast<int>(min_(w.shape[1] - (y0 - ry + from), static_cast<int64_t>(count)));
      const int low_column = static_cast<int>(max_(rx - x0, int64_t(0)));
      const int high_column = static_cast<int>(min_(w.shape[2] - (x0 - rx), static_cast<int64_t>(width)));
      int r = thread / width, c = thread % width;
      while (r < count) {
        T v[AHEAD][IN];
        int to[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) {
          to[j] = r < count ? r * width + c : -1;
          const bool pixel = r >= low_row && r < high_row && c >= low_column && c < high_column;
          const int64_t offset = pixel ? corner + r * w.shape[2] + c : 0;
#pragma unroll
          for (int k = 0; k < IN; ++k) v[j][k] = pixel ? images.image[k][offset] : T(0);
          r += step_rows;
          c += step_columns;
          if (c >= width) c -= width, ++r;
        }
#pragma unroll
        for (int j = 0; j < AHEAD; ++j)
#pragma unroll
          for (int k = 0; k < IN; ++k)
            if (to[j] >= 0) staged[k * staged_map + to[j]] = v[j][k];
      }
      __syncthreads();
      for (int r = threadIdx.y; r < count; r += blockDim.y) {
        T out[OUT];
        const T* line = staged + r * width + column;
        combine<Filter, true>(
            rx, weight + 2 * WEIGHTS,
            [&](int k, T* v) {
#pragma unroll
              for (int i = 0; i < IN; ++i) v[i] = line[i * staged_map + k];
            },
            out);
#pragma unroll
        for (int k = 0; k < OUT; ++k) filtered[k * filtered_map + (from + r) * columns + column] = out[k];
      }
      __syncthreads();
    }
    const int64_t centre = z - rz;
    for (int row = threadIdx.y * PAIR; row < rows; row += blockDim.y * PAIR) {
      T plane[PAIR][OUT] = {};
      const T* line = filtered + row * columns + column;
      if (inside)
        combine_pair<Filter>(
            ry, weight + WEIGHTS,
            [&](int k, T* v) {
#pragma unroll
              for (int i = 0; i < OUT; ++i) v[i] = line[i * filtered_map + k * columns];
            },
            plane);
#pragma unroll
      for (int j = 0; j < PAIR; ++j) {
        if (rz > 0) {
          T* own = ring + (row + j) * columns + column;
#pragma unroll
          for (int k = 0; k < OUT; ++k) own[(slot * OUT + k) * ring_map] = plane[j][k];
          if (centre < z0) continue;
          combine<Filter, false>(
              rz, weight,
              [&](int k, T* v) {
                const int after = slot + 1 + k, at = after < slots ? after : after - slots;
#pragma unroll
                for (int i = 0; i < OUT; ++i) v[i] = own[(at * OUT + i) * ring_map];
              },
              plane[j]);
        }
        const Place place{centre, y0 + row + j, x0 + column};
        if (place.y < w.shape[1] && place.x < w.shape[2]) policy.centre(state, place, plane[j]);
      }
    }
  }
  __syncthreads();
  policy.finish(state, first_group * tiles.in_group() + blockIdx.x);
}

template <typename Policy>
Tiles tiles_of(const Windows& w, int64_t groups) {
  using Filter = typename Policy::Filter;
  return cut(w, Filter::IN, Filter::OUT, sizeof(typename Filter::T), groups);
}

// march() over `groups` images from number `first_group` on.
template <typename Policy>
cudaError_t run_march(const Policy& policy, const Images<typename Policy::Filter::T, Policy::Filter::IN>& images,
                      const Tiles& tiles, int64_t first_group, int64_t groups, cudaStream_t stream) {
  return launch(march<Policy>, static_cast<unsigned>(groups * tiles.in_group()), tiles.threads(), tiles.shared, stream,
                policy, images, tiles, first_group);
}

__device__ __forceinline__ bool has_window(const Windows& w, const Place& at) {
  const int64_t place[3] = {at.z, at.y, at.x};
  for (int d = 0; w.valid && d < 3; ++d)
    if (place[d] < w.radius[d] || place[d] >= w.shape[d] - w.radius[d]) return false;
  return true;
}

__host__ __device__ __forceinline__ int64_t pixels_of(const Windows& w) { return w.shape[0] * w.shape[1] * w.shape[2]; }

__device__ __forceinline__ int64_t pixel_number(const Windows& w, const Place& at) {
  return (at.z * w.shape[1] + at.y) * w.shape[2] + at.x;
}

__device__ __forceinline__ Place place_of(const Windows& w, int64_t pixel) {
  if (pixel <= 0x7fffffff) {  // a short division
    const uint32_t i = static_cast<uint32_t>(pixel), columns = static_cast<uint32_t>(w.shape[2]);
    const uint32_t rows = static_cast<uint32_t>(w.shape[1]), line = i / columns;
    return {line / rows, line % rows, i % columns};
  }
  const int64_t line = pixel / w.shape[2];
  return {line / w.shape[1], line % w.shape[1], pixel % w.shape[2]};
}

__device__ __forceinline__ int64_t offset_of(const View& v, int64_t n, int64_t c, const Place& at) {
  return n * v.batch + c * v.channel + at.z * v.spatial[0] + at.y * v.spatial[1] + at.x * v.spatial[2];
}

// Values of some groups, [maps, groups of the launch, S].
template <typename T>
struct Maps {
  T* data;
  int64_t first_group, groups, S;
  __host__ __device__ __forceinline__ T* at(int64_t map, int64_t group, int64_t pixel) const {
    return data + (map * groups + group - first_group) * S + pixel;
  }
  T* first(int64_t map) const { return at(map, first_group, 0); }
};

// How many groups have their images and maps in memory at a time.
inline int64_t groups_at_once(const Windows& w, int64_t groups) {
  const int64_t most = w.radius[0] > 0 ? MAP_VOXELS : MAP_PIXELS;
  return min_(max_(most / max_(pixels_of(w), int64_t(1)), int64_t(1)), groups);
}

constexpr int PIXEL_RUN = 4;  // pixels of a thread, without windows

// Pixels of a run of a block, THREADS apart: f(pixel) for each. Grid: groups * run_blocks(w).
inline int64_t run_blocks(const Windows& w) { return (pixels_of(w) + PIXEL_RUN * THREADS - 1) / (PIXEL_RUN * THREADS); }
template <typename F>
__device__ __forceinline__ void each_of_run(const Windows& w, int64_t run, F f) {
  const int64_t S = pixels_of(w);
#pragma unroll
  for (int k = 0; k < PIXEL_RUN; ++k) {
    const int64_t i = (run * PIXEL_RUN + k) * THREADS + threadIdx.x;
    if (i < S) f(i);
  }
}

// ---------------------------------------------------------------------------------------------------- pixels of a loss

template <typename T>
struct Element {
  T p, q;  // q = 1 - p without cancellation
  T y, l;  // l: cross-entropy, of the target class where classes exclude each other, else of the element
  bool valid, broken;
};

// y and m of an element, and whether its target is out of range.
template <typename T>
__device__ __forceinline__ Element<T> target_of(const WindowLoss& op, int64_t n, int64_t c, const Place& at) {
  const T label = read<T>(op.target.data, op.target.dtype, offset_of(op.target, n, op.index_target ? 0 : c, at));
  const T top = op.index_target ? static_cast<T>(op.windows.C - 1) : T(1);
  bool fits = label >= T(0) && label <= top;
  if (op.index_target) fits = fits && label == static_cast<T>(static_cast<int32_t>(fits ? label : T(0)));
  bool kept = label != static_cast<T>(op.ignore_index);
  if (op.mask.data != nullptr) {
    const int64_t offset = offset_of(op.mask, n, op.mask.channel == 0 ? 0 : c, at);
    kept = kept && read<float>(op.mask.data, op.mask.dtype, offset) != 0.0f;
  }
  Element<T> e{};
  e.valid = kept && fits;
  e.broken = kept && !fits;
  e.y = e.valid ? label : T(0);
  return e;
}

// p and y are 0 at an ignored pixel.
template <typename Storage, typename T = typename Compute<Storage>::Type>
__device__ __forceinline__ Element<T> element(const WindowLoss& op, int64_t n, int64_t c, const Place& at) {
  Element<T> e = target_of<T>(op, n, c, at);
  if (op.index_target) e.y = e.valid && e.y == static_cast<T>(c) ? T(1) : T(0);
  if (op.activation == SOFTMAX) {
    const int64_t S = pixels_of(op.windows), i = pixel_number(op.windows, at);
    e.p = e.valid ? static_cast<const T*>(op.probability)[(n * op.windows.C + c) * S + i] : T(0);
    if (op.entropy != nullptr) e.l = e.y > T(0) ? static_cast<const T*>(op.entropy)[n * S + i] : T(0);
    return e;
  }
  const T given = widen(reinterpret_cast<const Storage*>(op.input.data)[offset_of(op.input, n, c, at)]);
  const T v = e.valid ? given : T(0);
  if (op.activation == SIGMOID) {
    const T size = v < T(0) ? -v : v, small = exp_negative(-size), r = T(1) / (T(1) + small);
    const T share = v >= T(0) ? T(1) - e.y : e.y;  // of the side that the logit argues against
    e.p = e.valid ? (v >= T(0) ? r : small * r) : T(0);
    e.q = v >= T(0) ? small * r : r;
    e.l = e.valid ? log1p_unit(small) + (share == T(0) && v == v ? T(0) : share * size) : T(0);
    return e;
  }
  const T other = op.exclusive ? T(0) : T(1);
  e.p = v;
  e.q = T(1) - v;
  const T yes = e.p < CLAMP<T> ? CLAMP<T> : e.p, no = e.q < CLAMP<T> ? CLAMP<T> : e.q;
  e.l = e.valid ? -(e.y * log_(yes) + other * (T(1) - e.y) * log_(no)) : T(0);
  return e;
}

// u, the weight of a valid pixel.
template <typename T>
__device__ __forceinline__ T weight_of(const WindowLoss& op, int64_t n, int64_t c, const Place& at, bool valid,
                                       bool& broken) {
  if (op.weight.data == nullptr) return valid ? T(1) : T(0);
  const int64_t offset = offset_of(op.weight, n, op.weight.channel == 0 ? 0 : c, at);
  const T u = read<T>(op.weight.data, op.weight.dtype, offset);
  broken |= u < T(0);
  return valid ? u : T(0);
}

// From d loss / dp to the gradient of the logits; `direct`: what the cross-entropy adds, as a factor of it. Under
// softmax the classes of a pixel meet in softmax_gradient.
template <typename Storage, typename T>
__device__ __forceinline__ void store_gradient(const WindowLoss& op, int64_t n, int64_t c, const Place& at, T gradient,
                                               T direct) {
  const Element<T> e = element<Storage>(op, n, c, at);
  if (op.activation == SOFTMAX) {
    const int64_t S = pixels_of(op.windows), i = pixel_number(op.windows, at);
    static_cast<T*>(op.grad_probability)[(n * op.windows.C + c) * S + i] = gradient;
    if (op.grad_entropy != nullptr && e.y > T(0)) static_cast<T*>(op.grad_entropy)[n * S + i] = direct;
    return;
  }
  T out;
  if (op.activation == SIGMOID) {
    out = e.p * e.q * gradient + direct * ((T(1) - e.y) * e.p - e.y * e.q);
  } else {
    const T other = op.exclusive ? T(0) : T(1);
    const T yes = e.p < CLAMP<T> ? T(0) : e.y / e.p, no = e.q < CLAMP<T> ? T(0) : other * (T(1) - e.y) / e.q;
    out = gradient + direct * (no - yes);
  }
  narrow(e.valid ? out : T(0), reinterpret_cast<Storage*>(op.output.data)[offset_of(op.output, n, c, at)]);
}

struct Group {
  int64_t number, n, c;
};

// What the losses ask of march(): groups are (sample, class) from the first class on.
template <typename Stored>
struct LossPolicy {
  using Storage = Stored;
  using T = typename Compute<Storage>::Type;
  WindowLoss op;

  __device__ const Windows& windows() const { return op.windows; }
  __device__ __forceinline__ Group of(int64_t number) const {
    const int64_t classes = op.windows.C - op.first_class;
    return {number, number / classes, op.first_class + number % classes};
  }
};

inline int64_t groups_of(const WindowLoss& op) { return op.windows.N * (op.windows.C - op.first_class); }

enum : int { P, Y, IMAGES_OF_LOSS };

// The images of some groups, maps P and Y. broken [groups]: set where a target or a weight is out of range, or nullptr.
// Grid: groups of the launch * run_blocks().
template <typename Storage>
__global__ void __launch_bounds__(THREADS)
    make_images(const __grid_constant__ LossPolicy<Storage> policy,
                const __grid_constant__ Maps<typename Compute<Storage>::Type> maps, int64_t runs, int* broken) {
  using T = typename Compute<Storage>::Type;
  const WindowLoss& op = policy.op;
  const Group g = policy.of(maps.first_group + blockIdx.x / runs);
  bool out_of_range = false;
  each_of_run(op.windows, blockIdx.x % runs, [&](int64_t i) {
    const Place at = place_of(op.windows, i);
    const Element<T> e = element<Storage>(op, g.n, g.c, at);
    out_of_range |= e.broken;
    if (broken != nullptr) weight_of<T>(op, g.n, g.c, at, e.valid, out_of_range);
    *maps.at(P, g.number, i) = e.p;
    *maps.at(Y, g.number, i) = e.y;
  });
  if (broken != nullptr && out_of_range) atomicOr(broken + g.number, 1);
}

template <typename Storage, typename T>
cudaError_t run_images(const WindowLoss& op, const Maps<T>& maps, int64_t groups, int* broken, cudaStream_t stream) {
  const int64_t runs = run_blocks(op.windows);
  return launch(make_images<Storage>, static_cast<unsigned>(groups * runs), THREADS, 0, stream, LossPolicy<Storage>{op},
                maps, runs, broken);
}

// ---------------------------------------------------------------------------------------------------- sums of groups

// A block of any loss leaves two sums, [groups, blocks of the group, 2].
__device__ __forceinline__ void store_partial(double first, double second, double* to) {
  double* warps = reinterpret_cast<double*>(shared_memory());  // [warps, 2]
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, count = blockDim.x * blockDim.y / WARP;
  first = warp_sum(first);
  second = warp_sum(second);
  if (thread % WARP == 0) warps[thread / WARP * 2] = first, warps[thread / WARP * 2 + 1] = second;
  __syncthreads();
  if (thread >= 2) return;
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += warps[i * 2 + thread];
  to[thread] = sum;
}

// sums [2, N, C], NaN where anything was out of range; 0 for the classes before the first. Grid: N * C.
__global__ void __launch_bounds__(THREADS)
    add_groups(const double* partial, const int* broken, double* sums, int64_t C, int64_t first_class, int64_t blocks) {
  const int64_t plane = blockIdx.x, c = plane % C - first_class, group = plane / C * (C - first_class) + c;
  double first = 0, second = 0;
  for (int64_t i = threadIdx.x; c >= 0 && i < blocks; i += THREADS) {
    first += partial[(group * blocks + i) * 2];
    second += partial[(group * blocks + i) * 2 + 1];
  }
  double* all = reinterpret_cast<double*>(shared_memory()) + THREADS / WARP * 2;  // [2]
  store_partial(first, second, all);
  __syncthreads();
  if (threadIdx.x < 2)
    sums[threadIdx.x * static_cast<int64_t>(gridDim.x) + plane] =
        c >= 0 && broken[group] != 0 ? static_cast<double>(NAN) : all[threadIdx.x];
}

// Where a loss keeps its sums: `blocks` of them for each group.
struct Partial {
  int64_t groups, blocks;
  int64_t broken_bytes() const { return (groups + 1) / 2 * 2 * static_cast<int64_t>(sizeof(int)); }
  int64_t bytes() const { return broken_bytes() + groups * blocks * 2 * static_cast<int64_t>(sizeof(double)); }
  int* broken(void* room) const { return static_cast<int*>(room); }
  double* sums(void* room) const { return reinterpret_cast<double*>(static_cast<char*>(room) + broken_bytes()); }

  cudaError_t clear(void* room, cudaStream_t stream) const { return cudaMemsetAsync(room, 0, broken_bytes(), stream); }
  cudaError_t add(const WindowLoss& op, void* room, double* to, cudaStream_t stream) const {
    const size_t shared = (THREADS / WARP + 1) * 2 * sizeof(double);
    return launch(add_groups, static_cast<unsigned>(op.windows.N * op.windows.C), THREADS, shared, stream, sums(room),
                  broken(room), to, op.windows.C, op.first_class, blocks);
  }
};

// ---------------------------------------------------------------------------------------------------- softmax

inline unsigned pixel_blocks(const WindowLoss& op) {
  return static_cast<unsigned>((op.windows.N * pixels_of(op.windows) + THREADS - 1) / THREADS);
}

// Probabilities of every class and -log p of the target class. A thread for each pixel.
template <typename Storage>
__global__ void __launch_bounds__(THREADS) softmax(const __grid_constant__ WindowLoss op) {
  using T = typename Compute<Storage>::Type;
  const int64_t C = op.windows.C, S = pixels_of(op.windows);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x, n = i / S, pixel = i % S;
  if (n >= op.windows.N) return;
  const Place at = place_of(op.windows, pixel);
  const Storage* logits = reinterpret_cast<const Storage*>(op.input.data) + offset_of(op.input, n, 0, at);
  const Element<T> e = target_of<T>(op, n, 0, at);
  const T label = e.y;
  T top = widen(logits[0]);
#pragma unroll 4
  for (int64_t c = 1; c < C; ++c) {
    const T z = widen(logits[c * op.input.channel]);
    top = z > top ? z : top;
  }
  T sum = T(0), rest = T(0), below = T(0);  // rest: without the target class, which would swallow the small ones
#pragma unroll 4
  for (int64_t c = 0; c < C; ++c) {
    const T d = top - widen(logits[c * op.input.channel]), p = exp_negative(-d);
    const bool own = label == static_cast<T>(c);
    sum += p;
    rest += own ? T(0) : p;
    below = own ? d : below;
  }
  const T inverse = T(1) / sum;
  T* out = static_cast<T*>(op.probability) + n * C * S + pixel;
#pragma unroll 4
  for (int64_t c = 0; c < C; ++c) out[c * S] = exp_negative(widen(logits[c * op.input.channel]) - top) * inverse;
  if (op.entropy == nullptr) return;
  const T l = below == T(0) ? log1p_(rest) : below + log_(sum);
  static_cast<T*>(op.entropy)[n * S + pixel] = e.valid ? l : T(0);
}

// dz_k = p_k (g_k - sum_c g_c p_c) + h (p_k - [k = t]), h the factor of the cross-entropy of the target class t.
template <typename Storage>
__global__ void __launch_bounds__(THREADS) softmax_gradient(const __grid_constant__ WindowLoss op) {
  using T = typename Compute<Storage>::Type;
  const int64_t C = op.windows.C, S = pixels_of(op.windows);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x, n = i / S, pixel = i % S;
  if (n >= op.windows.N) return;
  const Place at = place_of(op.windows, pixel);
  const Element<T> e = target_of<T>(op, n, 0, at);
  const T label = e.y;
  const T* p = static_cast<const T*>(op.probability) + n * C * S + pixel;
  const T* g = static_cast<const T*>(op.grad_probability) + n * C * S + pixel;
  T h = T(0), dot = T(0), others = T(0);
  if (op.grad_entropy != nullptr && e.valid && label >= static_cast<T>(op.first_class))
    h = static_cast<const T*>(op.grad_entropy)[n * S + pixel];
#pragma unroll 4
  for (int64_t c = 0; c < C; ++c) {
    if (c >= op.first_class) dot += g[c * S] * p[c * S];
    others += label == static_cast<T>(c) ? T(0) : p[c * S];
  }
  Storage* out = reinterpret_cast<Storage*>(op.output.data) + offset_of(op.output, n, 0, at);
#pragma unroll 4
  for (int64_t c = 0; c < C; ++c) {
    const T own = c >= op.first_class ? g[c * S] : T(0);
    const T dz = p[c * S] * (own - dot) + h * (label == static_cast<T>(c) ? -others : p[c * S]);
    narrow(e.valid ? dz : T(0), out[c * op.output.channel]);
  }
}

template <typename Storage>
cudaError_t run_softmax(const WindowLoss& op, cudaStream_t stream) {
  if (op.activation != SOFTMAX) return cudaSuccess;
  return launch(softmax<Storage>, pixel_blocks(op), THREADS, 0, stream, op);
}

template <typename Storage>
cudaError_t run_softmax_gradient(const WindowLoss& op, cudaStream_t stream) {
  if (op.activation != SOFTMAX) return cudaSuccess;
  return launch(softmax_gradient<Storage>, pixel_blocks(op), THREADS, 0, stream, op);
}

}  // namespace
}  // namespace segfuse
