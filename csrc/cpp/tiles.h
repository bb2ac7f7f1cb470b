// A run of pixels of any tensor as a tile of T, and its targets classified. Included by <op>_kernels.cpp, once per
// instruction set (SEGFUSE_ISA names it).
#pragma once
#include "../terms.h"
#include "rows.h"

#define SIMD_SUM(...) SIMD_REDUCE(+ : __VA_ARGS__)

namespace segfuse {
namespace SEGFUSE_ISA {
namespace {

// ---------------------------------------------------------------------------------------------------- tiles

// Calls f(offset, stride, count, at) for every run of the pixels [begin, begin + length) that a view walks evenly.
template <typename F>
inline void runs(const PixelStats& op, const View& v, int64_t begin, int64_t length, F f) {
  if (op.dims == 1) return f(begin * v.spatial[0], v.spatial[0], length, int64_t(0));
  const int last = op.dims - 1;
  for (int64_t at = 0; at < length;) {
    int64_t rest = begin + at;
    const int64_t column = rest % op.shape[last];
    rest /= op.shape[last];
    int64_t where = column * v.spatial[last];
    for (int d = last - 1; d >= 0; --d) {
      where += (rest % op.shape[d]) * v.spatial[d];
      rest /= op.shape[d];
    }
    const int64_t count = min_(op.shape[last] - column, length - at);
    f(where, v.spatial[last], count, at);
    at += count;
  }
}

template <typename Stored, typename T>
inline void read_view(const PixelStats& op, const View& v, const Stored* data, int64_t begin, int64_t length, T* out) {
  runs(op, v, begin, length,
       [=](int64_t where, int64_t stride, int64_t count, int64_t at) { read(data + where, stride, count, out + at); });
}

// One row of a view as T.
template <typename T>
void load(const PixelStats& op, const View& v, int64_t n, int64_t c, int64_t begin, int64_t length, T* out) {
  const int64_t offset = n * v.batch + c * v.channel;
  as_stored(v, [=, &op, &v](const auto* data) { read_view(op, v, data + offset, begin, length, out); });
}

// One row of a view in place when it is already a row of T, else a copy in `buffer`.
template <typename T>
const T* row(const PixelStats& op, const View& v, int64_t n, int64_t c, int64_t begin, int64_t length, T* buffer) {
  const DType own = sizeof(T) == 4 ? F32 : F64;
  if (v.dtype == own && op.dims == 1 && v.spatial[0] == 1)
    return reinterpret_cast<const T*>(v.data) + n * v.batch + c * v.channel + begin;
  load(op, v, n, c, begin, length, buffer);
  return buffer;
}

template <typename Stored, typename T>
inline void write_view(const PixelStats& op, const View& v, Stored* data, int64_t begin, int64_t length, const T* in) {
  runs(op, v, begin, length,
       [=](int64_t where, int64_t stride, int64_t count, int64_t at) { write(in + at, stride, count, data + where); });
}

template <typename T>
void store(const PixelStats& op, const View& v, int64_t n, int64_t c, int64_t begin, int64_t length, const T* in) {
  const int64_t offset = n * v.batch + c * v.channel;
  as_results(v, T(), [=, &op, &v](auto* data) { write_view(op, v, data + offset, begin, length, in); });
}

// Where the output is a row of T it is written in place; `row_out` says where, `finish` stores the rest.
template <typename T>
T* row_out(const PixelStats& op, int64_t n, int64_t c, int64_t begin, T* buffer) {
  const View& v = op.output;
  const DType own = sizeof(T) == 4 ? F32 : F64;
  if (v.dtype == own && op.dims == 1 && v.spatial[0] == 1)
    return reinterpret_cast<T*>(v.data) + n * v.batch + c * v.channel + begin;
  return buffer;
}

// ---------------------------------------------------------------------------------------------------- targets

template <typename T>
struct Target {
  T* y;           // dense: y per element; index: class number per pixel (0 where ignored)
  T* u;           // m, later m * weight
  bool plain;     // every element of the tile is valid; u is not written then
  bool hard;      // every y is 0 or 1
  int64_t valid;  // sum m
  int64_t invalid;
};

// Classifies the targets `y` of one tile against [0, top], the ignore index and the mask: u becomes m, and y becomes 0
// where m = 0. `whole`: only whole numbers are allowed.
template <typename T>
inline void classify(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t length, T top, bool whole,
                     T* mask_buffer, Target<T>& t) {
  T *y = t.y, *u = t.u;
  int outside = 0, soft = 0;
  const bool stored_whole = op.target.dtype >= BOOL;
  if (whole && stored_whole) {
    SIMD_SUM(outside) for (int64_t i = 0; i < length; ++i) outside += !((y[i] >= T(0)) & (y[i] <= top));
  } else {
    SIMD_SUM(outside, soft) for (int64_t i = 0; i < length; ++i) {
      const bool in = (y[i] >= T(0)) & (y[i] <= top);
      const T z = in ? y[i] : T(0);
      outside += (!in) | (whole & (z != static_cast<T>(static_cast<int32_t>(z))));
      soft += (z != T(0)) & (z != T(1));
    }
  }
  t.hard = whole || soft == 0;
  t.plain = true;
  t.valid = length;
  t.invalid = 0;
  const bool ignorable = op.ignore_index >= 0 && double(op.ignore_index) <= double(top);
  if (outside == 0 && !ignorable && op.mask.data == nullptr) return;
  const T ignore = static_cast<T>(op.ignore_index);
  const bool masked = op.mask.data != nullptr;
  if (masked) load(op, op.mask, n, op.mask.channel == 0 ? 0 : c, begin, length, mask_buffer);
  int valid = 0, invalid = 0;
  SIMD_SUM(valid, invalid) for (int64_t i = 0; i < length; ++i) {
    const bool in = (y[i] >= T(0)) & (y[i] <= top);
    const T z = in ? y[i] : T(0);
    const bool inside = in & ((!whole) | (z == static_cast<T>(static_cast<int32_t>(z))));
    const bool kept = (y[i] != ignore) & ((!masked) | (mask_buffer[masked ? i : 0] != T(0)));
    invalid += kept & !inside;
    valid += kept & inside;
    u[i] = (kept & inside) ? T(1) : T(0);
    y[i] = (kept & inside) ? z : T(0);
  }
  t.valid = valid;
  t.invalid = invalid;
  t.plain = valid == length;
}

// Pixels of a tile that holds every class. Short tiles keep C rows in the first cache; with many classes longer rows
// cost fewer page walks.
inline int64_t softmax_tile(int64_t C) { return C <= 32 ? 128 : 512; }

}  // namespace
}  // namespace SEGFUSE_ISA
}  // namespace segfuse
