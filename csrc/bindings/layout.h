// From sizes and strides, as a tensor library gives them, to the native interface. No Python.
#pragma once
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../segfuse.h"

namespace segfuse {
namespace {

// (dtype, strides of N, C and every spatial axis); None is absent
struct Layout {
  bool present = false;
  DType dtype = F32;
  std::vector<int64_t> strides;
};

// Merges neighbouring spatial axes that every tensor walks as one, and fills shape and strides.
void set_layout(PixelStats& op, const std::vector<int64_t>& spatial,
                const std::vector<std::pair<Layout, View*>>& tensors) {
  op.dims = 0;
  op.S = 1;
  for (int64_t side : spatial) op.S *= side;
  size_t previous = spatial.size();
  for (size_t d = 0; d < spatial.size(); ++d) {
    if (spatial[d] == 1) continue;
    bool merge = previous < spatial.size();
    for (const auto& [t, view] : tensors)
      if (t.present && merge) merge = t.strides[2 + previous] == t.strides[2 + d] * spatial[d];
    if (!merge && op.dims == MAX_DIMS) throw std::length_error("more than 8 spatial axes that cannot be merged");
    if (!merge) op.shape[op.dims++] = 1;
    op.shape[op.dims - 1] *= spatial[d];
    for (const auto& [t, view] : tensors)
      if (t.present) view->spatial[op.dims - 1] = t.strides[2 + d];
    previous = d;
  }
  const bool one = op.dims == 0;
  if (one) op.dims = 1, op.shape[0] = 1;
  for (const auto& [t, view] : tensors) {
    if (!t.present) continue;
    view->dtype = t.dtype;
    view->batch = t.strides[0];
    view->channel = t.strides[1];
    if (one) view->spatial[0] = 1;
  }
}

// Windows: at most three spatial axes, none merged, the last one innermost.
Windows windows(const std::vector<int64_t>& shape, const std::vector<std::vector<double>>& weights, bool valid) {
  if (shape.size() < 3 || shape.size() > 5 || weights.size() != shape.size() - 2)
    throw std::length_error("windows have one to three spatial axes, each with weights");
  Windows w{shape[0], shape[1], {1, 1, 1}, {}, {}, valid};
  for (int d = 0; d < 3; ++d) w.weight[d][0] = 1;
  for (size_t i = 0; i < weights.size(); ++i) {
    const size_t d = i + 3 - weights.size();
    if (weights[i].size() % 2 == 0 || weights[i].size() > 2 * MAX_RADIUS + 1)
      throw std::length_error("a window has an odd number of weights, at most 65");
    w.shape[d] = shape[2 + i];
    w.radius[d] = static_cast<int>(weights[i].size() / 2);
    std::copy(weights[i].begin(), weights[i].end(), w.weight[d]);
  }
  return w;
}

View window_view(const Layout& t) {
  View v;
  if (!t.present) return v;
  v.dtype = t.dtype;
  v.batch = t.strides[0];
  v.channel = t.strides[1];
  const size_t axes = t.strides.size() - 2;
  for (size_t i = 0; i < axes; ++i) v.spatial[i + 3 - axes] = t.strides[2 + i];
  return v;
}

template <typename T>
T* pointer(uintptr_t p) {
  return reinterpret_cast<T*>(p);
}

HardPair hard_pair(const std::vector<int64_t>& shape, int64_t first, int dtype, bool index, bool plain,
                   bool weight_per_class, uintptr_t p, uintptr_t code, uintptr_t weight, uintptr_t grad) {
  if (shape.size() < 3 || shape.size() > 5) throw std::length_error("a pair has 1 to 3 spatial axes");
  const int dims = static_cast<int>(shape.size()) - 2;
  HardPair pair{shape[0],
                shape[1],
                first,
                dims,
                {1, 1, 1},
                static_cast<DType>(dtype),
                index,
                plain,
                weight_per_class,
                pointer<void>(p),
                pointer<int16_t>(code),
                pointer<void>(weight),
                pointer<void>(grad)};
  for (int d = 0; d < dims; ++d) pair.shape[3 - dims + d] = shape[2 + d];
  return pair;
}

DiskSums disk_sums(const HardPair& pair, uintptr_t hard, const std::vector<int>& radii, double alpha) {
  if (radii.size() > MAX_RADII) throw std::length_error("more than 64 radii");
  DiskSums op{pair, pointer<int16_t>(hard), static_cast<int>(radii.size()), {}, {}};
  for (size_t i = 0; i < radii.size(); ++i) op.radius[i] = radii[i], op.factor[i] = std::pow(radii[i], alpha);
  return op;
}

}  // namespace
}  // namespace segfuse
