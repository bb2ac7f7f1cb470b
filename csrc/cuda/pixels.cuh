// Reading labels, masks and logits of one pixel, and writing its gradient.
#pragma once
#include "launch.cuh"

namespace segfuse {
namespace {

template <typename T>
struct Label {
  T y;
  bool valid, broken;
};

// y against [0, top]; `whole`: only whole numbers fit
template <typename T>
__device__ __forceinline__ Label<T> classify(const PixelStats& op, T y, T top, bool whole, bool unmasked) {
  const bool fits = y >= T(0) && y <= top && (!whole || y == static_cast<T>(static_cast<int32_t>(y)));
  const bool kept = y != static_cast<T>(op.ignore_index) && unmasked;
  return {kept && fits ? y : T(0), kept && fits, kept && !fits};
}

template <typename T>
__device__ __forceinline__ T at(const PixelStats& op, const View& v, int64_t n, int64_t c, int64_t i) {
  return read<T>(v.data, v.dtype, n * v.batch + c * v.channel + pixel_offset(op, v, i));
}

__device__ __forceinline__ bool unmasked(const PixelStats& op, int64_t n, int64_t c, int64_t i) {
  return op.mask.data == nullptr || at<float>(op, op.mask, n, op.mask.channel == 0 ? 0 : c, i) != 0.0f;
}

template <typename Storage>
__device__ __forceinline__ auto logit(const PixelStats& op, int64_t n, int64_t c, int64_t i, bool dense) {
  const View& v = op.input;
  const int64_t offset = n * v.batch + c * v.channel + (dense ? i : pixel_offset(op, v, i));
  return widen(reinterpret_cast<const Storage*>(v.data)[offset]);
}

template <typename Storage, typename T>
__device__ __forceinline__ void store(const PixelStats& op, int64_t n, int64_t c, int64_t i, bool dense, T x) {
  const View& v = op.output;
  const int64_t offset = n * v.batch + c * v.channel + (dense ? i : pixel_offset(op, v, i));
  narrow(x, reinterpret_cast<Storage*>(v.data)[offset]);
}

}  // namespace
}  // namespace segfuse
