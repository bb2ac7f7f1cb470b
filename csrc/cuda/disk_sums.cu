// Errors weighed by balls of several radii around every pixel, counted by running sums on a GPU.
//
//   w_f = sum_r factor_r (f(B_r * (1 - y)) + f(B_r * q))     w_e = sum_r factor_r (f(B_r * y) + f(B_r * (1 - q)))
//   f(x) = max(0, x - 1/2); B_r averages the pixels within radius r, outside the image all are 0
//
// The pixels of the image, of y and of q in a ball share one integer (3 x 10 bits in 32, or 3 x 21 in 64) and are
// exact. A ball is a stack of row segments, each the difference of two running sums; sums may wrap, as only differences
// are read, and those fit.
//
// Memory: floor 4 (or 8) bytes a pixel written and read, p and y twice, the gradient once. A pixel reads two numbers of
//         the cache for every row of every ball: O(r) in 2-D, O(r^2) in 3-D.
// Order:  partial results of fixed runs of pixels, combined by index, in double.
// Source: Karimi and Salcudean 2019 (arXiv 1904.10030).
#include "../ball.h"
#include "../segfuse_cuda.h"
#include "hard_pair.cuh"

namespace segfuse {
namespace {

struct Balls {
  double pixels[MAX_RADII];
};

template <typename Sum>
constexpr int BITS = sizeof(Sum) == 8 ? 21 : 10;

// Running sums [group, row, X + 1]: a warp per row.
template <typename Sum, typename T>
__global__ void __launch_bounds__(PAIR_THREADS)
    accumulate(const __grid_constant__ DiskSums op, Runs runs, int64_t first_group, int64_t groups, Sum* running) {
  const HardPair& pair = op.pair;
  const int64_t X = pair.shape[2], rows = pair.shape[0] * pair.shape[1];
  const int64_t task = blockIdx.x * static_cast<int64_t>(PAIR_WARPS) + threadIdx.x / WARP;
  const int lane = threadIdx.x % WARP;
  if (task >= groups * rows) return;
  const int64_t g = first_group + task / rows, begin = task % rows * X, classes = pair.C - pair.first;
  const PairGroup<T> group(pair, runs.S, g);
  const int16_t* hard = op.hard == nullptr ? nullptr : op.hard + g / classes * runs.S;
  const int16_t c = static_cast<int16_t>(pair.first + g % classes);
  Sum* out = running + task * (X + 1);
  if (lane == 0) out[0] = 0;
  Sum carry = 0;
  for (int64_t x = lane; x - lane < X; x += WARP) {
    Sum sum = 0;
    if (x < X) {
      const PairPixel<T> at = group.at(begin + x);
      const bool q = at.valid && (hard == nullptr ? at.p > T(0.5) : hard[begin + x] == c);
      sum = Sum(1) + (at.y != T(0) ? Sum(1) << BITS<Sum> : Sum(0)) + (q ? Sum(1) << (2 * BITS<Sum>) : Sum(0));
    }
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
      const Sum left = __shfl_up_sync(ALL_LANES, sum, step);
      if (lane >= step) sum += left;
    }
    sum += carry;
    if (x < X) out[x + 1] = sum;
    carry = __shfl_sync(ALL_LANES, sum, WARP - 1);
  }
}

// The ball of radius r around a pixel.
template <typename Sum>
__device__ __forceinline__ Sum count(const HardPair& pair, const Sum* running, const Place& at, int64_t r) {
  const int64_t Z = pair.shape[0], Y = pair.shape[1], X = pair.shape[2];
  const int64_t top = max_(at.z - r, int64_t(0)), bottom = min_(at.z + r, Z - 1);
  Sum total = 0;
  for (int64_t z = top; z <= bottom; ++z) {
    const int64_t level = r * r - (z - at.z) * (z - at.z);
    for (int64_t y = max_(at.y - r, int64_t(0)); y <= min_(at.y + r, Y - 1); ++y) {
      const int64_t left = level - (y - at.y) * (y - at.y);
      if (left < 0) continue;
      // exact: with more than one axis r is below 2^12
      const int64_t half = left == r * r ? r : static_cast<int64_t>(__fsqrt_rn(static_cast<float>(left)));
      const Sum* row = running + (z * Y + y) * (X + 1);
      total += row[min_(at.x + half + 1, X)] - row[max_(at.x - half, int64_t(0))];
    }
  }
  return total;
}

template <typename T>
__device__ __forceinline__ T soft(int32_t count, T scale) {
  return max_(T(0), static_cast<T>(count) * scale - T(0.5));
}

template <typename Sum, typename T>
__global__ void __launch_bounds__(PAIR_THREADS)
    weigh(const __grid_constant__ DiskSums op, const __grid_constant__ Balls balls, Runs runs, int64_t first_group,
          const Sum* running, double* partial) {
  const Run run(runs, first_group);
  const PairGroup<T> group(op.pair, runs.S, run.group);
  const Sum* mine = running + run.local * op.pair.shape[0] * op.pair.shape[1] * (op.pair.shape[2] + 1);
  constexpr Sum FIELD = (Sum(1) << BITS<Sum>)-1;
  double total = 0;
  for (int64_t i = run.begin + threadIdx.x; i < run.end; i += PAIR_THREADS) {
    const PairPixel<T> x = group.at(i);
    T slope = T(0);
    if (x.valid) {
      const Place at(op.pair, i);
      T w_f = T(0), w_e = T(0);
      for (int k = 0; k < op.n_radii; ++k) {
        const Sum packed = count(op.pair, mine, at, op.radius[k]);
        const int32_t inside = static_cast<int32_t>(packed & FIELD);
        const int32_t y = static_cast<int32_t>(packed >> BITS<Sum> & FIELD);
        const int32_t q = static_cast<int32_t>(packed >> (2 * BITS<Sum>)&FIELD);
        const T scale = T(1) / static_cast<T>(balls.pixels[k]), factor = static_cast<T>(op.factor[k]);
        w_f += factor * (soft(inside - y, scale) + soft(q, scale));
        w_e += factor * (soft(y, scale) + soft(inside - q, scale));
      }
      w_f *= x.u;
      w_e *= x.u;
      const T d = x.p - x.y;
      total += static_cast<double>(d * d * (w_f * x.p + w_e * x.y));
      slope = w_f * (T(2) * d * x.p + d * d) + w_e * (T(2) * d * x.y);
    }
    if (group.grad != nullptr) group.grad[i] = slope;
  }
  total = block_reduce<Add>(total);
  if (threadIdx.x == 0) partial[run.group * runs.count + run.number] = total;
}

// sums[group] of partial sums [group, run]
__global__ void __launch_bounds__(PAIR_THREADS) add_runs(const double* partial, int64_t count, double* sums) {
  const double sum = combine_runs<Add>(partial + blockIdx.x * count, count, 1);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// `groups` are worked on at a time.
struct Rooms {
  bool wide;
  int64_t rows, group, groups, partial, total;  // rows: of a group; group: bytes

  Rooms(const DiskSums& op, const Balls& balls, const Runs& runs) : wide(false) {
    for (int k = 0; k < op.n_radii; ++k) wide |= balls.pixels[k] > 1023;
    rows = op.pair.shape[0] * op.pair.shape[1];
    group = rows * (op.pair.shape[2] + 1) * (wide ? 8 : 4);
    groups = max_(min_(PAIR_WORKSPACE / max_(group, int64_t(1)), runs.groups), int64_t(1));
    partial = (groups * group + 15) / 16 * 16;
    total = partial + runs.groups * runs.count * 8;
  }
};

Balls balls_of(const DiskSums& op) {
  Balls balls{};
  for (int k = 0; k < op.n_radii; ++k) balls.pixels[k] = static_cast<double>(ball(op.radius[k], op.pair.dims));
  return balls;
}

template <typename Sum, typename T>
cudaError_t run(const DiskSums& op, const Balls& balls, const Rooms& rooms, double* sums, char* workspace,
                cudaStream_t stream) {
  const Runs runs(op.pair);
  Sum* running = reinterpret_cast<Sum*>(workspace);
  double* partial = reinterpret_cast<double*>(workspace + rooms.partial);
  for (int64_t first = 0; first < runs.groups; first += rooms.groups) {
    const int64_t groups = min_(rooms.groups, runs.groups - first);
    const int64_t blocks = (groups * rooms.rows + PAIR_WARPS - 1) / PAIR_WARPS;
    SEGFUSE_TRY(launch(accumulate<Sum, T>, static_cast<unsigned>(blocks), PAIR_THREADS, 0, stream, op, runs, first,
                       groups, running));
    SEGFUSE_TRY(launch(weigh<Sum, T>, static_cast<unsigned>(groups * runs.count), PAIR_THREADS, BLOCK_REDUCE, stream,
                       op, balls, runs, first, running, partial));
  }
  return launch(add_runs, static_cast<unsigned>(runs.groups), PAIR_THREADS, BLOCK_REDUCE, stream, partial, runs.count,
                sums);
}

}  // namespace

namespace cuda {

int64_t disk_sums_workspace(const DiskSums& op) { return Rooms(op, balls_of(op), Runs(op.pair)).total; }

cudaError_t disk_sums_forward(const DiskSums& op, double* sums, void* workspace, cudaStream_t stream) {
  const Balls balls = balls_of(op);
  const Rooms rooms(op, balls, Runs(op.pair));
  const auto kernels = rooms.wide ? (op.pair.dtype == F64 ? run<uint64_t, double> : run<uint64_t, float>)
                                  : (op.pair.dtype == F64 ? run<uint32_t, double> : run<uint32_t, float>);
  return kernels(op, balls, rooms, sums, static_cast<char*>(workspace), stream);
}

}  // namespace cuda
}  // namespace segfuse
