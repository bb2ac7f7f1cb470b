// Cuts a distance transform into rows and columns and runs them on threads, one axis after the other.
#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace segfuse {
namespace {

constexpr int64_t ROWS = 64;                  // of one plane, the unit of work along x
constexpr int64_t FEW_PLANES = 16;            // from here on a plane is the unit of work along x and y
constexpr int64_t SERIAL_ELEMENTS = 1 << 14;  // below this a second thread costs more than it brings
constexpr double EXACT = 1 << 24;             // integers that float holds
constexpr double FLOAT_RATIO = 1e9;           // between spacings whose squares are far from the smallest float

// (unit k)^2 for -side < k < side
template <typename T>
std::vector<T> squares(int64_t side, double unit) {
  std::vector<T> table(2 * std::max<int64_t>(side, 1) + 1);
  for (int64_t k = 0; k <= side; ++k) table[side - k] = table[side + k] = static_cast<T>(unit * k * (unit * k));
  return table;
}

struct Free {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(size_t bytes) { return Memory(::operator new(std::max<size_t>(bytes, 1), std::align_val_t{64})); }

// body(i, scratch) for i in [0, total), each on one thread
template <typename Body>
void each(int64_t total, int threads, size_t scratch, Body body) {
  parallel(total, threads, [&](auto&& next) {
    const Memory memory = allocate(scratch);
    for (int64_t i; (i = next()) < total;) body(i, memory.get());
  });
}

}  // namespace

int64_t distance_transform_edt(const DistanceTransform& op, int threads) {
  const int64_t D = op.shape[0], H = op.shape[1], W = op.shape[2];
  int64_t planes = op.classes * D;
  for (int d = 0; d < op.leading; ++d) planes *= op.leading_shape[d];
  const int64_t pixels = planes * H * W;
  if (pixels == 0) return 0;

  double farthest = 0, scale = 0, smallest = 0;
  for (int d = 0; d < 3; ++d) {
    if (op.shape[d] == 1) continue;
    scale = std::max(scale, op.spacing[d]);
    smallest = smallest == 0 ? op.spacing[d] : std::min(smallest, op.spacing[d]);
  }
  if (scale == 0) scale = smallest = 1;
  const bool isotropic = scale == smallest;
  for (int64_t side : op.shape) farthest += static_cast<double>(side - 1) * static_cast<double>(side - 1);
  const bool wide = op.output_double || (isotropic ? farthest >= EXACT : scale > smallest * FLOAT_RATIO);

  DistancePass pass{op, wide, op.output, op.second, {}, {}, {}, {}, scale, D > 1 ? 0 : H > 1 ? 1 : 2};
  std::vector<float> narrow_squares[3];
  std::vector<double> wide_squares[3];
  for (int d = 0; d < 3; ++d) {
    pass.unit[d] = op.spacing[d] / scale;
    if (wide)
      pass.squares[d] = (wide_squares[d] = squares<double>(op.shape[d], pass.unit[d])).data() + op.shape[d];
    else
      pass.squares[d] = (narrow_squares[d] = squares<float>(op.shape[d], pass.unit[d])).data() + op.shape[d];
    const int axis = d - (3 - op.axes);
    pass.index[d] = op.indices != nullptr && axis >= 0 ? op.indices + axis * pixels : nullptr;
  }
  Memory work, second, instances;
  if (wide && !op.output_double) pass.work = (work = allocate(pixels * sizeof(double))).get();
  if (op.mode == NEAREST_TWO) {
    if (wide && !op.output_double) pass.second = (second = allocate(pixels * sizeof(double))).get();
    instances = allocate(2 * pixels * sizeof(int32_t));
    for (int k = 0; k < 2; ++k) pass.instances[k] = static_cast<int32_t*>(instances.get()) + k * pixels;
  }

  const DistanceTransformKernels& k = distance_transform_edt_kernels();
  const size_t scratch = k.scratch(pass);
  threads = static_cast<int>(std::min<int64_t>(threads, pixels / SERIAL_ELEMENTS + 1));
  const auto all_columns = [&](int axis, int64_t unit, int64_t count, void* memory) {
    for (int64_t i = 0; i < count; i += DISTANCE_COLUMNS)
      k.columns(pass, axis, unit, i, std::min(i + DISTANCE_COLUMNS, count), memory);
  };
  const auto blocks_of_columns = [&](int axis, int64_t units, int64_t count) {
    const int64_t blocks = (count + DISTANCE_COLUMNS - 1) / DISTANCE_COLUMNS;
    each(units * blocks, threads, scratch, [&](int64_t i, void* memory) {
      const int64_t begin = i % blocks * DISTANCE_COLUMNS;
      k.columns(pass, axis, i / blocks, begin, std::min(begin + DISTANCE_COLUMNS, count), memory);
    });
  };
  std::atomic<int64_t> invalid{0};
  if (planes >= FEW_PLANES) {
    each(planes, threads, scratch, [&](int64_t plane, void* memory) {
      invalid += k.rows(pass, plane, 0, H, memory);
      if (H > 1) all_columns(1, plane, W, memory);
    });
  } else {
    const int64_t blocks = (H + ROWS - 1) / ROWS;
    each(planes * blocks, threads, scratch, [&](int64_t i, void* memory) {
      const int64_t begin = i % blocks * ROWS;
      invalid += k.rows(pass, i / blocks, begin, std::min(begin + ROWS, H), memory);
    });
    if (H > 1) blocks_of_columns(1, planes, W);
  }
  if (D > 1) blocks_of_columns(0, planes / D, H * W);
  return invalid;
}

}  // namespace segfuse
