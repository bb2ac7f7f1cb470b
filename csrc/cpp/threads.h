// One parallel loop. OpenMP is the runtime that torch has loaded; a forked child runs serially, because the threads
// of its parent are gone and waiting for them would hang.
#pragma once
#include <atomic>
#include <cstdint>

namespace segfuse {

bool forked();  // isa.cpp

// Runs body(next) on `threads` threads; next() hands out 0, 1, ... and then numbers >= total.
template <typename Body>
void parallel(int64_t total, int threads, Body body) {
  std::atomic<int64_t> counter{0};
  auto next = [&counter] { return counter.fetch_add(1, std::memory_order_relaxed); };
  if (threads <= 1 || total <= 1 || forked()) return body(next);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  body(next);
#else
  body(next);
#endif
}

}  // namespace segfuse
