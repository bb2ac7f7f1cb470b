// Work on planes of a HardPair: whole planes per thread where there are enough, else one plane on all threads.
// Either way a plane is cut into the same slabs of rows, whose partial results are combined in order.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "../segfuse.h"
#include "threads.h"

namespace segfuse {

struct FreeAligned {
  void operator()(char* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<char, FreeAligned>;
inline Buffer buffer(int64_t bytes) {
  return Buffer(static_cast<char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{64})));
}

struct Slabs {
  int64_t rows, length, count;
  Slabs(const HardPair& pair, int64_t pixels) : rows(pair.shape[0] * pair.shape[1]) {
    length = std::max<int64_t>(1, pixels / std::max<int64_t>(pair.shape[2], 1));
    count = (rows + length - 1) / length;
  }
  // body(begin, end, number) for every slab
  template <typename Body>
  void each(int threads, Body body) const {
    parallel(count, threads, [&](auto&& next) {
      for (int64_t i; (i = next()) < count;) body(i * length, std::min((i + 1) * length, rows), i);
    });
  }
};

// sums[n, c - first] = Plane(op).run(n, c, threads) for every group; the gradient of classes left out is 0.
// A thread gets at least `pixels` of them.
template <typename Plane, typename Op>
void for_each_plane(const Op& op, int64_t pixels, double* sums, int threads) {
  const HardPair& pair = op.pair;
  const int64_t classes = pair.C - pair.first, planes = pair.N * classes;
  const int64_t S = pair.shape[0] * pair.shape[1] * pair.shape[2];
  std::fill(sums, sums + planes, 0.0);
  if (pair.N * pair.C * S == 0) return;
  if (pair.grad != nullptr) {
    const int64_t plane = S * (pair.dtype == F64 ? 8 : 4);
    for (int64_t n = 0; n < pair.N; ++n)
      std::memset(static_cast<char*>(pair.grad) + n * pair.C * plane, 0, pair.first * plane);
  }
  const bool whole = planes >= threads;
  const int64_t useful = planes * S / pixels + 1;
  const int workers = whole ? static_cast<int>(std::min<int64_t>(threads, useful)) : 1;
  std::vector<std::unique_ptr<Plane>> work;  // made here, where running out of memory can still be reported
  for (int i = 0; i < workers; ++i) work.emplace_back(new Plane(op, whole ? 1 : threads));
  std::atomic<int> arrived{0};
  parallel(planes, workers, [&](auto&& next) {
    Plane& mine = *work[arrived.fetch_add(1)];
    for (int64_t i; (i = next()) < planes;) sums[i] = mine.run(i / classes, pair.first + i % classes);
  });
}

}  // namespace segfuse
