// What the kernels on a HardPair share: runs of pixels of one group, reading a pixel, reductions over a block.
//
// A group is one (sample, class) with class >= first. A block takes a run of its pixels and writes one partial result;
// a second launch combines the runs of a group by index. The bits depend on the shape alone.
#pragma once
#include "launch.cuh"

namespace segfuse {
namespace {

constexpr int PAIR_THREADS = 256, PAIR_WARPS = PAIR_THREADS / WARP;
constexpr int64_t PAIR_RUN = 16 * PAIR_THREADS;         // pixels of a block
constexpr int64_t PAIR_WORKSPACE = int64_t(512) << 20;  // bytes of fields that are alive at once, where one group fits

struct Runs {
  int64_t S, groups, length, count;  // count: runs of a group
  explicit Runs(const HardPair& pair, int64_t length = PAIR_RUN)
      : S(pair.shape[0] * pair.shape[1] * pair.shape[2]),
        groups(S == 0 ? 0 : pair.N * (pair.C - pair.first)),
        length(length),
        count((S + length - 1) / length) {}
};

// The run of this block, of groups from `first_group` on.
struct Run {
  int64_t local, group, number, begin, end;  // local: counted from first_group
  __device__ Run(const Runs& runs, int64_t first_group)
      : local(blockIdx.x / runs.count),
        group(first_group + local),
        number(blockIdx.x % runs.count),
        begin(number * runs.length),
        end(min_(begin + runs.length, runs.S)) {}
};

template <typename T>
struct PairPixel {
  T p, y, u;  // y and u are 0 where the pixel is ignored
  bool valid;
};

// Where a group lies in every tensor of the pair.
template <typename T>
struct PairGroup {
  const T *p, *weight;  // weight: or nullptr
  const int16_t* code;
  int16_t one;
  T* grad;  // or nullptr

  __device__ PairGroup(const HardPair& pair, int64_t S, int64_t group) {
    const int64_t classes = pair.C - pair.first, n = group / classes, c = pair.first + group % classes;
    const int64_t plane = (n * pair.C + c) * S;
    p = static_cast<const T*>(pair.p) + plane;
    code = pair.code + (pair.index ? n * S : plane);
    one = static_cast<int16_t>(pair.index ? c : 1);
    weight =
        pair.weight == nullptr ? nullptr : static_cast<const T*>(pair.weight) + (pair.weight_per_class ? plane : n * S);
    grad = pair.grad == nullptr ? nullptr : static_cast<T*>(pair.grad) + plane;
  }

  __device__ PairPixel<T> at(int64_t i) const {
    const int16_t label = code[i];
    const bool valid = label >= 0;
    return {p[i], label == one ? T(1) : T(0), !valid ? T(0) : weight == nullptr ? T(1) : weight[i], valid};
  }
};

// Plane, row and column of a pixel.
struct Place {
  int64_t z, y, x;
  __device__ Place(const HardPair& pair, int64_t i) {
    const int64_t Y = pair.shape[1], X = pair.shape[2];
    if (i <= UINT32_MAX && X <= UINT32_MAX && Y <= UINT32_MAX) {  // a division of 64 bits takes four times as long
      const uint32_t j = static_cast<uint32_t>(i), row = j / static_cast<uint32_t>(X);
      x = j - row * static_cast<uint32_t>(X);
      z = row / static_cast<uint32_t>(Y);
      y = row % static_cast<uint32_t>(Y);
    } else {
      x = i % X;
      y = i / X % Y;
      z = i / X / Y;
    }
  }
};

struct Add {
  static constexpr double START = 0;
  __device__ double operator()(double a, double b) const { return a + b; }
};
struct Least {  // NaN is left out
  static constexpr double START = HUGE_VAL;
  __device__ double operator()(double a, double b) const { return b < a ? b : a; }
};
struct Most {
  static constexpr double START = -HUGE_VAL;
  __device__ double operator()(double a, double b) const { return b > a ? b : a; }
};

// Combines x over the block in a fixed order; every thread gets the result.
template <typename Combine>
__device__ __forceinline__ double block_reduce(double x) {
  double* warps = reinterpret_cast<double*>(shared_memory());  // [PAIR_WARPS]
  const Combine combine;
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(ALL_LANES, x, step));
  __syncthreads();
  if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = x;
  __syncthreads();
  x = warps[0];
#pragma unroll
  for (int w = 1; w < PAIR_WARPS; ++w) x = combine(x, warps[w]);
  return x;
}
constexpr size_t BLOCK_REDUCE = PAIR_WARPS * sizeof(double);  // bytes of shared memory

// The same over partial results of all runs of a group, `stride` apart; the block takes one group.
template <typename Combine>
__device__ __forceinline__ double combine_runs(const double* partial, int64_t count, int64_t stride) {
  const Combine combine;
  double x = Combine::START;
  for (int64_t i = threadIdx.x; i < count; i += PAIR_THREADS) x = combine(x, partial[i * stride]);
  return block_reduce<Combine>(x);
}

}  // namespace
}  // namespace segfuse
