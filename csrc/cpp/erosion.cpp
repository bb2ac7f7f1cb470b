// Runs the erosions of every plane, and back for the gradient while the fields are still in cache.
//
// Memory: with a gradient one field per erosion, of the planes being worked on only (rows that are 0 are never
// touched);
//         without, two fields. Nothing but the gradient itself outlives the call.
// Order:  planes are cut into slabs by their shape alone, and slabs are added in index order. Many planes share the
//         threads whole; of a few, each is shared slab by slab.
#include <cmath>

#include "kernels.h"
#include "planes.h"

namespace segfuse {
namespace {

constexpr int64_t SLAB = 1 << 14;  // pixels; below this a second thread costs more than it brings

class Plane {
 public:
  Plane(const Erosion& op, int threads) : op_(op), k_(erosion_kernels()), slabs_(op.pair, SLAB), threads_(threads) {
    const int64_t size = op.pair.dtype == F64 ? 8 : 4, pitch = k_.pitch(op.pair.shape[2]), rows = slabs_.rows;
    const int64_t fields = op.pair.grad != nullptr ? op.steps + 2 : 2;
    const int64_t bytes = ((rows * pitch + 16) * size + 63) / 64 * 64, edge = (pitch + 1) * size;
    memory_ = buffer(bytes * (fields + !op.pair.plain) + 2 * edge);
    live_.reset(new uint8_t[fields * rows]);
    for (int64_t f = 0; f < fields; ++f)
      fields_.push_back({memory_.get() + f * bytes, live_.get() + f * rows, 0, 1, 0});
    u_ = op.pair.plain ? nullptr : memory_.get() + fields * bytes;
    zero_ = memory_.get() + bytes * (fields + !op.pair.plain);
    edge_ = zero_ + edge;
    std::memset(zero_, 0, edge);
    partial_.resize(slabs_.count);
  }

  double run(int64_t n, int64_t c) {
    const ErosionPartial started = sum([&](int64_t begin, int64_t end, ErosionPartial& partial) {
      k_.start(op_, n, c, begin, end, fields_[0], u_, partial);
    });
    fields_[0].low = 0, fields_[0].scale = 1;
    double total = 0;
    int last = 0;
    const bool gradient = op_.pair.grad != nullptr;
    for (int step = 1; step <= op_.steps; ++step) {
      const ErosionField& in = gradient ? fields_[step - 1] : fields_[(step - 1) % 2];
      ErosionField& out = gradient ? fields_[step] : fields_[step % 2];
      const void* edge = in.low == 0 ? zero_ : edge_;
      const ErosionPartial found = sum([&](int64_t begin, int64_t end, ErosionPartial& partial) {
        k_.erode(op_, begin, end, in, edge, u_, out, partial);
      });
      if (found.high == 0 && found.sum == 0) break;  // and so are all that follow
      normalise(found, out);
      total += std::pow(step, op_.alpha) * out.scale * (found.sum - out.low * started.sum);
      last = step;
    }
    if (gradient) write_gradient(n, c, last);
    return total;
  }

 private:
  void normalise(const ErosionPartial& found, ErosionField& out) {
    const bool stretch = op_.norm == MINMAX && found.high > found.low;
    out.low = stretch ? found.low : 0;
    out.high = stretch ? found.high : 0;
    out.scale = stretch ? 1 / (found.high - found.low) : op_.norm == DOUBLE ? 2 : 1;
    if (out.low != 0) k_.surround(op_, out, edge_);
  }

  // The derivative by b_k lives in turn in the field that b_0 has left and in the one after the last.
  void write_gradient(int64_t n, int64_t c, int last) {
    ErosionField* here = nullptr;
    ErosionField *next = &fields_[0], *other = &fields_.back();
    for (int step = last; step >= 1; --step) {
      const ErosionField& e = fields_[step];
      const ErosionPartial found = sum([&](int64_t begin, int64_t end, ErosionPartial& partial) {
        k_.back(op_, begin, end, here, zero_, u_, std::pow(step, op_.alpha), e, *next, partial);
      });
      next->scale = e.scale;
      if (e.high > e.low && found.at_high > 0) {
        const double to_high = -found.sum / found.at_high;
        const double to_low = e.low > 0 ? (found.sum - found.other) / found.at_low : 0;
        if (to_high != 0 || to_low != 0)
          sum([&](int64_t begin, int64_t end, ErosionPartial&) {
            k_.bounds(op_, begin, end, e, to_high, to_low, *next);
          });
      }
      here = next;
      std::swap(next, other);
    }
    if (here == nullptr) {
      here = next;
      std::memset(here->live, 0, slabs_.rows);
    }
    sum([&](int64_t begin, int64_t end, ErosionPartial&) { k_.finish(op_, n, c, begin, end, *here, zero_); });
  }

  // body(begin, end, partial) for every slab of rows; the partials, combined in order
  template <typename Body>
  ErosionPartial sum(Body body) {
    slabs_.each(threads_, [&](int64_t begin, int64_t end, int64_t i) {
      partial_[i] = {HUGE_VAL, -HUGE_VAL, 0, 0, 0, 0};
      body(begin, end, partial_[i]);
    });
    ErosionPartial all{HUGE_VAL, -HUGE_VAL, 0, 0, 0, 0};
    for (const ErosionPartial& one : partial_) {
      all.low = std::min(all.low, one.low);
      all.high = std::max(all.high, one.high);
      all.sum += one.sum;
      all.other += one.other;
      all.at_high += one.at_high;
      all.at_low += one.at_low;
    }
    if (all.high < all.low) all.high = all.low = 0;  // no row was live
    return all;
  }

  const Erosion& op_;
  const ErosionKernels& k_;
  const Slabs slabs_;
  const int threads_;
  Buffer memory_;
  std::unique_ptr<uint8_t[]> live_;
  std::vector<ErosionField> fields_;
  std::vector<ErosionPartial> partial_;
  char *u_, *zero_, *edge_;
};

}  // namespace

void erosion_forward(const Erosion& op, double* sums, int threads) { for_each_plane<Plane>(op, SLAB, sums, threads); }

}  // namespace segfuse
