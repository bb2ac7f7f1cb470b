// Counts the pixels of every ball and runs disk_sums on every plane.
//
// Memory: running sums of one plane per thread, 4 bytes a pixel (8 where a ball has more than 1023 pixels).
// Order:  slabs of rows that follow from the shape alone, added in index order.
#include "../ball.h"
#include "kernels.h"
#include "planes.h"

namespace segfuse {
namespace {

constexpr int64_t SLAB = 1 << 12;  // pixels; below this a second thread costs more than it brings

class Plane {
 public:
  Plane(const DiskSums& op, int threads)
      : op_(op), k_(disk_sums_kernels()), slabs_(op.pair, SLAB), threads_(threads), sums_(slabs_.count) {
    for (int i = 0; i < op.n_radii; ++i) {
      points_[i] = ball(op.radius[i], op.pair.dims);
      wide_ |= points_[i] > 1023;
    }
    running_ = buffer(slabs_.rows * k_.row_bytes(op, wide_));
    scratch_bytes_ = (k_.scratch_bytes(op, wide_) + 63) / 64 * 64;
    scratch_ = buffer(threads * scratch_bytes_);
  }

  double run(int64_t n, int64_t c) {
    slabs_.each(threads_,
                [&](int64_t begin, int64_t end, int64_t) { k_.run(op_, wide_, n, c, begin, end, running_.get()); });
    std::atomic<int> arrived{0};
    parallel(slabs_.count, threads_, [&](auto&& next) {
      char* scratch = scratch_.get() + arrived.fetch_add(1) * scratch_bytes_;
      for (int64_t i; (i = next()) < slabs_.count;)
        sums_[i] = k_.weigh(op_, wide_, points_, n, c, i * slabs_.length,
                            std::min((i + 1) * slabs_.length, slabs_.rows), running_.get(), scratch);
    });
    double total = 0;
    for (double sum : sums_) total += sum;
    return total;
  }

 private:
  const DiskSums& op_;
  const DiskSumsKernels& k_;
  const Slabs slabs_;
  const int threads_;
  int64_t points_[MAX_RADII];
  bool wide_ = false;
  int64_t scratch_bytes_;
  Buffer running_, scratch_;
  std::vector<double> sums_;
};

}  // namespace

bool disk_sums_forward(const DiskSums& op, double* sums, int threads) {
  for (int i = 0; i < op.n_radii; ++i)
    if (op.radius[i] > MAX_BALL || ball(op.radius[i], op.pair.dims) > MAX_BALL) return false;
  for_each_plane<Plane>(op, SLAB, sums, threads);
  return true;
}

}  // namespace segfuse
