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

// A box of pixels of one plane: a task of a sweep over windows.
struct Box {
  int64_t n, c, begin[3], end[3];
};

// Every function works on one box, or on the rows [begin, end) of a plane, with scratch of its own.
struct LocalMomentsKernels {
  size_t (*scratch)(const Windows& windows, const int64_t tile[3], bool wide);
  void (*moments)(const LocalMoments& op, const Box& box, bool backward, void* scratch);
  // Returns the number of targets and weights out of range, as do the others.
  int64_t (*ssim)(const Ssim& op, const Box& box, double sums[2], void* scratch);
  int64_t (*cmssl_error)(const Cmssl& op, const Box& box, double* largest, void* scratch);
  int64_t (*cmssl_sums)(const Cmssl& op, int64_t n, int64_t c, int64_t begin, int64_t end, double sums[2],
                        void* scratch);
  void (*cmssl_backward)(const Cmssl& op, const Box& box, void* scratch);
  // Softmax of every pixel of the rows, and the gradient of the logits from that of the probabilities.
  int64_t (*softmax)(const WindowLoss& op, int64_t n, int64_t begin, int64_t end, void* scratch);
  void (*softmax_backward)(const WindowLoss& op, int64_t n, int64_t begin, int64_t end, void* scratch);
};
SEGFUSE_TABLE(LocalMomentsKernels, local_moments)

}  // namespace segfuse
