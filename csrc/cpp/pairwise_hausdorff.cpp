// Runs pairwise_hausdorff on every plane: over the points for their means, then over the pixels for the rest.
//
// Memory: the points of one plane per thread, and a few rows of scratch.
// Order:  a point's mean is made by one thread; slabs of rows follow from the shape alone and are added in index order.
#include <cmath>

#include "kernels.h"
#include "planes.h"

namespace segfuse {
namespace {

constexpr int64_t POINTS = 16;     // that share a row of p in cache
constexpr int64_t SLAB = 1 << 10;  // pixels, each of which meets every point

class Plane {
 public:
  Plane(const PairwiseHausdorff& op, int threads)
      : op_(op),
        k_(pairwise_hausdorff_kernels()),
        slabs_(op.pair, SLAB),
        threads_(threads),
        partial_(3 * slabs_.count) {
    scratch_bytes_ = (k_.scratch_bytes(op) + 63) / 64 * 64;
    scratch_ = buffer(threads * scratch_bytes_);
    points_.reserve(most_points());
    double square = 0;
    for (int d = 3 - op.pair.dims; d < 3; ++d) square += std::pow(op.pair.shape[d], 2);
    d_max_ = std::sqrt(square);
  }

  double run(int64_t n, int64_t c) {
    rows([&](int64_t begin, int64_t end, int64_t i, char* scratch) {
      partial_[2 * i] = partial_[2 * i + 1] = 0;
      k_.mass(op_, n, c, begin, end, scratch, &partial_[2 * i], &partial_[2 * i + 1]);
    });
    double u = 0, mass = op_.eps;
    for (int64_t i = 0; i < slabs_.count; ++i) u += partial_[2 * i], mass += partial_[2 * i + 1];
    const double points = find_points(n, c);
    if (u <= 0 || points <= 0) {  // a NaN goes on
      clear_gradient(n, c);
      return u > 0 ? d_max_ : u;
    }
    const PairwiseGroup group{n,      c,       points_.data(), static_cast<int64_t>(points_.size()),
                              d_max_, op_.eps, op_.exponent};
    const double mean = over_points(group, u, points);
    rows([&](int64_t begin, int64_t end, int64_t i, char* scratch) {
      partial_[i] = k_.pixels(op_, group, begin, end, 1 / mass, scratch);
    });
    double nearest = 0;
    for (int64_t i = 0; i < slabs_.count; ++i) nearest += partial_[i];
    nearest /= mass;
    if (op_.pair.grad != nullptr) {
      rows([&](int64_t begin, int64_t end, int64_t, char* scratch) {
        k_.shift(op_, n, c, begin, end, -nearest / mass, scratch);
      });
      if (op_.mean == LEAST || op_.mean == POWER_MIN) k_.scatter(op_, group);
    }
    return nearest + mean;
  }

 private:
  // The mean over the points of M_t, and the factors of its derivative.
  double over_points(const PairwiseGroup& group, double u, double weights) {
    const int64_t blocks = (group.count + POINTS - 1) / POINTS;
    const bool powers = op_.mean == HARMONIC || op_.mean == POWER_MEAN;
    each(blocks, [&](int64_t i, char* scratch) {
      const int64_t begin = i * POINTS, end = std::min(begin + POINTS, group.count);
      if (op_.mean == HARMONIC)
        for (int64_t t = begin; t < end; ++t) points_[t].least = 1;  // no reciprocal of g >= eps overflows
      else
        k_.least(op_, group, begin, end, scratch);
      if (powers) k_.sum(op_, group, begin, end, scratch);
    });
    double total = 0;
    for (PairwisePoint& t : points_) {
      const double share = t.weight / weights;
      if (powers) {
        const double ratio = std::pow(t.sum / u, 1 / op_.exponent);  // M / least
        total += share * t.least * ratio;
        t.factor = share * std::pow(ratio, 1 - op_.exponent) / u;
      } else {
        total += share * (op_.mean == POWER_MIN ? std::min(t.least, d_max_) : t.least);
        t.factor = share;
      }
    }
    return total;
  }

  // Fills points_; returns the sum of their weights.
  double find_points(int64_t n, int64_t c) {
    const HardPair& pair = op_.pair;
    points_.clear();
    double total = 0;
    if (op_.points != nullptr) {
      const int64_t group = n * (pair.C - pair.first) + c - pair.first;
      for (int64_t i = op_.begin[group]; i < op_.begin[group + 1]; ++i) {
        PairwisePoint t{};
        for (int d = 0; d < pair.dims; ++d) t.at[3 - pair.dims + d] = op_.points[i * pair.dims + d];
        t.weight = 1;
        points_.push_back(t);
      }
      return static_cast<double>(points_.size());
    }
    const int64_t Y = pair.shape[1], X = pair.shape[2], S = slabs_.rows * X, here = (n * pair.C + c) * S;
    const int16_t* code = pair.code + (pair.index ? n * S : here);
    const int64_t weights = pair.weight_per_class ? here : n * S;
    for (int64_t i = 0; i < S; ++i) {
      if (code[i] != (pair.index ? c : 1)) continue;
      PairwisePoint t{};
      t.at[0] = static_cast<double>(i / X / Y), t.at[1] = static_cast<double>(i / X % Y);
      t.at[2] = static_cast<double>(i % X);
      t.weight = pair.weight == nullptr ? 1
                 : pair.dtype == F64    ? static_cast<const double*>(pair.weight)[weights + i]
                                        : static_cast<const float*>(pair.weight)[weights + i];
      if (t.weight == 0) continue;
      points_.push_back(t);
      total += t.weight;
    }
    return total;
  }

  int64_t most_points() const {
    const HardPair& pair = op_.pair;
    const int64_t groups = pair.N * (pair.C - pair.first);
    if (op_.points == nullptr) return slabs_.rows * pair.shape[2];
    int64_t most = 0;
    for (int64_t i = 0; i < groups; ++i) most = std::max(most, op_.begin[i + 1] - op_.begin[i]);
    return most;
  }

  void clear_gradient(int64_t n, int64_t c) {
    const int64_t bytes = slabs_.rows * op_.pair.shape[2] * (op_.pair.dtype == F64 ? 8 : 4);
    if (op_.pair.grad != nullptr)
      std::memset(static_cast<char*>(op_.pair.grad) + (n * op_.pair.C + c) * bytes, 0, bytes);
  }

  // body(number, scratch)
  template <typename Body>
  void each(int64_t count, Body body) {
    std::atomic<int> arrived{0};
    parallel(count, threads_, [&](auto&& next) {
      char* scratch = scratch_.get() + arrived.fetch_add(1) * scratch_bytes_;
      for (int64_t i; (i = next()) < count;) body(i, scratch);
    });
  }
  template <typename Body>
  void rows(Body body) {
    each(slabs_.count, [&](int64_t i, char* scratch) {
      body(i * slabs_.length, std::min((i + 1) * slabs_.length, slabs_.rows), i, scratch);
    });
  }

  const PairwiseHausdorff& op_;
  const PairwiseHausdorffKernels& k_;
  const Slabs slabs_;
  const int threads_;
  double d_max_;
  int64_t scratch_bytes_;
  Buffer scratch_;
  std::vector<double> partial_;
  std::vector<PairwisePoint> points_;
};

}  // namespace

void pairwise_hausdorff_forward(const PairwiseHausdorff& op, double* losses, int threads) {
  for_each_plane<Plane>(op, SLAB, losses, threads);
}

}  // namespace segfuse
