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
// Pixels of a problem are numbered across its samples. op.slope holds their keys first: the error's bits and, lowest,
// whether the pixel is positive. The highest bits of a key are its cell; the last cell is for pixels without an error.
struct LovaszExtensionFunctions {
  size_t key, sorting;  // bytes of a key, which is as long as a slope, and bytes that sorting a pixel takes
  size_t (*scratch)(const LovaszExtension& op);
  // Keys of a run of pixels of sample n: of class c for the hinge, else of all classes. Returns the number of
  // invalid targets.
  int64_t (*keys)(const LovaszExtension& op, int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch);
  // Adds to counts [CELLS, 2] the negatives and positives of every cell.
  void (*count)(const LovaszExtension& op, int64_t problem, int64_t begin, int64_t end, uint32_t* counts);
  // Writes the keys of every cell from sorted[cursors[2 * cell]] on. Those of cells below `lowest` and of the last one
  // go where the cursor is, which stays.
  void (*partition)(const LovaszExtension& op, int64_t problem, int64_t begin, int64_t end, int64_t lowest,
                    uint32_t* cursors, void* sorted);
  // Sorts the n keys of one cell, with G positives in the problem, of which F, and B negatives, lie in the cells
  // above. Puts the slopes in place of the keys, and returns the cell's part of the loss. buffer: n * sorting bytes,
  // where the weights are unequal, that is, where there is a negative.
  double (*weigh)(void* cell, int64_t n, int64_t G, int64_t F, int64_t B, bool unequal, void* buffer);
  // The way back: puts sorted slopes in place of the keys. The arguments are those of `partition`.
  void (*collect)(const LovaszExtension& op, int64_t problem, int64_t begin, int64_t end, int64_t lowest,
                  uint32_t* cursors, const void* sorted);
  void (*gradient)(const LovaszExtension& op, int64_t n, int64_t c, int64_t begin, int64_t end,
                   const double* coefficient, void* scratch);
};
struct LovaszExtensionKernels {
  LovaszExtensionFunctions single, wide;  // for float and for double errors
};
constexpr int64_t LOVASZ_CELLS = 1 << 13;  // 32 for each power of two of a float error
SEGFUSE_TABLE(LovaszExtensionKernels, lovasz_extension)

}  // namespace segfuse
