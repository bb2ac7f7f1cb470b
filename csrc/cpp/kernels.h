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

// Pixels of a problem are numbered across its samples. op.slope holds their keys first: the error's bits and, lowest,
// whether the pixel is positive. The highest bits of a key are its cell; the last cell is for pixels without an error.
struct LovaszExtensionFunctions {
  size_t element;  // bytes of a sorted pixel
  size_t (*scratch)(const LovaszExtension& op);
  // Keys of a run of pixels of sample n: of class c for the hinge, else of all classes. Returns the number of
  // invalid targets.
  int64_t (*keys)(const LovaszExtension& op, int64_t n, int64_t c, int64_t begin, int64_t end, void* scratch);
  // Adds to counts [CELLS, 2] the negatives and positives of every cell.
  void (*count)(const LovaszExtension& op, int64_t problem, int64_t begin, int64_t end, uint32_t* counts);
  // Moves the pixels of every cell to `elements` from cursor[2 * cell] on; those whose cell is below `lowest` and
  // those without an error go to `nowhere`. Their slopes become 0.
  void (*partition)(const LovaszExtension& op, int64_t problem, int64_t begin, int64_t end, int64_t lowest,
                    uint32_t* cursor, void* elements, uint32_t nowhere);
  // Sorts the n pixels of one cell, with G positives in the problem, of which F, and B negatives, lie in the cells
  // above. Writes their slopes and returns their part of the loss. buffer: room for n elements.
  double (*weigh)(const LovaszExtension& op, int64_t problem, void* elements, int64_t n, int64_t G, int64_t F,
                  int64_t B, bool mixed, void* buffer);
  void (*gradient)(const LovaszExtension& op, int64_t n, int64_t c, int64_t begin, int64_t end,
                   const double* coefficient, void* scratch);
};
struct LovaszExtensionKernels {
  LovaszExtensionFunctions single, wide;  // for float and for double errors
};
constexpr int64_t LOVASZ_CELLS = 1 << 13;  // 32 for each power of two of a float error
SEGFUSE_TABLE(LovaszExtensionKernels, lovasz_extension)

}  // namespace segfuse
