// Cuts the planes of an image into boxes for sweeps over windows, and into runs of rows for what has no window. The cut
// depends on the shape alone, so the bits do not depend on the number of threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace segfuse {

struct WindowTasks {
  static constexpr int64_t TASKS = 32, ROW_PIXELS = 1 << 13, SERIAL_PIXELS = 1 << 12;
  const Windows& w;
  const LocalMomentsKernels& k = local_moments_kernels();
  const bool wide;
  const int64_t first_class;
  const int threads;
  int64_t tile[3], pieces[3], rows, row_pieces;

  WindowTasks(const Windows& windows, bool is_double, int64_t first, int requested)
      : w(windows), wide(is_double), first_class(first), threads(requested) {
    // Two pieces of 256 columns have less of their neighbours in common than the cache gains. A march is long against
    // its window.
    cut(2, 320, 256);
    cut(1, w.radius[1] > 2 ? 16 : 32, w.radius[1] > 2 ? 16 : 32);
    const int64_t planes = std::max<int64_t>(1, groups() * pieces[1] * pieces[2]);
    const int64_t most = std::max<int64_t>(1, TASKS / planes);
    cut(0, std::max<int64_t>((w.shape[0] + most - 1) / most, 64),
        std::max<int64_t>((w.shape[0] + most - 1) / most, 64));
    rows = std::max<int64_t>(1, ROW_PIXELS / std::max<int64_t>(1, w.shape[2]));
    row_pieces = empty() ? 0 : (w.shape[0] * w.shape[1] + rows - 1) / rows;
  }

  int64_t groups() const { return w.N * (w.C - first_class); }
  int64_t boxes_per_group() const { return pieces[0] * pieces[1] * pieces[2]; }
  bool empty() const { return w.N * w.C * w.shape[0] * w.shape[1] * w.shape[2] == 0; }

  // body(box, number of the box, scratch); the boxes of a group have consecutive numbers
  template <typename Body>
  void boxes(Body body) const {
    each(groups() * boxes_per_group(), [&](int64_t i, void* scratch) {
      const int64_t group = i / boxes_per_group(), piece = i % boxes_per_group();
      const int64_t at[3] = {piece / (pieces[1] * pieces[2]), piece / pieces[2] % pieces[1], piece % pieces[2]};
      Box box{group / (w.C - first_class), first_class + group % (w.C - first_class), {}, {}};
      for (int d = 0; d < 3; ++d) {
        box.begin[d] = at[d] * tile[d];
        box.end[d] = std::min(box.begin[d] + tile[d], w.shape[d]);
      }
      body(box, i, scratch);
    });
  }

  // body(sample or group, first row, last row, number of the run, scratch)
  template <typename Body>
  void runs(int64_t planes, Body body) const {
    each(planes * row_pieces, [&](int64_t i, void* scratch) {
      const int64_t begin = i % row_pieces * rows;
      body(i / row_pieces, begin, std::min(begin + rows, w.shape[0] * w.shape[1]), i, scratch);
    });
  }

 private:
  void cut(int d, int64_t whole, int64_t most) {
    pieces[d] = w.shape[d] <= whole ? 1 : (w.shape[d] + most - 1) / most;
    tile[d] = std::max<int64_t>(1, (w.shape[d] + pieces[d] - 1) / pieces[d]);
    pieces[d] = (w.shape[d] + tile[d] - 1) / tile[d];
  }

  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
  };

  template <typename Body>
  void each(int64_t total, Body body) const {
    if (empty()) return;
    const int64_t useful = w.N * w.C * w.shape[0] * w.shape[1] * w.shape[2] / SERIAL_PIXELS + 1;
    const size_t bytes = (k.scratch(w, tile, wide) + 63) / 64 * 64;
    parallel(total, static_cast<int>(std::min<int64_t>(threads, useful)), [&](auto&& next) {
      std::unique_ptr<void, Free> scratch(::operator new(bytes, std::align_val_t{64}));
      for (int64_t i; (i = next()) < total;) body(i, scratch.get());
    });
  }
};

// The probabilities of every pixel where the classes of a pixel meet. Returns the number of targets out of range.
inline int64_t window_softmax(const WindowTasks& tasks, const WindowLoss& op) {
  std::atomic<int64_t> invalid{0};
  if (op.activation == SOFTMAX)
    tasks.runs(op.windows.N, [&](int64_t n, int64_t begin, int64_t end, int64_t, void* scratch) {
      invalid += tasks.k.softmax(op, n, begin, end, scratch);
    });
  return invalid;
}

inline void window_softmax_backward(const WindowTasks& tasks, const WindowLoss& op) {
  if (op.activation == SOFTMAX)
    tasks.runs(op.windows.N, [&](int64_t n, int64_t begin, int64_t end, int64_t, void* scratch) {
      tasks.k.softmax_backward(op, n, begin, end, scratch);
    });
}

}  // namespace segfuse
