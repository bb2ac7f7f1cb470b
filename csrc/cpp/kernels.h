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

}  // namespace segfuse
