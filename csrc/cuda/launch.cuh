// What every CUDA kernel uses: launching, reading a strided tensor of any type, sums over a warp and a block.
//
// A launch takes the caller's stream, allocates nothing, waits for nothing and returns the error of the launch.
// Reductions are fixed trees, and their partial results are added by index, so the bits do not depend on timing.
#pragma once
#ifdef SEGFUSE_EMULATION
#include "../../tests/cuda/emulation.h"
#else
#include <cuda_runtime.h>
#endif

#include "../dtypes.h"
#include "../segfuse.h"

namespace segfuse {
namespace {

constexpr int WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;
constexpr size_t PLAIN_SHARED = 48 << 10;  // bytes; a kernel that uses more must say so first

// Carries the first error of a sequence of launches.
#define SEGFUSE_TRY(...)                                    \
  do {                                                      \
    const cudaError_t segfuse_error = (__VA_ARGS__);        \
    if (segfuse_error != cudaSuccess) return segfuse_error; \
  } while (0)

// kernel(args...) on a grid of blocks; an empty grid is no launch.
template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 threads, size_t shared, cudaStream_t stream,
                   Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
#ifdef SEGFUSE_EMULATION
  (void)stream;
  emulation::launch(kernel, grid, threads, shared, static_cast<Params>(args)...);
  return cudaSuccess;
#else
  if (shared > PLAIN_SHARED)
    SEGFUSE_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
#endif
}

// The dynamic shared memory of the block.
__device__ __forceinline__ char* shared_memory() {
#ifdef SEGFUSE_EMULATION
  return emulation::block.shared;
#else
  extern __shared__ __align__(16) char memory[];
  return memory;
#endif
}

template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}

// Offset of pixel i of a plane in a view; the pixel counts along the merged axes of the pass.
__device__ __forceinline__ int64_t pixel_offset(const PixelStats& op, const View& v, int64_t i) {
  if (op.dims == 1) return i * v.spatial[0];
  int64_t at = 0;
  for (int d = op.dims - 1; d > 0; --d) {
    const int64_t rest = i / op.shape[d];
    at += (i - rest * op.shape[d]) * v.spatial[d];
    i = rest;
  }
  return at + i * v.spatial[0];
}

// One entry of a view, whatever it is stored as. Integers above 2^24 (float) lose their last bits: class numbers are
// far below.
template <typename T>
__device__ __forceinline__ T read(const char* data, DType dtype, int64_t at) {
  switch (dtype) {
    case F32:
      return static_cast<T>(reinterpret_cast<const float*>(data)[at]);
    case F64:
      return static_cast<T>(reinterpret_cast<const double*>(data)[at]);
    case F16:
      return static_cast<T>(widen(reinterpret_cast<const half*>(data)[at]));
    case BF16:
      return static_cast<T>(widen(reinterpret_cast<const bfloat16*>(data)[at]));
    case BOOL:
    case U8:
      return static_cast<T>(reinterpret_cast<const uint8_t*>(data)[at]);
    case I8:
      return static_cast<T>(reinterpret_cast<const int8_t*>(data)[at]);
    case I16:
      return static_cast<T>(reinterpret_cast<const int16_t*>(data)[at]);
    case U16:
      return static_cast<T>(reinterpret_cast<const uint16_t*>(data)[at]);
    case I32:
      return static_cast<T>(reinterpret_cast<const int32_t*>(data)[at]);
    case U32:
      return static_cast<T>(reinterpret_cast<const uint32_t*>(data)[at]);
    case I64:
      return static_cast<T>(reinterpret_cast<const int64_t*>(data)[at]);
    default:
      return static_cast<T>(reinterpret_cast<const uint64_t*>(data)[at]);
  }
}

// The type of computation of a storage type.
template <typename Storage>
struct Compute {
  using Type = float;
};
template <>
struct Compute<double> {
  using Type = double;
};

// Runs the statements with `Storage` standing for a floating-point dtype.
#define SEGFUSE_WITH_STORAGE(dtype, ...) \
  switch (dtype) {                       \
    case F64: {                          \
      using Storage = double;            \
      __VA_ARGS__                        \
    } break;                             \
    case F16: {                          \
      using Storage = half;              \
      __VA_ARGS__                        \
    } break;                             \
    case BF16: {                         \
      using Storage = bfloat16;          \
      __VA_ARGS__                        \
    } break;                             \
    default: {                           \
      using Storage = float;             \
      __VA_ARGS__                        \
    } break;                             \
  }

}  // namespace
}  // namespace segfuse
