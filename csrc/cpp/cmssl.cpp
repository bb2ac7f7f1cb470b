// CMSSL: a sweep makes e and its maximum, a second look at the pixels the sums above the threshold; a gradient is one
// more sweep that makes e again.
#include <cmath>

#include "window_tasks.h"

namespace segfuse {
namespace {

double larger(double a, double b) { return std::isnan(a) || a > b ? a : b; }  // NaN stays

// The largest e of every group becomes the threshold of its scope.
void thresholds(const Cmssl& op, const double* largest, int64_t per_group) {
  const int64_t N = op.loss.windows.N, C = op.loss.windows.C, first = op.loss.first_class;
  auto top = [&](int64_t n, int64_t c) {
    double x = 0;
    for (int64_t i = 0; i < per_group; ++i) x = larger(x, largest[(n * (C - first) + c - first) * per_group + i]);
    return x;
  };
  for (int64_t n = 0; n < N; ++n)
    for (int64_t c = first; c < C; ++c) op.threshold[n * C + c] = top(n, c);
  auto spread = [&](int64_t n0, int64_t n1, int64_t c0, int64_t c1) {
    double x = 0;
    for (int64_t n = n0; n < n1; ++n)
      for (int64_t c = c0; c < c1; ++c) x = larger(x, op.threshold[n * C + c]);
    for (int64_t n = n0; n < n1; ++n)
      for (int64_t c = c0; c < c1; ++c) op.threshold[n * C + c] = op.beta * x;
  };
  if (op.scope == BATCH) spread(0, N, first, C);
  for (int64_t n = 0; op.scope == SAMPLE && n < N; ++n) spread(n, n + 1, first, C);
  for (int64_t c = first; op.scope == CLASS && c < C; ++c) spread(0, N, c, c + 1);
  if (op.scope == FIXED) std::fill(op.threshold, op.threshold + N * C, op.beta);
}

}  // namespace

int64_t cmssl_forward(const Cmssl& op, double* sums, int threads) {
  const WindowLoss& loss = op.loss;
  const int64_t C = loss.windows.C, groups = loss.windows.N * C, first = loss.first_class;
  const WindowTasks tasks(loss.windows, loss.input.dtype == F64, first, threads);
  std::atomic<int64_t> invalid{window_softmax(tasks, loss)};
  std::fill(op.threshold, op.threshold + groups, 0.0);
  std::fill(sums, sums + 2 * groups, 0.0);
  const std::unique_ptr<double[]> largest(new double[std::max<int64_t>(1, tasks.groups() * tasks.boxes_per_group())]());
  tasks.boxes([&](const Box& box, int64_t i, void* scratch) {
    invalid += tasks.k.cmssl_error(op, box, largest.get() + i, scratch);
  });
  thresholds(op, largest.get(), tasks.boxes_per_group());
  const int64_t runs = tasks.groups() * tasks.row_pieces;
  const std::unique_ptr<double[]> partial(new double[std::max<int64_t>(1, 2 * runs)]());
  tasks.runs(tasks.groups(), [&](int64_t group, int64_t begin, int64_t end, int64_t i, void* scratch) {
    invalid += tasks.k.cmssl_sums(op, group / (C - first), first + group % (C - first), begin, end,
                                  partial.get() + 2 * i, scratch);
  });
  for (int64_t i = 0; !tasks.empty() && i < runs; ++i) {
    const int64_t group = i / tasks.row_pieces;
    double* to = sums + group / (C - first) * C + first + group % (C - first);
    to[0] += partial[2 * i];
    to[groups] += partial[2 * i + 1];
  }
  return invalid;
}

void cmssl_backward(const Cmssl& op, int threads) {
  const WindowLoss& loss = op.loss;
  const WindowTasks tasks(loss.windows, loss.input.dtype == F64, loss.first_class, threads);
  window_softmax(tasks, loss);
  tasks.boxes([&](const Box& box, int64_t, void* scratch) { tasks.k.cmssl_backward(op, box, scratch); });
  window_softmax_backward(tasks, loss);
}

}  // namespace segfuse
