// All pairs of pixels x and points t of every group, streamed, on a GPU.
//
//   g_xt = p_x d(x, t) + (1 - p_x) d_max + eps        M_t = (sum_x u_x g_xt^a / sum u)^(1/a), a < 0
//
// The points are collected on the device, in order; nobody waits for their number. Blocks that go over points take
// POINTS at a time, threads that go over pixels stage TILE of them, so both read memory far less than they compute.
//
// Memory:   no pair is stored. 36 bytes a pixel of workspace for the points, which may be all pixels.
// Numerics: powers of g relative to the least one, so that none overflows. Sums of 16 pixels or TILE points in the type
//           of p, then double.
// Order:    a point is one block's, a pixel one thread's; partial results are combined by index. The gradient of a
//           minimum is added by the pixel that attains it, point by point.
// Cost:     one square root per pair and pass; one division, or a logarithm and an exponential, on top.
// Source:   Ribera et al. 2019 (arXiv 1806.07564).
#include "../segfuse_cuda.h"
#include "hard_pair.cuh"

namespace segfuse {
namespace {

constexpr int POINTS = 8;   // of a block
constexpr int PIXELS = 16;  // that a thread adds before it goes on in double
constexpr int TILE = 64;    // points that threads read from shared memory
constexpr int PARTIALS = 4;
constexpr int64_t BLOCKS = 4096;  // that go over points at most, of all groups

// What is known of a group.
struct Total {
  double u, mass;  // sum u, sum u p + eps
  double weights;  // sum over the points
  int64_t count;   // of points
  double mean;     // over the points of M_t
  double shift;    // what the denominator adds to the derivative of every pixel, per u
  __device__ bool empty() const { return u <= 0 || weights <= 0; }  // a NaN goes on
};

// A call with everything in the workspace.
struct Call {
  PairwiseHausdorff op;
  Runs runs;
  double d_max;
  int64_t stride;   // of the arrays of points from group to group; 0: `op.begin` says where
  uint32_t* pixel;  // of every point, where none are given
  double *least, *mean, *factor;
  int64_t* attained;  // pixel where a point's least value is, -1: nowhere
  double* partial;    // [groups, runs, PARTIALS]
  int64_t* offset;    // [groups, runs], points before the run
  Total* total;       // [groups]

  __device__ int64_t first(int64_t group) const { return stride > 0 ? group * stride : op.begin[group]; }
};

template <typename T>
struct Point {
  T z, y, x, unit, factor;
  int64_t attained;
  bool below;  // its least value is below d_max
};

template <typename T>
__device__ __forceinline__ Point<T> point_at(const Call& call, int64_t i) {
  Point<T> t{};
  if (call.op.points == nullptr) {
    const Place at(call.op.pair, call.pixel[i]);
    t.z = static_cast<T>(at.z), t.y = static_cast<T>(at.y), t.x = static_cast<T>(at.x);
  } else {
    const int dims = call.op.pair.dims;
    const double* at = call.op.points + i * dims;
    if (dims > 2) t.z = static_cast<T>(at[0]);
    if (dims > 1) t.y = static_cast<T>(at[dims - 2]);
    t.x = static_cast<T>(at[dims - 1]);
  }
  return t;
}

__device__ __forceinline__ float root(float x) { return __fsqrt_rn(x); }
__device__ __forceinline__ double root(double x) { return __dsqrt_rn(x); }

template <typename T>
__device__ __forceinline__ T square(const Point<T>& t, T z, T y, T x) {
  const T dz = z - t.z, dy = y - t.y, dx = x - t.x;
  return dz * dz + dy * dy + dx * dx;
}

template <typename T>
struct Value {
  T d_max, eps, floor;
  __device__ explicit Value(const Call& call)
      : d_max(static_cast<T>(call.d_max)),
        eps(static_cast<T>(call.op.eps)),
        floor(static_cast<T>(call.op.eps / call.d_max)) {}
  __device__ T mean(T p, T d) const { return p * d + ((T(1) - p) * d_max + eps); }  // g; 1 - p is exact near 1
  __device__ T ratio(T p, T d) const { return (d + eps) / ((p * p) * (p * p) + floor); }
};

template <typename T>
__device__ __forceinline__ bool chosen(const PairPixel<T>& x) {
  return x.y != T(0) && x.u != T(0);
}

// ------------------------------------------------------------------------------------------- the points

template <typename T>
__global__ void __launch_bounds__(PAIR_THREADS) measure(const __grid_constant__ Call call) {
  const Run run(call.runs, 0);
  const PairGroup<T> group(call.op.pair, call.runs.S, run.group);
  double u = 0, mass = 0, weights = 0;
  int count = 0;
  for (int64_t i = run.begin + threadIdx.x; i < run.end; i += PAIR_THREADS) {
    const PairPixel<T> x = group.at(i);
    u += static_cast<double>(x.u);
    if (x.u > T(0)) mass += static_cast<double>(x.u * x.p);
    if (!chosen(x)) continue;
    ++count;
    weights += static_cast<double>(x.u);
  }
  const double found[PARTIALS] = {block_reduce<Add>(u), block_reduce<Add>(mass), block_reduce<Add>(weights),
                                  block_reduce<Add>(count)};
  if (threadIdx.x < PARTIALS) call.partial[blockIdx.x * PARTIALS + threadIdx.x] = found[threadIdx.x];
}

__global__ void __launch_bounds__(PAIR_THREADS) total(const __grid_constant__ Call call) {
  const int64_t g = blockIdx.x, runs = call.runs.count;
  const double* partial = call.partial + g * runs * PARTIALS;
  Total all{};
  all.u = combine_runs<Add>(partial, runs, PARTIALS);
  all.mass = combine_runs<Add>(partial + 1, runs, PARTIALS) + call.op.eps;
  all.weights = combine_runs<Add>(partial + 2, runs, PARTIALS);
  if (threadIdx.x != 0) return;
  if (call.op.points != nullptr) {
    all.count = call.op.begin[g + 1] - call.op.begin[g];
    all.weights = static_cast<double>(all.count);
  } else {
    for (int64_t i = 0; i < runs; ++i) {
      call.offset[g * runs + i] = all.count;
      all.count += static_cast<int64_t>(partial[i * PARTIALS + 3]);
    }
  }
  call.total[g] = all;
}

// The pixels of the target, in order.
template <typename T>
__global__ void __launch_bounds__(PAIR_THREADS) collect(const __grid_constant__ Call call) {
  const Run run(call.runs, 0);
  const PairGroup<T> group(call.op.pair, call.runs.S, run.group);
  int* found = reinterpret_cast<int*>(shared_memory());  // [PAIR_WARPS]
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  uint32_t* out = call.pixel + call.first(run.group) + call.offset[blockIdx.x];
  for (int64_t begin = run.begin; begin < run.end; begin += PAIR_THREADS) {
    const int64_t i = begin + threadIdx.x;
    const bool mine = i < run.end && chosen(group.at(i));
    const uint32_t lanes = __ballot_sync(ALL_LANES, mine);
    if (lane == 0) found[warp] = __popc(lanes);
    __syncthreads();
    int before = 0, all = 0;
    for (int w = 0; w < PAIR_WARPS; ++w) {
      before += w < warp ? found[w] : 0;
      all += found[w];
    }
    if (mine) out[before + __popc(lanes & ((1u << lane) - 1))] = static_cast<uint32_t>(i);
    out += all;
    __syncthreads();
  }
}

// ------------------------------------------------------------------------------------------- over the points

// The smaller of two values, the first pixel where they are equal.
template <typename T>
__device__ __forceinline__ void least_of(T& value, int64_t& pixel, T other, int64_t where) {
  const bool better = other < value || (other == value && where >= 0 && (pixel < 0 || where < pixel));
  value = better ? other : value;
  pixel = better ? where : pixel;
}

template <typename T>
__device__ __forceinline__ void block_least(T& value, int64_t& pixel) {
  T* values = reinterpret_cast<T*>(shared_memory());  // [PAIR_WARPS]
  int64_t* pixels = reinterpret_cast<int64_t*>(shared_memory() + PAIR_WARPS * sizeof(double));
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(ALL_LANES, value, step);
    const int64_t where = __shfl_xor_sync(ALL_LANES, pixel, step);
    least_of(value, pixel, other, where);
  }
  __syncthreads();
  if (threadIdx.x % WARP == 0) values[threadIdx.x / WARP] = value, pixels[threadIdx.x / WARP] = pixel;
  __syncthreads();
  for (int w = 0; w < PAIR_WARPS; ++w) least_of(value, pixel, values[w], pixels[w]);
}

// Least value, mean and factor of every point. Grid: groups * blocks.
template <typename T, int MEAN>
__global__ void __launch_bounds__(PAIR_THREADS) over_points(const __grid_constant__ Call call, int64_t blocks) {
  const int64_t g = blockIdx.x / blocks, S = call.runs.S, first = call.first(g);
  const HardPair& pair = call.op.pair;
  const Total& all = call.total[g];
  if (all.empty()) return;
  const PairGroup<T> group(pair, S, g);
  const Value<T> value(call);
  const T infinity = static_cast<T>(HUGE_VAL), exponent = static_cast<T>(-call.op.exponent);
  constexpr bool POWERS = MEAN == HARMONIC || MEAN == POWER_MEAN;
  // behind what reductions use
  Point<T>* points = reinterpret_cast<Point<T>*>(shared_memory() + 2 * BLOCK_REDUCE);
  for (int64_t begin = blockIdx.x % blocks * POINTS; begin < all.count; begin += blocks * POINTS) {
    const int here = static_cast<int>(min_(all.count - begin, int64_t(POINTS)));
    __syncthreads();
    if (threadIdx.x < POINTS) points[threadIdx.x] = point_at<T>(call, first + begin + min_<int>(threadIdx.x, here - 1));
    __syncthreads();

    T low[POINTS];
    int64_t where[POINTS];
#pragma unroll
    for (int k = 0; k < POINTS; ++k) low[k] = MEAN == HARMONIC ? T(1) : infinity, where[k] = -1;
    if (MEAN != HARMONIC) {  // of which no power overflows, as g >= eps
      for (int64_t i = threadIdx.x; i < S; i += PAIR_THREADS) {
        const PairPixel<T> x = group.at(i);
        if (!(x.u > T(0))) continue;
        const Place at(pair, i);
#pragma unroll
        for (int k = 0; k < POINTS; ++k) {
          const T d = root(square(points[k], static_cast<T>(at.z), static_cast<T>(at.y), static_cast<T>(at.x)));
          const T v = MEAN == POWER_MIN ? value.ratio(x.p, d) : value.mean(x.p, d);
          if (v < low[k]) low[k] = v, where[k] = i;
        }
      }
#pragma unroll
      for (int k = 0; k < POINTS; ++k) block_least(low[k], where[k]);
    }

    double sum[POINTS];
#pragma unroll
    for (int k = 0; k < POINTS; ++k) sum[k] = 0;
    if (POWERS) {
      for (int64_t from = 0; from < S; from += PIXELS * PAIR_THREADS) {
        T part[POINTS];
#pragma unroll
        for (int k = 0; k < POINTS; ++k) part[k] = T(0);
        const int64_t to = min_(from + PIXELS * PAIR_THREADS, S);
        for (int64_t i = from + threadIdx.x; i < to; i += PAIR_THREADS) {
          const PairPixel<T> x = group.at(i);
          if (!(x.u > T(0))) continue;
          const Place at(pair, i);
#pragma unroll
          for (int k = 0; k < POINTS; ++k) {
            const T d = root(square(points[k], static_cast<T>(at.z), static_cast<T>(at.y), static_cast<T>(at.x)));
            const T q = low[k] / value.mean(x.p, d);
            part[k] += x.u * (MEAN == HARMONIC ? q : exp_(exponent * log_(q)));
          }
        }
#pragma unroll
        for (int k = 0; k < POINTS; ++k) sum[k] += static_cast<double>(part[k]);
      }
#pragma unroll
      for (int k = 0; k < POINTS; ++k) sum[k] = block_reduce<Add>(sum[k]);
    }

#pragma unroll
    for (int k = 0; k < POINTS; ++k) {
      if (static_cast<int>(threadIdx.x) != k || k >= here) continue;
      const int64_t i = first + begin + k;
      const Point<T> t = points[k];
      const double weight = call.op.points != nullptr ? 1 : static_cast<double>(group.at(call.pixel[i]).u);
      const double share = weight / all.weights, least = static_cast<double>(low[k]);
      double mean, factor = share;
      if (POWERS) {
        const double ratio = pow(sum[k] / all.u, 1 / call.op.exponent);  // M / least
        mean = share * least * ratio;
        factor = share * pow(ratio, 1 - call.op.exponent) / all.u;
      } else {
        mean = share * (MEAN == POWER_MIN ? min_(least, call.d_max) : least);
      }
      const double nothing = static_cast<double>(T(0) * (t.z + t.y + t.x));  // NaN for a point that is not finite
      call.least[i] = least;
      call.mean[i] = mean + nothing;
      call.factor[i] = factor;
      call.attained[i] = where[k];
    }
  }
}

__global__ void __launch_bounds__(PAIR_THREADS) add_points(const __grid_constant__ Call call) {
  Total& all = call.total[blockIdx.x];
  const double mean = all.empty() ? 0 : combine_runs<Add>(call.mean + call.first(blockIdx.x), all.count, 1);
  if (threadIdx.x == 0) all.mean = mean;
}

// ------------------------------------------------------------------------------------------- over the pixels

// Partial sums of u p min_t d, and the gradient without the part of the denominator.
template <typename T, int MEAN>
__global__ void __launch_bounds__(PAIR_THREADS) over_pixels(const __grid_constant__ Call call) {
  const Run run(call.runs, 0);
  const HardPair& pair = call.op.pair;
  const PairGroup<T> group(pair, call.runs.S, run.group);
  const Total& all = call.total[run.group];
  const Value<T> value(call);
  const int64_t i = run.begin + threadIdx.x, first = call.first(run.group);
  const bool real = i < run.end;
  if (all.empty()) {
    if (real && group.grad != nullptr) group.grad[i] = T(0);
    if (threadIdx.x == 0) call.partial[blockIdx.x] = 0;
    return;
  }
  const PairPixel<T> x = real ? group.at(i) : PairPixel<T>{T(0), T(0), T(0), false};
  const Place at(pair, real ? i : 0);
  const T px = static_cast<T>(at.x), py = static_cast<T>(at.y), pz = static_cast<T>(at.z);
  const T exponent = static_cast<T>(1 - call.op.exponent);
  const bool slopes = group.grad != nullptr;
  T low = static_cast<T>(HUGE_VAL);
  double slope = 0;
  Point<T>* points = reinterpret_cast<Point<T>*>(shared_memory() + 2 * BLOCK_REDUCE);
  for (int64_t begin = 0; begin < all.count; begin += TILE) {
    const int here = static_cast<int>(min_(all.count - begin, int64_t(TILE)));
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < here) {
      Point<T> t = point_at<T>(call, first + begin + threadIdx.x);
      t.unit = static_cast<T>(call.least[first + begin + threadIdx.x]);
      t.factor = static_cast<T>(call.factor[first + begin + threadIdx.x]);
      t.attained = call.attained[first + begin + threadIdx.x];
      t.below = call.least[first + begin + threadIdx.x] <= call.d_max;
      points[threadIdx.x] = t;
    }
    __syncthreads();
    T part = T(0);
    for (int k = 0; k < here; ++k) {
      const Point<T>& t = points[k];
      const T d2 = square(t, pz, py, px);
      low = min_(d2, low);
      if (MEAN == HARMONIC || MEAN == POWER_MEAN) {
        if (!slopes) continue;
        const T d = root(d2), q = t.unit / value.mean(x.p, d);
        part += t.factor * (MEAN == HARMONIC ? q * q : exp_(exponent * log_(q))) * (d - value.d_max);
      } else if (slopes && t.attained == i) {
        const double p = static_cast<double>(x.p), d = root(static_cast<double>(d2)), power = p * p * p;
        const double q = p * power + call.op.eps / call.d_max, factor = static_cast<double>(t.factor);
        slope += factor * (MEAN == LEAST ? d - call.d_max : t.below ? -(d + call.op.eps) * 4 * power / (q * q) : 0.0);
      }
    }
    slope += static_cast<double>(part);
  }
  low = root(low);
  const bool counts = x.u > T(0);
  const double near = block_reduce<Add>(counts ? static_cast<double>(x.u * x.p * low) : 0.0);
  if (threadIdx.x == 0) call.partial[blockIdx.x] = near;
  if (!real || !slopes) return;
  const T passed = static_cast<T>(slope), own = low * static_cast<T>(1 / all.mass);
  const bool powers = MEAN == HARMONIC || MEAN == POWER_MEAN;
  group.grad[i] = counts ? (powers ? x.u * (own + passed) : x.u * own + passed) : T(0);
}

__global__ void __launch_bounds__(PAIR_THREADS) finish(const __grid_constant__ Call call, double* losses) {
  const int64_t g = blockIdx.x, runs = call.runs.count;
  Total& all = call.total[g];
  const double near = combine_runs<Add>(call.partial + g * runs, runs, 1);
  if (threadIdx.x != 0) return;
  if (all.empty()) {
    losses[g] = all.u > 0 ? call.d_max : all.u;
    all.shift = 0;
    return;
  }
  losses[g] = near / all.mass + all.mean;
  all.shift = -near / all.mass / all.mass;
}

template <typename T>
__global__ void __launch_bounds__(PAIR_THREADS) shift(const __grid_constant__ Call call) {
  const Run run(call.runs, 0);
  const PairGroup<T> group(call.op.pair, call.runs.S, run.group);
  const T step = static_cast<T>(call.total[run.group].shift);
  if (step == T(0)) return;
  for (int64_t i = run.begin + threadIdx.x; i < run.end; i += PAIR_THREADS) {
    const T u = group.at(i).u;
    if (u > T(0)) group.grad[i] += u * step;
  }
}

// ------------------------------------------------------------------------------------------- the host

int64_t take(int64_t& total, int64_t bytes) {
  const int64_t at = total;
  total += (bytes + 15) / 16 * 16;
  return at;
}

// Fills in what lies in the workspace; returns its bytes.
int64_t place(Call& call, int64_t points, char* workspace) {
  const Runs& runs = call.runs;
  const bool given = call.op.points != nullptr;
  call.stride = given ? 0 : runs.S;
  const int64_t all = given ? points : runs.groups * runs.S, partials = runs.groups * runs.count;
  int64_t total = 0;
  call.pixel = reinterpret_cast<uint32_t*>(workspace + take(total, given ? 0 : all * 4));
  call.least = reinterpret_cast<double*>(workspace + take(total, all * 8));
  call.mean = reinterpret_cast<double*>(workspace + take(total, all * 8));
  call.factor = reinterpret_cast<double*>(workspace + take(total, all * 8));
  call.attained = reinterpret_cast<int64_t*>(workspace + take(total, all * 8));
  call.partial = reinterpret_cast<double*>(workspace + take(total, partials * PARTIALS * 8));
  call.offset = reinterpret_cast<int64_t*>(workspace + take(total, partials * 8));
  call.total = reinterpret_cast<Total*>(workspace + take(total, runs.groups * static_cast<int64_t>(sizeof(Total))));
  return total;
}

Call call_of(const PairwiseHausdorff& op) {
  Call call{op,     Runs(op.pair, PAIR_THREADS), 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
            nullptr};
  double square = 0;
  for (int d = 3 - op.pair.dims; d < 3; ++d)
    square += static_cast<double>(op.pair.shape[d]) * static_cast<double>(op.pair.shape[d]);
  call.d_max = sqrt(square);
  return call;
}

template <typename T>
cudaError_t run(const Call& call, int64_t points, double* losses, cudaStream_t stream) {
  const PairwiseMean mean = call.op.mean;
  const unsigned groups = static_cast<unsigned>(call.runs.groups);
  const unsigned all = static_cast<unsigned>(call.runs.groups * call.runs.count);
  const size_t shared = 2 * BLOCK_REDUCE + TILE * sizeof(Point<T>);
  if (groups == 0) return cudaSuccess;
  SEGFUSE_TRY(launch(measure<T>, all, PAIR_THREADS, shared, stream, call));
  SEGFUSE_TRY(launch(total, groups, PAIR_THREADS, shared, stream, call));
  if (call.op.points == nullptr) SEGFUSE_TRY(launch(collect<T>, all, PAIR_THREADS, shared, stream, call));
  const int64_t most = call.op.points == nullptr ? call.runs.S : points;
  const int64_t blocks = max_(min_((most + POINTS - 1) / POINTS, BLOCKS / call.runs.groups), int64_t(1));
  const auto means = mean == HARMONIC     ? over_points<T, HARMONIC>
                     : mean == POWER_MEAN ? over_points<T, POWER_MEAN>
                     : mean == LEAST      ? over_points<T, LEAST>
                                          : over_points<T, POWER_MIN>;
  SEGFUSE_TRY(
      launch(means, static_cast<unsigned>(call.runs.groups * blocks), PAIR_THREADS, shared, stream, call, blocks));
  SEGFUSE_TRY(launch(add_points, groups, PAIR_THREADS, shared, stream, call));
  const auto pixels = mean == HARMONIC     ? over_pixels<T, HARMONIC>
                      : mean == POWER_MEAN ? over_pixels<T, POWER_MEAN>
                      : mean == LEAST      ? over_pixels<T, LEAST>
                                           : over_pixels<T, POWER_MIN>;
  SEGFUSE_TRY(launch(pixels, all, PAIR_THREADS, shared, stream, call));
  SEGFUSE_TRY(launch(finish, groups, PAIR_THREADS, shared, stream, call, losses));
  if (call.op.pair.grad == nullptr) return cudaSuccess;
  return launch(shift<T>, all, PAIR_THREADS, shared, stream, call);
}

}  // namespace

namespace cuda {

int64_t pairwise_hausdorff_workspace(const PairwiseHausdorff& op, int64_t points) {
  Call call = call_of(op);
  return place(call, points, nullptr);
}

cudaError_t pairwise_hausdorff_forward(const PairwiseHausdorff& op, int64_t points, double* losses, void* workspace,
                                       cudaStream_t stream) {
  Call call = call_of(op);
  place(call, points, static_cast<char*>(workspace));
  return op.pair.dtype == F64 ? run<double>(call, points, losses, stream) : run<float>(call, points, losses, stream);
}

}  // namespace cuda
}  // namespace segfuse
