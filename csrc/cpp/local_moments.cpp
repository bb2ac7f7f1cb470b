// local_moments: every box on its own; the results of a box are its centres, a gradient those of its pixels.
#include "window_tasks.h"

namespace segfuse {
namespace {

void run(const LocalMoments& op, bool backward, int threads) {
  const WindowTasks tasks(op.windows, op.a.dtype == F64, 0, threads);
  tasks.boxes([&](const Box& box, int64_t, void* scratch) { tasks.k.moments(op, box, backward, scratch); });
}

}  // namespace

void local_moments_forward(const LocalMoments& op, int threads) { run(op, false, threads); }
void local_moments_backward(const LocalMoments& op, int threads) { run(op, true, threads); }

}  // namespace segfuse
