// Soft erosions of the errors of every group on a GPU, and back for the gradient.
//
//   b_0 = m (p - y)^2;   e_k = relu(B * b_{k-1} - 1/2);   b_k = (e_k - low) scale
//
// B averages a pixel and its face neighbours; outside the image b is 0. Only e_k is stored: b_k is formed when it is
// read. Least and largest e_k stay on the device.
//
// Memory: floor 8 bytes a pixel and erosion (float), 20 with the gradient; beside that p, y and the gradient once. With
//         a gradient every e_k is kept, of as many groups at a time as PAIR_WORKSPACE holds.
// Order:  partial results of fixed runs of pixels, combined by index, in double.
// Source: Karimi and Salcudean 2019 (arXiv 1904.10030).
#include "../segfuse_cuda.h"
#include "hard_pair.cuh"

namespace segfuse {
namespace {

// What is known of e_k in one group: b_k = (e_k - low) scale.
struct Level {
  double low, high, scale;  // high > low where it was stretched, else both are 0
  double to_high, to_low;   // what every pixel at these values adds to the gradient
};

constexpr int PARTIALS = 4;

// A pixel and its face neighbours, added so that mirrored and transposed planes give the same bits.
template <typename T>
__device__ __forceinline__ T cross(const HardPair& pair, const T* f, int64_t i, T outside) {
  const Place at(pair, i);
  const int64_t X = pair.shape[2], Y = pair.shape[1], plane = X * Y;
  const T left = at.x > 0 ? f[i - 1] : outside, right = at.x + 1 < X ? f[i + 1] : outside;
  const T up = at.y > 0 ? f[i - X] : outside, down = at.y + 1 < Y ? f[i + X] : outside;
  const T flat = f[i] + ((left + right) + (up + down));
  if (pair.dims < 3) return flat;
  const T front = at.z > 0 ? f[i - plane] : outside, back = at.z + 1 < pair.shape[0] ? f[i + plane] : outside;
  return flat + (front + back);
}

__device__ __forceinline__ int points(const HardPair& pair) { return 2 * pair.dims + 1; }

// b_0, and partial sums of u.
template <typename T>
__global__ void __launch_bounds__(PAIR_THREADS)
    start(const __grid_constant__ Erosion op, Runs runs, int64_t first_group, T* b, double* partial) {
  const Run run(runs, first_group);
  const PairGroup<T> group(op.pair, runs.S, run.group);
  T* out = b + run.local * runs.S;
  T u = T(0);
  for (int64_t i = run.begin + threadIdx.x; i < run.end; i += PAIR_THREADS) {
    const PairPixel<T> x = group.at(i);
    const T d = x.p - x.y;
    out[i] = x.valid ? d * d : T(0);
    u += x.u;
  }
  const double sum = block_reduce<Add>(static_cast<double>(u));
  if (threadIdx.x == 0) partial[blockIdx.x * PARTIALS] = sum;
}

__global__ void __launch_bounds__(PAIR_THREADS)
    started(const double* partial, int64_t count, double* weights, Level* levels, double* sums) {
  const int64_t g = blockIdx.x;
  const double u = combine_runs<Add>(partial + g * count * PARTIALS, count, PARTIALS);
  if (threadIdx.x != 0) return;
  weights[g] = u;
  levels[g] = {0, 0, 1, 0, 0};
  sums[g] = 0;
}

// e_k of b_{k-1}; partial: least and largest e, and the sum of u e.
template <typename T>
__global__ void __launch_bounds__(PAIR_THREADS)
    erode(const __grid_constant__ Erosion op, Runs runs, int64_t first_group, const T* in, const Level* levels, T* out,
          double* partial) {
  const Run run(runs, first_group);
  const PairGroup<T> group(op.pair, runs.S, run.group);
  const Level level = levels[run.local];
  const T outside = static_cast<T>(level.low);
  const T shift = static_cast<T>((op.pair.dims == 3 ? 7 : 5) * level.low);  // rows beside a line count as outside
  const T scale = static_cast<T>(level.scale / points(op.pair));
  const T* b = in + run.local * runs.S;
  T* e = out + run.local * runs.S;
  T low = static_cast<T>(HUGE_VAL), high = -low, sum = T(0);  // of 16 pixels
  for (int64_t i = run.begin + threadIdx.x; i < run.end; i += PAIR_THREADS) {
    const T v = (cross(op.pair, b, i, outside) - shift) * scale - T(0.5), kept = v < T(0) ? T(0) : v;  // NaN stays
    e[i] = kept;
    low = min_(kept, low);
    high = max_(kept, high);
    sum += op.pair.plain ? kept : group.at(i).u * kept;
  }
  const double lowest = block_reduce<Least>(low), highest = block_reduce<Most>(high), all = block_reduce<Add>(sum);
  if (threadIdx.x != 0) return;
  double* mine = partial + blockIdx.x * PARTIALS;
  mine[0] = lowest, mine[1] = highest, mine[2] = all;
}

// How b_k is made of e_k; adds its part to the sums.
__global__ void __launch_bounds__(PAIR_THREADS)
    normalise(const double* partial, int64_t count, ErosionNorm norm, double power, const double* weights,
              Level* levels, double* sums) {
  const int64_t g = blockIdx.x;
  const double* mine = partial + g * count * PARTIALS;
  const double low = combine_runs<Least>(mine, count, PARTIALS);
  const double high = combine_runs<Most>(mine + 1, count, PARTIALS);
  const double sum = combine_runs<Add>(mine + 2, count, PARTIALS);
  if (threadIdx.x != 0) return;
  Level level{0, 0, norm == DOUBLE ? 2.0 : 1.0, 0, 0};
  if (norm == MINMAX && high > low) level = {low, high, 1 / (high - low), 0, 0};
  levels[g] = level;
  sums[g] += power * level.scale * (sum - level.low * weights[g]);
}

// h_k, of which h_k scale_k is the derivative by e_k; `next`: h_{k+1} and its levels, or nullptr.
// partial: sums of h b and h, and how many pixels are at high and low.
template <typename T>
__global__ void __launch_bounds__(PAIR_THREADS)
    back(const __grid_constant__ Erosion op, Runs runs, int64_t first_group, const T* next, const Level* next_levels,
         double power, const T* eroded, const Level* levels, T* out, double* partial) {
  const Run run(runs, first_group);
  const PairGroup<T> group(op.pair, runs.S, run.group);
  const Level level = levels[run.local];
  const T low = static_cast<T>(level.low), high = static_cast<T>(level.high), unit = static_cast<T>(level.scale);
  const T* e = eroded + run.local * runs.S;
  const T* h = next == nullptr ? nullptr : next + run.local * runs.S;
  const T scale = h == nullptr ? T(0) : static_cast<T>(next_levels[run.local].scale / points(op.pair));
  const T own = static_cast<T>(power);
  T dot = T(0), sum = T(0);
  int at_high = 0, at_low = 0;
  for (int64_t i = run.begin + threadIdx.x; i < run.end; i += PAIR_THREADS) {
    T slope = T(0);
    const T here = e[i];
    if (here > T(0)) {
      slope = op.pair.plain ? own : own * group.at(i).u;
      if (h != nullptr) slope += cross(op.pair, h, i, T(0)) * scale;
    }
    out[run.local * runs.S + i] = slope;
    dot += slope * ((here - low) * unit);
    sum += slope;
    at_high += here == high;
    at_low += here == low;
  }
  if (op.norm != MINMAX) return;
  const double found[PARTIALS] = {block_reduce<Add>(dot), block_reduce<Add>(sum), block_reduce<Add>(at_high),
                                  block_reduce<Add>(at_low)};
  if (threadIdx.x < PARTIALS) partial[blockIdx.x * PARTIALS + threadIdx.x] = found[threadIdx.x];
}

// What the pixels at high and low pass on besides; ties share it.
__global__ void __launch_bounds__(PAIR_THREADS) share(const double* partial, int64_t count, Level* levels) {
  const int64_t g = blockIdx.x;
  const double* mine = partial + g * count * PARTIALS;
  const double dot = combine_runs<Add>(mine, count, PARTIALS), sum = combine_runs<Add>(mine + 1, count, PARTIALS);
  const double at_high = combine_runs<Add>(mine + 2, count, PARTIALS);
  const double at_low = combine_runs<Add>(mine + 3, count, PARTIALS);
  if (threadIdx.x != 0) return;
  Level& level = levels[g];
  if (!(level.high > level.low) || !(at_high > 0)) return;
  level.to_high = -dot / at_high;
  level.to_low = level.low > 0 ? (dot - sum) / at_low : 0;
}

template <typename T>
__global__ void __launch_bounds__(PAIR_THREADS) bounds(Runs runs, const T* eroded, const Level* levels, T* out) {
  const Run run(runs, 0);
  const Level level = levels[run.local];
  if (level.to_high == 0 && level.to_low == 0) return;
  const T low = static_cast<T>(level.low), high = static_cast<T>(level.high);
  const T up = static_cast<T>(level.to_high), down = static_cast<T>(level.to_low);
  const T* e = eroded + run.local * runs.S;
  for (int64_t i = run.begin + threadIdx.x; i < run.end; i += PAIR_THREADS) {
    const T here = e[i];
    if (here > T(0) && (here == high || here == low)) out[run.local * runs.S + i] += here == high ? up : down;
  }
}

template <typename T>
__global__ void __launch_bounds__(PAIR_THREADS)
    finish(const __grid_constant__ Erosion op, Runs runs, int64_t first_group, const T* slope, const Level* levels) {
  const Run run(runs, first_group);
  const PairGroup<T> group(op.pair, runs.S, run.group);
  const T scale = static_cast<T>(2 * levels[run.local].scale / points(op.pair));
  const T* h = slope + run.local * runs.S;
  for (int64_t i = run.begin + threadIdx.x; i < run.end; i += PAIR_THREADS) {
    const PairPixel<T> x = group.at(i);
    group.grad[i] = x.valid ? (x.p - x.y) * (cross(op.pair, h, i, T(0)) * scale) : T(0);
  }
}

// Where everything lies in the workspace. `groups` of them are worked on at a time.
struct Rooms {
  int64_t groups, fields, field;  // field: bytes of one
  int64_t levels, weights, partial, total;

  Rooms(const Erosion& op, const Runs& runs) {
    const int64_t group = (runs.S * (op.pair.dtype == F64 ? 8 : 4) + 15) / 16 * 16;
    fields = op.pair.grad != nullptr ? op.steps + 2 : 2;  // b_0, then e_k and one more: two of them hold h in turn
    groups = max_(min_(PAIR_WORKSPACE / max_(fields * group, int64_t(1)), runs.groups), int64_t(1));
    field = (runs.S * groups * (op.pair.dtype == F64 ? 8 : 4) + 15) / 16 * 16;
    levels = fields * field;
    weights = levels + (op.steps + 1) * groups * static_cast<int64_t>(sizeof(Level));
    partial = weights + groups * 8;
    total = partial + groups * runs.count * PARTIALS * 8;
  }
};

template <typename T>
cudaError_t run(const Erosion& op, double* sums, char* workspace, cudaStream_t stream) {
  const Runs runs(op.pair);
  const Rooms rooms(op, runs);
  const bool gradient = op.pair.grad != nullptr;
  double *weights = reinterpret_cast<double*>(workspace + rooms.weights),
         *partial = reinterpret_cast<double*>(workspace + rooms.partial);
  const auto field = [&](int64_t k) { return reinterpret_cast<T*>(workspace + k * rooms.field); };
  const auto level = [&](int64_t k) { return reinterpret_cast<Level*>(workspace + rooms.levels) + k * rooms.groups; };
  for (int64_t first = 0; first < runs.groups; first += rooms.groups) {
    const unsigned groups = static_cast<unsigned>(min_(rooms.groups, runs.groups - first));
    const unsigned blocks = static_cast<unsigned>(groups * runs.count);
    const auto over_pixels = [&](auto kernel, auto... args) {
      return launch(kernel, blocks, PAIR_THREADS, BLOCK_REDUCE, stream, args...);
    };
    const auto over_runs = [&](auto kernel, auto... args) {
      return launch(kernel, groups, PAIR_THREADS, BLOCK_REDUCE, stream, partial, runs.count, args...);
    };
    SEGFUSE_TRY(over_pixels(start<T>, op, runs, first, field(0), partial));
    SEGFUSE_TRY(over_runs(started, weights, level(0), sums + first));
    for (int step = 1; step <= op.steps; ++step) {
      const T* in = field(gradient ? step - 1 : (step - 1) % 2);
      T* out = field(gradient ? step : step % 2);
      SEGFUSE_TRY(over_pixels(erode<T>, op, runs, first, in, level(step - 1), out, partial));
      SEGFUSE_TRY(over_runs(normalise, op.norm, pow(step, op.alpha), weights, level(step), sums + first));
    }
    if (!gradient) continue;
    T *here = nullptr, *next = field(0), *other = field(op.steps + 1);
    for (int step = op.steps; step >= 1; --step) {
      SEGFUSE_TRY(over_pixels(back<T>, op, runs, first, here, level(step + (step < op.steps)), pow(step, op.alpha),
                              field(step), level(step), next, partial));
      if (op.norm == MINMAX) {
        SEGFUSE_TRY(over_runs(share, level(step)));
        SEGFUSE_TRY(over_pixels(bounds<T>, runs, field(step), level(step), next));
      }
      here = next;
      next = other;
      other = here;
    }
    SEGFUSE_TRY(over_pixels(finish<T>, op, runs, first, here, level(1)));
  }
  return cudaSuccess;
}

}  // namespace

namespace cuda {

int64_t erosion_workspace(const Erosion& op) { return Rooms(op, Runs(op.pair)).total; }

cudaError_t erosion_forward(const Erosion& op, double* sums, void* workspace, cudaStream_t stream) {
  char* room = static_cast<char*>(workspace);
  return op.pair.dtype == F64 ? run<double>(op, sums, room, stream) : run<float>(op, sums, room, stream);
}

}  // namespace cuda
}  // namespace segfuse
