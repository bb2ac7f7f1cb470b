// SSIM: one sweep; the sums of the boxes are added in the order of the boxes.
#include "window_tasks.h"

namespace segfuse {
namespace {

int64_t run(const Ssim& op, double* sums, int threads) {
  const WindowLoss& loss = op.loss;
  const WindowTasks tasks(loss.windows, loss.input.dtype == F64, loss.first_class, threads);
  std::atomic<int64_t> invalid{window_softmax(tasks, loss)};
  const int64_t per_group = tasks.boxes_per_group(), groups = loss.windows.N * loss.windows.C;
  const std::unique_ptr<double[]> partial(new double[std::max<int64_t>(1, 2 * tasks.groups() * per_group)]());
  tasks.boxes([&](const Box& box, int64_t i, void* scratch) {
    invalid += tasks.k.ssim(op, box, partial.get() + 2 * i, scratch);
  });
  if (sums == nullptr) return invalid;
  std::fill(sums, sums + 2 * groups, 0.0);
  const int64_t classes = loss.windows.C - loss.first_class;
  for (int64_t i = 0; i < tasks.groups() * per_group; ++i) {
    const int64_t group = i / per_group;
    double* to = sums + group / classes * loss.windows.C + loss.first_class + group % classes;
    to[0] += partial[2 * i];
    to[groups] += partial[2 * i + 1];
  }
  return invalid;
}

}  // namespace

int64_t ssim_forward(const Ssim& op, double* sums, int threads) { return run(op, sums, threads); }

void ssim_backward(const Ssim& op, int threads) {
  run(op, nullptr, threads);
  window_softmax_backward(WindowTasks(op.loss.windows, op.loss.input.dtype == F64, 0, threads), op.loss);
}

}  // namespace segfuse
