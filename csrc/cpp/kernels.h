// What an instruction-set unit offers: a table of functions for each op. <op>_kernels.cpp is compiled once per set,
// each in a namespace of its own, and defines `<op>_table` there; `<op>_kernels()` is the table of the set in use.
#pragma once
#include "../segfuse.h"

namespace segfuse {

int isa();  // 0 baseline, 1 AVX2, 2 AVX-512; chosen once, at load (isa.cpp)

#ifdef SEGFUSE_X86
#define SEGFUSE_TABLE(Table, op)                                                                   \
  namespace baseline {                                                                             \
  extern const Table op##_table;                                                                   \
  }                                                                                                \
  namespace avx2 {                                                                                 \
  extern const Table op##_table;                                                                   \
  }                                                                                                \
  namespace avx512 {                                                                               \
  extern const Table op##_table;                                                                   \
  }                                                                                                \
  inline const Table& op##_kernels() {                                                             \
    return isa() == 2 ? avx512::op##_table : isa() == 1 ? avx2::op##_table : baseline::op##_table; \
  }
#else
#define SEGFUSE_TABLE(Table, op) \
  namespace baseline {           \
  extern const Table op##_table; \
  }                              \
  inline const Table& op##_kernels() { return baseline::op##_table; }
#endif

// A chunk is a run of pixels of one sample, cut at multiples of the tile.
struct PixelStatsKernels {
  // Pixels per tile and bytes of scratch for one thread.
  int64_t (*tile)(const PixelStats& op);
  size_t (*scratch)(const PixelStats& op);
  // partial: [K] of class c, or [K, C] under softmax, every entry written; nullptr: no sums. The gradient is written
  // where op.output is given. Returns the number of targets and weights out of range.
  int64_t (*pass)(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t end, double* partial,
                  void* scratch);
  int64_t (*map)(const PixelStats& op, int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch);
};
SEGFUSE_TABLE(PixelStatsKernels, pixel_stats)

// A distance transform on its way: distances along x, then y, then z, each pass in place in `work`.
struct DistancePass {
  const DistanceTransform& op;
  bool wide;               // work and tables hold double, otherwise float
  void* work;              // (planes, H, W), squared distances so far; see the kernels for their sign
  void* second;            // NEAREST_TWO: the same for the second nearest instance
  int32_t* instances[2];   // NEAREST_TWO: (planes, H, W), the instances that the two distances belong to; 0 none
  int32_t* index[3];       // (planes, H, W), coordinate z, y, x of the nearest pixel, or nullptr
  const void* squares[3];  // (unit k)^2 of axis z, y, x at [k], -side < k < side
  double unit[3];          // spacing over `scale`
  double scale;
  int last;  // the axis whose pass comes last and writes the distances themselves
};

struct DistanceTransformKernels {
  size_t (*scratch)(const DistancePass& pass);  // bytes for one thread
  // Rows [begin, end) of one plane along x. Returns the number of instance numbers that do not fit 32 bits.
  int64_t (*rows)(const DistancePass& pass, int64_t plane, int64_t begin, int64_t end, void* scratch);
  // Columns along y (axis 1) of one plane, or along z (axis 0) of one volume: [begin, end) of those that start in it.
  void (*columns)(const DistancePass& pass, int axis, int64_t unit, int64_t begin, int64_t end, void* scratch);
};
constexpr int64_t DISTANCE_COLUMNS = 64;  // columns that lie side by side in a tile
SEGFUSE_TABLE(DistanceTransformKernels, distance_transform_edt)

}  // namespace segfuse
