// One parallel loop. OpenMP is the runtime that torch has loaded; a forked child runs serially, because the threads
// of its parent are gone and waiting for them would hang.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#ifdef __SANITIZE_THREAD__  // which does not know the barriers of OpenMP
#define SEGFUSE_STD_THREADS
#endif
#ifdef SEGFUSE_STD_THREADS
#include <thread>
#include <vector>
#endif

namespace segfuse {

bool forked();  // isa.cpp

// Runs body(next) on `threads` threads; next() hands out 0, 1, ... and then numbers >= total. What one of them throws
// (out of memory) is thrown here, since no exception may leave a parallel region; the others finish their work.
template <typename Body>
void parallel(int64_t total, int threads, Body body) {
  std::atomic<int64_t> counter{0};
  auto next = [&counter] { return counter.fetch_add(1, std::memory_order_relaxed); };
  if (threads <= 1 || total <= 1 || forked()) return body(next);
  std::atomic<bool> failed{false};
  std::exception_ptr failure;
  auto guarded = [&] {
    try {
      body(next);
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  };
#ifdef SEGFUSE_STD_THREADS
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) pool.emplace_back(guarded);
  for (std::thread& thread : pool) thread.join();
#elif defined(_OPENMP)
#pragma omp parallel num_threads(threads)
  guarded();
#else
  guarded();
#endif
  if (failure) std::rethrow_exception(failure);
}

}  // namespace segfuse
