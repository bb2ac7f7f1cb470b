// Runs CUDA kernels on the CPU, block by block, so that their logic is tested where there is no GPU.
//
// The threads of a block are fibers that take turns: one runs until it reaches a barrier or a warp function. That
// proves indexing, reductions and tails. It proves nothing about speed or the memory model: there is no race between
// two barriers, though a missing barrier shows, because a thread then reads what a later one has not written yet.
// Dynamic shared memory holds NaN at first and is exactly as long as the launch says, so AddressSanitizer sees every
// overrun.
#pragma once
#ifndef __linux__
#error "the emulation needs Linux"
#endif
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  memset(data, value, bytes);
  return cudaSuccess;
}
inline const char* cudaGetErrorName(cudaError_t) { return "cudaSuccess"; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

namespace emulation {

constexpr int WARP = 32;
constexpr size_t STACK = 128 << 10;  // bytes of each thread

struct Warp {
  uint64_t slot[2][WARP];  // of this collective and of the next
  uint32_t lanes[2];       // that have arrived
  int arrived = 0;
  unsigned generation = 0;
};

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  dim3 thread;
  bool started = false, done = false;
  std::unique_ptr<char[]> stack{new char[STACK]};
};

struct Block {
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  jmp_buf scheduler;
  size_t current = 0;
  int live = 0, arrived = 0;
  unsigned generation = 0;
  uint64_t progress = 0;  // barriers passed and threads ended
  char* shared = nullptr;
  const std::function<void()>* body = nullptr;
};

inline Block block;
inline dim3 block_index, block_size, grid_size;
inline std::mutex one_launch;

inline Fiber& fiber() { return *block.fibers[block.current]; }

inline void yield() {
  if (_setjmp(fiber().at) == 0) _longjmp(block.scheduler, 1);
}

inline void release_block() {
  block.arrived = 0;
  ++block.generation;
  ++block.progress;
}

inline void run_fiber() {
  (*block.body)();
  fiber().done = true;
  ++block.progress;
  if (--block.live > 0 && block.arrived == block.live) release_block();
  _longjmp(block.scheduler, 1);
}

inline void barrier() {
  const unsigned generation = block.generation;
  if (++block.arrived == block.live) return release_block();
  while (block.generation == generation) yield();
}

inline int lane() { return static_cast<int>(block.current % WARP); }

// Every lane of `mask` gives a value and sees those of all; returns which lanes they are.
inline uint32_t exchange(uint32_t mask, uint64_t value, const uint64_t*& values) {
  Warp& warp = block.warps[block.current / WARP];
  const unsigned generation = warp.generation;
  const int side = generation & 1;
  if (warp.arrived == 0) warp.lanes[side] = 0;
  warp.slot[side][lane()] = value;
  warp.lanes[side] |= 1u << lane();
  if (++warp.arrived == __builtin_popcount(mask)) {
    warp.arrived = 0;
    ++warp.generation;
    ++block.progress;
  } else {
    while (warp.generation == generation) yield();
  }
  values = warp.slot[side];
  if (warp.lanes[side] != mask) {
    fprintf(stderr, "a warp function was called by lanes %08x, its mask says %08x\n", warp.lanes[side], mask);
    abort();
  }
  return mask;
}

template <typename T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <typename T>
T unpack(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T shuffle(uint32_t mask, T value, int from) {
  const uint64_t* values;
  exchange(mask, pack(value), values);
  return from >= 0 && from < WARP && (mask >> from & 1) ? unpack<T>(values[from]) : value;
}

inline void run_block(const std::function<void()>& body, size_t threads, size_t shared) {
  static std::vector<std::unique_ptr<Fiber>> pool;
  while (pool.size() < threads) pool.push_back(std::make_unique<Fiber>());
  block.fibers.clear();
  for (size_t i = 0; i < threads; ++i) {
    Fiber& f = *pool[i];
    f.started = f.done = false;
    f.thread = dim3(i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y);
    block.fibers.push_back(&f);
  }
  block.warps.assign((threads + WARP - 1) / WARP, Warp());
  block.live = static_cast<int>(threads);
  block.arrived = 0;
  block.body = &body;
  std::unique_ptr<char[]> memory(new char[shared + 128]);
  block.shared = memory.get() + 64 - reinterpret_cast<uintptr_t>(memory.get()) % 64;
  memset(block.shared, 0xff, shared + 64);
  uint64_t seen = block.progress;
  for (volatile size_t idle = 0; block.live > 0; ++idle) {
    for (volatile size_t i = 0; i < threads; ++i) {
      block.current = i;
      Fiber& f = fiber();
      if (f.done) continue;
      if (_setjmp(block.scheduler) != 0) continue;
      if (f.started) _longjmp(f.at, 1);
      f.started = true;
      getcontext(&f.start);
      f.start.uc_stack.ss_sp = f.stack.get();
      f.start.uc_stack.ss_size = STACK;
      f.start.uc_link = nullptr;
      makecontext(&f.start, run_fiber, 0);
      setcontext(&f.start);
    }
    if (block.progress != seen) seen = block.progress, idle = 0;
    if (idle > 4) {
      fprintf(stderr, "a barrier was not reached by every thread of block %u %u %u\n", block_index.x, block_index.y,
              block_index.z);
      abort();
    }
  }
  for (size_t i = 0; i < 64; ++i)
    if (block.shared[shared + i] != static_cast<char>(0xff)) {
      fprintf(stderr, "a thread wrote %zu bytes behind the shared memory of its block\n", i);
      abort();
    }
}

template <typename Kernel, typename... Args>
void launch(Kernel kernel, dim3 grid, dim3 threads, size_t shared, Args... args) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const std::function<void()> body = [&] { kernel(args...); };
  grid_size = grid;
  block_size = threads;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = dim3(x, y, z);
        run_block(body, static_cast<size_t>(threads.x) * threads.y * threads.z, shared);
      }
}

}  // namespace emulation

#define threadIdx (emulation::fiber().thread)
#define blockIdx emulation::block_index
#define blockDim emulation::block_size
#define gridDim emulation::grid_size

inline void __syncthreads() { emulation::barrier(); }
inline void __threadfence() {}
inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  const uint64_t* values;
  emulation::exchange(mask, 0, values);
}
template <typename T>
T __shfl_sync(uint32_t mask, T value, int from) {
  return emulation::shuffle(mask, value, from & 31);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits) {
  return emulation::shuffle(mask, value, emulation::lane() ^ bits);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta) {
  return emulation::shuffle(mask, value, emulation::lane() + static_cast<int>(delta));
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta) {
  return emulation::shuffle(mask, value, emulation::lane() - static_cast<int>(delta));
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  const uint64_t* values;
  emulation::exchange(mask, predicate != 0, values);
  uint32_t found = 0;
  for (int i = 0; i < emulation::WARP; ++i)
    if (mask >> i & 1) found |= static_cast<uint32_t>(values[i]) << i;
  return found;
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <typename T>
uint32_t __match_any_sync(uint32_t mask, T value) {
  const uint64_t* values;
  emulation::exchange(mask, emulation::pack(value), values);
  uint32_t found = 0;
  for (int i = 0; i < emulation::WARP; ++i)
    if ((mask >> i & 1) && values[i] == emulation::pack(value)) found |= 1u << i;
  return found;
}
inline int __syncthreads_or(int predicate) {
  static int any[2];
  const int side = emulation::block.generation & 1;
  if (emulation::block.arrived == 0) any[side] = 0;
  any[side] |= predicate != 0;
  emulation::barrier();
  const int found = any[side];
  return found;
}

template <typename T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at = static_cast<T>(before + value);
  return before;
}
template <typename T>
T atomicMax(T* at, T value) {
  const T before = *at;
  *at = std::max(before, value);
  return before;
}
template <typename T>
T atomicMin(T* at, T value) {
  const T before = *at;
  *at = std::min(before, value);
  return before;
}
template <typename T>
T atomicOr(T* at, T value) {
  const T before = *at;
  *at |= value;
  return before;
}

inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __dsqrt_rn(double x) { return std::sqrt(x); }
template <typename T>
T __ldg(const T* at) {
  return *at;
}
