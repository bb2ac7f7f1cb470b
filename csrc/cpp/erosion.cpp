// Runs the erosions of every plane, and back for the gradient while the fields are still in cache.
//
// Memory: with a gradient one field per erosion, of the planes being worked on only (rows that are 0 are never touched);
//         without, two fields. Nothing but the gradient itself outlives the call.
// Order:  planes are cut into slabs by their shape alone, and slabs are added in index order. Many planes share the
//         threads whole; of a few, each is shared slab by slab.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace segfuse {
namespace {

constexpr int64_t SLAB = 1 << 14;  // elements; below this a second thread costs more than it brings

struct Free {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};

class Plane {
 public:
  explicit Plane(const Erosion& op)
      : op_(op), k_(erosion_kernels()), rows_(op.pair.shape[0] * op.pair.shape[1]) {
    const int64_t size = op.pair.dtype == F64 ? 8 : 4, pitch = k_.pitch(op.pair.shape[2]);
    slab_ = std::max<int64_t>(1, SLAB / std::max<int64_t>(op.pair.shape[2], 1));
    slabs_ = (rows_ + slab_ - 1) / slab_;
    const int64_t fields = op.pair.grad != nullptr ? op.steps + 2 : 2;
    const int64_t bytes = ((rows_ * pitch + 16) * size + 63) / 64 * 64, edge = (pitch + 1) * size;
    memory_.reset(static_cast<char*>(::operator new(bytes * (fields + !op.pair.plain) + 2 * edge, std::align_val_t{64})));
    live_.reset(new uint8_t[fields * rows_]);
    for (int64_t f = 0; f < fields; ++f)
      fields_.push_back({memory_.get() + f * bytes, live_.get() + f * rows_, 0, 1, 0});
    u_ = op.pair.plain ? nullptr : memory_.get() + fields * bytes;
    zero_ = memory_.get() + bytes * (fields + !op.pair.plain);
    edge_ = zero_ + edge;
    std::memset(zero_, 0, edge);
    partial_.resize(slabs_);
  }

  double run(int64_t n, int64_t c, int threads) {
    threads_ = threads;
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
    out.high = found.high;
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
      if (op_.norm == MINMAX && e.high > e.low && found.at_high > 0) {
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
      std::memset(here->live, 0, rows_);
    }
    sum([&](int64_t begin, int64_t end, ErosionPartial&) { k_.finish(op_, n, c, begin, end, *here, zero_); });
  }

  // body(begin, end, partial) for every slab of rows; the partials, combined in order
  template <typename Body>
  ErosionPartial sum(Body body) {
    parallel(slabs_, threads_, [&](auto&& next) {
      for (int64_t i; (i = next()) < slabs_;) {
        partial_[i] = {HUGE_VAL, -HUGE_VAL, 0, 0, 0, 0};
        body(i * slab_, std::min((i + 1) * slab_, rows_), partial_[i]);
      }
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
  const int64_t rows_;
  int64_t slab_, slabs_;
  int threads_ = 1;
  std::unique_ptr<char, Free> memory_;
  std::unique_ptr<uint8_t[]> live_;
  std::vector<ErosionField> fields_;
  std::vector<ErosionPartial> partial_;
  char *u_, *zero_, *edge_;
};

}  // namespace

void erosion_forward(const Erosion& op, double* sums, int threads) {
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
  const int workers = whole ? static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, planes * S / SLAB))) : 1;
  std::vector<std::unique_ptr<Plane>> work;  // allocated here, where running out of memory can still be reported
  for (int i = 0; i < workers; ++i) work.emplace_back(new Plane(op));
  std::atomic<int> arrived{0};
  parallel(planes, workers, [&](auto&& next) {
    Plane& mine = *work[arrived.fetch_add(1)];
    for (int64_t i; (i = next()) < planes;)
      sums[i] = mine.run(i / classes, pair.first + i % classes, whole ? 1 : threads);
  });
}

}  // namespace segfuse
